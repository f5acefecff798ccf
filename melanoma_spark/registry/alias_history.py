"""Who moved an alias of a model, when, from which version to which, and why: a file for each move, never rewritten."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from melanoma_spark.errors import ClusterError, DataError
from melanoma_spark.storage import files

PROMOTE, ROLLBACK, OUTSIDE = "promote", "rollback", "outside"
VERDICTS = "verdicts"  # beside a model's aliases: which rules each version held


def aliases(warehouse: str) -> list[tuple[str, str]]:
    """Model and alias of all that were ever moved."""
    top = files.join(warehouse, "registry")
    found = [
        (name, alias) for name in files.list_names(top, "*") for alias in files.list_names(files.join(top, name), "*")
    ]
    return sorted((name, alias) for name, alias in found if alias != VERDICTS)


def moves(warehouse: str, name: str, alias: str) -> list[Mapping[str, Any]]:
    """All moves of an alias, the oldest first. Raises DataError where one is missing or damaged."""
    folder = _folder(warehouse, name, alias)
    found = []
    for number, file in enumerate(sorted(files.list_names(folder, "*.json")), start=1):
        url = files.join(folder, file)
        move = files.read_json(url)
        if not move or move.get("number") != number:
            raise DataError(f"{url} is not move {number} of {name}@{alias}: one was removed or changed; put it back")
        found.append(move)
    return found


def append(
    warehouse: str,
    name: str,
    alias: str,
    action: str,
    before: str | None,
    after: str,
    why: str,
    evidence: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the next move, before the alias is moved; returns it.

    Raises ClusterError where another job has written one at the same time.
    """
    number = len(moves(warehouse, name, alias)) + 1
    move = {
        "number": number,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": getpass.getuser(),
        "action": action,
        "from": before,
        "to": after,
        "why": why,
        "evidence": dict(evidence),
    }
    url = files.join(_folder(warehouse, name, alias), f"{number:06d}.json")
    if not files.write_new(url, (json.dumps(move, indent=1) + "\n").encode()):
        raise ClusterError(f"another job moved {name}@{alias} at the same time ({url}); look at it and run this again")
    return move


def previous(found: Sequence[Mapping[str, Any]], name: str, alias: str) -> str:
    """The version that stood before the one that stands now came. Raises DataError where there was none."""
    current = found[-1]["to"] if found else None
    came = next((m for m in reversed(found) if m["to"] == current and m["action"] != ROLLBACK), None)
    if came is None or came["from"] is None:
        raise DataError(
            f"{name}@{alias} has no version before {current}; `register history` tells its moves"
            if current
            else f"{name}@{alias} was never moved by `register` on this warehouse; run it first"
        )
    return str(came["from"])


def told(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a move, for people."""
    return "\n".join(
        f"{m['number']:4d}  {m['at']}  {m['by']}  {m['action']}: version {m['from'] or 'none'} -> {m['to']}; {m['why']}"
        for m in found
    )


def _folder(warehouse: str, name: str, alias: str) -> str:
    return files.join(warehouse, "registry", name, alias)
