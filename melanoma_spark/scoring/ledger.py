"""The index of scored files beside `scores/`, and how a batch is committed as a whole or not at all.

The truth is `scores/`: a batch exists once its folder has been renamed to `batch_id=...`. Everything else is made
before that, and counts only for committed batches: `ledger/` (which file has which content, so that no old file is read
again) and `batches/` (what people look at). Rows of an unfinished batch wait in `scoring/`, where the next run finds
them. docs/decisions/once-and-only-once.md gives the reasons.
"""

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import schemas
from melanoma_spark.archives.listing import LINK_OUT
from melanoma_spark.errors import ClusterError
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.scoring import columns
from melanoma_spark.scoring.status import PREFIX, committed, id_of
from melanoma_spark.storage import files

STAGED = "_staged-"  # readers of Parquet skip names that start with an underscore
MERGED = "merged-"  # a folder of the index that holds many batches
MERGED_BATCHES = "_batches.json"  # in such a folder: their ids. Written last: without it the folder does not count
LOOSE = 30  # batches of an index that have a folder each, before these are merged
ROWS_PER_FILE = 2_000_000  # of the index
BROADCAST = 200_000  # rows of a listing that are sent to every executor rather than the ledger shuffled

Check = Callable[[], None]  # raises if the warehouse is away, or another job has taken the lease


@dataclass(frozen=True)
class Piece:
    """A folder of the index, of one batch or of many."""

    url: str
    batches: frozenset[str]

    @property
    def loose(self) -> bool:
        """Whether the folder is of one batch."""
        return f"/{PREFIX}" in self.url


def source_key(uri: str, length: str, modified: str) -> Column:
    """Return the key of a file by name, size and time, 16 bytes: of 10,000,000 two agree with a chance of 2**-82."""
    text = f.concat_ws("\n", f.col(uri), f.col(length), f.unix_micros(f.col(modified)))
    return f.unhex(f.substring(f.sha2(text, 256), 1, 32))


def with_source_key(listing: DataFrame) -> DataFrame:
    """Return a listing with `source_key`."""
    return listing.withColumn("source_key", source_key("source_uri", "length", "modified"))


def read(spark: SparkSession, warehouse: str, model: str, version: str | None) -> DataFrame:
    """Return rows of `schemas.LEDGER`: the files that a version of a model has scored; with None, any version."""
    folder = files.join(warehouse, "ledger", model)
    versions = files.list_names(folder, "*") if version is None else [version]
    found = [piece for name in versions for piece in pieces(files.join(folder, name))]
    return _read_pieces(spark, found, set(committed(warehouse)))


def pieces(folder: str) -> list[Piece]:
    """Return the pieces of the index of a model version, the one of most batches first."""
    found = []
    for name in files.list_names(folder, "*"):
        url = files.join(folder, name)
        if name.startswith(PREFIX):
            found.append(Piece(url, frozenset([id_of(name)])))
        elif name.startswith(MERGED) and (merged := files.read_json(files.join(url, MERGED_BATCHES))):
            found.append(Piece(url, frozenset(merged["batches"])))
    return sorted(found, key=lambda piece: (-len(piece.batches), piece.url))


def _read_pieces(spark: SparkSession, index: Iterable[Piece], existing: Collection[str]) -> DataFrame:
    """Return the index of existing batches. After a kill, two pieces may have the same rows."""
    used = [piece for piece in index if not piece.batches.isdisjoint(existing)]
    if not used:
        return spark.createDataFrame([], schemas.LEDGER)
    rows = spark.read.schema(schemas.LEDGER).parquet(*(piece.url for piece in used))
    removed = frozenset().union(*(piece.batches for piece in used)).difference(existing)
    return rows.where(~f.col("batch_id").isin(*removed)) if removed else rows


def without_known(rows: DataFrame, count: int, known: DataFrame, column: str = "source_key") -> DataFrame:
    """Return those of `count` rows whose `column` is not in `known`."""
    known = known.select(column)
    if count <= BROADCAST:  # the ledger, which may be much larger, is only read, not sorted
        known = known.join(f.broadcast(rows.select(column)), column, "left_semi")
    return rows.join(known, column, "left_anti")


