"""What evaluation tells of one model, whatever the archive: subgroups, shortcuts, mistakes, and where it all goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from jobs.job import Job
from melanoma_spark import (
    bootstrap,
    figures,
    files,
    gradcam,
    inference,
    metrics,
    network,
    report,
    schemas,
    session,
    shortcuts,
    store,
    subgroups,
)


def pixels_of(job: Job, images: dict[str, Any]) -> DataFrame:
    """The rows of images/."""
    return job.spark.read.parquet(store.data_url(job.warehouse, "images", images))


def publish(job: Job, folder: str, facts: report.Facts) -> None:
    """Report, model card and plots: into the warehouse and the run."""
    pages = {"report.html": report.render(facts).encode(), "model_card.md": report.card(facts).encode()}
    for name, content in pages.items():
        files.write_bytes(files.join(folder, name), content)
        job.tracker.artifact(name, content)
    for name, png in report.plots(facts).items():
        job.tracker.artifact(f"plots/{name}", png)


def dataset_facts(job: Job, images: dict[str, Any]) -> report.Dataset:
    counts = {
        split: {"negative": images["counts"][f"{split}_0"], "positive": images["counts"][f"{split}_1"]}
        for split in ("train", "validation", "test")
    }
    return {
        "id": images["id"],
        "labels": ("negative", "positive"),
        "counts": counts,
        "groups": images["groups"],
        "rejects": images["reasons"],
        "sources": told_of(job, images, "source"),
        "licences": told_of(job, images, "licence"),
    }


def by_subgroup(job: Job, images: dict[str, Any], test: pd.DataFrame, threshold: float) -> list[subgroups.Subgroup]:
    """Of a model, on the rows of `test`."""
    columns = [name for name in subgroups.ATTRIBUTES if name != "size"]
    stored = pixels_of(job, images).where("split = 'test'")
    told = pd.DataFrame(stored.select("sha256", "width", "height", *columns).toPandas()).set_index("sha256")
    told = told.loc[test["sha256"].tolist()]
    sides = told[["width", "height"]].min(axis=1).to_numpy()
    values = subgroups.values({name: told[name].tolist() for name in columns}, sides, images["image_size"])
    chosen = job.settings.evaluate
    labels, probabilities, groups = (test[name].to_numpy() for name in ("label", "probability", "group"))
    drawn = chosen.resamples, job.settings.seed
    return subgroups.of_split(values, labels, probabilities, groups, threshold, chosen.subgroup_minimum, *drawn)


def without_the_lesion(
    job: Job, images: dict[str, Any], test: pd.DataFrame, painted_over: pd.DataFrame
) -> report.Shortcuts:
    """How well the deciding model ranks painted-over test images, and colour histograms alone rank them."""
    pixels = schemas.images_schema(images["image_size"]).fields["image"]
    rows = pixels_of(job, images)
    train = sum(count for key, count in images["counts"].items() if key.startswith("train_"))
    some = f.conv(f.substring("sha256", 1, 8), 16, 10).cast("long") < f.lit(2**32 * shortcuts.MOST_TRAIN // train)
    rows = rows.where((f.col("split") == "test") | ((f.col("split") == "train") & some))
    udf = inference.over_column(
        "colour histograms",
        lambda: lambda batch: [batch],
        lambda content: shortcuts.colour_histogram(pixels.codec.decode(pixels, content)),
        lambda outputs, errors: pd.DataFrame({"shares": list(outputs[0])}),  # type: ignore[arg-type]
        t.StructType([t.StructField("shares", t.ArrayType(t.FloatType()))]),
        job.settings.evaluate.batch_size,
    )
    session.describe(job.spark, "evaluate: colours alone")
    table = pd.DataFrame(rows.select("sha256", "split", "label", udf("image").alias("found")).toPandas())
    table = table.sort_values("sha256")
    histograms = np.array([row["shares"] for row in table["found"]], np.float32)
    learnt, judged = ((table["split"] == split).to_numpy() for split in ("train", "test"))
    colours = shortcuts.judged_by_colours(histograms[learnt], table["label"].to_numpy()[learnt], histograms[judged])
    labels, groups = test["label"].to_numpy(), test["group"].to_numpy()
    drawn = job.settings.evaluate.resamples, job.settings.seed
    return {
        key: figures.Figure("AUROC", metrics.auroc(labels, p), bootstrap.auroc_interval(labels, p, groups, *drawn))
        for key, p in (("painted", painted_over["raw_probability"].to_numpy()), ("colours", colours))
    }  # type: ignore[return-value]


def mistakes(
    job: Job,
    images: dict[str, Any],
    spec: network.Spec,
    tensors: list[np.ndarray],
    test: pd.DataFrame,
    threshold: float,
) -> list[report.Mistake]:
    """The surest wrong decisions of each kind, missed ones first, with what they rest on. Of the image as it is."""
    most = job.settings.evaluate.mistakes
    missed = test[(test["label"] == 1) & (test["probability"] < threshold)].nsmallest(most, "probability")
    alarms = test[(test["label"] == 0) & (test["probability"] >= threshold)].nlargest(most, "probability")
    wrong = pd.concat([missed, alarms])
    if not len(wrong):
        return []
    field = schemas.images_schema(spec.image_size).fields["image"]
    stored = pixels_of(job, images)
    content = {r.sha256: r.image for r in stored.where(f.col("sha256").isin(*wrong["sha256"])).collect()}
    pixels = np.stack([field.codec.decode(field, content[sha256]) for sha256 in wrong["sha256"]])
    positive = (wrong["label"] == 0).tolist()
    heat = gradcam.heatmaps(spec, tensors)(pixels, positive)
    return [
        report.Mistake(label=int(row.label), probability=float(row.probability), image=image, heat=own)
        for row, image, own in zip(wrong.itertuples(), pixels, heat, strict=True)
    ]


def in_isics_format(job: Job, images: dict[str, Any], test: pd.DataFrame) -> dict[str, bytes]:
    """CSV files as `isic-challenge-scoring` reads them: truth and calibrated probabilities of the test images.

    They hold image ids, which may name people, so they stay in the warehouse.
    """
    stored = pixels_of(job, images).where("split = 'test'")
    told = pd.DataFrame(stored.select("sha256", "image_id").toPandas()).set_index("sha256")
    ids = told.loc[test["sha256"], "image_id"]
    again = ids.duplicated(keep=False)  # the scorer refuses these: of files with one name the content tells them apart
    ids = ids.where(~again, ids + "_" + ids.index.str[:8])
    found = {}
    for file, values in (("truth.csv", test["label"]), ("prediction.csv", test["probability"])):
        of_target = values.to_numpy(float)  # the scorer refuses whole numbers
        rows = pd.DataFrame({"image": ids.to_numpy(), images["target"]: of_target, "other": 1 - of_target})
        found[file] = rows.to_csv(index=False).encode()
    return found


def patients_of(job: Job, images: dict[str, Any], test: pd.DataFrame) -> list[str | None]:
    """Of each row of `test`."""
    stored = pixels_of(job, images).where("split = 'test'").select("sha256", "patient_id")
    told = pd.DataFrame(stored.toPandas()).set_index("sha256")["patient_id"]
    return [None if pd.isna(patient) else str(patient) for patient in told.loc[test["sha256"]]]


def told_of(job: Job, images: dict[str, Any], column: str) -> list[str]:
    """What the archive says of its images in a column, most images first; at most ten."""
    stored = pixels_of(job, images).where(f.col(column).isNotNull())
    rows = stored.groupBy(column).count().orderBy(f.desc("count"), column).limit(10).collect()
    return [str(row[0]) for row in rows]
