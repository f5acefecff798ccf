"""Registered models in MLflow: logs one with the code that it needs, and downloads its files."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import tempfile
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from melanoma_spark import SUFFIXES
from melanoma_spark.errors import DataError
from melanoma_spark.images import hashes
from melanoma_spark.models import bundle, training_reference
from melanoma_spark.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

BUNDLE_TAG = "manifest_sha256"  # of a registered version: the hash of the manifest with the hashes of its files


def register_model(
    name: str, artifacts: Mapping[str, bytes], example: pd.DataFrame | None, tags: Mapping[str, str], description: str
) -> str:
    """Log a self-contained scorer into the open run and register it; returns the version."""
    import mlflow

    from melanoma_spark.models import pyfunc

    with tempfile.TemporaryDirectory() as folder:
        package = unpacked_package(Path(folder))
        paths = {}
        for key, content in artifacts.items():
            paths[key] = str(Path(folder) / key)
            Path(paths[key]).write_bytes(content)
        scorer = bundle.from_files(paths)
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints each step; it raises errors
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(package / "models/pyfunc.py"),
                artifacts=paths,
                code_paths=[str(package)],
                signature=pyfunc.signature(),
                input_example=example,
                pip_requirements=pyfunc.requirements(),
                registered_model_name=name,
                metadata={"model_id": scorer.model_id},
            )
    client = mlflow.MlflowClient()
    version = str(info.registered_model_version)
    sums = {BUNDLE_TAG: hashes.sha256(artifacts[bundle.MANIFEST])}
    for key, value in {**tags, **sums}.items():
        client.set_model_version_tag(name, version, key, value)
    client.update_model_version(name, version, description=description)
    return version


def download_model(tracker: Tracker, reference: str) -> tuple[ModelVersion, dict[str, bytes]]:
    """Download a registered version's artifacts, by key; returns the version, too.

    Raises `DataError` naming the reference and what is registered.
    """
    import mlflow

    version = tracker.find_version(reference)
    if version is None:
        known = sorted(m.name for m in mlflow.MlflowClient().search_registered_models())
        raise DataError(
            f"no model {reference} in MLflow at {tracker.uri}; registered: {', '.join(known) or 'nothing'}; "
            "run `melanoma-spark register` first"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{version.name}/{version.version}", dst_path=folder
        )
        optional = training_reference.FILES
        files = {key: Path(path) / "artifacts" / key for key in bundle.ARTIFACTS}
        artifacts = {key: file.read_bytes() for key, file in files.items() if key not in optional or file.exists()}
    sha256 = hashes.sha256(artifacts[bundle.MANIFEST])
    expected = version.tags.get(BUNDLE_TAG)
    if expected != sha256:
        raise DataError(
            f"model {reference} is not the one that was registered: its {bundle.MANIFEST} has SHA-256 {sha256}, "
            f"the registry's tag {BUNDLE_TAG} is {expected}; register it again"
        )
    return version, artifacts


def unpacked_package(folder: Path) -> Path:
    """Copy this package's sources as plain files below `folder`: Spark ships it as a zip, MLflow copies files."""
    target = folder / "melanoma_spark"
    _copy_sources(importlib.resources.files("melanoma_spark"), target)
    return target


def _copy_sources(package: Traversable, target: Path) -> None:
    target.mkdir()
    for source in package.iterdir():
        if source.is_dir() and source.name != "__pycache__":
            _copy_sources(source, target / source.name)
        elif source.name.endswith(SUFFIXES):
            (target / source.name).write_bytes(source.read_bytes())
