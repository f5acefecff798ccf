"""The comparison with the champion: on the same test images, without those that its own training has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from melanoma_spark.evaluation import feature_twins, predictions
from melanoma_spark.evaluation.facts import Gain, measure_gain
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import session
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import ImagesManifest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def compare(
    context: StageContext,
    images: ImagesManifest,
    version: ModelVersion,
    name: str,
    test: pd.DataFrame,
    stored: pd.DataFrame | None = None,
) -> tuple[Gain, str]:
    """The gain of a model over the champion on test images, without those that the champion's training has seen.

    Args:
        context: The job's context.
        images: The dataset of the test images.
        version: The champion.
        name: The model.
        test: Rows of its predictions.
        stored: Rows of the champion's predictions, which are used where all are there.

    Returns:
        The gain, and a sentence on images that do not count; empty where all count.

    Raises:
        DataError: As `predictions.predict_registered`.
    """
    register = context.settings.register_
    counted, note = leave_out_seen(context, images, version, test)
    if stored is not None:
        stored = stored[stored["sha256"].isin(counted["sha256"])]
    if stored is not None and list(stored["sha256"]) == list(counted["sha256"]):
        champion = stored["probability"].to_numpy()
    else:
        champion = predictions.predict_registered(context, images, f"{register.name}@{register.alias}", counted)
    labels, drawn = counted["label"].to_numpy(), predictions.bootstrap_of(counted, context.settings)
    over = f"{register.alias}, version {version.version}"
    return measure_gain(name, over, labels, drawn, counted["probability"].to_numpy(), champion), note


def leave_out_seen(
    context: StageContext, images: ImagesManifest, version: ModelVersion, test: pd.DataFrame
) -> tuple[pd.DataFrame, str]:
    """The rows of test images without those that the training of a version has seen, and a sentence on them.

    An image is seen by its bytes, its pixels, or a twin by features. A version of the same dataset has seen none of the
    rows: they have no twins in its training.
    """
    dataset, name = version.tags.get("dataset_id"), f"version {version.version}"
    if dataset == images.id:
        return test, ""
    place = files.join(context.warehouse, ImagesManifest.place)
    folders = [files.join(place, folder) for folder in files.list_names(place, f"{dataset}-*")]
    if not folders:
        return test, (
            f"The images that {name} was trained on are not in this warehouse, so test images that it has seen count."
        )
    session.describe_jobs(context.spark, f"test images that the training of {name} has seen")
    columns = "sha256 string, pixel_sha256 string, split string"  # a killed ingest leaves a folder without files
    training = context.spark.read.schema(columns).parquet(*folders).where("split != 'test'")
    rows = read_images(context, images).where("split = 'test'")
    seen = {row.sha256 for row in predictions.seen_in_training(rows, training).collect()}
    if features := feature_twins.comparable_features(context, images):
        stored = context.spark.read.schema("sha256 string, view int").parquet(features.url(context.warehouse))
        training = training.join(stored.where("view = 0"), "sha256", "left_semi")
        values = feature_twins.read_averages(context, features, test["sha256"].tolist())
        seen |= {*test["sha256"][feature_twins.find_twins_in_training(context, images, features, values, training)]}
    unseen = feature_twins.leave_out(test, seen)
    count = int(test["sha256"].isin(seen).sum())
    if not count:
        return test, ""
    if len(unseen) == len(test):
        return test, f"{count} test images that the training of {name} has seen count: the others have only one label."
    return unseen, f"{count} test images are left out of this, because the training of {name} has seen them or a twin."
