"""Archives on any Hadoop file system, read and decoded by Spark's executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import config, images, layouts, schemas
from melanoma_spark.errors import ConfigError, DataError, ImageError, root_cause

LISTING = t.StructType(
    [
        t.StructField("path", t.StringType()),
        t.StructField("image_id", t.StringType()),
        t.StructField("modified", t.TimestampType()),
        t.StructField("length", t.LongType()),
        t.StructField("reason", t.StringType()),  # why the file is not read, a code of images.REASONS
        t.StructField("detail", t.StringType()),
    ]
)

Encode = Callable[[np.ndarray], bytes]


def listing(spark: SparkSession, url: str | None, max_bytes: int) -> DataFrame:
    """Every file of an archive as a row of `LISTING`; nothing is read yet.

    Asked of the file system itself: Spark's own listing leaves out empty files and those whose names start with `.` or
    `_`, and a file must not vanish. Raises `ConfigError` when no archive is named, `DataError` when it is not there or
    holds no files.
    """
    if not url:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    rows = []
    try:
        path = _hadoop_path(spark, url)
        root = qualified(spark, url)
        filesystem = path.getFileSystem(_hadoop_configuration(spark))
        if filesystem.getFileStatus(path).isFile():
            raise DataError(f"archive {url} is a file; name the folder that holds the images with archive=URL")
        found = filesystem.listFiles(path, True)
        while found.hasNext():
            status = found.next()
            name, length = status.getPath().toString(), status.getLen()
            modified = datetime.fromtimestamp(status.getModificationTime() / 1000, UTC)
            reason, detail = layouts.unread(name, root, length, max_bytes) or (None, None)
            rows.append((name, layouts.image_id(name), modified, length, reason, detail))
    except Py4JJavaError as error:
        raise DataError(_unreadable(url, error)) from None
    if not rows:
        raise DataError(f"archive {url} holds no files; expected a folder with JPEG or PNG images below it")
    return spark.createDataFrame(rows, LISTING)


def qualified(spark: SparkSession, url: str) -> str:
    """The archive's own path as Spark spells the paths below it."""
    path = _hadoop_path(spark, url)
    return str(path.getFileSystem(_hadoop_configuration(spark)).makeQualified(path).toString())


def contents(spark: SparkSession, url: str, max_bytes: int, paths: list[str] | None = None) -> DataFrame:
    """`path` and `content` of the archive's images (or of those in `paths`): what `listing` gives no reason against."""
    if paths == []:  # Spark asks for one at least
        return spark.createDataFrame([], "path string, content binary")
    found = _files(spark).option("recursiveFileLookup", "true").load(paths if paths is not None else url)
    is_table = f.lower("path").rlike(layouts.TABLE_NAMES)
    return found.where((f.col("length") <= max_bytes) & ~is_table).select("path", "content")


def one_by_one(files: DataFrame) -> list[str] | None:
    """The paths of these listed files that can be read, if some can not so that reading the folder would fail."""
    if not files.where(f.col("reason") == layouts.UNREADABLE_NAME).head(1):
        return None
    return [row.path for row in files.where("reason is null").select("path").collect()]


def metadata(spark: SparkSession, url: str, files: DataFrame) -> list[layouts.Record]:
    """The rows of the archive's metadata.csv, or none where it has no such table.

    Raises `DataError` when there is more than one, or what `layouts.read_metadata` raises.
    """
    named = files.where(f.lower("path").endswith("/" + layouts.METADATA_NAME) & f.col("reason").isNull())
    tables = [row.path for row in named.collect()]
    if not tables:
        return []
    if len(tables) > 1:
        raise DataError(f"archive {url} holds {len(tables)} files named metadata.csv; keep one, at its top")
    content = _files(spark).load(tables[0]).select("content").head()
    assert content is not None
    return layouts.read_metadata(bytes(content.content), layouts.METADATA_NAME)


def decode(spark: SparkSession, url: str, files: DataFrame, settings: config.Settings) -> DataFrame:
    """Each of these listed files as a row of `schemas.DECODED`: its pixels and hashes, or why it has none."""
    limits = settings.ingest
    size = settings.image_size
    read = contents(spark, url, limits.max_bytes, one_by_one(files))

    def rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        schema = schemas.images_schema(size)
        field = schema.fields["image"]
        for batch in batches:
            found = [
                _row(path, content, size, limits, lambda pixels: bytes(field.codec.encode(field, pixels)))
                for path, content in zip(batch["path"], batch["content"], strict=True)
            ]
            yield pd.DataFrame(found, columns=schemas.DECODED.names)

    decoded = read.mapInPandas(rows, schemas.DECODED)  # type: ignore[arg-type]
    unread = files.where("reason is not null").select(
        f.col("path").alias("source_uri"),
        *(f.lit(None).cast(schemas.DECODED[name].dataType).alias(name) for name in schemas.DECODED.names[1:-2]),
        "reason",
        "detail",
    )
    return decoded.unionByName(unread)


def _row(path: str, content: bytes, size: int, limits: config.Ingest, encode: Encode) -> tuple[Any, ...]:
    sha256 = images.sha256(content)
    try:
        pixels = images.decode(content, size, limits.min_side, limits.max_pixels)
        # Hashes are of a size of their own, so that duplicates, groups and splits are the same at every image_size.
        other_size = size != images.HASH_SIZE
        looked_at = images.decode(content, images.HASH_SIZE, max_pixels=limits.max_pixels) if other_size else pixels
        width, height = images.dimensions(content)
    except ImageError as error:
        return (path, sha256, None, None, None, None, None, error.reason, error.detail)
    hashes = images.pixel_hash(looked_at), images.perceptual_hash(looked_at)
    return (path, sha256, *hashes, width, height, encode(pixels), None, None)


def _files(spark: SparkSession) -> Any:
    """A reader of whole files. Spark takes a path for a glob unless told otherwise; an archive's names are names."""
    return spark.read.format("binaryFile").option("__globPaths__", "false")


def _hadoop_path(spark: SparkSession, url: str) -> Any:
    return spark.sparkContext._jvm.org.apache.hadoop.fs.Path(url)  # type: ignore[union-attr]


def _hadoop_configuration(spark: SparkSession) -> Any:
    return spark.sparkContext._jsc.hadoopConfiguration()


def _unreadable(url: str, error: Py4JJavaError) -> str:
    reason = root_cause(error)
    if "FileNotFoundException" in reason or "does not exist" in reason:
        return f"archive {url} does not exist; give the URL of a folder of images with archive=URL"
    return f"archive {url} cannot be read: {reason}"
