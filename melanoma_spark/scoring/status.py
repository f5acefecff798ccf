"""Score status: the last batches of `scores/`, by their JSON files, without Spark and MLflow."""

from __future__ import annotations

from datetime import UTC, datetime

from melanoma_spark import logs
from melanoma_spark.errors import DataError
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.scoring import batches

FIELDS = ("batch_id", "committed_at", "model", "model_version", "run_id", "rows", "counts", "verdict")


def report_status(context: StageContext) -> Summary:
    """Tells them, the newest first; returns a summary. Raises `DataError` where none is within score.within."""
    settings, warehouse = context.settings, context.warehouse
    there = batches.committed(warehouse)
    shown = there[-settings.score.shown :]
    for batch in reversed(shown):
        found = batches.facts(warehouse, batch)
        logs.result(batches.told(found), "batch", **{key: found[key] for key in FIELDS if key in found})
    if settings.score.within is not None:
        newest = batches.facts(warehouse, there[-1]).get("committed_at") if there else None
        age = newest and (datetime.now(UTC) - datetime.fromisoformat(newest)).total_seconds() / 3600
        if age is None or age > settings.score.within:
            when = f"the newest batch is of {newest}, {age:.1f} hours ago" if newest else "there is no batch"
            raise DataError(f"{when}; expected one within {settings.score.within:g} hours (score.within)")
    return Summary(f"{len(there)} batches in scores/, {len(shown)} shown, the newest first")
