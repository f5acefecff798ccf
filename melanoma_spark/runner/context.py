"""What a stage is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from melanoma_spark import config, lineage, logs
from melanoma_spark.storage import files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from melanoma_spark.spark.session import Meter
    from melanoma_spark.storage.lease import Lease
    from melanoma_spark.tracking import Tracker


@dataclass(frozen=True)
class StageContext:
    """What a stage is given.

    `session` and `mlflow` are None for an action that needs none; stages use `spark` and `tracker`. `lease` is None
    where the stage runs without one. `argv` holds the words that the job was started with.
    """

    session: SparkSession | None
    settings: config.Settings
    warehouse: str
    mlflow: Tracker | None
    run_id: str = ""
    lease: Lease | None = None
    argv: tuple[str, ...] = ()

    @property
    def spark(self) -> SparkSession:
        """The Spark session. Raises `RuntimeError` where the job was started without one."""
        if self.session is None:
            raise RuntimeError("internal error: this stage was started without a Spark session")
        return self.session

    @property
    def tracker(self) -> Tracker:
        """The connection to MLflow. Raises `RuntimeError` where the job was started without one."""
        if self.mlflow is None:
            raise RuntimeError("internal error: this stage was started without MLflow")
        return self.mlflow


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


def pixels_of(context: StageContext, images: dict[str, Any]) -> DataFrame:
    """The rows of images/, by its manifest."""
    from melanoma_spark.storage import store

    return context.spark.read.parquet(store.data_url(context.warehouse, "images", images))


def pace(context: StageContext, meter: Meter) -> str:
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
