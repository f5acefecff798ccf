"""What a stage is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from melanoma_spark import config, lineage, logs
from melanoma_spark.storage import files


@dataclass(frozen=True)
class StageContext:
    """What a stage is given. `spark` is None where its action needs none; `argv` is what the job was started with."""

    spark: Any
    settings: config.Settings
    warehouse: str
    tracker: Any
    run_id: str = ""
    lease: Any = None
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a stage has done, in a line, and the exit status of its job: any but 0 asks a person to look."""

    text: str
    exit_status: int = 0


def archive_id(archive: str) -> str:
    """Which archive this is, without telling where it lies."""
    return lineage.content_id([files.url_of(archive)])


def dataset(context: StageContext, name: str, made_by: str) -> dict[str, Any]:
    """The manifest of what stands under `name`; MLflow is told that the run reads it. Raises as `store.need`."""
    from melanoma_spark.storage import store

    facts = store.need(context.warehouse, name, made_by)
    context.tracker.reads(name, facts["id"])
    return facts


def pixels_of(context: StageContext, images: dict[str, Any]) -> Any:
    """The rows of images/, a `DataFrame`, by its manifest."""
    from melanoma_spark.storage import store

    return context.spark.read.parquet(store.data_url(context.warehouse, "images", images))


def pace(context: StageContext, meter: Any) -> str:
    """What a `session.Meter` has measured, for the end of a summary; MLflow and a line in JSON are told it, too."""
    figures = meter.figures()
    if not figures:
        return ""
    if context.run_id:  # else MLflow would begin a run for them
        context.tracker.metrics(figures)
    logs.add(**{key: round(value, 3) for key, value in figures.items()})
    return (
        f"; {figures['images_per_second']:.1f} images/s from {figures['megabytes_read']:,.1f} MB, "
        f"{figures['wait_share']:.0%} of the time waiting for them"
    )
