"""Predictions of networks for stored images: made on executors, calibrated, and kept with a report."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import listing
from melanoma_spark.dataset import archive
from melanoma_spark.errors import DataError
from melanoma_spark.metrics.bootstrap import Bootstrap
from melanoma_spark.models import backbones, bundle, calibration, model_registry, network, prediction
from melanoma_spark.runner.context import StageContext, archive_id, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import (
    FeaturesManifest,
    FinetunedManifest,
    HeadManifest,
    ImagesManifest,
    ModelManifest,
)

HEAD, FINETUNED = "head alone", "fine-tuned"
# In order of training: the last one that is in the warehouse decides, and is registered.
KINDS: dict[str, type[ModelManifest]] = {HEAD: HeadManifest, FINETUNED: FinetunedManifest}
FILE = "predictions/predictions.parquet"
ROW = ("sha256", "split", "group", "label")  # columns of images/ that stay with a prediction
EVALUATED = "split in ('validation', 'test')"

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def metric_suffix(name: str) -> str:
    """The end of a model's metrics in MLflow and in the report's manifest: head or finetuned."""
    return KINDS[name].place.removeprefix("models/")


def write_predictions(folder: str, rows: pd.DataFrame) -> None:
    """Write rows of `schemas.PREDICTIONS` into a report's folder."""
    files.write_bytes(files.join(folder, FILE), rows.to_parquet(index=False))


def read_predictions(folder: str, model: str, split: str) -> pd.DataFrame | None:
    """Read a model's rows of a split, by `sha256`; None where the folder has none."""
    url = files.join(folder, FILE)
    if not files.exists(url):
        return None
    return rows_of(pd.read_parquet(io.BytesIO(files.read_bytes(url))), model, split)


def rows_of(table: pd.DataFrame, model: str, split: str) -> pd.DataFrame:
    """The rows of a model and a split, by `sha256`."""
    return table[(table["model"] == model) & (table["split"] == split)].sort_values("sha256")


def bootstrap_of(rows: pd.DataFrame, settings: config.Settings) -> Bootstrap:
    """The bootstrap over the groups of these rows."""
    return Bootstrap(rows["group"].to_numpy(), settings.evaluate.resamples, settings.seed)


def seen_in_training(rows: DataFrame, training: DataFrame, *further: str) -> DataFrame:
    """`sha256` of the rows that have the bytes, the pixels, or a `further` column, of an image of `training`."""
    parts = [
        rows.join(training.select(key).distinct(), key, "left_semi").select("sha256")
        for key in ("sha256", "pixel_sha256", *further)
    ]
    return reduce(DataFrame.union, parts).distinct()


def predict_head(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    model: ModelManifest,
    meter: session.Meter,
) -> DataFrame:
    """Predict validation and test by the head, from the stored bottleneck features; see `predict_network`."""
    threads = session.task_threads(context.spark)
    spec = network.Spec.model_validate(model.spec)
    cut = backbones.backbone(spec.backbone).cuts[-1]
    tensors = session.broadcast(context.spark, manifests.load_model(context.warehouse, model))

    def load() -> inference.Predict:
        network.use_threads(threads)
        return network.predictor(network.tail(network.build(spec, tensors.value), cut))

    def prepare(content: bytes) -> NDArray[np.float32]:
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False), np.float32)

    udf = inference.column_udf(
        f"head {model.id}",
        load,
        prepare,
        prediction.probabilities,
        prediction.PROBABILITY,
        batch_size=context.settings.evaluate.batch_size,
        meter=meter,
    )
    stored = context.spark.read.parquet(features.url(context.warehouse)).where("view = 0")
    rows = (
        read_images(context, images).where(EVALUATED).select(*ROW).join(stored.select("sha256", cut), "sha256", "inner")
    )
    return _with_model(rows.select("*", udf(cut).alias("predicted")), HEAD)


def predict_network(
    context: StageContext,
    images: ImagesManifest,
    model: ModelManifest,
    name: str,
    meter: session.Meter,
    change: Change = np.asarray,
) -> DataFrame:
    """Predict validation and test by a network, from the stored pixels, over as many views as the settings ask for.

    `change` is applied to the pixels first. `name` is the model's name in the rows.

    Returns:
        Rows of `schemas.PREDICTIONS` without the calibrated probability.
    """
    spec = network.Spec.model_validate({**model.spec, "tta": context.settings.evaluate.tta})
    predicted = prediction.predict_images(
        read_images(context, images).where(EVALUATED),
        spec,
        manifests.load_model(context.warehouse, model),
        f"network {model.id} tta {spec.tta}",
        context.settings.evaluate.batch_size,
        change=change,
        meter=meter,
    )
    return _with_model(predicted, name)