def repair_and_compact(spark: SparkSession, warehouse: str, check: Check) -> None:
    """Remove what killed runs have left, index batches that have no index, and merge many small pieces of it.

    Staged batches go first: a job that paused for minutes, and lost its lease to this one, can then commit nothing, and
    what it committed before is seen below.
    """
    scores, pages = (files.join(warehouse, name) for name in ("scores", "batches"))
    for name in files.list_names(scores, f"{STAGED}*"):
        files.remove(files.join(scores, name))
    existing = set(committed(warehouse))
    check()  # a file system that is away for a moment looks like an empty one
    for name in files.list_names(pages, "*"):
        if name not in existing:
            files.remove(files.join(pages, name))
    indexed = set().union(*(_remove_superseded(folder, existing) for folder in _indexes(warehouse)))
    if existing - indexed:
        index_batches(spark, warehouse, existing - indexed)
    for folder in _indexes(warehouse):
        merge(spark, folder, existing)


def _indexes(warehouse: str) -> list[str]:
    """Return the folders of the model versions that have an index."""
    top = files.join(warehouse, "ledger")
    models = [files.join(top, model) for model in files.list_names(top, "*")]
    return [files.join(model, version) for model in models for version in files.list_names(model, "*")]


def _remove_superseded(folder: str, existing: Collection[str]) -> set[str]:
    """Remove pieces whose existing batches are in others too; return the batches of those that stay."""
    kept: set[str] = set()
    urls = set()
    for piece in pieces(folder):
        if not (piece.batches & set(existing)) <= kept:
            kept |= piece.batches
            urls.add(piece.url)
    for name in files.list_names(folder, "*"):
        if files.join(folder, name) not in urls:
            files.remove(files.join(folder, name))
    return kept


def index_batches(spark: SparkSession, warehouse: str, missing: Collection[str]) -> None:
    """Write the index of batches from their scores alone, which do not have copies."""
    top = files.join(warehouse, "scores")
    urls = [files.join(top, f"{PREFIX}{batch}") for batch in sorted(missing)]
    rows = spark.read.option("basePath", top).schema(columns.schema(batch_id=True)).parquet(*urls)
    left = set(missing)
    grouped = rows.groupBy("model_name", "model_version").agg(f.collect_set("batch_id").alias("batches")).collect()
    for group in grouped:
        of_version = (f.col("model_name") == group.model_name) & (f.col("model_version") == group.model_version)
        left -= set(group.batches)
        indexed = {*group.batches, *left} if group is grouped[-1] else set(group.batches)  # batches without rows
        folder = files.join(warehouse, "ledger", group.model_name, group.model_version)
        _write_merged(entries(rows.where(of_version)), folder, indexed)


def merge(spark: SparkSession, folder: str, existing: Collection[str]) -> None:
    """Merge the pieces of an index once more than `LOOSE` batches have a folder each.

    Merged pieces with no more batches than have come together so far are merged too. So ten years of nights are a few
    dozen pieces, and a row is written as often as the logarithm of their number. The old pieces are removed after the
    new one counts. A kill in between leaves rows twice, which an index may hold, until `repair_and_compact` runs.
    """
    index = pieces(folder)
    chosen = [piece for piece in index if piece.loose]
    if len(chosen) <= LOOSE:
        return
    for piece in reversed(index):
        if not piece.loose and len(piece.batches) <= sum(len(other.batches) for other in chosen):
            chosen.append(piece)
    merged = frozenset().union(*(piece.batches for piece in chosen)) & set(existing)
    _write_merged(_read_pieces(spark, chosen, existing), folder, merged)
    for piece in chosen:
        files.remove(piece.url)


def _write_merged(rows: DataFrame, folder: str, merged: Collection[str]) -> None:
    url = files.join(folder, f"{MERGED}{max(merged)}-{uuid.uuid4().hex[:6]}")
    rows.coalesce(max(1, math.ceil(rows.count() / ROWS_PER_FILE))).write.parquet(url)
    files.write_json(files.join(url, MERGED_BATCHES), {"batches": sorted(merged)})


def entries(scores: DataFrame) -> DataFrame:
    """Return rows of `schemas.LEDGER` for rows of `scores/`; `batch_id` is null before they are committed."""
    # files that another run may read: the file system may be back, or the setting that refuses them changed
    later = f.coalesce((f.col("reason") == UNREADABLE) | f.col("detail").startswith(LINK_OUT), f.lit(False))
    batch = f.col("batch_id") if "batch_id" in scores.columns else f.lit(None).cast("string")
    return scores.withColumn("source_key", source_key("source_uri", "source_bytes", "source_modified")).select(
        "source_key",
        "source_uri",
        "image_id",
        f.unhex("sha256").alias("sha256"),
        (~later).alias("done"),
        batch.alias("batch_id"),
    )


