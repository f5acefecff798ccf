"""The history of an alias: who moved it, when, from which version to which, and why. One file a move."""

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, cast

from melanoma_spark.errors import ClusterError, DataError
from melanoma_spark.storage import files

PROMOTE, ROLLBACK, OUTSIDE = "promote", "rollback", "outside"
VERDICTS = "verdicts"  # the folder next to a model's aliases with the rules that each version passed

Move = TypedDict(
    "Move",
    {
        "number": int,  # from 1
        "at": str,  # ISO 8601, UTC
        "by": str,
        "action": str,
        "from": str | None,
        "to": str,
        "why": str,
        "evidence": dict[str, Any],
    },
)


@dataclass(frozen=True)
class History:
    """The moves of one alias of a model on a warehouse."""

    warehouse: str
    name: str
    alias: str

    def read(self) -> list[Move]:
        """All moves, the oldest first. Raises DataError where one is missing or damaged."""
        moves = []
        for number, file in enumerate(sorted(files.list_names(self._folder, "*.json")), start=1):
            url = files.join(self._folder, file)
            move = files.read_json(url)
            if not move or move.get("number") != number:
                raise DataError(
                    f"{url} is not move {number} of {self.name}@{self.alias}: one was removed or changed; put it back"
                )
            moves.append(cast(Move, move))
        return moves

    def append(
        self, action: str, before: str | None, after: str, why: str, evidence: Mapping[str, object] | None = None
    ) -> Move:
        """Write the next move, before the alias is moved; returns it.

        Raises ClusterError where another job has written one at the same time.
        """
        move: Move = {
            "number": len(self.read()) + 1,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": getpass.getuser(),
            "action": action,
            "from": before,
            "to": after,
            "why": why,
            "evidence": dict(evidence or {}),
        }
        url = files.join(self._folder, f"{move['number']:06d}.json")
        if not files.write_new(url, (json.dumps(move, indent=1) + "\n").encode()):
            raise ClusterError(
                f"another job moved {self.name}@{self.alias} at the same time ({url}); look at it and run this again"
            )
        return move

    def previous_version(self) -> str:
        """The version that the current one replaced. Raises DataError where there was none."""
        moves = self.read()
        current = moves[-1]["to"] if moves else None
        arrival = next((move for move in reversed(moves) if move["to"] == current and move["action"] != ROLLBACK), None)
        if arrival is None or arrival["from"] is None:
            raise DataError(
                f"{self.name}@{self.alias} has no version before {current}; `register history` shows its moves"
                if current
                else f"{self.name}@{self.alias} was never moved by `register` on this warehouse; run it first"
            )
        return str(arrival["from"])

    @property
    def _folder(self) -> str:
        return files.join(self.warehouse, "registry", self.name, self.alias)


def list_histories(warehouse: str) -> list[History]:
    """The histories of all aliases that were ever moved, by model."""
    top = files.join(warehouse, "registry")
    names = files.list_names(top, "*")
    aliases = [(name, alias) for name in names for alias in files.list_names(files.join(top, name), "*")]
    return [History(warehouse, name, alias) for name, alias in sorted(aliases) if alias != VERDICTS]


def format_moves(moves: Sequence[Move]) -> str:
    """One line a move, for people."""
    return "\n".join(
        f"{m['number']:4d}  {m['at']}  {m['by']}  {m['action']}: version {m['from'] or 'none'} -> {m['to']}; {m['why']}"
        for m in moves
    )
