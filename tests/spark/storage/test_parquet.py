"""Part files that tasks of Spark write: no row more or less, and a task that fails leaves nothing."""

from datetime import UTC, datetime, timedelta

import pytest
from pyspark.sql import types as t

from melanoma_spark.storage.parquet import ROWS_WRITTEN, parquet_writer

PARTS_SCHEMA = t.StructType(
    [
        t.StructField("name", t.StringType()),
        t.StructField("at", t.TimestampType()),
        t.StructField("width", t.IntegerType()),
        t.StructField("image", t.BinaryType()),
    ]
)


def write_parts(spark, write, rows, broken=None):
    """Rows of `rows` in three tasks, one of which ends with an error behind its first frame."""

    def frames(batches):
        import pandas as pd

        for batch in batches:
            for number in batch["id"]:
                at = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(number))
                row = (f"r{number}", at, None if number % 2 else int(number), bytes([number]) * 3)
                yield pd.DataFrame([row], columns=["name", "at", "width", "image"], dtype=object)
                if number == broken:
                    raise ValueError("this task fails")

    result = spark.range(0, rows, 1, 3).mapInPandas(lambda batches: write(frames(batches)), ROWS_WRITTEN)
    return sum(row.rows for row in result.collect())


def test_parts_are_rows_that_spark_reads(spark, tmp_path):
    assert write_parts(spark, parquet_writer(f"file:{tmp_path}/one", PARTS_SCHEMA), 1) == 1
    assert len(list((tmp_path / "one").iterdir())) == 1, "tasks without rows write no part"
    url = f"file:{tmp_path}/parts"
    assert write_parts(spark, parquet_writer(url, PARTS_SCHEMA), 20) == 20
    result = sorted(spark.read.schema(PARTS_SCHEMA).parquet(url).collect(), key=lambda row: int(row.name[1:]))
    assert [row.name for row in result] == [f"r{number}" for number in range(20)]
    assert [row.width for row in result] == [None if number % 2 else number for number in range(20)]
    assert [bytes(row.image) for row in result] == [bytes([number]) * 3 for number in range(20)]
    stamps = spark.read.schema(PARTS_SCHEMA).parquet(url).selectExpr("unix_micros(at) as at").collect()
    start = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    assert sorted(row.at - start for row in stamps) == list(range(20))


def test_a_task_that_fails_leaves_no_part_and_a_second_attempt_writes_each_row_once(spark, tmp_path):
    url = f"file:{tmp_path}/parts"
    write = parquet_writer(url, PARTS_SCHEMA)
    with pytest.raises(Exception, match="this task fails"):
        write_parts(spark, write, 9, broken=7)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert all(name.startswith("part-") for name in names)  # of the tasks that were done
    assert len(names) < 3
    for _ in range(2):
        assert write_parts(spark, write, 9) == 9
        assert spark.read.parquet(url).count() == 9
