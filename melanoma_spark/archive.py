"""Archives on any Hadoop file system, read and decoded by Spark's executors."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import config, images, layouts, schemas
from melanoma_spark.errors import ConfigError, DataError, ImageError

LISTING = ("path", "modificationTime", "length")


def listing(spark: SparkSession, url: str | None) -> DataFrame:
    """Every file of an archive: `path`, `modificationTime`, `length`; nothing is read yet.

    Raises `ConfigError` when no archive is named, `DataError` when it is not there or holds no files.
    """
    if not url:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    found = _files(spark, url).select(*LISTING)
    try:
        if found.isEmpty():
            raise DataError(f"archive {url} holds no files; expected a folder with JPEG or PNG images below it")
    except PySparkException as error:
        raise DataError(_unreadable(url, error)) from None
    return found


def qualified(spark: SparkSession, url: str) -> str:
    """The archive's own path as Spark spells the paths below it."""
    context = spark.sparkContext
    path = context._jvm.org.apache.hadoop.fs.Path(url)  # type: ignore[union-attr]
    return str(path.getFileSystem(context._jsc.hadoopConfiguration()).makeQualified(path))  # type: ignore[union-attr]


def is_table(path: Column) -> Column:
    """Whether a file is a table beside the images, by its name."""
    return f.lower(path).rlike(r"\.csv$")


def contents(spark: SparkSession, url: str, max_bytes: int, paths: list[str] | None = None) -> DataFrame:
    """The files of an archive (or only those of `paths`) with their `content`; those over `max_bytes` are left out."""
    return _files(spark, url, paths).where(f.col("length") <= max_bytes)


def metadata(spark: SparkSession, url: str, files: DataFrame) -> list[layouts.Record]:
    """The rows of the archive's metadata.csv, or none where it has no such table.

    Raises `DataError` when there is more than one, or what `layouts.read_metadata` raises.
    """
    tables = [
        row.path
        for row in files.where(f.lower("path").endswith("/" + layouts.METADATA_NAME)).select("path").collect()
    ]
    if not tables:
        return []
    if len(tables) > 1:
        raise DataError(f"archive {url} holds {len(tables)} files named metadata.csv; keep one, at its top")
    content = spark.read.format("binaryFile").load(_escaped(tables[0])).select("content").head()
    assert content is not None
    return layouts.read_metadata(bytes(content.content), layouts.METADATA_NAME)


def decode(spark: SparkSession, url: str, settings: config.Settings) -> DataFrame:
    """Every file that may be an image as a row of `schemas.DECODED`: its pixels and hashes, or why there are none."""
    limits = settings.ingest
    size = settings.image_size
    is_image = ~is_table(f.col("path"))
    read = contents(spark, url, limits.max_bytes).where(is_image).select("path", "content")

    def rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        schema = schemas.images_schema(size)
        field = schema.fields["image"]
        for batch in batches:
            found = [
                _row(path, content, size, limits, lambda pixels: bytes(field.codec.encode(field, pixels)))
                for path, content in zip(batch["path"], batch["content"], strict=True)
            ]
            yield pd.DataFrame(found, columns=schemas.DECODED.names)

    decoded = read.mapInPandas(rows, schemas.DECODED)
    unread = (
        _files(spark, url)
        .select(*LISTING)
        .where((f.col("length") > limits.max_bytes) & is_image)
        .select(
            f.col("path").alias("source_uri"),
            *(f.lit(None).cast(schemas.DECODED[name].dataType).alias(name) for name in schemas.DECODED.names[1:-2]),
            f.lit("too_many_bytes").alias("reason"),
            f.concat(f.col("length"), f.lit(f" bytes, the limit is {limits.max_bytes}")).alias("detail"),
        )
    )
    return decoded.unionByName(unread)


def _row(path: str, content: bytes, size: int, limits: config.Ingest, encode) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    sha256 = images.sha256(content)
    try:
        pixels = images.decode(content, size, limits.min_side, limits.max_pixels)
        width, height = images.dimensions(content)
    except ImageError as error:
        return (path, sha256, None, None, None, None, None, error.reason, error.detail)
    hashes = images.pixel_hash(pixels), images.perceptual_hash(pixels)
    return (path, sha256, *hashes, width, height, encode(pixels), None, None)


def _files(spark: SparkSession, url: str, paths: list[str] | None = None) -> DataFrame:
    try:
        return (
            spark.read.format("binaryFile")
            .option("recursiveFileLookup", "true")
            .option("ignoreMissingFiles", "false")
            .load([_escaped(path) for path in paths] if paths is not None else _escaped(url))
        )
    except PySparkException as error:
        raise DataError(_unreadable(url, error)) from None


def _escaped(url: str) -> str:
    """Hadoop reads a path as a glob; the names of an archive are names."""
    return "".join("\\" + letter if letter in "{}[]*?\\" else letter for letter in url)


def _unreadable(url: str, error: PySparkException) -> str:
    condition = error.getCondition() if hasattr(error, "getCondition") else error.getErrorClass()
    if condition == "PATH_NOT_FOUND":
        return f"archive {url} does not exist; give the URL of a folder of images with archive=URL"
    return f"archive {url} cannot be read: {str(error).splitlines()[0][:300]}"
