"""Petastorm datasets on the file systems that this package reads."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from petastorm.etl.dataset_metadata import materialize_dataset
from petastorm.unischema import Unischema
from pyspark.sql import SparkSession

from melanoma_spark.storage import files


@contextmanager
def petastorm_metadata(spark: SparkSession, url: str, schema: Unischema, row_group_mb: int) -> Iterator[None]:
    """Add a Petastorm schema and row-group counts to the dataset that is written inside, and check both."""
    opener = petastorm_filesystem(url)
    with without_warnings(), materialize_dataset(spark, url, schema, row_group_mb, filesystem_factory=opener):
        yield
        # Petastorm would add to metadata that a killed job left, or that lacks files added since.
        files.remove(files.join(url, "_common_metadata"))


def petastorm_filesystem(url: str) -> Callable[[], Any] | None:
    """Return a factory of the file system that Petastorm uses; None for local folders, where it chooses well.

    For other URLs it would choose libhdfs, which needs a Hadoop beside Python, or a store that bypasses `files`.
    """
    if url.startswith("file:"):
        return None

    def make() -> Any:
        from pyarrow.filesystem import DaskFileSystem

        class LegacyFileSystem(DaskFileSystem):  # type: ignore[misc, unused-ignore]
            """A file system of `files` with the interface of pyarrow's old ones, which Petastorm expects."""

            def isdir(self, path: str) -> bool:
                return bool(self.fs.isdir(path))

            def isfile(self, path: str) -> bool:
                return bool(self.fs.isfile(path))

        with without_warnings():
            return LegacyFileSystem(files.filesystem(url)[0])

    return make


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress the deprecation warnings that Petastorm raises by the hundred, as it uses pyarrow's old dataset API."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
