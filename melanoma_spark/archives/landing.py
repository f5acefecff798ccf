"""A landing folder as a source of Spark's structured streaming: it reports that something changed, not what.

An offset has the number of settled files, and a sum over the hashes of their names, sizes and times. While it stays the
same, Spark runs no batch. The offset is only the trigger: the ledger finds which files are new, so the stream may lose
its state at any time. Needs Spark 4 or later.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.types import StructType

from melanoma_spark import logs
from melanoma_spark.archives import listing, plan
from melanoma_spark.errors import MelanomaError


class Offset(TypedDict):
    """A state of the folder, and the content of the `asked` file. Spark stores it as JSON."""

    files: int
    digest: str
    asked: str


EMPTY = Offset(files=0, digest="", asked="")  # of an empty folder


class LandingSource(DataSource):
    """`spark.readStream.format("landing")`.

    Its options are `archive`, `settle` (seconds), `max_bytes`, `links` and `asked`. `asked` is the path of
    a file on the driver's machine; what is written into it makes another offset.
    """

    @classmethod
    def name(cls) -> str:
        """The name of the format."""
        return "landing"

    def schema(self) -> str:
        """The columns of a batch."""
        return "files long"

    def streamReader(self, schema: StructType) -> DataSourceStreamReader:
        """Return the reader that Spark asks for offsets and batches."""
        return LandingStreamReader(dict(self.options))


class LandingStreamReader(DataSourceStreamReader):
    """Lists the folder for each offset. A batch has one row: the number of files."""

    def __init__(self, options: dict[str, str]) -> None:
        self.options = options

    def initialOffset(self) -> Offset:  # type: ignore[override]
        """The offset of an empty folder."""
        return EMPTY

    def latestOffset(self) -> Offset:  # type: ignore[override]
        """The offset of the folder as it is now."""
        url, settle = self.options["archive"], float(self.options["settle"])
        asked = Path(self.options["asked"]).read_text()
        try:
            max_bytes, follow = int(self.options["max_bytes"]), self.options["links"] == "follow"
            count, digest = summarize_settled(url, max_bytes, settle, follow)
        except MelanomaError as error:  # the batch that meets it reports it, too
            count, digest = 1, logs.without_passwords(str(error))  # Spark's UI shows it
        return Offset(files=count, digest=digest, asked=asked) if count else EMPTY

    def partitions(self, start: Offset, end: Offset) -> list[InputPartition]:  # type: ignore[override]
        """One partition, with the number of files."""
        return [InputPartition(end["files"])]

    def read(self, partition: InputPartition) -> Iterator[tuple[int]]:
        """The row of a batch."""
        yield (int(partition.value),)


def summarize_settled(url: str, max_bytes: int, settle: float, follow: bool = False) -> tuple[int, str]:
    """The number of settled files of an archive, and a digest of their names, sizes and times, in any order.

    Raises `DataError` or `ConfigError` as `plan.locate`, except for an empty folder.
    """
    if plan.is_empty_folder(url):
        return 0, ""
    root, only = plan.locate(url)
    until = listing.settled_before(settle)
    count = total = 0
    for file in listing.walk_folder(root, only, max_bytes, follow):
        modified = file.modified if isinstance(file.modified, datetime) else None
        if modified is None or modified <= until:
            count += 1
            facts = json.dumps([file.path, file.length, modified and modified.timestamp()])
            total += int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=8).digest())
    return count, f"{total % 2**64:016x}" if count else ""
