"""A landing folder as a source of Spark's structured streaming: it tells that something changed, and never what.

An offset is how many files have settled, and a sum over the hashes of their names, sizes and times: while it stays,
Spark runs no batch. It is bookkeeping for the trigger alone. What is new, by name and by content, is for the ledger to
say, which is why the stream may forget everything at any time. Spark 4 or later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition

from melanoma_spark import logs, schemas
from melanoma_spark.archives import listing as archive
from melanoma_spark.errors import MelanomaError

NOTHING = {"files": 0, "digest": "", "asked": ""}  # the offset of an empty folder
PLACES = {name: place for place, name in enumerate(schemas.LISTING.names)}


class Landing(DataSource):
    """`spark.readStream.format("landing")` with the options `archive`, `settle` (seconds), `max_bytes` and `asked`.

    `asked` is the path of a file on the driver's machine; what is written into it makes another offset.
    """

    @classmethod
    def name(cls) -> str:
        return "landing"

    def schema(self) -> str:
        return "files long"

    def streamReader(self, schema: Any) -> DataSourceStreamReader:
        return Looks(dict(self.options))


class Looks(DataSourceStreamReader):
    """Each offset is a look at the folder. A batch has one row: how many files there were to look at."""

    def __init__(self, options: dict[str, str]) -> None:
        self.options = options

    def initialOffset(self) -> dict[str, Any]:
        return NOTHING

    def latestOffset(self) -> dict[str, Any]:
        url, settle = self.options["archive"], float(self.options["settle"])
        asked = Path(self.options["asked"]).read_text()
        try:
            count, digest = seen(url, int(self.options["max_bytes"]), settle)
        except MelanomaError as error:  # told by the batch that meets it, too
            count, digest = 1, logs.without_passwords(str(error))  # Spark's UI shows it
        return {"files": count, "digest": digest, "asked": asked} if count else NOTHING

    def partitions(self, start: dict[str, Any], end: dict[str, Any]) -> list[InputPartition]:
        return [InputPartition(end["files"])]

    def read(self, partition: InputPartition) -> Iterator[tuple[int]]:
        yield (int(partition.value),)


def seen(url: str, max_bytes: int, settle: float) -> tuple[int, str]:
    """How many files of an archive have settled, and a digest of their names, sizes and times, in any order.

    Raises `DataError` or `ConfigError` as `archive.located`, but for a folder that holds nothing.
    """
    if archive.empty(url):
        return 0, ""
    root, only = archive.located(url)
    until = archive.settled_until(settle)
    count = total = 0
    for row in archive.walked(root, only, max_bytes):
        length, modified = row[PLACES["length"]], row[PLACES["modified"]]
        if modified is None or modified <= until:
            count += 1
            told = json.dumps([row[PLACES["path"]], length, modified and modified.timestamp()])
            total += int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest())
    return count, f"{total % 2**64:016x}" if count else ""
