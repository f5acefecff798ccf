"""Reads an archive for ingest: images are decoded into `decoded/`, and rows of tables are matched to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, lineage, schemas
from melanoma_spark.archives import layouts, matching, plan, table_files, tasks
from melanoma_spark.dataset import selection
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.runner.context import StageContext, report_throughput
from melanoma_spark.spark import session
from melanoma_spark.storage import files
from melanoma_spark.storage.parquet import ROWS_WRITTEN, parquet_writer

SAME_FILE = ("source_uri", "length", "modified")

Store = Callable[[str, DataFrame], DataFrame]  # writes a table under a name, and reads it again
Roles = Mapping[tuple[str, str | None], int]  # (role, reason) -> files of a listing


@dataclass(frozen=True)
class Archive:
    """What an archive holds, before images are selected.

    Attributes:
        made_from: The id of its listing with the settings of the dataset.
        listed: The rows of `schemas.LISTING`.
        roles: (role, reason) -> files.
        layout: Of its folders and tables.
        decoded: Rows of `schemas.DECODED`, of its readable images among others.
        new: The number of files decoded now.
        throughput: Of decoding, for the summary.
        candidates: Rows of `schemas.CANDIDATES`.
        unmatched: Rows of `schemas.UNMATCHED`.
    """

    made_from: str
    listed: DataFrame
    roles: Roles
    layout: layouts.Layout
    decoded: DataFrame
    new: int
    throughput: str
    candidates: DataFrame
    unmatched: DataFrame

    @property
    def images(self) -> int:
        """The number of listed images, readable or not."""
        return sum(count for (role, _), count in self.roles.items() if role == "image")

    @property
    def unreadable(self) -> DataFrame:
        """The rows of the listing of images that cannot be read."""
        return self.listed.where("role = 'image' and reason is not null")


def read_archive(context: StageContext, listed: DataFrame, roles: Roles, made_from: str, store: Store) -> Archive:
    """Decode the images of a listing that are new, and match the rows of its tables to them."""
    spark, settings = context.spark, context.settings
    heads, tables = table_files.read_table_heads(listed, settings)
    words, folders = settings.ingest.labels, table_files.count_images_by_folder(listed)
    layout = layouts.recognize_layout(
        heads, folders, settings.layout, settings.ingest.columns, (*words.positive, *words.negative)
    )
    images = listed.where("role = 'image'")
    readable = images.where("reason is null")
    decoded, new, throughput = decode_new_files(context, readable)
    name = plan.stored_name(settings)
    matched = matching.match_no_rows(spark)
    if layout.tables:
        session.describe_jobs(spark, "ingest: read the tables, and find the images of their rows")
        rows, paths = table_files.read_records(spark, layout, tables, settings), table_files.table_paths(listed)
        targets = table_files.images_for_matching(images, settings)
        matched = matching.match_rows(targets, rows, paths, name, store, contents=contents_of(targets, decoded))
    read = readable.select(*SAME_FILE, "path", "image_id").join(
        decoded.drop("image", "thumbnail"), list(SAME_FILE), "inner"
    )
    return Archive(
        *(made_from, listed, roles, layout, decoded, new, throughput),
        candidates=store("candidates", selection.find_candidates(read, matched.images, layout, settings, name)),
        unmatched=store("unmatched", matched.unmatched.select(*schemas.UNMATCHED.names)),
    )


def decode_new_files(context: StageContext, readable: DataFrame) -> tuple[DataFrame, int, str]:
    """Decode the files that `decoded/` lacks. Later runs reuse it: its rows depend on content, never on labels.

    Each finished task leaves its file there when the job is killed, and the next run decodes the rest.

    Returns:
        The rows of `decoded/`, the number of files decoded now, and the throughput for the summary.
    """
    spark, settings = context.spark, context.settings
    url = files.join(context.warehouse, "decoded", decoded_folder(settings))
    remaining = readable
    if files.list_names(url, "*.parquet"):
        done = spark.read.schema(schemas.DECODED).parquet(url).where(f"reason is null or reason != '{UNREADABLE}'")
        keys = done.select(*(f.col(name).alias(f"done_{name}") for name in SAME_FILE))
        same = [readable[name].eqNullSafe(keys[f"done_{name}"]) for name in SAME_FILE]
        remaining = readable.join(keys, same, "left_anti")
    remaining = remaining.persist()
    new, throughput = remaining.count(), ""
    if new:
        session.describe_jobs(spark, f"ingest: decode and hash {new} files")
        meter = session.Meter(spark)
        write = parquet_writer(url, schemas.DECODED)
        written = tasks.decode_files(remaining, new, settings, write, result=ROWS_WRITTEN, meter=meter)
        written.agg(f.sum("rows")).collect()
        throughput = report_throughput(context, meter)
    remaining.unpersist()
    if not files.list_names(url, "*.parquet"):
        return spark.createDataFrame([], schemas.DECODED), new, throughput
    return spark.read.schema(schemas.DECODED).parquet(url), new, throughput


def contents_of(listed: DataFrame, decoded: DataFrame) -> DataFrame:
    """`path` and `content` of the decoded files of a listing; files of the same pixels have the same content."""
    pixels = decoded.where("pixel_sha256 is not null").select(*SAME_FILE, f.col("pixel_sha256").alias("content"))
    return listed.select(*SAME_FILE, "path").join(pixels, list(SAME_FILE)).select("path", "content")


def decoded_folder(settings: config.Settings) -> str:
    """The name of the folder in `decoded/`, by its columns and the settings that its rows depend on."""
    limits = settings.ingest
    recipe: list[Any] = [
        settings.image_size,
        *(limits.pixels_version, limits.min_side, limits.max_pixels, limits.max_bytes, limits.max_seconds),
    ]
    recipe += [limits.allow_recognisable, limits.damaged, settings.privacy.source_names]
    return lineage.content_id([*recipe, *schemas.DECODED.names])
