"""drift: what the training images look like to a network, and whether a batch is like them.

The first is part of register, and stays with the registered model: one pass of the network over at most
`register.reference` train and as many validation images, the same ones each time, by their hashes. The second is part
of score, before a batch is committed: the driver sees counts, however many rows there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.errors import ImageError
from melanoma_spark.images import quality
from melanoma_spark.models import bundle, network, prediction, training_reference
from melanoma_spark.monitoring import statistics
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import manifests
from melanoma_spark.storage.manifests import ImagesManifest

FOUND = t.StructType([t.StructField(name, t.ArrayType(t.FloatType())) for name in ("features", "measures")])
MOST_WORDS = 10_000  # that tables may use for ages, sites and so on; what is rarer is not counted


# --- of the training images


def of_training(
    context: StageContext,
    images: ImagesManifest,
    model_id: str,
    spec: network.Spec,
    tensors: list[np.ndarray],
    raw: np.ndarray,
) -> training_reference.Reference | None:
    """The reference for a network; None where the settings ask for none.

    `raw` (n,) are the network's own probabilities of the validation images, by as many views as it will be asked for.
    """
    most = context.settings.register_.reference
    if not most:
        return None
    rows = read_images(context, images).where("split != 'test'")
    table = looked_at(context, rows, most, model_id, spec, tensors)
    train, validation = (table[table["split"] == split] for split in ("train", "validation"))
    features = [np.stack(part["features"].tolist()) for part in (train, validation)]
    space = training_reference.fit(*features)
    values = {
        "raw_probability": raw,
        "distance": space.distances(features[1]),
        **dict(zip(quality.MEASURES, np.stack(table["measures"].tolist()).T, strict=True)),
        "side": table["side"].to_numpy(),
    }
    return training_reference.Reference(
        space=space,
        histograms={name: training_reference.histogram(found) for name, found in values.items()},
        shares={name: training_reference.categories(counts) for name, counts in said_of(rows).items()},
        images={"train": len(train), "validation": len(validation)},
    )


def looked_at(
    context: StageContext, rows: DataFrame, most: int, model_id: str, spec: network.Spec, tensors: list[np.ndarray]
) -> pd.DataFrame:
    """Columns `split`, `side`, `features` and `measures` of at most `most` images of each split, in order of hash."""
    spark, batch = context.spark, context.settings.score.batch_size
    session.set_arrow_batch_rows(spark, batch)
    session.describe_jobs(spark, "register: what the training images look like")
    parts = [rows.where(f.col("split") == split).orderBy("sha256").limit(most) for split in ("train", "validation")]
    some = parts[0].unionByName(parts[1]).repartition(session.partitions_for(spark, 2 * most))
    field = schemas.images_schema(spec.image_size).fields["image"]
    plain = spec.model_copy(update={"tta": 1})  # features are of the image as it is
    load = prediction.network_loader(plain, session.broadcast(spark, tensors), session.task_threads(spark))

    def measuring() -> inference.Predict:
        forward = load()
        return lambda pixels: [forward(pixels)[-1], quality.measures(pixels)]

    def decoded(content: bytes) -> np.ndarray:
        return np.asarray(field.codec.decode(field, content))

    def finish(outputs: list[np.ndarray | None], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        return pd.DataFrame({name: list(found) for name, found in zip(FOUND.names, outputs, strict=True)})  # type: ignore[arg-type]

    udf = inference.over_column(f"features of {model_id}", measuring, decoded, finish, FOUND, batch)
    columns = ("sha256", "split", f.least("width", "height").alias("side"), udf("image").alias("found"))
    with session.progress(spark, "parts looked at"):
        table = pd.DataFrame(some.select(*columns).select("*", "found.*").drop("found").toPandas())
    return table.sort_values("sha256")


# --- of a batch


def told_by(context: StageContext, rows: DataFrame, scorer: bundle.Scorer) -> DataFrame:
    """The rows of a batch that tell of drift: what the network has seen, and had not seen before in training.

    What it learnt from is nearer to it, and it is surer of that. Which images those are is known where this warehouse
    made the model.
    """
    judged = rows.where("raw_probability is not null")
    images = manifests.read(ImagesManifest, context.warehouse)
    if images is None or images.id != scorer.facts.get("dataset_id"):
        return judged
    learnt = read_images(context, images).where("split != 'test'").select("sha256")
    return judged.join(learnt, "sha256", "left_anti")


def of_batch(
    context: StageContext, judged: DataFrame, metadata: DataFrame, known: training_reference.Reference | None
) -> statistics.Drift:
    """Rows of `told_by` against the reference of their model. `metadata` has a row of `drift.METADATA` for each."""
    if known is None:
        return statistics.Drift(statistics.NO_REFERENCE, detail="the version was registered without one")
    session.describe_jobs(context.spark, "score: compare with the training images")
    limit = context.settings.score.quality.distance
    counts = judged.agg(
        f.count("*").alias("rows"),
        f.count(f.when(f.col("distance") > (np.inf if limit is None else limit), 1)).alias("unlike"),
    ).collect()[0]
    unlike = None if limit is None else int(counts.unlike)
    chosen = context.settings.score.drift
    if counts.rows < chosen.minimum:
        return statistics.held_against(known, {}, {}, counts.rows, unlike, chosen)
    numbers = in_bins(judged, known.histograms)
    return statistics.held_against(known, numbers, said_of(metadata), counts.rows, unlike, chosen)


def in_bins(rows: DataFrame, histograms: Mapping[str, training_reference.Histogram]) -> dict[str, list[int]]:
    """How many rows are in each bin of the histogram of a column, of all of them in one pass."""
    own = {name: found for name, found in histograms.items() if name in rows.columns}
    places = [f.struct(f.lit(name).alias("name"), place(name, found.edges).alias("bin")) for name, found in own.items()]
    told = rows.select(f.explode(f.array(*places)).alias("at")).where("at.bin is not null")
    counts = {name: [0] * len(found.counts) for name, found in own.items()}
    for row in told.groupBy("at.name", "at.bin").count().collect():
        counts[row.name][row.bin] = row["count"]
    return counts


def place(column: str, edges: Sequence[float]) -> Column:
    """The bin of a column's value, as `reference.Histogram` has it: the number of edges that it is over."""
    value = f.col(column).cast("double")
    known = value.isNotNull() & ~f.isnan(value)
    return reduce(add, ((value > edge).cast("int") for edge in edges), f.when(known, 0))


