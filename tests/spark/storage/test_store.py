"""Datasets: what was written is read, no row more or less, and a half-written one is never taken for a result."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.errors import DataError
from melanoma_spark.storage import files, store


def test_no_manifest(tmp_path):
    warehouse = files.url_of(str(tmp_path))
    assert store.manifest(warehouse, "images") is None
    with pytest.raises(DataError, match=r"images is not there yet; run `melanoma-spark ingest` first"):
        store.need(warehouse, "images", "ingest")


def test_publish_replaces_the_manifest(tmp_path):
    warehouse = files.url_of(str(tmp_path))
    for number in (1, 2):
        store.publish(warehouse, "images", {"id": f"i{number}", "path": f"p{number}", "made_from": "m"})
    found = store.need(warehouse, "images", "ingest")
    assert (found["id"], found["path"]) == ("i2", "p2")
    assert found["version"]
    assert found["made_at"]
    assert store.data_url(warehouse, "images", found) == f"file://{tmp_path}/images/p2"
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["manifest.json"]
    text = json.loads((tmp_path / "images/manifest.json").read_text())
    assert list(text) == sorted(text)


def test_a_manifest_is_whole_for_readers_and_after_a_kill(tmp_path):
    """A writer that replaces it over and over is killed; nobody ever reads a part."""
    writer = """
        import sys
        from melanoma_spark.storage import store
        number = 0
        while True:
            number += 1
            facts = {"id": str(number), "path": str(number), "made_from": "m", "filler": [number] * 5000}
            store.publish(sys.argv[1], "images", facts)
    """
    warehouse = files.url_of(str(tmp_path))
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(writer), warehouse])
    try:
        until = time.monotonic() + 60
        seen = set()
        while len(seen) < 20:
            assert time.monotonic() < until
            found = store.manifest(warehouse, "images")
            if found:
                assert set(found["filler"]) == {int(found["id"])}
                assert len(found["filler"]) == 5000
                seen.add(found["id"])
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
    found = store.need(warehouse, "images", "ingest")
    assert set(found["filler"]) == {int(found["id"])}


def test_a_writer_that_fails_leaves_the_last_result(spark, tmp_path):
    """A task fails in the middle of the write: the manifest, and what it names, stay as they were."""
    warehouse = files.url_of(str(tmp_path))
    schema = schemas.features_schema({"a": (2,)}, "float32")
    store.publish(warehouse, "features", {"id": "old", "path": "old", "made_from": "m"})
    before = (tmp_path / "features/manifest.json").read_bytes()
    target = files.join(warehouse, "features", "new")
    full = "if(id = 30, raise_error('the disk is full'), cast(id as string)) as sha256"
    failing = spark.range(60).selectExpr(full, "cast('values' as binary) as a")
    with pytest.raises(Exception, match="the disk is full"), store.petastorm(spark, target, schema, 1):
        failing.write.parquet(target)
    assert (tmp_path / "features/manifest.json").read_bytes() == before
    assert not list((tmp_path / "features/new").glob("*.parquet"))


def test_a_model_is_kept_as_it_was(tmp_path):
    warehouse = files.url_of(str(tmp_path))
    tensors = [np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), np.zeros((), np.int64)]
    facts = store.save_model(warehouse, "models/head", tensors, {"id": "abc", "made_from": "m"})
    assert store.need(warehouse, "models/head", "train_head") == facts
    loaded = store.load_model(warehouse, "models/head", facts)
    for before, after in zip(tensors, loaded, strict=True):
        np.testing.assert_array_equal(before, after, strict=True)


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

    found = spark.range(0, rows, 1, 3).mapInPandas(lambda batches: write(frames(batches)), store.PARTS)
    return sum(row.rows for row in found.collect())


def test_parts_are_rows_that_spark_reads(spark, tmp_path):
    assert write_parts(spark, store.parts(f"file:{tmp_path}/one", PARTS_SCHEMA), 1) == 1
    assert len(list((tmp_path / "one").iterdir())) == 1, "tasks without rows write no part"
    url = f"file:{tmp_path}/parts"
    assert write_parts(spark, store.parts(url, PARTS_SCHEMA), 20) == 20
    found = sorted(spark.read.schema(PARTS_SCHEMA).parquet(url).collect(), key=lambda row: int(row.name[1:]))
    assert [row.name for row in found] == [f"r{number}" for number in range(20)]
    assert [row.width for row in found] == [None if number % 2 else number for number in range(20)]
    assert [bytes(row.image) for row in found] == [bytes([number]) * 3 for number in range(20)]
    stamps = spark.read.schema(PARTS_SCHEMA).parquet(url).selectExpr("unix_micros(at) as at").collect()
    start = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    assert sorted(row.at - start for row in stamps) == list(range(20))


def test_a_task_that_fails_leaves_no_part_and_a_second_attempt_writes_each_row_once(spark, tmp_path):
    url = f"file:{tmp_path}/parts"
    write = store.parts(url, PARTS_SCHEMA)
    with pytest.raises(Exception, match="this task fails"):
        write_parts(spark, write, 9, broken=7)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert all(name.startswith("part-") for name in names)  # of the tasks that were done
    assert len(names) < 3
    for _ in range(2):
        assert write_parts(spark, write, 9) == 9
        assert spark.read.parquet(url).count() == 9


IMAGES = {"image_size": 64}
FEATURES = {"image_size": 64, "backbone": "vgg16", "weights": "w1"}
MODEL = {"spec": {"image_size": 64, "backbone": "vgg16"}, "weights_id": "w1"}


@pytest.mark.parametrize(
    ("images", "features", "head", "words"),
    [
        ({"image_size": 32}, FEATURES, MODEL, "features/ are of images of 64 px, images/ holds 32 px; .* featurize"),
        (
            IMAGES,
            {**FEATURES, "weights": "w2"},
            MODEL,
            "models/head .* with weights w1, features/ has w2; .* train_head",
        ),
        (IMAGES, {**FEATURES, "backbone": "resnet50"}, MODEL, "with backbone vgg16, features/ has resnet50"),
        (IMAGES, FEATURES, {**MODEL, "spec": {"image_size": 32, "backbone": "vgg16"}}, "with image_size 32, features/"),
    ],
)
def test_parts_that_were_made_with_others_do_not_fit(images, features, head, words):
    store.check_fit(IMAGES, FEATURES, MODEL)
    with pytest.raises(DataError, match=words):
        store.check_fit(images, features, head)
