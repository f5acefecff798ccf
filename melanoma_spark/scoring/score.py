"""The job `score`: scores what is new in an archive, follows the archive, or reports the last batches.

Each action is imported when it runs, so that `score status` answers at once, without importing Spark.
"""

from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.runner.stage import Stage, run_stage, run_untracked
from melanoma_spark.scoring import status


def score(context: StageContext) -> Summary:
    """Score what is new in the archive as one batch; with `score.action=status` report the last batches."""
    if context.settings.score.action == "status":
        return status.report_status(context)
    from melanoma_spark.scoring import batch

    return batch.score_batch(context)


def run_action(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """Run `score.action`: `score` in an MLflow run, `status` without one, `follow` with a run for each batch."""
    action = context.settings.score.action
    if action != "follow":
        return (run_untracked if action == "status" else run_stage)(context, name, stage, tags)
    from melanoma_spark.scoring import batch, follow

    return follow.follow(context, name, batch.score_landed, tags)
