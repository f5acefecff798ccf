"""The history of an alias: who moved it, when, from which version to which, and why. One file a move."""

import getpass
import json
from collections.abc import Mapping, Sequence
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


def list_aliases(warehouse: str) -> list[tuple[str, str]]:
    """Model and alias of all that were ever moved."""
    top = files.join(warehouse, "registry")
    names = files.list_names(top, "*")
    aliases = [(name, alias) for name in names for alias in files.list_names(files.join(top, name), "*")]
    return sorted((name, alias) for name, alias in aliases if alias != VERDICTS)


def read_moves(warehouse: str, name: str, alias: str) -> list[Move]:
    """All moves of an alias, the oldest first. Raises DataError where one is missing or damaged."""
    folder = _folder(warehouse, name, alias)
    moves = []
    for number, file in enumerate(sorted(files.list_names(folder, "*.json")), start=1):
        url = files.join(folder, file)
        move = files.read_json(url)
        if not move or move.get("number") != number:
            raise DataError(f"{url} is not move {number} of {name}@{alias}: one was removed or changed; put it back")
        moves.append(cast(Move, move))
    return moves


def append_move(
    warehouse: str,
    name: str,
    alias: str,
    action: str,
    *,
    before: str | None,
    after: str,
    why: str,
    evidence: Mapping[str, object] | None = None,
) -> Move:
    """Write the next move, before the alias is moved; returns it.

    Raises ClusterError where another job has written one at the same time.
    """
    number = len(read_moves(warehouse, name, alias)) + 1
    move: Move = {
        "number": number,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": getpass.getuser(),
        "action": action,
        "from": before,
        "to": after,
        "why": why,
        "evidence": dict(evidence or {}),
    }
    url = files.join(_folder(warehouse, name, alias), f"{number:06d}.json")
    if not files.write_new(url, (json.dumps(move, indent=1) + "\n").encode()):
        raise ClusterError(f"another job moved {name}@{alias} at the same time ({url}); look at it and run this again")
    return move


def previous_version(moves: Sequence[Move], name: str, alias: str) -> str:
    """The version that the current one replaced. Raises DataError where there was none."""
    current = moves[-1]["to"] if moves else None
    arrival = next((move for move in reversed(moves) if move["to"] == current and move["action"] != ROLLBACK), None)
    if arrival is None or arrival["from"] is None:
        raise DataError(
            f"{name}@{alias} has no version before {current}; `register history` shows its moves"
            if current
            else f"{name}@{alias} was never moved by `register` on this warehouse; run it first"
        )
    return str(arrival["from"])


def format_moves(moves: Sequence[Move]) -> str:
    """One line a move, for people."""
    return "\n".join(
        f"{m['number']:4d}  {m['at']}  {m['by']}  {m['action']}: version {m['from'] or 'none'} -> {m['to']}; {m['why']}"
        for m in moves
    )


def _folder(warehouse: str, name: str, alias: str) -> str:
    return files.join(warehouse, "registry", name, alias)
