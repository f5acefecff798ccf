"""Petastorm datasets: a half-written one is never taken for a result."""

import pytest

from melanoma_spark import schemas
from melanoma_spark.storage.petastorm import petastorm_metadata


def test_a_writer_that_fails_leaves_no_dataset(spark, tmp_path):
    schema = schemas.features_schema({"a": (2,)}, "float32")
    target = f"file://{tmp_path}/new"
    full = "if(id = 30, raise_error('the disk is full'), cast(id as string)) as sha256"
    failing = spark.range(60).selectExpr(full, "cast('values' as binary) as a")
    with pytest.raises(Exception, match="the disk is full"), petastorm_metadata(spark, target, schema, 1):
        failing.write.parquet(target)
    assert not list((tmp_path / "new").glob("*.parquet"))