def _with_model(predicted: DataFrame, model: str) -> DataFrame:
    columns = {"model": f.lit(model), "raw_probability": f.col("predicted.raw_probability")}
    return predicted.withColumns(columns).select(*(name for name in schemas.PREDICTIONS.names if name != "probability"))


def calibrate(
    raw: pd.DataFrame, method: config.CalibrationMethod
) -> tuple[dict[str, calibration.Calibration], pd.DataFrame]:
    """Fit each model's calibration on its validation images, and add calibrated probabilities to all rows."""
    calibrations, parts = {}, []
    for name, rows in raw.sort_values(["model", "sha256"]).groupby("model"):
        validation = rows[rows["split"] == "validation"]
        fitted = calibration.fit(validation["label"], validation["raw_probability"], method)
        calibrations[str(name)] = fitted
        parts.append(rows.assign(probability=fitted.apply(rows["raw_probability"])))
    return calibrations, pd.concat(parts)[schemas.PREDICTIONS.names]


def predict_with_scorer(
    context: StageContext,
    rows: DataFrame,
    scorer: bundle.Scorer,
    change: Change = np.asarray,
    *,
    with_features: bool = False,
) -> pd.DataFrame:
    """Predict rows of images/ by a registered model: `ROW` and `raw_probability`, by `sha256`.

    `change` is applied to the pixels first. `with_features` adds averaged `features`, each (c,).
    """
    batch = context.settings.evaluate.batch_size
    session.set_arrow_batch_rows(context.spark, batch)
    predicted = prediction.predict_images(
        rows,
        scorer.spec,
        scorer.tensors,
        f"network {scorer.model_id}",
        batch,
        change=change,
        with_features=with_features,
    )
    return pd.DataFrame(predicted.select(*ROW, "predicted.*").toPandas()).sort_values("sha256")


def predict_registered(
    context: StageContext, images: ImagesManifest, reference: str, test: pd.DataFrame
) -> NDArray[np.float64]:
    """Calibrated probabilities of a registered model for the rows of `test`.

    A model of another version of pixels gets its own, from the archive's files. Raises `DataError` where the model
    takes images of another size, or its pixels cannot be made.
    """
    _, artifacts = model_registry.download_model(context.tracker, reference)
    scorer = bundle.unpack(artifacts)
    if scorer.spec.image_size != images.image_size:
        raise DataError(
            f"{reference} takes images of {scorer.spec.image_size} px, images/ holds {images.image_size} px, so the "
            "two cannot be compared; give the new one another register.name, or register.gate.auroc_margin=null"
        )
    session.describe_jobs(context.spark, f"{reference} on the test images")
    rows = read_images(context, images).where("split = 'test'")
    if scorer.pixels_version != images.pixels_version:
        rows = decode_again(context, images, rows, scorer.pixels_version)
    predicted = predict_with_scorer(context, rows, scorer)
    return scorer.calibration.apply(predicted.set_index("sha256").loc[test["sha256"], "raw_probability"])


def decode_again(context: StageContext, images: ImagesManifest, rows: DataFrame, version: int) -> DataFrame:
    """Rows of images/ with pixels of another version, decoded from the archive's files.

    Raises `DataError` where the archive is another one, or lacks some of the files.
    """
    settings, hint = context.settings, "or set register.gate.auroc_margin=null"
    versions = f"the model has pixels of version {version}, images/ has version {images.pixels_version}"
    if not settings.archive or archive_id(settings.archive) != images.archive:
        raise DataError(
            f"{versions}, so the two cannot be compared without the files; name the archive of images/ with "
            f"archive=URL, {hint}"
        )
    limits = settings.ingest.model_copy(update={"pixels_version": version})
    settings = settings.model_copy(update={"ingest": limits, "image_size": images.image_size})
    listed = listing.list_archive(context.spark, settings).where("role = 'image' and reason is null")
    wanted = listed.join(rows.select("source_uri"), "source_uri", "left_semi")
    decoded, _, _ = archive.decode_new_files(replace(context, settings=settings), wanted)
    again = decoded.where("image is not null").select("sha256", "image").dropDuplicates(["sha256"])
    with_pixels = rows.drop("image").join(again, "sha256")
    missing = rows.count() - with_pixels.count()
    if missing:
        raise DataError(f"{versions}, and {missing} files of its test images are not in the archive any more; {hint}")
    return with_pixels
