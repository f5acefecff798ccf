"""Training data: the rows that a plan asks for, when it asks for them, and an error where they are not there."""

import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from melanoma_spark import schemas
from melanoma_spark.errors import DataError
from melanoma_spark.storage import files
from melanoma_spark.storage.petastorm import petastorm_metadata
from melanoma_spark.training import reading, sharding

SHAPES = {"a": (2, 2, 3), "b": (1, 1, 4)}
ROWS = 60
SECOND = 12  # of which there is a second view


def value(number: int, cut: str) -> np.ndarray:
    return np.float32(number) + np.arange(np.prod(SHAPES[cut]), dtype=np.float32).reshape(SHAPES[cut]) / 16


def key(number: int) -> str:
    return f"{number:064x}"


def wanted(numbers) -> dict[str, int]:
    return {key(number): number % 2 for number in numbers}


@pytest.fixture(scope="module")
def dataset(spark, tmp_path_factory):
    return written(spark, files.url_of(str(tmp_path_factory.mktemp("store") / "features" / "one")))


def written(spark, url, value=value, dtype="float32"):
    """`ROWS` rows of features in 3 Parquet files of several row groups, written as the jobs write them."""
    from petastorm.unischema import dict_to_spark_row

    schema = schemas.features_schema(SHAPES, dtype)
    numbers = [(number, 0) for number in range(ROWS)] + [(number, 1) for number in range(SECOND)]
    rows = [
        dict_to_spark_row(
            schema,
            {
                "sha256": key(number),
                "view": np.int32(view),
                **{cut: value(number + 1000 * view, cut) for cut in SHAPES},
            },
        )
        for number, view in numbers
    ]
    with petastorm_metadata(spark, url, schema, 1):
        table = spark.createDataFrame(rows, schema.as_spark_schema()).repartitionByRange(3, "view", "sha256")
        table = table.sortWithinPartitions("view", "sha256")
        small = {"parquet.block.size": 1500, "parquet.page.size.row.check.min": 1, "parquet.page.size.row.check.max": 2}
        table.write.options(**small).parquet(url)
    return url


def read(url, column, index, shared, threads=1, read_ahead=1024**2):
    return list(reading.values(url, column, index, shared, threads, read_ahead))


def complete(index, batch=1, seed=None):
    return sharding.share(sharding.deal(index.groups, batch, seed), 0, 1)


def test_an_index_holds_the_places_of_the_rows_of_each_split(spark, dataset):
    labels = {"train": wanted(range(0, ROWS, 2)), "validation": wanted(range(1, ROWS, 3))}
    result = reading.indexes(spark, dataset, labels)
    assert result.keys() == labels.keys()
    for split, (index,) in result.items():
        assert {k.decode(): int(label) for k, label in zip(index.keys, index.labels, strict=True)} == labels[split]
        assert len(index) == len(labels[split])
        for number, (name, group) in enumerate(index.places):
            file = pq.ParquetFile(Path(dataset.removeprefix("file://")) / name)
            stored = file.read_row_group(group, ["sha256", "view"]).to_pylist()
            stored = [row["sha256"] for row in stored if row["view"] == 0]
            assert [k.decode() for k in index.keys[index.groups == number]] == [k for k in stored if k in labels[split]]
    assert len({name for name, _ in result["train"][0].places}) == 3
    assert len(result["train"][0].places) > 3


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("read_ahead", [1, 1024**2])
def test_values_come_in_the_order_of_the_plan(spark, dataset, threads, read_ahead):
    index = reading.indexes(spark, dataset, {"train": wanted(range(0, ROWS, 2))})["train"][0]
    for seed, column in ((None, "a"), (1, "b")):
        shared = complete(index, 4, seed)
        result = read(dataset, column, index, shared, threads, read_ahead)
        asked = [int(index.keys[row], 16) for row in shared.ravel() if row != sharding.NONE]
        assert len(result) == ROWS / 2
        for number, array in zip(asked, result, strict=True):
            np.testing.assert_array_equal(array, value(number, column), strict=True)


def test_each_view_of_train_images_is_read_by_itself(spark, dataset):
    labels = {"train": wanted(range(SECOND)), "validation": wanted(range(SECOND, ROWS))}
    result = reading.indexes(spark, dataset, labels, views=2)
    means = reading.averages(spark, dataset, "a", labels, views=2)
    for view, index in enumerate(result["train"]):
        values = read(dataset, "a", index, complete(index))
        assert [int(array.flat[0]) for array in values] == [1000 * view + number for number in range(SECOND)]
        wanted_means = [value(1000 * view + number, "a").mean((0, 1)) for number in range(SECOND)]
        np.testing.assert_allclose(means["train"][view].values, wanted_means)
    for of_splits in (result, means):
        assert {split: len(views) for split, views in of_splits.items()} == {"train": 2, "validation": 1}


