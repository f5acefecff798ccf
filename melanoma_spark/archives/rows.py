"""Rows of a listing as Python has them, and their way to Spark and back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar, cast

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql.types import StructType

from melanoma_spark import schemas

ROWS_IN_MEMORY = 10_000  # of a data frame that a task builds
Item = TypeVar("Item")


class ListedFile(NamedTuple):
    """A row of `schemas.LISTING`: a file of an archive, or a member of a container in it.

    `modified` is in microseconds since 1970 where Spark has handed the row to Python, see `with_microseconds`.
    """

    source_uri: str
    path: str
    image_id: str
    role: str
    file: str
    raw: bytes | None
    kind: str
    member: str | None = None
    index: int | None = None  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    offset: int | None = None
    stored: int | None = None
    method: int | None = None
    crc: int | None = None
    length: int = 0
    modified: datetime | float | None = None
    reason: str | None = None
    detail: str | None = None


def listed_files(batches: Iterable[pd.DataFrame]) -> Iterator[ListedFile]:
    """The rows of data frames that have at least the columns of `schemas.LISTING`."""
    for batch in batches:
        yield from cast(Iterator[ListedFile], batch.itertuples(index=False))


def with_microseconds(rows: DataFrame) -> DataFrame:
    """`modified` as a number: Spark hands a timestamp to Python in the time zone of the session."""
    return rows.withColumn("modified", f.unix_micros("modified"))


def from_microseconds(microseconds: datetime | float | None) -> datetime | None:
    """A `modified` of `with_microseconds` as a time that Spark can store."""
    if pd.isna(microseconds):
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(cast(float, microseconds)))


def in_frames(rows: Iterable[Sequence[Any]], columns: StructType = schemas.LISTING) -> Iterator[pd.DataFrame]:
    """Rows as data frames of `ROWS_IN_MEMORY` rows."""
    for chunk in in_chunks(rows, ROWS_IN_MEMORY):
        yield pd.DataFrame(chunk, columns=columns.names, dtype=object)


def in_chunks(
    items: Iterable[Item], most: int, size: Callable[[Item], int] = lambda _: 0, size_limit: int = 0
) -> Iterator[list[Item]]:
    """Items in lists of up to `most`. A list also ends with the item whose size takes its sum over the limit."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) == most or total > size_limit:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
