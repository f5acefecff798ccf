"""Reads training data through Petastorm, in the order that `sharding` plans."""

import functools
import io
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from petastorm.etl.dataset_metadata import PetastormMetadataError, get_schema, load_row_groups
from petastorm.fs_utils import get_filesystem_and_path_or_paths
from petastorm.predicates import PredicateBase, in_lambda, in_set
from petastorm.reader import Reader
from petastorm.workers_pool.dummy_pool import DummyPool
from petastorm.workers_pool.ventilator import ConcurrentVentilator
from pyspark.sql import SparkSession

from melanoma_spark.background import prefetch
from melanoma_spark.errors import DataError
from melanoma_spark.spark import session
from melanoma_spark.storage import files
from melanoma_spark.storage.petastorm import petastorm_filesystem, without_warnings
from melanoma_spark.training import sharding
from melanoma_spark.training.sharding import Index

KEY = ("sha256", "view")  # of a row; images have no views
Wanted = tuple[tuple[str, int], dict[str, int]]  # a row group, and sha256 -> number in the index of its wanted rows


def indexes(
    spark: SparkSession, url: str, labels: Mapping[str, Mapping[str, int]], views: int = 1
) -> dict[str, list[Index]]:
    """Find where the rows of each split are stored, by view; the train split has `views` views, the others have one.

    Spark's tasks read the keys, the driver holds them: 80 bytes a row.

    Args:
        spark: The session.
        url: The dataset.
        labels: Split -> sha256 -> label.
        views: How many views of a train image are wanted.

    Raises:
        DataError: The dataset is not complete, or lacks a row.
    """
    pieces = _row_groups(url)
    stored: dict[tuple[tuple[str, int], int], NDArray[Any]] = {}
    if pieces:
        names = spark.createDataFrame([(name,) for name in sorted({name for name, _ in pieces})], "file string")
        names = names.repartition(min(spark.sparkContext.defaultParallelism, len(pieces)))
        schema = "file string, row_group int, view int, keys binary"
        keys = names.mapInPandas(functools.partial(_read_keys, url, views), schema)
        for row in keys.toLocalIterator():
            stored[(row.file, row.row_group), row.view] = np.frombuffer(row.keys, "S64")
    return {
        split: [_index(url, pieces, stored, wanted, view) for view in _views(split, views)]
        for split, wanted in labels.items()
    }


