"""score: an archive through the model behind an alias -> `scores/`, a row for every image.

What the same model version has scored before is not read again: a second run over the same archive adds nothing.

example: ./spark-submit.sh score archive=/data/tonight warehouse=/data/warehouse score.model=melanoma@champion
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from jobs.job import Job, main
from melanoma_spark import archive, files, inference, schemas, serving, session


def run(job: Job) -> str:
    spark, settings = job.spark, job.settings
    version, artifacts = job.tracker.model_files(settings.score.model)
    scorer = serving.unpack(artifacts)
    listing = archive.listing(spark, settings).where("role = 'image'").persist()
    todo = new_files(job, listing, version).persist()
    listed, new = listing.count(), todo.count()
    name = f"{version.name} version {version.version}"
    if not new:
        return f"{listed} images listed, all scored before by {name}; nothing to do"

    batch = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    session.describe(spark, f"score: {new} images with {name}")
    # Written beside and moved in place whole: readers of scores/ skip names that start with an underscore.
    staged = files.join(job.warehouse, "scores", f"_staged-{batch}")
    target = files.join(job.warehouse, "scores", f"batch_id={batch}")
    try:
        rows = scored(job, todo, new, scorer, version)
        rows.write.parquet(staged)
        counts = {row.status: row["count"] for row in spark.read.parquet(staged).groupBy("status").count().collect()}
        files.rename(staged, target)
    finally:
        files.remove(staged)
    job.tracker.metrics({"listed": listed, "scored_before": listed - new, **counts})
    job.tracker.tags({"batch_id": batch, "model_version": str(version.version)})
    told = " + ".join(f"{counts.get(status, 0)} {status}" for status in ("scored", "rejected"))
    return f"{listed} images listed = {told} + {listed - new} scored before, by {name}; {target}"


def new_files(job: Job, listing: DataFrame, version: Any) -> DataFrame:
    """The listed files that this model version has no row for: by path, size and time of modification."""
    if not files.matches(files.join(job.warehouse, "scores"), "batch_id=*"):
        return listing
    done = (
        job.spark.read.parquet(files.join(job.warehouse, "scores"))
        .where((f.col("model_name") == version.name) & (f.col("model_version") == str(version.version)))
        .where(f.col("reason").isNull() | (f.col("reason") != archive.GONE))
        .select("source_uri", "source_bytes", "source_modified")
    )
    same = (
        (listing["source_uri"] == done["source_uri"])
        & (listing["length"] == done["source_bytes"])
        & listing["modified"].eqNullSafe(done["source_modified"])
    )
    return listing.join(done, same, "left_anti")


def scored(job: Job, todo: DataFrame, count: int, scorer: serving.Scorer, version: Any) -> DataFrame:
    """Rows of `schemas.SCORES`, but for the batch, which the folder names."""
    spark, settings = job.spark, job.settings
    tensors = spark.sparkContext.broadcast(scorer.tensors)
    kinds = dict.fromkeys(serving.NUMBERS, t.DoubleType())
    result = t.StructType([t.StructField(key, kinds.get(key, t.StringType())) for key in serving.OUTPUTS])
    # The closures below travel to the executors; the weights go once, as the broadcast.
    light = serving.without_tensors(scorer)
    compute = inference.over_batches(
        f"score {scorer.model_id}",
        inference.network_loader(scorer.spec, tensors, session.task_threads(spark)),
        light.prepare,
        light.finish,
        settings.score.batch_size,
    )
    found = archive.computed(todo, count, settings, compute, result, settings.score.batch_size)
    return (
        found.withColumnRenamed("length", "source_bytes")
        .withColumnRenamed("modified", "source_modified")
        .withColumns(
            {key: f.when(f.col("status") == "scored", f.col(key)) for key in ("probability", "raw_probability")}
        )
        .withColumn("model_name", f.lit(version.name))
        .withColumn("model_version", f.lit(str(version.version)))
        .withColumn("run_id", f.lit(job.run_id))
        .withColumn("scored_at", f.lit(datetime.now(UTC)).cast("timestamp"))
        .select(*(name for name in schemas.SCORES.names if name != "batch_id"))
    )


if __name__ == "__main__":
    main("score", __doc__, run, needs_archive=True)
