"""Reports the last batches of `scores/` from their JSON files, without Spark and MLflow."""

from datetime import UTC, datetime

from melanoma_spark import logs
from melanoma_spark.errors import DataError
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.scoring import batches

FIELDS = ("batch_id", "committed_at", "model", "model_version", "run_id", "rows", "counts", "verdict")


def report_status(context: StageContext) -> Summary:
    """Log the last batches, the newest first.

    Raises:
        DataError: The newest batch is older than `score.within` hours, or there is none.
    """
    settings, warehouse = context.settings.score, context.warehouse
    ids = batches.committed(warehouse)
    shown = ids[-settings.shown :]
    for batch in reversed(shown):
        facts = batches.read_facts(warehouse, batch)
        logs.result(batches.describe(facts), "batch", **{key: facts[key] for key in FIELDS if key in facts})
    if settings.within is not None:
        newest = batches.read_facts(warehouse, ids[-1]).get("committed_at") if ids else None
        age = newest and (datetime.now(UTC) - datetime.fromisoformat(newest)).total_seconds() / 3600
        if age is None or age > settings.within:
            when = f"the newest batch is of {newest}, {age:.1f} hours ago" if newest else "there is no batch"
            raise DataError(f"{when}; expected one within {settings.within:g} hours (score.within)")
    return Summary(f"{len(ids)} batches in scores/, {len(shown)} shown, the newest first")