def values(
    url: str, column: str, index: Index, shared: NDArray[Any], threads: int, read_ahead: int
) -> Iterator[NDArray[Any]]:
    """Yield the column's values of a rank's rows, step by step and from left to right, without padding.

    Threads read and decode row groups in the order in which they are needed. Besides what they read ahead, the rows of
    one row group are held for each column of `shared`.

    Args:
        url: The dataset.
        column: The column.
        index: The rows of the dataset.
        shared: The rank's rows, from `sharding.share`.
        threads: The number of threads.
        read_ahead: How many bytes they may read ahead; each reads at least one row group ahead.

    Raises:
        DataError: A row is missing, or is not a number.
    """
    wanted = [
        (index.places[group], {key.decode(): row for key, row in zip(index.keys[rows], rows.tolist(), strict=True)})
        for group, rows in sharding.stretches(shared, index.groups)
    ]
    if not wanted:
        return
    threads = min(threads, len(wanted))
    largest = max(len(keys) for _, keys in wanted) * _bytes(url, column)
    ready = max(1, read_ahead // threads // max(1, largest))  # row groups that a thread reads ahead
    streams = [
        prefetch(_read(url, column, wanted[first::threads], index.view), lambda rows: rows, ready)
        for first in range(threads)
    ]
    held: dict[int, NDArray[Any]] = {}
    turn = itertools.cycle(streams)
    try:
        for row in shared[shared != sharding.NONE].tolist():
            while row not in held:
                held |= next(next(turn))
            yield held.pop(row)
    finally:
        for stream in streams:
            stream.close()


def _read(url: str, column: str, wanted: list[Wanted], view: int) -> Iterator[dict[int, NDArray[Any]]]:
    """Yield row -> value of the wanted rows of each of these row groups."""
    with without_warnings():
        try:
            reader = _open(url, column, wanted, view)
        except (KeyError, OSError, ValueError) as error:  # another job has changed it since `indexes`
            raise _incomplete(url, error) from error
        try:
            for _, keys in wanted:
                value_of: dict[int, NDArray[Any]] = {}
                while len(value_of) < len(keys):
                    row = next(reader, None)
                    if row is None or row.sha256 not in keys:
                        raise _missing_rows(url, len(value_of), len(keys))
                    value_of[keys[row.sha256]] = _finite(getattr(row, column), url, column, row.sha256)
                yield value_of
        finally:
            reader.stop()
            reader.join()


def _open(url: str, column: str, wanted: list[Wanted], view: int) -> Reader:
    """Return a Petastorm reader of these rows, row group by row group in this order."""
    with _dataset(url) as (_, schema):
        key = [name for name in KEY if name in schema.fields]

    def predicate(keys: dict[str, int]) -> PredicateBase:
        if len(key) == 1:
            return in_set(set(keys), "sha256")
        return in_lambda(key, lambda sha256, of: of == view and sha256 in keys)

    class InOrder(Reader):  # type: ignore[misc]
        """A reader that follows the plan; Petastorm's own reads all row groups, in its own order."""

        def _filter_row_groups(self, dataset: Any, row_groups: Any, *rest: Any) -> Any:
            self.pieces = {_place(piece): number for number, piece in enumerate(row_groups)}
            return [], None

        def _create_ventilator(self, *arguments: Any) -> Any:
            items = [
                {
                    "piece_index": self.pieces[place],
                    "worker_predicate": predicate(keys),
                    "shuffle_row_drop_partition": (0, 1),
                }
                for place, keys in wanted
            ]
            return ConcurrentVentilator(self._workers_pool.ventilate, items, iterations=1)

    filesystem, path = _filesystem(url)
    # DummyPool reads in the calling thread. Petastorm 0.13.1's thread pool may regard a reader as exhausted before its
    # first row: it checks the workers, then the ventilator, and a short list is handed out in between.
    return InOrder(filesystem, path, schema_fields=[*key, column], reader_pool=DummyPool(), shuffle_row_groups=False)


@dataclass(frozen=True)
class Averages:
    """The input of a head: features averaged over each image, in the order of the images' keys."""

    values: NDArray[Any]  # float32 (n, channels)
    labels: NDArray[Any]  # int8 (n,)


def averages(
    spark: SparkSession, url: str, column: str, labels: Mapping[str, Mapping[str, int]], views: int = 1
) -> dict[str, list[Averages]]:
    """Average the features (h, w, c) of each image; return split -> view -> averages.

    Args:
        spark: The session.
        url: The features.
        column: The cut.
        labels: Split -> sha256 -> label.
        views: How many views of a train image are wanted; the other splits have one.

    Raises:
        DataError: A row is missing, or is not a number.
    """

    def means(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            values = (np.load(io.BytesIO(value), allow_pickle=False) for value in batch[column])
            mean = [value.astype(np.float32).mean(axis=(0, 1)).tobytes() for value in values]
            yield batch[[*KEY]].assign(mean=mean)

    session.set_arrow_batch_rows(spark, 64)
    schema = f"sha256 string, view int, `{column}` binary"
    wanted_views = spark.read.schema(schema).parquet(url).where(f"view < {views}")
    table = wanted_views.mapInPandas(means, "sha256 string, view int, mean binary").toPandas()  # type: ignore[arg-type]
    mean_of = {(row.sha256, row.view): row.mean for row in pd.DataFrame(table).itertuples(index=False)}

    def collect(wanted: Mapping[str, int], view: int) -> Averages:
        keys = sorted(key for key in wanted if (key, view) in mean_of)
        if len(keys) != len(wanted):
            raise _missing_rows(url, len(keys), len(wanted))
        values = [_finite(np.frombuffer(mean_of[key, view], np.float32), url, column, key) for key in keys]
        return Averages(np.stack(values), np.array([wanted[key] for key in keys], np.int8))

    return {split: [collect(wanted, view) for view in _views(split, views)] for split, wanted in labels.items()}


def _views(split: str, views: int) -> range:
    """Return the views of a split's images."""
    return range(views if split == "train" else 1)


def _finite(value: NDArray[Any], url: str, column: str, sha256: str) -> NDArray[Any]:
    """Return the value. Raise `DataError` if it has NaN: TensorFlow on a CPU learns from it, since max(0, NaN) is 0."""
    if value.dtype == np.float16:
        # an exponent of ones is not a number; numpy's isfinite takes a tenth of the time of reading
        bad = bool(((value.view(np.uint16) & 0x7C00) == 0x7C00).any())
    else:
        bad = value.dtype.kind == "f" and not np.isfinite(value).all()
    if bad:
        raise DataError(
            f"{url}: {column} of image {sha256} holds NaN or infinity, which featurize never writes; remove that "
            "folder, and run featurize"
        )
    return value


def _row_groups(url: str) -> list[tuple[str, int]]:
    """Return (file name, row group in it) of a Petastorm dataset, in storage order."""
    with _dataset(url) as (dataset, _):
        return sorted(_place(piece) for piece in load_row_groups(dataset))


def _bytes(url: str, column: str) -> int:
    """Return the bytes of one decoded value."""
    with _dataset(url) as (_, schema):
        field = schema.fields[column]
        return int(np.prod(field.shape)) * np.dtype(field.numpy_dtype).itemsize


@contextmanager
def _dataset(url: str) -> Iterator[tuple[Any, Any]]:
    """Open a Petastorm dataset and its schema. Raise `DataError` if it is not complete, within the block too."""
    with without_warnings():
        try:
            filesystem, path = _filesystem(url)
            dataset = pq.ParquetDataset(path, filesystem=filesystem, validate_schema=False, use_legacy_dataset=True)
            yield dataset, get_schema(dataset)
        except (PetastormMetadataError, KeyError, OSError, ValueError) as error:
            # KeyError: the metadata lacks a file, of a job that runs or was killed
            raise _incomplete(url, error) from error


def _place(piece: Any) -> tuple[str, int]:
    return str(piece.path).rpartition("/")[2], int(piece.row_group)


def _filesystem(url: str) -> tuple[Any, str]:
    make = petastorm_filesystem(url)
    found: tuple[Any, str] = (make(), files.filesystem(url)[1]) if make else get_filesystem_and_path_or_paths(url)
    return found


def _read_keys(url: str, views: int, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Read each row group's keys of each of the first views, in their order; runs in Spark's tasks."""
    for batch in batches:
        for name in batch["file"]:
            filesystem, path = files.filesystem(files.join(url, name))
            with filesystem.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, [name for name in KEY if name in parquet.schema_arrow.names])
                    keys = table["sha256"].to_numpy().astype("S64")
                    of = table["view"].to_numpy() if "view" in table.column_names else np.zeros(len(keys), np.int32)
                    for view in sorted(set(of[of < views].tolist())):
                        packed = keys[of == view].tobytes()
                        yield pd.DataFrame({"file": [name], "row_group": [group], "view": [view], "keys": [packed]})


def _index(
    url: str,
    pieces: list[tuple[str, int]],
    stored: Mapping[tuple[tuple[str, int], int], NDArray[Any]],
    wanted: Mapping[str, int],
    view: int,
) -> Index:
    label_of = {key.encode(): label for key, label in wanted.items()}
    places: list[tuple[str, int]] = []
    groups: list[int] = []
    keys: list[bytes] = []
    for place in pieces:
        present = [key for key in stored.get((place, view), ()) if key in label_of]
        if present:
            groups += [len(places)] * len(present)
            keys += present
            places.append(place)
    if len(keys) != len(wanted):
        raise _missing_rows(url, len(keys), len(wanted))
    labels = np.array([label_of[key] for key in keys], np.int8)
    return Index(tuple(places), np.array(groups, np.int32), np.array(keys, "S64"), labels, view)


def _missing_rows(url: str, found: int, wanted: int) -> DataError:
    return DataError(f"{url} gave {found} of {wanted} wanted rows; run the job that makes it again")


def _incomplete(url: str, error: Exception) -> DataError:
    return DataError(f"{url} is not complete ({type(error).__name__}); run the job that makes it again")
