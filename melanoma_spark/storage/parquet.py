"""Parquet: part files that Spark's Python tasks write themselves, and content ids of tables."""

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from melanoma_spark import lineage
from melanoma_spark.errors import DataError
from melanoma_spark.storage import files

ROWS_WRITTEN = "rows long"  # schema of the rows that `parquet_writer` returns: how many rows a task has written


def parquet_writer(
    url: str, schema: StructType, most: int | None = None
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Return a function for `mapInPandas` that writes frames of `schema` as Parquet files into the folder `url`.

    It returns rows of `ROWS_WRITTEN`. Images so do not travel to the JVM, which would copy them several times. A task
    writes one file, or a file for every `most` rows, so that a killed job keeps them. A file gets its name when it is
    complete. The same rows of a partition always get the same name, so two attempts of a task leave one file.

    The folder is made here, once. A task that made it would write beside a mounted disk while that is away.
    """
    files.make_folder(url)

    columns = to_arrow_schema(schema)
    batch = uuid.uuid4().hex[:12]

    def write(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        task = TaskContext.get()
        assert task is not None
        for number in itertools.count():
            first = next(frames, None)
            if first is None:
                break
            count = 0
            part = f"part-{batch}-{task.partitionId():05d}{f'-{number:05d}' if most else ''}.parquet"
            unfinished = files.join(url, f"_{part}-{task.taskAttemptId()}")  # readers skip names with an underscore
            filesystem, path = files.filesystem(unfinished)
            try:
                with (
                    filesystem.open(path, "wb") as sink,
                    pq.ParquetWriter(sink, columns, compression="none", use_dictionary=False) as writer,
                ):
                    for frame in itertools.chain([first], frames):
                        writer.write_table(pa.Table.from_pandas(frame, columns, preserve_index=False))
                        count += len(frame)
                        if most and count >= most:
                            break
                files.rename(unfinished, files.join(url, part))
            finally:
                files.remove(unfinished)
            yield pd.DataFrame({"rows": [count]})

    return write


def table_id(table: DataFrame, columns: Sequence[str]) -> str:
    """Compute a content id of a table's rows, whatever their order and the number of partitions.

    The driver receives 4,096 hashes, however many rows there are.
    """
    line = f.sha2(f.to_json(f.struct(*columns), {"ignoreNullFields": "false"}), 256)
    buckets = table.select(line.alias("line")).groupBy(f.substring("line", 1, 3).alias("bucket"))
    hashed = buckets.agg(f.sha2(f.concat_ws("", f.array_sort(f.collect_list("line"))), 256).alias("hash")).collect()
    return lineage.content_id(sorted(row.hash for row in hashed))


def training_labels(spark: SparkSession, url: str) -> dict[str, dict[str, int]]:
    """Read sha256 -> label of the train and the validation split from `images/`, in storage order.

    Raises `DataError` when one of them is empty.
    """
    table = spark.read.parquet(url).select("split", "sha256", "label").where("split != 'test'")
    rows = sorted((row.sha256, row.split, row.label) for row in table.collect())
    labels = {split: {key: label for key, side, label in rows if side == split} for split in ("train", "validation")}
    for split, images in labels.items():
        if not images:
            raise DataError(f"images/ has no image in the {split} split; ingest more images, or other fractions")
    return labels
