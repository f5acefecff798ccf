"""Gathers the facts of a report from the warehouse, and writes the report, of a test split or an external set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import __version__, config, lineage, schemas
from melanoma_spark.archives import layouts
from melanoma_spark.evaluation import plots, report, shortcuts, subgroups
from melanoma_spark.evaluation.facts import Dataset, Deciding, Facts, Mistake, ModelFacts, Shortcuts, measure_model
from melanoma_spark.evaluation.metric_table import Figure
from melanoma_spark.evaluation.predictions import bootstrap_of, write_predictions
from melanoma_spark.images import quality
from melanoma_spark.metrics import binary
from melanoma_spark.models import gradcam, network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import ImagesManifest


@dataclass(frozen=True)
class Subject:
    """The deciding model of a report, and its test images."""

    name: str
    about: str  # see `describe_model`
    spec: network.Spec
    tensors: list[NDArray[np.float32]]
    weights_origin: str
    test: pd.DataFrame  # its rows of `schemas.PREDICTIONS`, by `sha256`
    metadata: pd.DataFrame  # `describe_test_images` of these
    train: DataFrame  # the rows of images/ that it was trained on
    painted: NDArray[np.float64] | None  # raw probabilities of `test` with lesions painted over, for `shortcuts`


def gather_facts(
    context: StageContext,
    images: ImagesManifest,
    subject: Subject,
    models: Sequence[ModelFacts],
    *,
    title: str,
    made_of: Mapping[str, str],
    limits: Sequence[str],
) -> Facts:
    """Gather what every report shows of the dataset, the models and the run; the last of `models` is the subject.

    `made_of` are ids for the report's lineage, `limits` sentences on what the figures do not show.
    """
    threshold = models[-1].operating_point.threshold
    return Facts(
        title=title,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=context.run_id,
        dataset=describe_dataset(context, images),
        settings=config.notable_settings(context.settings),
        lineage={"dataset": images.id, **made_of, "package": __version__, "commit": lineage.commit()},
        models=models,
        deciding=Deciding(
            name=subject.name,
            about=subject.about,
            subgroups=measure_subgroups(context, images, subject, threshold),
            subgroup_minimum=context.settings.evaluate.subgroup_minimum,
            shortcuts=measure_shortcuts(context, images, subject),
            mistakes=find_mistakes(context, images, subject, threshold),
        ),
        limits=limits,
        weights_are_random=subject.weights_origin == "random",
    )


def publish(context: StageContext, folder: str, predictions: pd.DataFrame, subject: Subject, facts: Facts) -> None:
    """Write predictions, report, model card and ISIC's files into a report's folder; log report, card and plots."""
    write_predictions(folder, predictions)
    for name, content in isic_files(facts.dataset.labels[1], subject).items():
        files.write_bytes(files.join(folder, "isic", name), content)
    drawn = plots.draw(facts)
    pages = {"report.html": report.render(facts, drawn).encode(), "model_card.md": report.card(facts).encode()}
    for name, content in pages.items():
        files.write_bytes(files.join(folder, name), content)
        context.tracker.log_artifact(name, content)
    for name, png in drawn.items():
        context.tracker.log_artifact(f"plots/{name}", png)


def describe_model(name: str, spec: network.Spec, weights_origin: str) -> str:
    """A model's architecture and weights, in a sentence or two."""
    views = f" Its probability is the mean over {spec.tta} mirror images and turns." if spec.tta > 1 else ""
    return (
        f"{name.capitalize()}: the convolutional base of {spec.backbone} ({weights_origin} weights) and a head of "
        f"{spec.hidden} units on it, for images of {spec.image_size} x {spec.image_size} pixels.{views}"
    )


def describe_dataset(context: StageContext, images: ImagesManifest) -> Dataset:
    """Describe the images behind the models."""
    labels = f"not {images.target}", images.target
    counts = {
        split: {name: images.counts[f"{split}_{label}"] for label, name in enumerate(labels)}
        for split in ("train", "validation", "test")
    }
    sources, licenses = top_values(context, images, "source"), find_licenses(context, images)
    return Dataset(images.id, labels, counts, images.groups, images.reasons, sources, licenses)


