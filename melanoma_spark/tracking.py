"""MLflow: runs and what they log, and versions and aliases of registered models."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melanoma_spark import config
from melanoma_spark.errors import ClusterError, ConfigError
from melanoma_spark.storage import files

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# Before MLflow is imported: no telemetry, no progress bars, and no lines with links for each run.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# With this tag MLflow's UI shows runs and charts first, not traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri(settings: config.Mlflow, warehouse: str) -> str:
    """Return the server of the settings, else an SQLite file in the warehouse, which must be a local folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if not warehouse.startswith("file://"):
        raise ConfigError(
            f"the warehouse {warehouse} is not a local folder, so MLflow's SQLite file cannot lie in it; "
            "name a tracking server: mlflow.tracking_uri=http://HOST:5000"
        )
    return f"sqlite:///{warehouse.removeprefix('file://')}/mlflow.db"


def check(settings: config.Mlflow, master: str) -> None:
    """Raise `ConfigError` where Spark is a cluster and no server is named: MLflow's SQLite file is for one machine.

    SQLite's locks do not work on most shared file systems, and a driver on another node finds no file.
    """
    if not master.startswith("local") and settings.tracking_uri is None:
        raise ConfigError(
            f"Spark runs on a cluster ({master.partition(':')[0]}), where MLflow's SQLite file in the warehouse cannot "
            "be relied on; start a tracking server and name it: mlflow.tracking_uri=http://HOST:5000"
        )


def check_writing(settings: config.Mlflow, warehouse: str) -> str:
    """Write a tag and an artifact to the server of the settings, and remove them; open an SQLite file for writing.

    Returns the result as text. Raises `ConfigError` or `ClusterError` with the problem.
    """
    uri = tracking_uri(settings, warehouse)
    if not uri.startswith("sqlite:"):
        Tracker(settings, warehouse).check_writing()
        return f"{uri}: writes and removes"
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        files.check_writable(f"file://{path.absolute().parent}")
        return f"{path}, which the first job makes"
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise ClusterError(f"MLflow at {uri} cannot be used: {error}") from None
    return f"{path}: may be written"