def test_ranks_read_all_rows_and_averages_follow_the_keys(spark, dataset):
    index = reading.indexes(spark, dataset, {"train": wanted(range(3, ROWS))})["train"][0]
    dealt = sharding.deal(index.groups, 8, seed=5)
    parts = [read(dataset, "a", index, sharding.share(dealt, rank, 3)) for rank in range(3)]
    assert sorted(float(array.flat[0]) for part in parts for array in part) == list(range(3, ROWS))

    labels = {"train": wanted(range(ROWS - 1, 4, -1)), "validation": wanted(range(3))}
    result = reading.averages(spark, dataset, "a", labels)
    for split, numbers in (("train", range(5, ROWS)), ("validation", range(3))):
        (means,) = result[split]
        np.testing.assert_allclose(means.values, [value(n, "a").mean((0, 1)) for n in numbers], rtol=1e-6)
        assert means.labels.tolist() == [n % 2 for n in numbers]
        assert means.values.dtype == np.float32


def test_only_row_groups_that_hold_a_wanted_row_are_read(spark, dataset, monkeypatch):
    from petastorm.py_dict_reader_worker import PyDictReaderWorker

    index = reading.indexes(spark, dataset, {"train": wanted([0, 1, ROWS - 1])})["train"][0]
    pieces = []
    process = PyDictReaderWorker.process

    def counted(self, piece_index, **rest):
        pieces.append(piece_index)
        return process(self, piece_index, **rest)

    monkeypatch.setattr(PyDictReaderWorker, "process", counted)
    assert len(read(dataset, "a", index, complete(index))) == 3
    assert len(pieces) == len(index.places) <= 3


def averages(spark, url, labels, views=1):
    return reading.averages(spark, url, "a", labels, views)


@pytest.mark.parametrize("of", [reading.indexes, averages])
def test_a_missing_row_is_an_error(spark, dataset, of):
    message = r"features/one gave 2 of 3 wanted rows; run the job that makes it again"
    with pytest.raises(DataError, match=message):
        of(spark, dataset, {"train": wanted(range(5)), "validation": wanted(range(ROWS - 2, ROWS + 1))})
    with pytest.raises(DataError, match=f"gave {SECOND} of {ROWS} wanted rows"):  # of the second view
        of(spark, dataset, {"train": wanted(range(ROWS))}, views=2)


@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "float32"), (-np.inf, "float16"), (np.nan, "float16")])
def test_features_that_are_no_number_are_an_error(spark, tmp_path, bad, dtype):
    def damaged(number, cut):
        result = value(number, cut).astype(dtype)
        if (number, cut) == (7, "a"):
            result[1, 0, 2] = bad
        return result

    url = written(spark, files.url_of(str(tmp_path / "features")), damaged, dtype)
    message = f"a of image {key(7)} holds NaN or infinity.*; remove that folder, and run featurize"
    with pytest.raises(DataError, match=message):
        averages(spark, url, {"train": wanted(range(ROWS))})
    index = reading.indexes(spark, url, {"train": wanted(range(ROWS))})["train"][0]
    with pytest.raises(DataError, match=message):
        read(url, "a", index, complete(index))
    assert len(read(url, "b", index, complete(index))) == ROWS


@pytest.mark.parametrize("damage", ["no metadata", "a file more", "no dataset", "a file less"])
def test_a_dataset_that_is_not_complete_is_an_error(spark, dataset, tmp_path, damage):
    folder = tmp_path / "features"
    if damage != "no dataset":
        shutil.copytree(dataset.removeprefix("file://"), folder)
    if damage == "no metadata":
        (folder / "_common_metadata").unlink()
    elif damage == "a file more":
        shutil.copy(next(folder.glob("*.parquet")), folder / "more.parquet")
    index = reading.indexes(spark, dataset, {"train": wanted(range(ROWS))})["train"][0]
    ask = partial(reading.indexes, spark, f"file://{folder}", {"train": wanted([1])})
    if damage == "a file less":  # it changes after it was looked at
        next(folder.glob("*.parquet")).unlink()
        ask = partial(read, f"file://{folder}", "a", index, complete(index))
    with pytest.raises(DataError, match=r"features is not complete .*; run the job that makes it again") as caught:
        ask()
    assert len(str(caught.value).splitlines()) == 1


def test_a_reader_that_is_left_early_is_closed(spark, dataset):
    index = reading.indexes(spark, dataset, {"train": wanted(range(ROWS))})["train"][0]
    before = threading.active_count()
    values = reading.values(dataset, "a", index, complete(index), 2, 1)
    next(values)
    assert threading.active_count() > before
    values.close()
    assert threading.active_count() == before
