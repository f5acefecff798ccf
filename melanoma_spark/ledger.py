"""What has been scored: an index of files beside `scores/`, and how a batch comes in whole or not at all.

The truth is `scores/`: a batch is there once its folder has been renamed to `batch_id=...`. Everything else is made
before that and counts only for batches that are there: `ledger/` (which file was which content, so that no old file is
read again), `batches/` (what people look at). Rows of a batch that is not finished wait in `scoring/`, where the next
run finds them. docs/decisions/once-and-only-once.md tells why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import batches, files, images, schemas
from melanoma_spark.batches import committed
from melanoma_spark.errors import ClusterError

BATCH = batches.PREFIX
STAGED = "_staged-"  # readers of Parquet pass over names that start with an underscore
BROADCAST = 200_000  # rows of a listing that are sent to every executor rather than the ledger shuffled


def key(uri: str, length: str, modified: str) -> Column:
    """A file by name, size and time of modification, in 16 bytes: of 10,000,000 two agree with a chance of 2**-82."""
    text = f.concat_ws("\n", f.col(uri), f.col(length), f.unix_micros(f.col(modified)))
    return f.unhex(f.substring(f.sha2(text, 256), 1, 32))


def keyed(listing: DataFrame) -> DataFrame:
    """A listing with `source_key`."""
    return listing.withColumn("source_key", key("source_uri", "length", "modified"))


def known(spark: SparkSession, warehouse: str, model: str, version: str | None) -> DataFrame:
    """Rows of `schemas.LEDGER` of the files that a version of a model has been given; None: any version of it."""
    there = set(committed(warehouse))
    top = files.join(warehouse, "ledger", model)
    found = []
    for one in files.matches(top, "*") if version is None else [version]:
        folder = files.join(top, one)
        found += [
            files.join(folder, name) for name in files.matches(folder, f"{BATCH}*") if batches.id_of(name) in there
        ]
    if not found:
        return spark.createDataFrame([], schemas.LEDGER)
    return spark.read.schema(schemas.LEDGER).parquet(*found)


def unknown(listing: DataFrame, listed: int, done: DataFrame) -> DataFrame:
    """The rows of a listing whose `source_key` is not among those of `done`."""
    if listed <= BROADCAST:  # the ledger, which may be the larger by far, is only read, not sorted
        done = done.join(f.broadcast(listing.select("source_key")), "source_key", "left_semi")
    return listing.join(done.select("source_key").distinct(), "source_key", "left_anti")


def tidy(spark: SparkSession, warehouse: str) -> None:
    """Removes what killed runs left, and makes the index of batches that have none."""
    there = set(committed(warehouse))
    scores, top, pages = (files.join(warehouse, name) for name in ("scores", "ledger", "batches"))
    for name in files.matches(scores, f"{STAGED}*"):
        files.remove(files.join(scores, name))
    for name in files.matches(pages, "*"):
        if name not in there:
            files.remove(files.join(pages, name))
    indexed = set()
    for model in files.matches(top, "*"):
        for version in files.matches(files.join(top, model), "*"):
            folder = files.join(top, model, version)
            for name in files.matches(folder, f"{BATCH}*"):
                if batches.id_of(name) in there:
                    indexed.add(batches.id_of(name))
                else:
                    files.remove(files.join(folder, name))
    for batch in sorted(there - indexed):
        index(spark, warehouse, batch)


def index(spark: SparkSession, warehouse: str, batch: str) -> None:
    """The index of a batch by its scores alone, which know nothing of copies."""
    rows = spark.read.parquet(files.join(warehouse, "scores", f"{BATCH}{batch}"))
    for row in rows.select("model_name", "model_version").distinct().collect():
        own = rows.where((f.col("model_name") == row.model_name) & (f.col("model_version") == row.model_version))
        entries(own).write.mode("overwrite").parquet(_index_url(warehouse, row.model_name, row.model_version, batch))


def entries(scores: DataFrame) -> DataFrame:
    """Rows of `schemas.LEDGER` for rows of `scores/`."""
    return scores.withColumn("source_key", key("source_uri", "source_bytes", "source_modified")).select(
        "source_key",
        "source_uri",
        "image_id",
        f.unhex("sha256").alias("sha256"),
        (f.col("reason").isNull() | (f.col("reason") != images.GONE)).alias("done"),
    )


def unfinished(warehouse: str, of_archive: str, work: str) -> str:
    """Where the rows of a batch wait until it is complete: by archive, and by what is done to it.

    What was begun on the same archive by another model or with other settings is removed.
    """
    folder = files.join(warehouse, "scoring", of_archive)
    for name in files.matches(folder, "*"):
        if name != work:
            files.remove(files.join(folder, name))
    return files.join(folder, work)


def waiting(spark: SparkSession, place: str, done: DataFrame) -> DataFrame:
    """The rows of `schemas.SCORED` in an unfinished batch, without those that came into `scores/` all the same."""
    if not files.matches(place, "*.parquet"):
        return spark.createDataFrame([], schemas.SCORED)
    rows = spark.read.schema(schemas.SCORED).parquet(place)
    own = rows.withColumn("source_key", key("source_uri", "source_bytes", "source_modified"))
    return unknown(own, own.count(), done.where("done")).drop("source_key")


def stage(rows: DataFrame, warehouse: str, batch: str, expected: int) -> str:
    """Writes a batch, one Parquet file, where no reader sees it. Returns its URL.

    One file, because that is what S3 puts in place whole, too. Raises `ClusterError` unless there are as many rows as
    were `expected`, each of another content.
    """
    url = files.join(warehouse, "scores", f"{STAGED}{batch}")
    content = f.coalesce("sha256", f.concat_ws("\n", "source_uri", "source_bytes", "source_modified"))
    rows.withColumn("content", content).dropDuplicates(["content"]).drop("content").coalesce(1).write.parquet(url)
    found = rows.sparkSession.read.schema(rows.schema).parquet(url).count()
    if found != expected:
        files.remove(url)
        raise ClusterError(
            f"batch {batch} has {found} rows, expected {expected}, so it is not committed; what was computed is kept, "
            "run score again"
        )
    return url


def commit(
    warehouse: str, batch: str, staged: str, index_rows: DataFrame, model: str, version: str, facts: Mapping[str, Any]
) -> str:
    """Makes a staged batch part of `scores/`; the rename is the moment. Returns its URL."""
    index_rows.coalesce(1).write.mode("overwrite").parquet(_index_url(warehouse, model, version, batch))
    files.write_json(files.join(warehouse, "batches", batch, "batch.json"), dict(facts))
    target = files.join(warehouse, "scores", f"{BATCH}{batch}")
    files.rename(staged, target)
    return target


def remove(place: str) -> None:
    """Removes what `unfinished` named, once its rows are in `scores/`."""
    files.remove(place)


def _index_url(warehouse: str, model: str, version: str, batch: str) -> str:
    return files.join(warehouse, "ledger", model, version, f"{BATCH}{batch}")
