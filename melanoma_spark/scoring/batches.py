"""What folder names and JSON files tell about the batches of `scores/`, without reading a row."""

from collections.abc import Iterable, Mapping
from typing import Any

from melanoma_spark.errors import DataError
from melanoma_spark.storage import files

PREFIX = "batch_id="  # of a batch's folder
KINDS = ("scored", "abstained", "rejected", "copies")  # of counts, in the order in which they are shown


def id_of(name: str) -> str:
    """Return the id of a batch from the name of its folder."""
    return name.removeprefix(PREFIX)


def committed(warehouse: str) -> list[str]:
    """Return the ids of the batches in `scores/`, the oldest first."""
    names = files.list_names(files.join(warehouse, "scores"), f"{PREFIX}*")
    return sorted(map(id_of, names))


def read_facts(warehouse: str, batch: str) -> Mapping[str, Any]:
    """Return a batch's `batch.json`; its id alone if it has none."""
    try:
        facts = files.read_json(files.join(warehouse, "batches", batch, "batch.json"))
    except DataError:
        facts = None
    return facts or {"batch_id": batch}


def describe_counts(counts: Mapping[str, int], always: Iterable[str] = ()) -> list[str]:
    """Return texts like `["6 scored", "1 rejected"]`: kinds with a count, and those of `always`."""
    return [f"{counts.get(kind, 0)} {kind}" for kind in KINDS if counts.get(kind) or kind in always]


def describe(facts: Mapping[str, Any]) -> str:
    """Describe a batch in a line."""
    model = f"{facts['model']} version {facts['model_version']}" if "model" in facts else "of before version 0.2"
    counts = ", ".join(describe_counts(facts.get("counts", {})))
    when, verdict = facts.get("committed_at", ""), facts.get("verdict", "")
    return f"{facts['batch_id']}  {when}  {model}  {counts}  {verdict}".rstrip()
