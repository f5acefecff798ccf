"""MLflow: runs, what is logged into them, and versions and aliases of its registry."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from melanoma_spark import config
from melanoma_spark.errors import ClusterError, ConfigError
from melanoma_spark.storage import files

# Before MLflow is imported: no call home, no bar for each small download, and no two lines with a link for each run.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# MLflow's UI then opens the experiment with runs and charts, not with the traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri(settings: config.Mlflow, warehouse: str) -> str:
    """The server that the settings name, else an SQLite file in the warehouse, which must then be a local folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if not warehouse.startswith("file://"):
        raise ConfigError(
            f"the warehouse {warehouse} is not a local folder, so MLflow's SQLite file cannot lie in it; "
            "name a tracking server: mlflow.tracking_uri=http://HOST:5000"
        )
    return f"sqlite:///{warehouse.removeprefix('file://')}/mlflow.db"


def check(settings: config.Mlflow, master: str) -> None:
    """MLflow's SQLite file is for one machine. Raises `ConfigError` where Spark is a cluster and no server is named.

    SQLite's locks do not hold on most shared file systems, and a driver that runs on any node finds no file.
    """
    if not master.startswith("local") and settings.tracking_uri is None:
        raise ConfigError(
            f"Spark runs on a cluster ({master.partition(':')[0]}), where MLflow's SQLite file in the warehouse cannot "
            "be relied on; start a tracking server and name it: mlflow.tracking_uri=http://HOST:5000"
        )


def try_writing(settings: config.Mlflow, warehouse: str) -> str:
    """Write a tag and an artifact to the server that the settings name, and remove them; of an SQLite file, try to.

    Returns what was found. Raises `ConfigError` or `ClusterError` with what is wrong.
    """
    uri = tracking_uri(settings, warehouse)
    if not uri.startswith("sqlite:"):
        Tracker(settings, warehouse).try_writing()
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
    """One job's view of MLflow. Only the driver has one; ranks and executors report to the driver."""

    def __init__(self, settings: config.Mlflow, warehouse: str) -> None:
        """Connect and make sure the experiment exists. Raises `ClusterError` naming the server."""
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tells at length what it raises, too
        self._mlflow = mlflow
        self._system_metrics = settings.system_metrics
        self.uri = tracking_uri(settings, warehouse)
        self._artifacts: str | None = None  # where a server keeps them is its own affair
        embedded = self.uri.startswith("sqlite:")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            if embedded:
                path = Path(self.uri.removeprefix("sqlite:///"))
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(path)) as database:  # MLflow would try for 100 s
                    database.execute("PRAGMA schema_version")
                self._artifacts = f"file://{path.absolute().parent}/mlartifacts"
            self._experiment = settings.experiment
            mlflow.set_experiment(experiment_id=self._experiment_id(settings.experiment))
        except Exception as error:
            raise ClusterError(f"MLflow at {self.uri} cannot be used: {str(error).splitlines()[0][:300]}") from None

    def _experiment_id(self, name: str) -> str:
        """Of an experiment, which is made where there is none."""
        found = self._mlflow.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = self._artifacts
        return str(self._mlflow.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS))

    def try_writing(self) -> None:
        """A tag of the experiment and an artifact beside its runs, both removed. Raises `ClusterError`."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client, name = self._mlflow.MlflowClient(), f"doctor-{uuid.uuid4().hex[:8]}"
        step = "tags"
        try:
            experiment = client.get_experiment(self._experiment_id(self._experiment))
            client.set_experiment_tag(experiment.experiment_id, name, "tried")
            client.delete_experiment_tag(experiment.experiment_id, name)
            step = "artifacts"
            place = get_artifact_repository(experiment.artifact_location)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_bytes(b"tried")
                place.log_artifact(str(Path(folder) / name))
            place.delete_artifacts(name)
        except Exception as error:
            told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise ClusterError(f"MLflow at {self.uri} does not take {step}: {told}") from None

    def log_standalone_run(self, kind: str, name: str, tags: Mapping[str, str], values: Mapping[str, float]) -> str:
        """A run by itself in the experiment `<experiment>-<kind>`, ended at once: a point of what is charted over runs.

        Returns its id. The open run stays what it is.
        """
        from mlflow.entities import Metric

        client, now = self._mlflow.MlflowClient(), int(1000 * time.time())
        experiment = self._experiment_id(f"{self._experiment}-{kind}")
        run = client.create_run(experiment, start_time=now, tags=dict(tags), run_name=name)
        known = [Metric(key, float(value), now, 0) for key, value in values.items() if value == value]
        client.log_batch(run.info.run_id, metrics=known)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], parameters: Mapping[str, str] | None = None) -> Iterator[str]:
        """A run, nested when one is open already; the outermost gets the parameters. Its status tells how it ended."""
        nested = self._mlflow.active_run() is not None
        # of the driver's machine, in the outermost run alone: a sample every ten seconds
        system = None if nested else self._system_metrics
        with self._mlflow.start_run(run_name=name, nested=nested, tags=dict(tags), log_system_metrics=system) as run:
            if not nested and parameters:
                self.log_parameters(parameters)
            yield str(run.info.run_id)

    def log_input(self, name: str, digest: str) -> None:
        """Log a dataset of the warehouse as an input of the run: by name and content id, not by where it lies."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        self._mlflow.log_input(MetaDataset(CodeDatasetSource(tags={}), name=name, digest=digest))  # type: ignore[abstract]

    def log_parameters(self, values: Mapping[str, str]) -> None:
        self._mlflow.log_params({key: value[:6000] for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log what is a number; an undefined value is left out, MLflow's charts cannot show it."""
        known = {key: float(value) for key, value in values.items() if value == value}
        self._mlflow.log_metrics(known, step=step)

    def log_epochs(self, records: Iterable[Any]) -> None:
        """Figures of every epoch of a `training.EpochRecord` log, as curves of the run.

        `wait_share` is the part of an epoch, 0 to 1, in which rank 0 waited for images.
        """
        for step, record in enumerate(records):
            values = {key: getattr(record, key) for key in ("loss", "validation_loss", "validation_auroc")}
            if record.seconds:  # not of the network before the first epoch
                values["images_per_second"] = record.images_per_second
                values["wait_share"] = record.waited / record.seconds
            self.log_metrics(values, step=step)

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._mlflow.set_tags(dict(values))

    def log_artifact(self, name: str, content: bytes) -> None:
        """One file among the run's artifacts; `name` may hold folders."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            parent = str(Path(name).parent)
            self._mlflow.log_artifact(str(path), None if parent == "." else parent)

    def artifact_link(self, run_id: str, artifact: str) -> str:
        """Where MLflow's UI shows an artifact of a run of the experiment, as a link within it. In an open run."""
        open_run = self._mlflow.active_run()
        assert open_run is not None
        return f"#/experiments/{open_run.info.experiment_id}/runs/{run_id}/artifacts/{artifact}"

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias."""
        self._mlflow.MlflowClient().set_registered_model_alias(name, alias, version)

    def tag_version(self, name: str, version: str, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self._mlflow.MlflowClient().set_model_version_tag(name, version, key, value)

    def versions(self) -> list[Any]:
        """All registered versions of all models, with their tags."""
        return list(self._mlflow.search_model_versions())

    def find_version(self, reference: str) -> Any:
        """The registered version behind `NAME@ALIAS` or `NAME/VERSION`, or None where there is none."""
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