class Tracker:
    """The connection of a job to MLflow. Only the driver has one; ranks and executors report to the driver."""

    def __init__(self, settings: config.Mlflow, warehouse: str) -> None:
        """Connect and make sure the experiment exists. Raises `ClusterError` naming the server."""
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs at length what it also raises
        self._mlflow = mlflow
        self._system_metrics = settings.system_metrics
        self.uri = tracking_uri(settings, warehouse)
        self._artifacts: str | None = None  # a server chooses the place itself
        embedded = self.uri.startswith("sqlite:")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            if embedded:
                path = Path(self.uri.removeprefix("sqlite:///"))
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(path)) as database:  # MLflow would retry for 100 s
                    database.execute("PRAGMA schema_version")
                self._artifacts = f"file://{path.absolute().parent}/mlartifacts"
            self._experiment = settings.experiment
            mlflow.set_experiment(experiment_id=self._experiment_id(settings.experiment))
        except Exception as error:
            raise ClusterError(f"MLflow at {self.uri} cannot be used: {str(error).splitlines()[0][:300]}") from None

    def _experiment_id(self, name: str) -> str:
        """Return the id of an experiment, which is created if needed."""
        experiment = self._mlflow.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._mlflow.create_experiment(name, artifact_location=self._artifacts, tags=EXPERIMENT_TAGS))

    def check_writing(self) -> None:
        """Write a tag of the experiment and an artifact, and remove both. Raises `ClusterError`."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client, name = self._mlflow.MlflowClient(), f"doctor-{uuid.uuid4().hex[:8]}"
        step = "tags"
        try:
            experiment = client.get_experiment(self._experiment_id(self._experiment))
            client.set_experiment_tag(experiment.experiment_id, name, "tried")
            client.delete_experiment_tag(experiment.experiment_id, name)
            step = "artifacts"
            place: Any = get_artifact_repository(experiment.artifact_location)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_bytes(b"tried")
                place.log_artifact(str(Path(folder) / name))
            place.delete_artifacts(name)
        except Exception as error:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise ClusterError(f"MLflow at {self.uri} does not take {step}: {reason}") from None

    def log_standalone_run(self, kind: str, name: str, tags: Mapping[str, str], values: Mapping[str, float]) -> str:
        """Log a run that ends at once into the experiment `<experiment>-<kind>`: a point of a chart over runs.

        Returns its id. The open run stays open.
        """
        from mlflow.entities import Metric

        client, now = self._mlflow.MlflowClient(), int(1000 * time.time())
        experiment = self._experiment_id(f"{self._experiment}-{kind}")
        run = client.create_run(experiment, start_time=now, tags=dict(tags), run_name=name)
        metrics = [Metric(key, float(value), now, 0) for key, value in values.items() if not math.isnan(value)]
        client.log_batch(run.info.run_id, metrics=metrics)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], parameters: Mapping[str, str] | None = None) -> Iterator[str]:
        """Open a run, nested when one is open already. The outermost gets the parameters. Yields the run's id."""
        nested = self._mlflow.active_run() is not None
        # of the driver's machine, only in the outermost run: a sample every ten seconds
        system = None if nested else self._system_metrics
        with self._mlflow.start_run(run_name=name, nested=nested, tags=dict(tags), log_system_metrics=system) as run:
            if not nested and parameters:
                self.log_parameters(parameters)
            yield str(run.info.run_id)

    def log_input(self, name: str, digest: str) -> None:
        """Log a dataset of the warehouse as an input of the run, by name and content id, without its place."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        self._mlflow.log_input(MetaDataset(CodeDatasetSource(tags={}), name=name, digest=digest))  # type: ignore[abstract]

    def log_parameters(self, values: Mapping[str, str]) -> None:
        """Log parameters; long values are cut."""
        self._mlflow.log_params({key: value[:6000] for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, without undefined values, which MLflow's charts cannot show."""
        defined = {key: float(value) for key, value in values.items() if not math.isnan(value)}
        self._mlflow.log_metrics(defined, step=step)

    def log_epochs(self, records: Iterable[Any]) -> None:
        """Log the figures of every `training.loop.EpochRecord` as curves of the run.

        `wait_share` is the part of an epoch, 0 to 1, in which rank 0 waited for images.
        """
        for step, record in enumerate(records):
            values = {key: getattr(record, key) for key in ("loss", "validation_loss", "validation_auroc")}
            if record.seconds:  # 0 for the network before the first epoch
                values["images_per_second"] = record.images_per_second
                values["wait_share"] = record.waited / record.seconds
            self.log_metrics(values, step=step)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._mlflow.set_tags(dict(values))

    def log_artifact(self, name: str, content: bytes) -> None:
        """Write a file into the run's artifacts; `name` may hold folders."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            parent = str(Path(name).parent)
            self._mlflow.log_artifact(str(path), None if parent == "." else parent)

    def artifact_link(self, run_id: str, artifact: str) -> str:
        """Return a link within MLflow's UI to an artifact of a run of the open run's experiment."""
        open_run = self._mlflow.active_run()
        assert open_run is not None
        return f"#/experiments/{open_run.info.experiment_id}/runs/{run_id}/artifacts/{artifact}"

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version of a registered model."""
        self._mlflow.MlflowClient().set_registered_model_alias(name, alias, version)

    def tag_version(self, name: str, version: str, values: Mapping[str, str]) -> None:
        """Set tags of a registered version."""
        for key, value in values.items():
            self._mlflow.MlflowClient().set_model_version_tag(name, version, key, value)

    def versions(self) -> list[ModelVersion]:
        """List all registered versions of all models, with their tags."""
        return list(self._mlflow.search_model_versions())

    def find_version(self, reference: str) -> ModelVersion | None:
        """Find the registered version of `NAME@ALIAS` or `NAME/VERSION`; None where there is none."""
        from mlflow.exceptions import MlflowException

        client = self._mlflow.MlflowClient()
        try:
            if "@" in reference:
                return client.get_model_version_by_alias(*reference.split("@", 1))
            if "/" in reference:
                return client.get_model_version(*reference.split("/", 1))
        except MlflowException:
            return None
        raise ConfigError(f"score.model: {reference!r} is neither NAME@ALIAS nor NAME/VERSION")