def describe_test_images(context: StageContext, images: ImagesManifest, test: pd.DataFrame) -> pd.DataFrame:
    """Metadata of each row of `test`, in its order: ids, `subgroups.COLUMNS`, sides of the file, quality flags."""
    stored = read_images(context, images).where("split = 'test'")
    measured = pixel_udf(context, images, "quality", quality.measures)
    columns = ("sha256", "image_id", "patient_id", "width", "height", *subgroups.COLUMNS)
    session.describe_jobs(context.spark, "evaluate: metadata of the test images")
    flags = f.col("flags") if "flags" in stored.columns else f.lit(None).cast("string")  # old datasets have none
    rows = stored.select(*columns, flags.alias("flags"), measured("image").alias("measured"))
    metadata = pd.DataFrame(rows.toPandas()).set_index("sha256").loc[test["sha256"]]
    measures = np.array([row["values"] for row in metadata.pop("measured")], np.float32)
    damaged = (metadata["flags"] == quality.DAMAGED).to_numpy()
    return metadata.assign(flags=quality.flags(measures, context.settings.score.quality, damaged=damaged))


def measure_on_test(
    name: str,
    fitted: Calibration,
    point: OperatingPoint,
    validation: tuple[ArrayLike, ArrayLike] | None,
    test: pd.DataFrame,
    metadata: pd.DataFrame,
    settings: config.Settings,
) -> ModelFacts:
    """`facts.measure_model` of test images: rows of predictions, and their `describe_test_images`."""
    given = test["label"].to_numpy(), test["raw_probability"].to_numpy()
    patients = [None if pd.isna(patient) else str(patient) for patient in metadata["patient_id"]]
    drawn, prevalences = bootstrap_of(test, settings), settings.evaluate.prevalences
    return measure_model(name, fitted, point, validation, given, drawn, prevalences=prevalences, patients=patients)


def measure_subgroups(
    context: StageContext, images: ImagesManifest, subject: Subject, threshold: float
) -> list[subgroups.Subgroup]:
    """Measure the subject on each subgroup of its test images."""
    metadata, test = subject.metadata, subject.test
    columns = subgroups.assign_subgroups(
        {name: metadata[name].tolist() for name in subgroups.COLUMNS},
        metadata[["width", "height"]].min(axis=1).tolist(),
        images.image_size,
        metadata["flags"].tolist(),
    )
    labels, probabilities = test["label"].to_numpy(), test["probability"].to_numpy()
    drawn, minimum = bootstrap_of(test, context.settings), context.settings.evaluate.subgroup_minimum
    return subgroups.measure_subgroups(columns, labels, probabilities, drawn, threshold, minimum)


