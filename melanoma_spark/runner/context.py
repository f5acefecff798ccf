"""What a stage gets, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from melanoma_spark import config, lineage, logs
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import AnyManifest, ImagesManifest

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
    """What a stage has done, in one line, and the exit status of its job."""

    text: str
    exit_status: int = 0


def archive_id(archive: str) -> str:
    """Return an id of an archive that does not show where it lies."""
    return lineage.content_id([files.url_of(archive)])


def read_input(context: StageContext, kind: type[AnyManifest]) -> AnyManifest:
    """Read the manifest of a dataset, and log that the run reads it. Raises as `require_manifest`."""
    manifest = manifests.require(kind, context.warehouse)
    context.tracker.log_input(kind.place, manifest.id)
    return manifest


def read_images(context: StageContext, images: ImagesManifest) -> DataFrame:
    """Open the rows of images/."""
    return context.spark.read.parquet(images.url(context.warehouse))


def report_throughput(context: StageContext, meter: Meter) -> str:
    """Log what a meter has measured to MLflow and JSON lines, and return it for the end of a summary."""
    figures = meter.figures()
    if not figures:
        return ""
    if context.run_id:  # else MLflow would start a run for them
        context.tracker.log_metrics(figures)
    logs.add_context(**{key: round(value, 3) for key, value in figures.items()})
    return (
        f"; {figures['images_per_second']:.1f} images/s from {figures['megabytes_read']:,.1f} MB, "
        f"{figures['wait_share']:.0%} of the time waiting for them"
    )
