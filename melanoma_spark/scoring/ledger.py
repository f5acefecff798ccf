"""What has been scored: an index of files beside `scores/`, and how a batch comes in whole or not at all.

The truth is `scores/`: a batch is there once its folder has been renamed to `batch_id=...`. Everything else is made
before that and counts only for batches that are there: `ledger/` (which file was which content, so that no old file is
read again), `batches/` (what people look at). Rows of a batch that is not finished wait in `scoring/`, where the next
run finds them. docs/decisions/once-and-only-once.md tells why.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import schemas
from melanoma_spark.errors import ClusterError
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.scoring import batches
from melanoma_spark.scoring.batches import committed
from melanoma_spark.storage import files

BATCH = batches.PREFIX
STAGED = "_staged-"  # readers of Parquet pass over names that start with an underscore
MERGED = "merged-"  # a folder of the index that holds many batches
MARK = "_batches.json"  # in such a folder: which ones. Written last: without it the folder counts for nothing
LOOSE = 30  # batches of an index that have a folder each, before these are merged
ROWS_A_FILE = 2_000_000  # of the index
BROADCAST = 200_000  # rows of a listing that are sent to every executor rather than the ledger shuffled

Check = Callable[[], None]  # raises where the warehouse is away, or another job has taken it


@dataclass(frozen=True)
class Piece:
    """A folder of the index, of one batch or of many."""

    url: str
    batches: frozenset[str]

    @property
    def loose(self) -> bool:
        return f"/{BATCH}" in self.url


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
    versions = files.list_names(top, "*") if version is None else [version]
    return _rows(spark, [piece for one in versions for piece in pieces(files.join(top, one))], there)


def pieces(folder: str) -> list[Piece]:
    """What the index of a model version consists of, the piece of most batches first."""
    found = []
    for name in files.list_names(folder, "*"):
        url = files.join(folder, name)
        if name.startswith(BATCH):
            found.append(Piece(url, frozenset([batches.id_of(name)])))
        elif name.startswith(MERGED) and (mark := files.read_json(files.join(url, MARK))):
            found.append(Piece(url, frozenset(mark["batches"])))
    return sorted(found, key=lambda piece: (-len(piece.batches), piece.url))


def _rows(spark: SparkSession, chosen: Iterable[Piece], there: Collection[str]) -> DataFrame:
    """The index of those batches that `scores/` holds. What two pieces tell, after a kill, is told twice."""
    own = [piece for piece in chosen if not piece.batches.isdisjoint(there)]
    if not own:
        return spark.createDataFrame([], schemas.LEDGER)
    rows = spark.read.schema(schemas.LEDGER).parquet(*(piece.url for piece in own))
    gone = frozenset().union(*(piece.batches for piece in own)).difference(there)
    return rows.where(~f.col("batch_id").isin(*gone)) if gone else rows


def unknown(rows: DataFrame, count: int, done: DataFrame, column: str = "source_key") -> DataFrame:
    """Those of `count` rows whose `column` is not among that of `done`."""
    done = done.select(column)
    if count <= BROADCAST:  # the ledger, which may be the larger by far, is only read, not sorted
        done = done.join(f.broadcast(rows.select(column)), column, "left_semi")
    return rows.join(done, column, "left_anti")


def tidy(spark: SparkSession, warehouse: str, check: Check) -> None:
    """Removes what killed runs left, makes the index of batches that have none, and merges many small pieces of it.

    What was staged goes first: a job that stood still for minutes, and lost its lease to this one, can then commit
    nothing any more, and what it committed before is seen below.
    """
    scores, pages = (files.join(warehouse, name) for name in ("scores", "batches"))
    for name in files.list_names(scores, f"{STAGED}*"):
        files.remove(files.join(scores, name))
    there = set(committed(warehouse))
    check()  # a file system that is away for a moment looks like one that holds nothing
    for name in files.list_names(pages, "*"):
        if name not in there:
            files.remove(files.join(pages, name))
    indexed = set().union(*(_tidied(folder, there) for folder in _indexes(warehouse)))
    if there - indexed:
        index(spark, warehouse, there - indexed)
    for folder in _indexes(warehouse):
        merge(spark, folder, there)


def _indexes(warehouse: str) -> list[str]:
    """The folders of the model versions that have an index."""
    top = files.join(warehouse, "ledger")
    models = [files.join(top, model) for model in files.list_names(top, "*")]
    return [files.join(model, version) for model in models for version in files.list_names(model, "*")]


def _tidied(folder: str, there: Collection[str]) -> set[str]:
    """Removes pieces without a batch of their own; returns the batches of those that stay."""
    kept: set[str] = set()
    urls = set()
    for piece in pieces(folder):
        if not (piece.batches & set(there)) <= kept:
            kept |= piece.batches
            urls.add(piece.url)
    for name in files.list_names(folder, "*"):
        if files.join(folder, name) not in urls:
            files.remove(files.join(folder, name))
    return kept


def index(spark: SparkSession, warehouse: str, missing: Collection[str]) -> None:
    """The index of batches by their scores alone, which know nothing of copies."""
    top = files.join(warehouse, "scores")
    urls = [files.join(top, f"{BATCH}{batch}") for batch in sorted(missing)]
    rows = spark.read.option("basePath", top).schema(schemas.SCORES).parquet(*urls)
    left = set(missing)
    grouped = rows.groupBy("model_name", "model_version").agg(f.collect_set("batch_id").alias("batches")).collect()
    for row in grouped:
        own = rows.where((f.col("model_name") == row.model_name) & (f.col("model_version") == row.model_version))
        left -= set(row.batches)
        told = {*row.batches, *left} if row is grouped[-1] else set(row.batches)  # those without rows go with the last
        _write(entries(own), files.join(warehouse, "ledger", row.model_name, row.model_version), told)


def merge(spark: SparkSession, folder: str, there: Collection[str]) -> None:
    """Where an index has more than `LOOSE` batches with a folder each, makes these one piece.

    Merged pieces that hold no more batches than have come together so far go into it. So ten years of nights are a few
    dozen pieces, and a row is written as often as the logarithm of their number. The pieces that went into it are
    removed after it counts; a kill in between leaves rows twice, which an index may hold, until `tidy` comes.
    """
    found = pieces(folder)
    chosen = [piece for piece in found if piece.loose]
    if len(chosen) <= LOOSE:
        return
    for piece in reversed(found):
        held = sum(len(one.batches) for one in chosen)
        if not piece.loose and len(piece.batches) <= held:
            chosen.append(piece)
    held_by_all = frozenset().union(*(piece.batches for piece in chosen)) & set(there)
    _write(_rows(spark, chosen, there), folder, held_by_all)
    for piece in chosen:
        files.remove(piece.url)


def _write(rows: DataFrame, folder: str, of: Collection[str]) -> None:
    """A merged piece of an index."""
    url = files.join(folder, f"{MERGED}{max(of)}-{uuid.uuid4().hex[:6]}")
    rows.coalesce(max(1, math.ceil(rows.count() / ROWS_A_FILE))).write.parquet(url)
    files.write_json(files.join(url, MARK), {"batches": sorted(of)})


def entries(scores: DataFrame) -> DataFrame:
    """Rows of `schemas.LEDGER` for rows of `scores/`; `batch_id` is null where they have none yet."""
    batch = f.col("batch_id") if "batch_id" in scores.columns else f.lit(None).cast("string")
    return scores.withColumn("source_key", key("source_uri", "source_bytes", "source_modified")).select(
        "source_key",
        "source_uri",
        "image_id",
        f.unhex("sha256").alias("sha256"),
        (f.col("reason").isNull() | (f.col("reason") != UNREADABLE)).alias("done"),
        batch.alias("batch_id"),
    )


def unfinished(warehouse: str, of_archive: str, work: str) -> str:
    """Where the rows of a batch wait until it is complete: by archive, and by what is done to it.

    What was begun on the same archive by another model or with other settings is removed.
    """
    folder = files.join(warehouse, "scoring", of_archive)
    for name in files.list_names(folder, "*"):
        if name != work:
            files.remove(files.join(folder, name))
    return files.join(folder, work)


def waiting(spark: SparkSession, place: str, done: DataFrame, run_id: str) -> DataFrame:
    """The rows of `schemas.SCORED` in an unfinished batch, a content once.

    Without those that came into `scores/` all the same, and without files that another run could not read: this one
    tries them again.
    """
    if not files.list_names(place, "*.parquet"):
        return spark.createDataFrame([], schemas.SCORED)
    rows = spark.read.schema(schemas.SCORED).parquet(place)
    read = f.col("reason").isNull() | (f.col("reason") != UNREADABLE) | (f.col("run_id") == run_id)
    new = not_in(done, rows.where(read), rows.count())
    return (
        new.withColumn("one", f.coalesce("content", "source_key")).dropDuplicates(["one"]).select(*schemas.SCORED.names)
    )


def not_in(done: DataFrame, rows: DataFrame, count: int) -> DataFrame:
    """Those of at most `count` rows of `schemas.SCORED` that the ledger does not hold, with `content`, `source_key`.

    They are known by content; what has none, as an empty file, by name, size and time.
    """
    columns = {"content": f.unhex("sha256"), "source_key": key("source_uri", "source_bytes", "source_modified")}
    keyed_rows = rows.withColumns(columns)
    read = unknown(keyed_rows.where("content is not null"), count, contents(done), "content")
    unread = unknown(keyed_rows.where("content is null"), count, done.where("sha256 is null and done"))
    return read.unionByName(unread)


def contents(done: DataFrame) -> DataFrame:
    """The column `content`: SHA-256, in bytes, of what rows of the ledger were read as."""
    return done.where("sha256 is not null").select(f.col("sha256").alias("content"))


def stage(rows: DataFrame, warehouse: str, batch: str, expected: int) -> str:
    """Writes a batch, one Parquet file, where no reader sees it. Returns its URL.

    One file, because that is what S3 puts in place whole, too. Raises `ClusterError` unless there are as many rows as
    were `expected`.
    """
    url = files.join(warehouse, "scores", f"{STAGED}{batch}")
    rows.coalesce(1).write.parquet(url)
    found = rows.sparkSession.read.schema(rows.schema).parquet(url).count()
    if found != expected:
        files.remove(url)
        raise ClusterError(
            f"batch {batch} has {found} rows, expected {expected}, so it is not committed; what was computed is kept, "
            "run score again"
        )
    return url


def refuse_twice(staged: DataFrame, count: int, done: DataFrame) -> None:
    """Raises `ClusterError` where the ledger, read anew, holds one of `count` staged rows.

    Leases and the listing of a warehouse are trusted for speed; that no image is scored twice rests on this.
    """
    if not_in(done, staged, count).count() != count:
        raise ClusterError(
            "images of this batch came into scores/ by another run meanwhile, so it is not committed; run score again, "
            "it keeps the others"
        )


def commit(
    warehouse: str,
    batch: str,
    staged: str,
    index_rows: DataFrame,
    model: str,
    version: str,
    facts: Mapping[str, Any],
    check: Check,
) -> str:
    """Makes a staged batch part of `scores/`; the rename is the moment, and `check` comes right before it.

    Returns its URL.
    """
    folder = files.join(warehouse, "ledger", model, version, f"{BATCH}{batch}")
    index_rows.withColumn("batch_id", f.lit(batch)).coalesce(1).write.mode("overwrite").parquet(folder)
    files.write_json(files.join(warehouse, "batches", batch, "batch.json"), dict(facts))
    target = files.join(warehouse, "scores", f"{BATCH}{batch}")
    check()
    files.rename(staged, target)
    return target


def remove(place: str) -> None:
    """Removes what `unfinished` named, once its rows are in `scores/`."""
    files.remove(place)