def pixel_udf(
    context: StageContext,
    images: ImagesManifest,
    name: str,
    measure: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> Callable[[str], Column]:
    """A UDF over the column `image`: `measure` of uint8 (n, size, size, 3), float32 (n, m), as `values`."""
    udf: Callable[[str], Column] = inference.column_udf(
        name,
        lambda: lambda batch: [measure(batch)],
        schemas.image_decoder(images.image_size),
        lambda outputs, errors: pd.DataFrame({"values": list(outputs[0])}),
        t.StructType([t.StructField("values", t.ArrayType(t.FloatType()))]),
        batch_size=context.settings.evaluate.batch_size,
    )
    return udf


def measure_shortcuts(context: StageContext, images: ImagesManifest, subject: Subject) -> Shortcuts | None:
    """AUROC without a view of the lesion: of the subject on painted images, and of colors alone, learned from train.

    None where lesions were not painted over.
    """
    if subject.painted is None:
        return None
    share = f.lit(2**32 * shortcuts.MAX_TRAIN // max(1, subject.train.count()))
    train = subject.train.where(f.conv(f.substring("sha256", 1, 8), 16, 10).cast("long") < share)
    histograms = pixel_udf(context, images, "color histograms", shortcuts.color_histograms)
    session.describe_jobs(context.spark, "evaluate: color histograms")
    tables = []
    for rows in (train, read_images(context, images).where("split = 'test'")):
        table = rows.select("sha256", "label", histograms("image").alias("histogram")).toPandas()
        tables.append(pd.DataFrame(table).set_index("sha256").sort_index())
    of_train, of_test = tables[0], tables[1].loc[subject.test["sha256"]]
    inputs = [np.array([row["values"] for row in table["histogram"]], np.float32) for table in (of_train, of_test)]
    from_colors = shortcuts.predict_from_colors(inputs[0], of_train["label"].to_numpy(), inputs[1])
    labels, drawn = subject.test["label"].to_numpy(), bootstrap_of(subject.test, context.settings)

    def auroc(probabilities: NDArray[np.float64]) -> Figure:
        return Figure("AUROC", binary.auroc(labels, probabilities), drawn.interval(drawn.auroc(labels, probabilities)))

    return Shortcuts(painted=auroc(subject.painted), colors=auroc(from_colors))


def find_mistakes(context: StageContext, images: ImagesManifest, subject: Subject, threshold: float) -> list[Mistake]:
    """Find the wrong decisions of each label that the subject is surest of, missed ones first, with heat maps."""
    most, test = context.settings.evaluate.mistakes, subject.test
    missed = test[(test["label"] == 1) & (test["probability"] < threshold)].nsmallest(most, "probability")
    alarms = test[(test["label"] == 0) & (test["probability"] >= threshold)].nlargest(most, "probability")
    wrong = pd.concat([missed, alarms])
    if not len(wrong):
        return []
    decode = schemas.image_decoder(subject.spec.image_size)
    stored = read_images(context, images)
    content = {r.sha256: r.image for r in stored.where(f.col("sha256").isin(*wrong["sha256"])).collect()}
    pixels = np.stack([decode(content[sha256]) for sha256 in wrong["sha256"]])
    heats = gradcam.heatmaps(subject.spec, subject.tensors)(pixels, (wrong["label"] == 0).tolist())
    rows = zip(wrong["label"], wrong["probability"], pixels, heats, strict=True)
    return [Mistake(int(label), float(probability), image, heat) for label, probability, image, heat in rows]


def isic_files(target: str, subject: Subject) -> dict[str, bytes]:
    """CSV files as `isic-challenge-scoring` reads them: truth and calibrated probabilities of the test images.

    They hold image ids, which may name people, so they stay in the warehouse.
    """
    ids = subject.metadata["image_id"]
    repeated = ids.duplicated(keep=False)  # the scorer refuses these: files with one name get their hashes added
    ids = ids.where(~repeated, ids + "_" + ids.index.str[:8])
    contents = {}
    for name, column in (("truth.csv", "label"), ("prediction.csv", "probability")):
        of_target = subject.test[column].to_numpy(float)  # the scorer refuses whole numbers
        table = pd.DataFrame({"image": ids.to_numpy(), target: of_target, "other": 1 - of_target})
        contents[name] = table.to_csv(index=False).encode()
    return contents


def find_licenses(context: StageContext, images: ImagesManifest) -> list[str]:
    """The licenses that the archive names, or else that of its layout."""
    layout = images.layout.partition(":")[0]
    published = layouts.LAYOUTS[layout].license if layout in layouts.LAYOUTS else None
    default = [f"{published} (of {layout} as published; the archive names none)"] if published else []
    return top_values(context, images, "licence") or default


def top_values(context: StageContext, images: ImagesManifest, column: str) -> list[str]:
    """The values of a column of images/, most images first; at most ten."""
    stored = read_images(context, images).where(f.col(column).isNotNull())
    rows = stored.groupBy(column).count().orderBy(f.desc("count"), column).limit(10).collect()
    return [str(row[0]) for row in rows]
