"""What evaluation tells of one model, whatever the archive: subgroups, shortcuts, mistakes, and where it all goes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.archives import layouts
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import figures, plots, report, report_facts, shortcuts, subgroups
from melanoma_spark.images import quality
from melanoma_spark.metrics import binary, bootstrap
from melanoma_spark.models import bundle, gradcam, model_registry, network, prediction
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import ImagesManifest

PREDICTIONS = "predictions/predictions.parquet"


def write_predictions(folder: str, table: pd.DataFrame) -> None:
    """Rows of `schemas.PREDICTIONS`, into a report's folder."""
    files.write_bytes(files.join(folder, PREDICTIONS), table.to_parquet(index=False))


def read_predictions(folder: str, model: str, split: str) -> pd.DataFrame | None:
    """A model's rows of a split, by `sha256`; None where the folder has none."""
    url = files.join(folder, PREDICTIONS)
    if not files.exists(url):
        return None
    rows = pd.read_parquet(io.BytesIO(files.read_bytes(url)))
    return rows[(rows["model"] == model) & (rows["split"] == split)].sort_values("sha256")


def publish(context: StageContext, folder: str, facts: report_facts.Facts) -> None:
    """Report, model card and plots: into the warehouse and the run."""
    pages = {"report.html": report.render(facts).encode(), "model_card.md": report.card(facts).encode()}
    for name, content in pages.items():
        files.write_bytes(files.join(folder, name), content)
        context.tracker.log_artifact(name, content)
    for name, png in plots.draw(facts).items():
        context.tracker.log_artifact(f"plots/{name}", png)


def about(name: str, spec: network.Spec, weights: str) -> str:
    """What a model is, in a sentence or two."""
    views = f" It judges by the mean over {spec.tta} mirror images and turns of an image." if spec.tta > 1 else ""
    return (
        f"{name.capitalize()}: the convolutional base of {spec.backbone} ({weights} weights) and a head of "
        f"{spec.hidden} units on it, for images of {spec.image_size} x {spec.image_size} pixels.{views}"
    )


def dataset_facts(context: StageContext, images: ImagesManifest) -> report_facts.Dataset:
    labels = f"not {images.target}", images.target
    counts = {
        split: {name: images.counts[f"{split}_{label}"] for label, name in enumerate(labels)}
        for split in ("train", "validation", "test")
    }
    return {
        "id": images.id,
        "labels": labels,
        "counts": counts,
        "groups": images.groups,
        "rejects": images.reasons,
        "sources": told_of(context, images, "source"),
        "licences": licences(context, images),
    }


def told_of_test(context: StageContext, images: ImagesManifest, test: pd.DataFrame) -> pd.DataFrame:
    """What is known of each row of `test`, in its order: ids, `subgroups.COLUMNS`, sides of the file, quality flags."""
    stored = read_images(context, images).where("split = 'test'")
    measured = of_pixels(context, images, "quality", quality.measures)
    columns = ("sha256", "image_id", "patient_id", "width", "height", *subgroups.COLUMNS)
    session.describe_jobs(context.spark, "evaluate: what is known of the test images")
    flags = f.col("flags") if "flags" in stored.columns else f.lit(None).cast("string")  # datasets before it had none
    rows = stored.select(*columns, flags.alias("flags"), measured("image").alias("found"))
    told = pd.DataFrame(rows.toPandas()).set_index("sha256")
    told = told.loc[test["sha256"]]
    found = np.array([row["values"] for row in told.pop("found")], np.float32)
    damaged = (told["flags"] == quality.DAMAGED).to_numpy()
    return told.assign(flags=quality.flags(found, context.settings.score.quality, damaged=damaged))


def by_subgroup(
    context: StageContext, images: ImagesManifest, test: pd.DataFrame, told: pd.DataFrame, threshold: float
) -> list[subgroups.Subgroup]:
    """Of a model, on the rows of `test`, of which `told_of_test` tells."""
    sides = told[["width", "height"]].min(axis=1).to_numpy()
    known = {name: told[name].tolist() for name in subgroups.COLUMNS}
    values = subgroups.values(known, sides, images.image_size, told["flags"].tolist())
    chosen = context.settings.evaluate
    labels, probabilities, groups = (test[name].to_numpy() for name in ("label", "probability", "group"))
    drawn = chosen.resamples, context.settings.seed
    return subgroups.of_split(values, labels, probabilities, groups, threshold, chosen.subgroup_minimum, *drawn)


def of_pixels(
    context: StageContext, images: ImagesManifest, name: str, measure: Callable[[np.ndarray], np.ndarray]
) -> Any:
    """A UDF over the column `image`: what `measure` says of uint8 (n, size, size, 3), float32 (n, m), as `values`."""
    pixels = schemas.images_schema(images.image_size).fields["image"]
    return inference.column_udf(
        name,
        lambda: lambda batch: [measure(batch)],
        lambda content: pixels.codec.decode(pixels, content),
        lambda outputs, errors: pd.DataFrame({"values": list(outputs[0])}),  # type: ignore[arg-type]
        t.StructType([t.StructField("values", t.ArrayType(t.FloatType()))]),
        batch_size=context.settings.evaluate.batch_size,
    )


