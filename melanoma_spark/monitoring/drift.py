"""Drift in Spark: measure the training images of a network, and compare a batch with them.

`register` measures them with one pass of the network over at most `register.reference` train and as many validation
images, the same ones each time, by their hashes. `score` compares a batch before it is committed. The driver sees
counts, however many rows there are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.errors import ImageError
from melanoma_spark.images import quality
from melanoma_spark.models import bundle, network, prediction, training_reference
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import MEASURES, of_kind
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import manifests
from melanoma_spark.storage.manifests import ImagesManifest

FEATURES = t.StructType([t.StructField(name, t.ArrayType(t.FloatType())) for name in ("features", "measures")])
MOST_WORDS = 10_000  # that tables may use for ages, sites and so on; rarer words are not counted


def build_reference(
    context: StageContext,
    images: ImagesManifest,
    model_id: str,
    spec: network.Spec,
    tensors: list[NDArray[Any]],
    *,
    raw: NDArray[np.float64],
) -> training_reference.Reference | None:
    """Build the reference of a network; None where `register.reference` is 0.

    `raw` (n,) are the probabilities of the network for the validation images, before calibration, with as many views
    of an image as `score` uses.
    """
    if not context.settings.register_.reference:
        return None
    rows = read_images(context, images).where("split != 'test'")
    table = reference_features(context, rows, model_id, spec, tensors)
    train, validation = (table[table["split"] == split] for split in ("train", "validation"))
    features = [np.stack(part["features"].tolist()) for part in (train, validation)]
    space = training_reference.fit(*features)
    columns = {
        "raw_probability": raw,
        "distance": space.distances(features[1]),
        **dict(zip(quality.MEASURES, np.stack(table["measures"].tolist()).T, strict=True)),
        "side": table["side"].to_numpy(),
    }
    numbers = {name: MEASURES[name].of_training(columns) for name in of_kind("number")}
    return training_reference.Reference(
        space=space,
        histograms={name: training_reference.histogram(values) for name, values in numbers.items()},
        shares={name: training_reference.categories(counts) for name, counts in count_metadata(rows).items()},
        images={"train": len(train), "validation": len(validation)},
    )


def reference_features(
    context: StageContext, rows: DataFrame, model_id: str, spec: network.Spec, tensors: list[NDArray[Any]]
) -> pd.DataFrame:
    """Columns `split`, `side`, `features` and `measures` of `register.reference` images of each split, by hash."""
    spark, batch, most = context.spark, context.settings.score.batch_size, context.settings.register_.reference
    session.set_arrow_batch_rows(spark, batch)
    session.describe_jobs(spark, "register: measure the training images")
    parts = [rows.where(f.col("split") == split).orderBy("sha256").limit(most) for split in ("train", "validation")]
    some = parts[0].unionByName(parts[1]).repartition(session.partitions_for(spark, 2 * most))
    decode = schemas.image_decoder(spec.image_size)
    plain = spec.model_copy(update={"tta": 1})  # features are of the image as it is
    load = prediction.network_loader(plain, session.broadcast(spark, tensors), session.task_threads(spark))

    def load_with_quality() -> inference.Predict:
        forward = load()
        return lambda pixels: [forward(pixels)[-1], quality.measures(pixels)]

    def finish(outputs: list[NDArray[Any]], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        return pd.DataFrame({name: list(rows) for name, rows in zip(FEATURES.names, outputs, strict=True)})

    udf = inference.column_udf(f"features of {model_id}", load_with_quality, decode, finish, FEATURES, batch_size=batch)
    columns = ("sha256", "split", f.least("width", "height").alias("side"), udf("image").alias("features"))
    with session.progress(spark, "parts of the training images measured"):
        table = pd.DataFrame(some.select(*columns).select("sha256", "split", "side", "features.*").toPandas())
    return table.sort_values("sha256")


def rows_for_drift(context: StageContext, rows: DataFrame, scorer: bundle.Scorer) -> DataFrame:
    """The rows of a batch to compare: scored by the network, excluding images seen in training.

    Images seen in training are nearer to the training images, and their probabilities are more certain. They are known
    where this warehouse made the model.
    """
    scored = rows.where("raw_probability is not null")
    images = manifests.read(ImagesManifest, context.warehouse)
    if images is None or images.id != scorer.facts.get("dataset_id"):
        return scored
    trained = read_images(context, images).where("split != 'test'").select("sha256")
    return scored.join(trained, "sha256", "left_anti")


def compare_batch(
    context: StageContext, rows: DataFrame, metadata: DataFrame, reference: training_reference.Reference | None
) -> statistics.Drift:
    """Compare `rows_for_drift` with the reference of their model; `metadata` has the categories of each."""
    if reference is None:
        return statistics.Drift(statistics.NO_REFERENCE, detail="the version was registered without one")
    session.describe_jobs(context.spark, "score: compare with the training images")
    limit = context.settings.score.quality.distance
    counts = rows.agg(
        f.count("*").alias("rows"),
        f.count_if(f.col("distance") > (np.inf if limit is None else limit)).alias("unlike"),
    ).collect()[0]
    unlike = None if limit is None else int(counts.unlike)
    limits = context.settings.score.drift
    numbers: dict[str, list[int]] = {}
    categories: dict[str, dict[str, int]] = {}
    if counts.rows >= limits.minimum:
        numbers = count_in_bins(
            rows, {name: reference.histograms[name] for name in of_kind("number") if name in reference.histograms}
        )
        categories = count_metadata(metadata)
    return statistics.compare_with_reference(reference, numbers, categories, counts.rows, unlike=unlike, limits=limits)


def count_in_bins(rows: DataFrame, histograms: Mapping[str, training_reference.Histogram]) -> dict[str, list[int]]:
    """Measure -> rows in each bin of its histogram, of all measures in one pass."""
    bins = [
        f.struct(f.lit(name).alias("name"), bin_of(MEASURES[name].batch_column, histogram.edges).alias("bin"))
        for name, histogram in histograms.items()
    ]
    binned = rows.select(f.explode(f.array(*bins)).alias("at")).where("at.bin is not null")
    counts = {name: [0] * len(histogram.counts) for name, histogram in histograms.items()}
    for row in binned.groupBy("at.name", "at.bin").count().collect():
        counts[row.name][row.bin] = row["count"]
    return counts


def bin_of(expression: str, edges: Sequence[float]) -> Column:
    """The bin of an SQL expression in a `training_reference.Histogram`: the number of edges below its value."""
    value = f.expr(expression).cast("double")
    known = value.isNotNull() & ~f.isnan(value)
    return reduce(add, ((value > edge).cast("int") for edge in edges), f.when(known, 0))


def count_metadata(rows: DataFrame) -> dict[str, dict[str, int]]:
    """Attribute -> images by category, of the attributes that tables state."""
    names = of_kind("category")
    pairs = [f.struct(f.lit(name).alias("name"), f.col(name).cast("string").alias("text")) for name in names]
    values = rows.select(f.explode(f.array(*pairs)).alias("value")).groupBy("value.name", "value.text").count()
    images: dict[str, Counter[str]] = {name: Counter() for name in names}
    for row in values.orderBy(f.desc("count"), "name", "text").limit(MOST_WORDS).collect():
        images[row.name][ATTRIBUTES[row.name].category(row.text)] += row["count"]
    return {name: dict(counts) for name, counts in images.items()}


def log_batch(context: StageContext, drift: statistics.Drift, facts: Mapping[str, Any], rows: DataFrame) -> None:
    """Log a committed batch as a run of MLflow's experiment `<experiment>-drift`, a point of each of its charts."""
    session.describe_jobs(context.spark, "score: log the drift of the batch")
    means = rows.agg(
        f.mean("probability").alias("mean_probability"),
        f.mean((f.col("decision") == "positive").cast("int")).alias("share_positive"),
        f.mean(f.col("flags").isNotNull().cast("int")).alias("share_flagged"),
        f.mean((f.col("status") == "rejected").cast("int")).alias("share_rejected"),
    ).collect()[0]
    figures = {name: value for name, value in means.asDict().items() if value is not None}
    tags = {key: facts[key] for key in ("batch_id", "model", "model_version", "verdict", "run_id")}
    values = {**drift.metrics, **figures, "rows": facts["rows"]}
    context.tracker.log_standalone_run("drift", facts["batch_id"], tags, values)
