"""The bytes of an archive's files and members, read by the tasks of executors."""

import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import BinaryIO, cast

import pandas as pd

from melanoma_spark.archives import containers
from melanoma_spark.archives.rows import ListedFile, in_chunks, listed_files
from melanoma_spark.background import prefetch
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import ClusterError, ImageError
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.storage import files

FILES_AHEAD, BYTES_AHEAD = 32, 4 * 1024 * 1024  # read in one go while others are decoded
ATTEMPTS = 3  # to read a file that the file system fails to give
MOST_AWAY = 120.0  # seconds that a task waits for an archive that is not available
BETWEEN_CHECKS = 1.0  # seconds

Content = bytes | ImageError  # of a file, or why there is none


def open_file(root: str, name: str, raw: bytes | None) -> BinaryIO:
    """Open a file of the archive for reading. `raw` is its name in bytes if that is not valid text."""
    filesystem, top = files.filesystem(root)
    # Not `posixpath.join`: the name begins with a slash where a key of S3 holds `//`.
    return cast(BinaryIO, filesystem.open(f"{top}/{os.fsdecode(bytes(raw)) if raw else name}", "rb"))


def wait_until_available(root: str, clock: Clock = REAL) -> bool:
    """After a file could not be read: whether its archive was not available, and is again.

    Returns False if the archive is available, so that the error is of the file alone. Raises `ClusterError` if the
    archive stays away: an unmounted disk must not become ten thousand unreadable images.
    """
    if _is_available(root):
        return False
    until = clock.monotonic() + MOST_AWAY
    while clock.monotonic() < until:
        clock.sleep(BETWEEN_CHECKS)
        if _is_available(root):
            return True
    raise ClusterError(
        f"archive {root} was there when the job began and has been away for {MOST_AWAY:.0f} s; mount it again and run "
        "the job again, finished work is kept"
    )


def _is_available(root: str) -> bool:
    """Whether the archive exists and is not empty: a disk that is not mounted leaves an empty folder, or none."""
    try:
        filesystem, top = files.filesystem(root)
        if not root.startswith("file:"):
            return bool(filesystem.info(top))
        with os.scandir(top) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def read_contents(root: str, batches: Iterable[pd.DataFrame], max_bytes: int) -> Iterator[tuple[ListedFile, Content]]:
    """Each row of a listing in reading order with the bytes of its file, or why there are none.

    A container is opened once for all of its rows, however many batches these fill. Rows that have a reason already are
    not read.
    """
    rows = listed_files(batches)
    for (name, kind, rejected), group in groupby(rows, key=lambda row: (row.file, row.kind, row.reason is not None)):
        if rejected:
            for row in group:
                yield row, ImageError(str(row.reason), str(row.detail))
        elif kind == "file":
            for row in group:
                yield row, _read_file(root, row, max_bytes)
        else:
            yield from read_members(root, name, kind, group)


def prefetch_contents(contents: Iterator[tuple[ListedFile, Content]]) -> Iterator[tuple[ListedFile, Content]]:
    """What `read_contents` yields, read by a thread while the caller uses what came before.

    The thread hands over many files at once: one by one would cost a tenth of the time of decoding a small image.
    """

    def size(pair: tuple[ListedFile, Content]) -> int:
        return len(pair[1]) if isinstance(pair[1], bytes) else 0

    return chain.from_iterable(prefetch(in_chunks(contents, FILES_AHEAD, size, BYTES_AHEAD), lambda chunk: chunk))


def _read_file(root: str, row: ListedFile, max_bytes: int) -> Content:
    attempt = 0
    while True:
        attempt += 1
        try:
            with open_file(root, row.file, row.raw) as file:
                content = bytes(file.read(max_bytes + 1))
            if len(content) > max_bytes:
                return ImageError("too_many_bytes", f"over {max_bytes} bytes when it was read")
            return content
        except OSError as error:
            if wait_until_available(root):
                attempt = 0
            elif isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                if attempt > 1:  # the archive may just have come back
                    return ImageError(UNREADABLE, files.reason(error))
            elif attempt == ATTEMPTS:
                return ImageError(UNREADABLE, f"{files.reason(error)} ({ATTEMPTS} attempts)")
            else:
                time.sleep(attempt)


def read_members(root: str, name: str, kind: str, rows: Iterable[ListedFile]) -> Iterator[tuple[ListedFile, Content]]:
    """Each row of one container with the bytes of its member, or why there are none."""
    rows = iter(rows)
    first = next(rows)
    pending: dict[int, ListedFile] = {}  # rows whose bytes have not come yet, by index

    def wanted(rows: Iterable[ListedFile]) -> Iterator[containers.Member]:
        for row in rows:
            numbers = cast(tuple[int, ...], (row.index, row.offset, row.stored, row.length, row.method))
            index, offset, stored, length, method = map(int, numbers)  # Arrow gives floats where some are null
            pending[index] = row
            crc = None if pd.isna(row.crc) else int(cast(int, row.crc))
            yield containers.Member(str(row.member), index, offset, stored, length, method, crc)

    remaining = chain((first,), rows)
    members = wanted(remaining)
    detail = ""
    while not detail:
        try:
            with open_file(root, name, first.raw) as file:
                for member, content in containers.read_members(file, kind, members):
                    yield pending.pop(member.index), content
            detail = "the container ends before it"
        except OSError as error:
            if wait_until_available(root):
                members = wanted(chain(list(pending.values()), remaining))
            else:
                detail = files.reason(error)
    for _ in members:  # takes the rest of the rows into `pending`
        pass
    for row in pending.values():
        yield row, ImageError(UNREADABLE, detail)