def waiting_folder(warehouse: str, archive_id: str, work_id: str) -> str:
    """Return the folder in which the rows of a batch wait until it is complete: by archive, model and settings.

    Rows of the same archive by another model, or with other settings, are removed.
    """
    folder = files.join(warehouse, "scoring", archive_id)
    for name in files.list_names(folder, "*"):
        if name != work_id:
            files.remove(files.join(folder, name))
    return files.join(folder, work_id)


def read_waiting(spark: SparkSession, folder: str, known: DataFrame, run_id: str) -> DataFrame:
    """Return the rows of `columns.schema()` in an unfinished batch, one for each content.

    Rows that are in `scores/` all the same are left out, and files that another run could not read: this one tries
    them again.
    """
    schema = columns.schema()
    if not files.list_names(folder, "*.parquet"):
        return spark.createDataFrame([], schema)
    rows = spark.read.schema(schema).parquet(folder)
    readable = f.col("reason").isNull() | (f.col("reason") != UNREADABLE) | (f.col("run_id") == run_id)
    new = not_in_ledger(known, rows.where(readable), rows.count())
    return new.withColumn("one", f.coalesce("content", "source_key")).dropDuplicates(["one"]).select(*schema.names)


def not_in_ledger(known: DataFrame, rows: DataFrame, count: int) -> DataFrame:
    """Return those of at most `count` rows of `scores/` that the ledger lacks, with `content` and `source_key`.

    A row is known by its content; one without content, such as an empty file, by name, size and time.
    """
    keys = {"content": f.unhex("sha256"), "source_key": source_key("source_uri", "source_bytes", "source_modified")}
    keyed = rows.withColumns(keys)
    with_content = without_known(keyed.where("content is not null"), count, contents(known), "content")
    without = without_known(keyed.where("content is null"), count, known.where("sha256 is null and done"))
    return with_content.unionByName(without)


def contents(known: DataFrame) -> DataFrame:
    """Return the column `content`: the SHA-256, in bytes, of the files of the ledger that were read."""
    return known.where("sha256 is not null").select(f.col("sha256").alias("content"))


def stage(rows: DataFrame, warehouse: str, batch: str, expected: int) -> str:
    """Write a batch as one Parquet file where no reader sees it, and return its URL.

    One file, because S3 puts one file in place as a whole.

    Raises:
        ClusterError: There are not as many rows as `expected`.
    """
    url = files.join(warehouse, "scores", f"{STAGED}{batch}")
    rows.coalesce(1).write.parquet(url)
    count = rows.sparkSession.read.schema(rows.schema).parquet(url).count()
    if count != expected:
        files.remove(url)
        raise ClusterError(
            f"batch {batch} has {count} rows, expected {expected}, so it is not committed; what was computed is kept, "
            "run score again"
        )
    return url


def refuse_twice(staged: DataFrame, count: int, known: DataFrame) -> None:
    """Raise `ClusterError` if the ledger, read again, has one of `count` staged rows.

    Leases and the listing of a warehouse are trusted for speed. That no image is scored twice rests on this check.
    """
    if not_in_ledger(known, staged, count).count() != count:
        raise ClusterError(
            "images of this batch came into scores/ by another run meanwhile, so it is not committed; run score again, "
            "it keeps the others"
        )


def commit(warehouse: str, staged: str, index_rows: DataFrame, facts: Mapping[str, Any], check: Check) -> str:
    """Make a staged batch part of `scores/` by a rename, right after `check`; return its URL.

    `facts` are those of batch.json.
    """
    batch = facts["batch_id"]
    folder = files.join(warehouse, "ledger", facts["model"], facts["model_version"], f"{PREFIX}{batch}")
    index_rows.withColumn("batch_id", f.lit(batch)).coalesce(1).write.mode("overwrite").parquet(folder)
    files.write_json(files.join(warehouse, "batches", batch, "batch.json"), dict(facts))
    target = files.join(warehouse, "scores", f"{PREFIX}{batch}")
    check()
    files.rename(staged, target)
    return target


def remove_waiting(folder: str) -> None:
    """Remove the folder of `waiting_folder` once its rows are in `scores/`."""
    files.remove(folder)
