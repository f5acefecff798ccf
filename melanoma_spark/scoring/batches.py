"""What is known of the batches of `scores/` without reading a row: names of folders, and a JSON file each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from melanoma_spark.errors import DataError
from melanoma_spark.storage import files

PREFIX = "batch_id="  # of a batch's folder
KINDS = ("scored", "abstained", "rejected", "copies")  # of counts, in the order in which they are told


def id_of(name: str) -> str:
    """The id of a batch by the name of its folder."""
    return name.removeprefix(PREFIX)


def committed(warehouse: str) -> list[str]:
    """The ids of the batches in `scores/`, the oldest first."""
    names = files.list_names(files.join(warehouse, "scores"), f"{PREFIX}*")
    return sorted(map(id_of, names))


def facts(warehouse: str, batch: str) -> Mapping[str, Any]:
    """A batch's `batch.json`; of one that has none its id alone."""
    try:
        found = files.read_json(files.join(warehouse, "batches", batch, "batch.json"))
    except DataError:
        found = None
    return found or {"batch_id": batch}


def counted(counts: Mapping[str, int], always: Iterable[str] = ()) -> list[str]:
    """`["6 scored", "1 rejected"]`: what there is of each kind, and those of `always` where there is none, too."""
    return [f"{counts.get(kind, 0)} {kind}" for kind in KINDS if counts.get(kind) or kind in always]


def told(found: Mapping[str, Any]) -> str:
    """A batch's facts in a line."""
    model = f"{found['model']} version {found['model_version']}" if "model" in found else "of before version 0.2"
    counts = ", ".join(counted(found.get("counts", {})))
    when, verdict = found.get("committed_at", ""), found.get("verdict", "")
    return f"{found['batch_id']}  {when}  {model}  {counts}  {verdict}".rstrip()
