"""Datasets of the warehouse: Petastorm and Parquet, each named by a manifest.

A dataset `NAME` is the folder `NAME/<id>/` that `NAME/manifest.json` points to. The manifest is replaced in one step
after the data is complete, so a killed job leaves nothing that a reader could mistake for a result.
"""

from __future__ import annotations

import itertools
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from melanoma_spark import __version__, lineage
from melanoma_spark.errors import DataError
from melanoma_spark.storage import files

MANIFEST = "manifest.json"
PARTS = "rows long"  # of what `parts` tells: rows written by a task


def manifest(warehouse: str, name: str) -> dict[str, Any] | None:
    """The manifest of a dataset, or None where it was never completed."""
    return files.read_json(files.join(warehouse, name, MANIFEST))


def need(warehouse: str, name: str, job: str) -> dict[str, Any]:
    """The manifest of a dataset that an earlier job makes. Raises `DataError` naming that job."""
    found = manifest(warehouse, name)
    if found is None:
        raise DataError(f"{files.join(warehouse, name)} is not there yet; run `melanoma-spark {job}` first")
    return found


def publish(warehouse: str, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make a dataset what these facts say it is. `facts` holds `id`, `path` (below `name`) and `made_from`."""
    complete = {**facts, "version": __version__, "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    files.write_json(files.join(warehouse, name, MANIFEST), complete)
    return complete


def data_url(warehouse: str, name: str, facts: Mapping[str, Any]) -> str:
    return files.join(warehouse, name, str(facts["path"]))


@contextmanager
def petastorm(spark: Any, url: str, schema: Any, row_group_mb: int) -> Iterator[None]:
    """Around the writing of a Petastorm dataset: adds its schema and row-group counts, and checks both."""
    from petastorm.etl.dataset_metadata import materialize_dataset

    with quiet(), materialize_dataset(spark, url, schema, row_group_mb, filesystem_factory=opener(url)):
        yield
        # What a killed job left of it, or what knows nothing of files added since; Petastorm would add to it.
        files.remove(files.join(url, "_common_metadata"))


def opener(url: str) -> Callable[[], Any] | None:
    """What makes the file system that Petastorm is to use; None for its own choice, of local folders.

    For others it would choose libhdfs, which needs a Hadoop beside Python, or a store that knows nothing of `files`.
    """
    if url.startswith("file:"):
        return None

    def make() -> Any:
        from pyarrow.filesystem import DaskFileSystem

        class Old(DaskFileSystem):
            """A file system of `files` as pyarrow once had them, by which it knows that Petastorm asks in old words."""

            def isdir(self, path: str) -> bool:
                return bool(self.fs.isdir(path))

            def isfile(self, path: str) -> bool:
                return bool(self.fs.isfile(path))

        with quiet():
            return Old(files.filesystem(url)[0])

    return make


def parts(url: str, schema: Any, most: int | None = None) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """For a task of Spark: writes its frames of `schema` as Parquet into the folder `url`, and tells `PARTS`.

    Images so do not travel to the JVM, which would copy them several times. A task writes one file, or, so that what is
    done outlives it, one as soon as there are `most` rows for it. A file gets its name when it is whole, and always the
    same name for the same rows of a partition, so that what two attempts of a task write stands there once.

    The folder is made here, once: where a disk is mounted, a task that made it would write beside the disk when that
    is away.
    """
    from pyspark.sql.pandas.types import to_arrow_schema

    files.make_folder(url)

    columns = to_arrow_schema(schema)
    batch = uuid.uuid4().hex[:12]

    def write(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import pyarrow as pa
        import pyarrow.parquet
        from pyspark import TaskContext

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
                    pyarrow.parquet.ParquetWriter(sink, columns, compression="none", use_dictionary=False) as writer,
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


def check_fit(images: Mapping[str, Any], features: Mapping[str, Any], head: Mapping[str, Any] | None = None) -> None:
    """Raises `DataError` when these manifests tell of other pixels, another backbone or other weights of it.

    Each of them stays what it is while another is made anew, so the last one made may not fit the others.
    """
    if features["image_size"] != images["image_size"]:
        raise DataError(
            f"features/ are of images of {features['image_size']} px, images/ holds {images['image_size']} px; run "
            "`melanoma-spark featurize` first"
        )
    if head is None:
        return
    of_head = {**head["spec"], "weights": head["weights_id"]}
    for what in ("backbone", "weights", "image_size"):
        if of_head[what] != features[what]:
            raise DataError(
                f"models/head was trained on features with {what} {of_head[what]}, features/ has {features[what]}; run "
                "`melanoma-spark train_head` first"
            )


def views(features: Mapping[str, Any]) -> int:
    """How many views of each train image `features/` holds, after its manifest, which once did not say."""
    return int(features.get("views", 1))


def rows_id(table: Any, columns: Sequence[str]) -> str:
    """A content id of a DataFrame's rows: the same for the same rows in any order and any number of partitions.

    The driver sees 4,096 hashes, however many rows there are.
    """
    from pyspark.sql import functions as f

    line = f.sha2(f.to_json(f.struct(*columns), {"ignoreNullFields": "false"}), 256)
    buckets = table.select(line.alias("line")).groupBy(f.substring("line", 1, 3).alias("bucket"))
    hashed = buckets.agg(f.sha2(f.concat_ws("", f.array_sort(f.collect_list("line"))), 256).alias("hash")).collect()
    return lineage.content_id(sorted(row.hash for row in hashed))


def labels(spark: Any, warehouse: str, images: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """sha256 -> label of the train and the validation split of `images/`, in storage order.

    Raises `DataError` when one of them is empty.
    """
    table = spark.read.parquet(data_url(warehouse, "images", images)).select("split", "sha256", "label")
    found = sorted((row.sha256, row.split, row.label) for row in table.where("split != 'test'").collect())
    splits = {split: {sha: label for sha, side, label in found if side == split} for split in ("train", "validation")}
    for split, images in splits.items():
        if not images:
            raise DataError(f"images/ has no image in the {split} split; ingest more images, or other fractions")
    return splits


@contextmanager
def quiet() -> Iterator[None]:
    """Without the deprecation warnings that Petastorm's use of pyarrow's old dataset API raises by the hundred."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def save_model(warehouse: str, name: str, tensors: list[np.ndarray], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Keep a network's tensors under `name/<id>/weights.npz` and publish the facts."""
    path = str(facts["id"])
    files.write_bytes(files.join(warehouse, name, path, "weights.npz"), files.pack_tensors(tensors))
    return publish(warehouse, name, {**facts, "path": path})


def load_model(warehouse: str, name: str, facts: Mapping[str, Any]) -> list[np.ndarray]:
    return files.unpack_tensors(files.read_bytes(files.join(data_url(warehouse, name, facts), "weights.npz")))
