"""The tables of an archive: which files they are, their heads for the driver, their rows for Spark."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import layouts, plan
from melanoma_spark.archives.contents import open_file, read_members
from melanoma_spark.archives.rows import ListedFile, in_frames
from melanoma_spark.archives.tables import HEAD, Table, TableHead, read_table
from melanoma_spark.errors import DataError, ImageError
from melanoma_spark.spark import session
from melanoma_spark.storage import files

MOST_TABLES = 2000
MOST_FOLDERS = 10_000
HEADS_AT_ONCE = 16  # read by the driver
TABLES_OF_A_TASK = 10
TABLE_NAME = r"\.(csv|tsv|tab)$"  # in lower case
NOT_IN_TABLES = (layouts.HIDDEN, "mask")  # reasons of files that no row of a table is about


def read_table_heads(
    listed: DataFrame, settings: config.Settings, set_aside: dict[str, str] | None = None
) -> tuple[list[TableHead], list[ListedFile]]:
    """The first bytes of the archive's tables, and their rows of the listing.

    A table that cannot be read, and what is over `MOST_TABLES`, goes to `set_aside` with the reason. Without
    `set_aside` it raises `DataError`.
    """
    tables = listed.where("role = 'table' and reason is null").orderBy("path").select(*schemas.LISTING.names)
    rows = [ListedFile(*row) for row in tables.limit(MOST_TABLES + 1).collect()]
    root, _ = plan.locate(settings.archive)
    unreadable: dict[str, str] = {}
    if len(rows) > MOST_TABLES:
        unreadable[f"{rows.pop().path} and what follows"] = (
            f"are over the limit of {MOST_TABLES} tables; join them to fewer"
        )

    def head_of(row: ListedFile) -> TableHead | None:
        try:
            with open_table(root, row) as file:
                return TableHead(row.path, file.read(HEAD))
        except DataError as error:
            unreadable[row.path] = str(error).removeprefix(f"{row.path} ")
            return None

    with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:  # on S3 each takes a moment
        heads = [head for head in pool.map(head_of, rows) if head]
    if set_aside is not None:
        set_aside |= unreadable
    elif unreadable:
        path = min(unreadable)
        raise DataError(f"{path} {unreadable[path]}")
    return heads, rows


def table_paths(listed: DataFrame) -> list[str]:
    """The paths of the tables of a listing, unreadable ones included."""
    rows = listed.where(f.lower("path").rlike(TABLE_NAME)).select("path").limit(MOST_TABLES + 1).collect()
    return [row.path for row in rows]


def unreadable_tables(listed: DataFrame) -> dict[str, str]:
    """Path -> why, of tables that the listing has rejected; the first `MOST_TABLES` by path."""
    rejected = f.col("reason").isNotNull() & ~f.col("reason").isin(*NOT_IN_TABLES)
    rows = listed.where(rejected & f.lower("path").rlike(TABLE_NAME)).orderBy("path").limit(MOST_TABLES).collect()
    return {row.path: f"cannot be read: {row.reason}, {row.detail}" for row in rows}


def images_for_matching(listed: DataFrame, settings: config.Settings) -> DataFrame:
    """The images of a listing that rows of tables may be about, with `shown`, the name that people see.

    Unreadable files are among them: a row may be about one of them, and not about another file of its name.
    """
    private = settings.privacy.source_names == "hash"
    possible = f.col("reason").isNull() | ~f.col("reason").isin(*NOT_IN_TABLES)
    images = listed.where((f.col("role") == "image") & possible)
    return images.withColumn("shown", f.col("source_uri" if private else "path"))


def count_images_by_folder(listed: DataFrame) -> dict[str, int]:
    """Folder, relative to the archive -> number of images directly in it; the `MOST_FOLDERS` largest."""
    parent = f.regexp_extract("path", r"^(.*)/[^/]*$", 1)
    counted = listed.where("role = 'image' and reason is null").groupBy(parent.alias("folder")).count()
    rows = counted.orderBy(f.desc("count"), "folder").limit(MOST_FOLDERS).collect()
    return {row.folder: row["count"] for row in rows}


@contextmanager
def open_table(root: str, row: ListedFile) -> Iterator[BinaryIO]:
    """Open a table, which is a file or a member of a container.

    Raises `DataError` that begins with its path if it cannot be read, in the block too: without the table images would
    silently lose their labels.
    """
    try:
        if row.kind == "file":
            with open_file(root, row.file, row.raw) as file:
                yield file
        else:
            ((_, content),) = read_members(root, row.file, row.kind, [row])
            if isinstance(content, ImageError):
                raise content
            yield io.BytesIO(content)
    except (OSError, ImageError) as error:
        why = error.detail if isinstance(error, ImageError) else files.reason(error)
        hint = "make it readable, or take it out of the archive, and run ingest again"
        raise DataError(f"{row.path} cannot be read: {why}; {hint}") from None


def read_records(
    spark: SparkSession,
    layout: layouts.Layout,
    rows: Sequence[ListedFile],
    settings: config.Settings,
    set_aside: dict[str, str] | None = None,
) -> DataFrame:
    """The rows of a layout's tables as `schemas.RECORDS`, read by executors.

    With `set_aside` the paths of damaged tables and the reasons go there, and their rows are left out. Without it the
    task that reads a damaged table raises `DataError`.
    """
    root, _ = plan.locate(settings.archive)
    by_path = {row.path: row for row in rows}
    work = [(table, by_path[table.path]) for table in layout.tables]
    schema = schemas.add(schemas.RECORDS, "error")
    skip_damaged = set_aside is not None

    def records_of(table: Table, row: ListedFile) -> Iterator[tuple[Any, ...]]:
        """Rows with a null `error`; a damaged table ends with a row of its path and error."""
        try:
            with open_table(root, row) as file:
                for record in read_table(file, table):
                    yield (*record.values(), None)
        except DataError as error:
            if not skip_damaged:
                raise
            why = str(error).removeprefix(f"{table.path} ")
            yield (*(table.path if name == "table" else None for name in schemas.RECORDS.names), why)

    def task(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for place in batch["id"]:
                yield from in_frames(records_of(*work[int(place)]), schema)

    tasks = max(1, -(-len(work) // TABLES_OF_A_TASK))
    records = spark.range(0, len(work), 1, tasks).mapInPandas(task, schema)  # type: ignore[arg-type]
    if set_aside is None:
        return records.drop("error")
    records = session.checkpointed(records)
    damaged = records.where("error is not null").select("table", "error").collect()
    set_aside |= {row.table: row.error for row in damaged}
    return records.where(~f.col("table").isin(*set_aside)).drop("error") if set_aside else records.drop("error")
