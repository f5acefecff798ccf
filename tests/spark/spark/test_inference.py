"""A model over a column: loaded once a worker, in order, and no image touches another one's result."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import types as t

from melanoma_spark.background import TimedIterator
from melanoma_spark.errors import ImageError
from melanoma_spark.spark import inference, session

BATCH = 4
WEIGHTS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
RESULT = t.StructType(
    [
        t.StructField("first", t.DoubleType()),
        t.StructField("second", t.ArrayType(t.FloatType())),
        t.StructField("reason", t.StringType()),
        t.StructField("batch", t.IntegerType()),
    ]
)


def content(number: int) -> bytes:
    """Eight numbers as bytes; every thirteenth is broken."""
    if number % 13 == 5:
        return b"broken"
    return np.random.default_rng(number).standard_normal(8).astype(np.float32).tobytes()


def model(inputs: np.ndarray) -> list[np.ndarray]:
    return [np.tanh(inputs @ WEIGHTS[:, :1]), np.tanh(inputs @ WEIGHTS)]


def udf_of(model_id: str, markers: Path):
    """The UDF under test. What it is made of leaves a file for each time it loads, and for each batch it computes.

    Its functions are written here, inside, because Spark's workers cannot import a test.
    """
    weights, forward = WEIGHTS, ImageError

    def load():
        import os
        import uuid

        (markers / f"load-{os.getpid()}-{uuid.uuid4().hex}").touch()

        def predict(inputs: np.ndarray) -> list[np.ndarray]:
            (markers / f"batch-{len(inputs)}-{uuid.uuid4().hex}").touch()
            return [np.tanh(inputs @ weights[:, :1]), np.tanh(inputs @ weights)]

        return predict

    def prepare(data: bytes) -> np.ndarray:
        if len(data) != 32:
            raise forward("corrupt", f"{len(data)} bytes")
        return np.frombuffer(data, np.float32)

    def finish(outputs, errors) -> pd.DataFrame:
        none = [None] * len(errors)
        first, second = outputs or (None, None)
        return pd.DataFrame(
            {
                "first": none if first is None else first[:, 0].astype(float),
                "second": none if second is None else list(second),
                "reason": [error.reason if error else None for error in errors],
                "batch": len(errors),
            }
        )

    return inference.column_udf(model_id, load, prepare, finish, RESULT, batch_size=BATCH)


def counted(markers: Path, kind: str) -> Counter:
    return Counter(path.name.split("-")[1] for path in markers.glob(f"{kind}-*"))


def run(spark, udf, numbers, partitions: int, arrow_rows: int = 10) -> list:
    session.set_arrow_batch_rows(spark, arrow_rows)
    rows = [(int(number), content(int(number))) for number in numbers]
    table = spark.createDataFrame(rows, "number int, data binary").repartition(partitions, "number")
    return table.select("number", udf("data").alias("found")).select("number", "found.*").collect()


def test_loaded_once_a_worker_and_never_again(spark, tmp_path):
    udf = udf_of("once", tmp_path)
    run(spark, udf, range(200), partitions=40)
    first = counted(tmp_path, "load")
    assert sum(counted(tmp_path, "batch").values()) > 40
    assert set(first.values()) == {1}
    assert len(first) < 40  # tasks; a slot may take turns with the workers that earlier tests left idle
    run(spark, udf_of("once", tmp_path), range(100), partitions=10)  # a later job's
    assert set(counted(tmp_path, "load").values()) == {1}


def test_a_worker_holds_one_model(monkeypatch):
    monkeypatch.setattr(inference, "_LOADED", {})
    loads = []

    def load_of(name):
        def load():
            loads.append(name)
            return lambda batch: [batch]

        return load

    held = [inference.load_once(name, load_of(name)) for name in ("one", "one", "two", "two", "one")]
    assert loads == ["one", "two", "one"]
    assert held[0] is held[1]
    assert list(inference._LOADED) == ["one"]


def test_results_are_those_of_a_plain_loop(spark, tmp_path):
    """For any batches, each image's result is in its row, whether its neighbors are broken or not."""
    rows = run(spark, udf_of("loop", tmp_path), range(120), partitions=7)
    assert sorted(row.number for row in rows) == list(range(120))
    for row in rows:
        if row.number % 13 == 5:
            assert row.reason == "corrupt"
            assert row.first is None or np.isnan(row.first)
        else:
            first, second = model(np.frombuffer(content(row.number), np.float32)[None])
            assert row.reason is None
            assert row.first == pytest.approx(float(first[0, 0]), abs=1e-5)
            np.testing.assert_allclose(row.second, second[0], atol=1e-5)


def test_further_columns_reach_what_prepares(spark):
    def prepare(data: bytes, factor: float, name: str) -> np.ndarray:
        return np.frombuffer(data, np.float32) * (factor if name == "even" else -factor)

    def finish(outputs, errors) -> pd.DataFrame:
        return pd.DataFrame({"first": outputs[0][:, 0].astype(float), "second": None, "reason": None, "batch": 1})

    udf = inference.column_udf("more", lambda: lambda batch: [batch], prepare, finish, RESULT, batch_size=BATCH)
    rows = [(number, content(number), 0.5 * number, ("even", "odd")[number % 2]) for number in range(32, 44)]
    table = spark.createDataFrame(rows, "number int, data binary, factor double, name string").repartition(3)
    result = table.select("number", udf("data", "factor", "name").alias("found")).collect()
    for row in result:
        first = np.frombuffer(content(row.number), np.float32)[0]
        assert row.found.first == pytest.approx(first * 0.5 * row.number * (-1) ** row.number, rel=1e-6)
    assert len(result) == len(rows)