def without_the_lesion(
    context: StageContext, images: ImagesManifest, learnt: DataFrame, test: pd.DataFrame, painted_over: pd.DataFrame
) -> report_facts.Shortcuts:
    """How well a model ranks painted-over test images, and colour histograms alone, learnt from train, rank them.

    `learnt` are rows of train images, at the size of `images`; both frames have their rows by `sha256`.
    """
    share = f.lit(2**32 * shortcuts.MOST_TRAIN // max(1, learnt.count()))
    some = learnt.where(f.conv(f.substring("sha256", 1, 8), 16, 10).cast("long") < share)
    judged = read_images(context, images).where("split = 'test'")
    columns = of_pixels(context, images, "colour histograms", shortcuts.colour_histograms)
    session.describe_jobs(context.spark, "evaluate: colours alone")
    tables = []
    for rows in (some, judged):
        found = pd.DataFrame(rows.select("sha256", "label", columns("image").alias("found")).toPandas())
        found = found.set_index("sha256").sort_index()
        tables.append(found.assign(shares=[row["values"] for row in found["found"]]))
    own = tables[1].loc[test["sha256"]]
    shares = [np.array(table["shares"].tolist(), np.float32) for table in (tables[0], own)]
    colours = shortcuts.judged_by_colours(shares[0], tables[0]["label"].to_numpy(), shares[1])
    labels, groups = test["label"].to_numpy(), test["group"].to_numpy()
    drawn = context.settings.evaluate.resamples, context.settings.seed
    return {
        key: figures.Figure("AUROC", binary.auroc(labels, p), bootstrap.auroc_interval(labels, p, groups, *drawn))
        for key, p in (("painted", painted_over["raw_probability"].to_numpy()), ("colours", colours))
    }  # type: ignore[return-value]


def mistakes(
    context: StageContext,
    images: ImagesManifest,
    spec: network.Spec,
    tensors: list[np.ndarray],
    test: pd.DataFrame,
    threshold: float,
) -> list[report_facts.Mistake]:
    """The surest wrong decisions of each kind, missed ones first, with what they rest on. Of the image as it is."""
    most = context.settings.evaluate.mistakes
    missed = test[(test["label"] == 1) & (test["probability"] < threshold)].nsmallest(most, "probability")
    alarms = test[(test["label"] == 0) & (test["probability"] >= threshold)].nlargest(most, "probability")
    wrong = pd.concat([missed, alarms])
    if not len(wrong):
        return []
    field = schemas.images_schema(spec.image_size).fields["image"]
    stored = read_images(context, images)
    content = {r.sha256: r.image for r in stored.where(f.col("sha256").isin(*wrong["sha256"])).collect()}
    pixels = np.stack([field.codec.decode(field, content[sha256]) for sha256 in wrong["sha256"]])
    positive = (wrong["label"] == 0).tolist()
    heat = gradcam.heatmaps(spec, tensors)(pixels, positive)
    return [
        report_facts.Mistake(label=int(row.label), probability=float(row.probability), image=image, heat=own)
        for row, image, own in zip(wrong.itertuples(), pixels, heat, strict=True)
    ]


def in_isics_format(images: ImagesManifest, test: pd.DataFrame, told: pd.DataFrame) -> dict[str, bytes]:
    """CSV files as `isic-challenge-scoring` reads them: truth and calibrated probabilities of the test images.

    They hold image ids, which may name people, so they stay in the warehouse.
    """
    ids = told["image_id"]
    again = ids.duplicated(keep=False)  # the scorer refuses these: of files with one name the content tells them apart
    ids = ids.where(~again, ids + "_" + ids.index.str[:8])
    found = {}
    for file, values in (("truth.csv", test["label"]), ("prediction.csv", test["probability"])):
        of_target = values.to_numpy(float)  # the scorer refuses whole numbers
        rows = pd.DataFrame({"image": ids.to_numpy(), images.target: of_target, "other": 1 - of_target})
        found[file] = rows.to_csv(index=False).encode()
    return found


def patients_of(told: pd.DataFrame) -> list[str | None]:
    """Of each row of `told_of_test`."""
    return [None if pd.isna(patient) else str(patient) for patient in told["patient_id"]]


def judged_by(context: StageContext, images: ImagesManifest, reference: str, test: pd.DataFrame) -> np.ndarray:
    """Calibrated probabilities of a registered model, of the rows of `test`. Raises `DataError` for another size."""
    _, artifacts = model_registry.download_model(context.tracker, reference)
    scorer = bundle.unpack(artifacts)
    if scorer.spec.image_size != images.image_size:
        raise DataError(
            f"{reference} takes images of {scorer.spec.image_size} px, images/ holds {images.image_size} px, so the "
            "two cannot be compared; give the new one another register.name, or register.gate.auroc_margin=null"
        )
    session.set_arrow_batch_rows(context.spark, context.settings.evaluate.batch_size)
    session.describe_jobs(context.spark, f"{reference} on the test images")
    stored = read_images(context, images).where("split = 'test'")
    batch = context.settings.evaluate.batch_size
    rows = prediction.judged(stored, scorer.spec, scorer.tensors, f"network {scorer.model_id}", batch)
    raw = pd.DataFrame(rows.select("sha256", "found.raw_probability").toPandas()).set_index("sha256")
    return scorer.calibration.apply(raw.loc[test["sha256"], "raw_probability"])


def licences(context: StageContext, images: ImagesManifest) -> list[str]:
    """What the archive says of its images, else what its layout is published under."""
    layout = images.layout.partition(":")[0]
    published = layouts.LAYOUTS[layout].license if layout in layouts.LAYOUTS else None
    told = told_of(context, images, "licence")
    return told or ([f"{published} (of {layout} as published; the archive tells none)"] if published else [])


def told_of(context: StageContext, images: ImagesManifest, column: str) -> list[str]:
    """What the archive says of its images in a column, most images first; at most ten."""
    stored = read_images(context, images).where(f.col(column).isNotNull())
    rows = stored.groupBy(column).count().orderBy(f.desc("count"), column).limit(10).collect()
    return [str(row[0]) for row in rows]
