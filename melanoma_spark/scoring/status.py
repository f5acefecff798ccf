"""The batches of `scores/`, by their folders and JSON files, without Spark and MLflow; reports the last ones."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from melanoma_spark import logs
from melanoma_spark.errors import DataError
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.storage import files

PREFIX = "batch_id="  # of a batch's folder
KINDS = ("scored", "abstained", "rejected", "copies")  # of counts, in the order in which they are shown
FIELDS = ("batch_id", "committed_at", "model", "model_version", "run_id", "rows", "counts", "verdict")


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


def report_status(context: StageContext) -> Summary:
    """Log the last batches, the newest first.

    Raises:
        DataError: The newest batch is older than `score.within` hours, or there is none.
    """
    settings, warehouse = context.settings.score, context.warehouse
    ids = committed(warehouse)
    shown = ids[-settings.shown :]
    for batch in reversed(shown):
        facts = read_facts(warehouse, batch)
        logs.result(describe(facts), "batch", **{key: facts[key] for key in FIELDS if key in facts})
    if settings.within is not None:
        newest = read_facts(warehouse, ids[-1]).get("committed_at") if ids else None
        age = newest and (datetime.now(UTC) - datetime.fromisoformat(newest)).total_seconds() / 3600
        if age is None or age > settings.within:
            when = f"the newest batch is of {newest}, {age:.1f} hours ago" if newest else "there is no batch"
            raise DataError(f"{when}; expected one within {settings.within:g} hours (score.within)")
    return Summary(f"{len(ids)} batches in scores/, {len(shown)} shown, the newest first")