def test_order_is_kept(spark, tmp_path):
    session.set_arrow_batch_rows(spark, 7)
    rows = [(number, content(number)) for number in range(100)]
    table = spark.createDataFrame(rows, "number int, data binary").coalesce(1)
    result = table.select("number", udf_of("order", tmp_path)("data").alias("found")).collect()
    assert [row.number for row in result] == list(range(100))
    expected = [float(model(np.frombuffer(data, np.float32)[None])[0][0, 0]) for n, data in rows if n % 13 != 5]
    np.testing.assert_allclose([row.found.first for row in result if row.found.reason is None], expected, atol=1e-5)


def test_the_model_gets_no_batch_over_its_size(spark, tmp_path):
    numbers = [number for number in range(60) if number % 13 != 5]
    rows = run(spark, udf_of("batches", tmp_path), numbers, partitions=1, arrow_rows=10)
    assert {row.batch for row in rows} == {10, len(numbers) % 10}
    sizes = counted(tmp_path, "batch")
    assert set(map(int, sizes)) <= set(range(1, BATCH + 1))
    assert sum(int(size) * count for size, count in sizes.items()) == len(numbers)


def test_a_batch_of_broken_images_only(spark, tmp_path):
    rows = run(spark, udf_of("broken", tmp_path), range(5, 200, 13), partitions=1, arrow_rows=4)
    assert [row.reason for row in rows] == ["corrupt"] * 15
    assert not counted(tmp_path, "batch")


def test_empty_partitions_load_nothing(spark, tmp_path):
    assert len(run(spark, udf_of("empty", tmp_path), [1], partitions=12)) == 1
    assert sum(counted(tmp_path, "load").values()) == 1


def test_other_errors_than_image_errors_end_the_job(spark):
    def prepare(data: bytes) -> np.ndarray:
        raise ZeroDivisionError("a bug, not a bad image")

    udf = inference.column_udf(
        "bug", lambda: lambda batch: [batch], prepare, lambda o, e: None, RESULT, batch_size=BATCH
    )
    with pytest.raises(Exception, match="a bug, not a bad image"):
        run(spark, udf, range(3), partitions=1)


def test_prefetch_prepares_one_item_ahead_and_raises_errors_in_turn():
    prepared: list[int] = []
    threads = set()

    def prepare(item: int) -> int:
        prepared.append(item)
        threads.add(threading.get_ident())
        return item * 10

    used = []
    for item in inference.prefetch(iter(range(5)), prepare):
        until = time.monotonic() + 5
        while len(prepared) < min(len(used) + 2, 5) and time.monotonic() < until:
            time.sleep(0.001)
        assert prepared == list(range(min(len(used) + 2, 5)))  # one ahead, and no more
        used.append(item)
    assert used == [0, 10, 20, 30, 40]
    assert threading.get_ident() not in threads

    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("third")
        return item

    assert list(inference.prefetch(iter([]), prepare)) == []
    items = inference.prefetch(iter(range(5)), prepare)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(items)


def test_a_meter_measures_images_bytes_and_waiting(spark):
    """Two tasks of three batches; reading a batch takes longer than what is done with it."""
    session.set_arrow_batch_rows(spark, 10)
    meter = session.Meter(spark)

    def prepare(data: bytes) -> np.ndarray:
        time.sleep(0.05)
        if len(data) != 32:
            raise ImageError("corrupt", f"{len(data)} bytes")
        return np.frombuffer(data, np.float32)

    def finish(outputs, errors) -> pd.DataFrame:
        return pd.DataFrame({"first": [1.0] * len(errors), "second": None, "reason": None, "batch": 1})

    assert meter.figures() == {}, "nothing was done yet"
    udf = inference.column_udf(
        "metered", lambda: lambda batch: [batch], prepare, finish, RESULT, batch_size=BATCH, meter=meter
    )
    began = time.monotonic()
    assert len(run(spark, udf, range(60), partitions=2)) == 60
    at_most = 60 / (time.monotonic() - began)
    figures = meter.figures()
    assert 0 < figures["images_per_second"] <= at_most
    assert figures["megabytes_read"] == pytest.approx(sum(len(content(number)) for number in range(60)) / 1e6)
    assert 0.9 < figures["wait_share"] <= 1


def test_waiting_time_excludes_the_consumer():
    def slow():
        for item in range(3):
            time.sleep(0.05)
            yield item

    waits = TimedIterator(slow())
    for _ in waits:
        time.sleep(0.2)
    assert 0.15 <= waits.seconds < 0.3
    patient = TimedIterator(iter(range(3)))
    assert list(patient) == [0, 1, 2]
    assert patient.seconds < 0.05