def said_of(rows: DataFrame) -> dict[str, dict[str, int]]:
    """Attribute -> images by category, of columns that hold what an archive's tables say of them."""
    pairs = [
        f.struct(f.lit(name).alias("name"), f.col(name).cast("string").alias("text")) for name in statistics.METADATA
    ]
    told = rows.select(f.explode(f.array(*pairs)).alias("said")).groupBy("said.name", "said.text").count()
    found: dict[str, Counter[str]] = {name: Counter() for name in statistics.METADATA}
    for row in told.orderBy(f.desc("count"), "name", "text").limit(MOST_WORDS).collect():
        found[row.name][ATTRIBUTES[row.name].category(row.text)] += row["count"]
    return {name: dict(counted) for name, counted in found.items()}


def chart(context: StageContext, found: statistics.Drift, facts: Mapping[str, Any], rows: DataFrame) -> None:
    """A point of each chart of MLflow's experiment `<experiment>-drift`: a run of its own for a batch that is there."""
    session.describe_jobs(context.spark, "score: chart the batch")
    means = rows.agg(
        f.mean("probability").alias("mean_probability"),
        f.mean((f.col("decision") == "positive").cast("int")).alias("share_positive"),
        f.mean(f.col("flags").isNotNull().cast("int")).alias("share_flagged"),
        f.mean((f.col("status") == "rejected").cast("int")).alias("share_rejected"),
    ).collect()[0]
    figures = {name: value for name, value in means.asDict().items() if value is not None}
    tags = {
        "batch_id": facts["batch_id"],
        "model": facts["model"],
        "model_version": facts["model_version"],
        "verdict": found.verdict,
        "run_id": facts["run_id"],
    }
    context.tracker.log_standalone_run(
        "drift", facts["batch_id"], tags, {**found.metrics, **figures, "rows": facts["rows"]}
    )
