"""Archives on any file system, listed, read and decoded by Spark's executors; the driver holds none of it.

An archive is a folder tree, or one zip or tar file. Zip and tar files in it are read member by member, in place.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import posixpath
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby, islice
from types import SimpleNamespace
from typing import Any, TypeVar

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, layouts
from melanoma_spark.background import Waits, ahead
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import ClusterError, ConfigError, DataError, ImageError
from melanoma_spark.images import decoding, quality
from melanoma_spark.spark import session
from melanoma_spark.storage import files

CHUNK = 256  # files or members that are read by one task, one after the other
LISTED_AT_ONCE = 10_000  # rows of the listing that a task holds
READ_AT_ONCE = 16 * 1024 * 1024  # bytes decoded before they are handed on
FILES_AHEAD, BYTES_AHEAD = 32, 4 * 1024 * 1024  # read in one go while others are decoded
HEAD_BYTES = 64 * 1024  # of a table, to recognise it
MOST_TABLES = 2000
HEADS_AT_ONCE = 16  # of tables, read by the driver
TABLES_A_TASK = 10
ATTEMPTS = 3  # at reading a file that a file system fails to give
AWAY = 120.0  # seconds that a task waits for an archive that is away
AGAIN = 1.0  # seconds after which it looks again
TABLE_NAME = r"\.(csv|tsv|tab)$"  # in lower case
UNSEEN = ("hidden", "mask")  # reasons of files that no row of a table is about

IMAGE = schemas.DECODED.names.index("image")
Item = TypeVar("Item")
Write = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]
Compute = Callable[[Iterator[list[bytes | ImageError]]], Iterator[pd.DataFrame]]


def listing(spark: SparkSession, settings: config.Settings) -> DataFrame:
    """Every file and every member of a container as a row of `schemas.LISTING`; no image is read yet.

    One task walks the tree, others list the containers. Raises `ConfigError` when no archive is named, `DataError`
    when it is not there or is a file that is no container.
    """
    root, only = located(settings.archive)
    name = naming(settings)
    limits = container_limits(settings.ingest)
    max_bytes = settings.ingest.max_bytes

    def named(rows: Iterable[tuple[Any, ...]]) -> Iterator[pd.DataFrame]:
        for frame in frames(rows):
            yield frame.assign(source_uri=frame["source_uri"].map(name))

    def walk(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for _ in batches:  # to its end: Spark ends a worker that leaves some, and the next stage starts another
            yield from named(walked(root, only, max_bytes))

    def expand(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for row in batch.itertuples(index=False):
                yield from named(expanded(root, row, limits))

    found = session.fixed(spark.range(0, 1, 1, 1).mapInPandas(walk, schemas.LISTING))  # type: ignore[arg-type]
    inside = in_microseconds(found.where("kind = 'container'").repartition(session.slots(spark), "file"))
    members = inside.mapInPandas(expand, schemas.LISTING)  # type: ignore[arg-type]
    return found.where("kind != 'container'").unionByName(members)


def located(url: str | None) -> tuple[str, str]:
    """The URL of an archive's folder, and the name of the only file in it to look at, or an empty one."""
    if not url:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    try:
        filesystem, path = files.filesystem(url)
        facts = filesystem.info(path)
        if facts["type"] == "directory":
            if not filesystem.ls(path, detail=False):
                raise DataError(f"archive {url} holds no files; expected a folder with images, or zip or tar files")
            return files.spelt(url), ""
        with filesystem.open(path, "rb") as file:
            kind = containers.kind_of(file.read(512), path)
    except FileNotFoundError:
        raise DataError(
            f"archive {url} does not exist; give the URL of a folder of images, or of a zip or tar file, with "
            "archive=URL"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"archive {url} cannot be read: {files.reason(error)}") from None
    if kind is None:
        raise DataError(f"archive {url} is a file, but no zip or tar; name the folder that holds the images")
    folder, name = files.spelt(url).rsplit("/", 1)
    return folder, name


def empty(url: str) -> bool:
    """Whether a folder is there and holds nothing; False for all else, of which `located` knows more."""
    try:
        filesystem, path = files.filesystem(url)
        return bool(filesystem.isdir(path)) and not filesystem.ls(path, detail=False)
    except (OSError, ValueError, ImportError):
        return False


def settled_until(seconds: float) -> datetime:
    """What has not changed since then has settled: nobody is writing it any more."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def settled(listed: DataFrame, seconds: float) -> DataFrame:
    """The rows of a listing whose file, or whose container's, has settled; all of them for 0 seconds."""
    if not seconds:
        return listed
    return listed.where(f.col("modified").isNull() | (f.col("modified") <= f.lit(settled_until(seconds))))


def walked(root: str, only: str, max_bytes: int) -> Iterator[tuple[Any, ...]]:
    """Rows of `schemas.LISTING` for the files below a folder, containers among them with kind `container`.

    Raises `DataError` where nothing of it can be read here, though the driver could.
    """
    way_out = "packages, HADOOP_CONF_DIR and credentials must be the driver's on every worker"
    try:
        filesystem, top = files.filesystem(root)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"archive {root} cannot be read by a worker: {files.reason(error)}; {way_out}") from None
    inside = os.path.realpath(top) if root.startswith("file:") else ""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            infos = filesystem.ls(posixpath.join(top, folder), detail=True)
        except OSError as error:
            if not folder:
                why = files.reason(error)
                raise DataError(f"archive {root} cannot be read by a worker: {why}; {way_out}") from None
            if returned(root):
                folders.append(folder)
                continue
            yield _row(root, folder, None, 0, None, reason=decoding.GONE, detail=f"the folder: {files.reason(error)}")
            continue
        below = []
        for info in sorted(infos, key=lambda info: info["name"]):
            raw = posixpath.join(folder, info["name"].rstrip("/").rpartition("/")[2])
            if only and raw != only:
                continue
            if info["type"] == "directory":
                below.append(raw)
                continue
            reason, detail = (None, None) if only else _unread(raw, info, inside, max_bytes) or (None, None)
            looked_into = only or (containers.is_container(raw) and reason in (None, "too_many_bytes"))
            kind = "container" if looked_into else "file"
            if kind == "container":
                reason = detail = None
            yield _row(root, raw, kind, int(info["size"] or 0), files.modified(info), reason=reason, detail=detail)
        folders.extend(reversed(below))


def _unread(raw: str, info: dict[str, Any], inside: str, max_bytes: int) -> tuple[str, str] | None:
    """Why a file is not read, as far as its name and its entry in the folder tell."""
    if info.get("islink") and inside:
        aim = os.path.realpath(info["name"])
        if not aim.startswith(inside + "/"):
            return "link", "a link out of the archive; copy the file into it"
        if not os.path.isfile(aim):
            return "link", "a link to a folder or to nothing; only links to files are followed"
    elif info["type"] != "file":
        return "special_file", f"of type {info['type']}"
    found = layouts.unread(printable(raw))
    if found and found[0] == "mask" and containers.is_container(raw):
        found = None  # each of its members has a name of its own
    if found:
        return None if found[0] == "skipped" else found
    if not info["size"]:
        return "empty", "0 bytes"
    return _too_long(info["size"], max_bytes)


def _too_long(length: int, max_bytes: int) -> tuple[str, str] | None:
    return ("too_many_bytes", f"{length} bytes, the limit is {max_bytes}") if length > max_bytes else None


def expanded(root: str, container: Any, limits: containers.Limits) -> Iterator[tuple[Any, ...]]:
    """Rows of `schemas.LISTING` for the members of a container, or for a file that is none in spite of its name."""
    whole = {"raw": container.raw, "length": container.length, "modified": moment(container.modified)}
    told = 0
    try:
        with opened(root, container.file, container.raw) as file:
            head = file.read(512)
            kind = containers.kind_of(head)
            if kind is None and not any(signature.match(head) for signature in decoding.SIGNATURES.values()):
                kind = containers.kind_of(head, container.file)
            if kind is None and container.length:
                wrong = layouts.unread(container.file) or _too_long(container.length, limits.max_member_bytes)
                reason, detail = wrong or (None, None)
                yield _row(root, container.file, "file", **whole, reason=reason, detail=detail)
                return
            file.seek(0)
            none = True
            for member in containers.members(file, kind or "zip", limits):
                none = False
                yield _member(root, container, kind or "zip", member)
                told += 1
            if none:
                yield _row(
                    root, container.file, "file", **whole, reason="empty", detail=f"a {kind} without files in it"
                )
    except OSError as error:
        if returned(root):
            yield from islice(expanded(root, container, limits), told, None)
            return
        yield _row(root, container.file, "file", **whole, reason=decoding.GONE, detail=files.reason(error))


def _member(root: str, container: Any, kind: str, member: containers.Member) -> tuple[Any, ...]:
    path = posixpath.join(container.file, member.name) if member.name else container.file
    reason, detail = member.reason, member.detail
    role = "image"
    name = re.sub(r"#\d+$", "", member.name)  # which came twice; a tar to which a table was added again has both
    if reason is None:
        reason, detail = layouts.unread(name) or (None, None)
    if reason == "skipped":
        role, reason, detail = role_of(name), None, None
    return (
        f"{root}/{container.file}!/{member.name}",
        path,
        image_id(path, kind),
        role,
        container.file,
        container.raw,
        kind,
        member.name,
        member.index,
        member.offset,
        member.stored,
        member.method,
        member.crc,
        member.size,
        moment(container.modified),
        reason,
        detail,
    )


def _row(
    root: str,
    name: str,
    kind: str | None,
    length: int,
    modified: datetime | None,
    raw: bytes | None = None,
    reason: str | None = None,
    detail: str | None = None,
) -> tuple[Any, ...]:
    """A row of `schemas.LISTING` for a file. `raw` is its name where that is no text."""
    text = printable(name)
    raw = os.fsencode(name) if raw is None and text != name else raw
    role = "image" if reason else role_of(text)
    no_member = (None, None, None, None, None, None)
    place = (f"{root}/{text}", text, image_id(text, "file"), role, text, raw, kind or "file")
    return (*place, *no_member, length, modified, reason, detail)


def role_of(path: str) -> str:
    """`table`, `other` (what never was meant to be an image) or `image`, by name."""
    found = layouts.unread(path)
    if found is None or found[0] != "skipped":
        return "image"
    return "table" if found == layouts.TABLE else "other"


def printable(name: str) -> str:
    """A name that any column can hold: bytes that are no UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def in_microseconds(rows: DataFrame) -> DataFrame:
    """`modified` as a number for Python, which would be given it as a time of the session's zone."""
    return rows.withColumn("modified", f.unix_micros("modified"))


def moment(microseconds: Any) -> datetime | None:
    """What `in_microseconds` made a number, as a time for Spark."""
    if pd.isna(microseconds):
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(microseconds))


def frames(rows: Iterable[tuple[Any, ...]], columns: Any = schemas.LISTING) -> Iterator[pd.DataFrame]:
    """Rows as data frames of bounded length."""
    for held in runs(rows, LISTED_AT_ONCE):
        yield pd.DataFrame(held, columns=columns.names, dtype=object)


def runs(
    items: Iterable[Item], most: int, size: Callable[[Item], int] = lambda _: 0, size_limit: int = 0
) -> Iterator[list[Item]]:
    """Items in lists of `most` at the most; a list also ends with the item by which its sizes pass the limit."""
    held: list[Item] = []
    weight = 0
    for item in items:
        held.append(item)
        weight += size(item)
        if len(held) == most or weight > size_limit:
            yield held
            held, weight = [], 0
    if held:
        yield held


def container_limits(limits: config.Ingest) -> containers.Limits:
    return containers.Limits(
        max_members=limits.max_members,
        max_member_bytes=limits.max_bytes,
        max_total_bytes=limits.max_container_bytes,
        max_ratio=limits.max_ratio,
    )


def naming(settings: config.Settings) -> Any:
    """Text -> what is stored of it: itself, or its keyed hash where names are private. None stays None."""
    if settings.privacy.source_names == "keep":
        return lambda text: text
    key = os.environ.get(config.NAME_KEY, "").encode()
    if len(key) < 16:
        raise ConfigError(
            f"privacy.source_names=hash needs a key of at least 16 characters in the environment variable "
            f"{config.NAME_KEY}; keep it: with another key every file counts as new"
        )

    def hashed(text: str | None) -> str | None:
        return None if text is None else hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]

    return hashed


def opened(root: str, name: str, raw: bytes | None) -> Any:
    """A file of the archive, open for reading bytes."""
    filesystem, top = files.filesystem(root)
    return filesystem.open(posixpath.join(top, os.fsdecode(raw) if raw else name), "rb")


def returned(root: str, clock: Clock = REAL) -> bool:
    """Where a file could not be read: whether its archive was away, and is there again.

    False where the archive is there, so that it is the file's own fate. Raises `ClusterError` when the archive stays
    away: one unmounted disk is not ten thousand images that cannot be read.
    """
    if _there(root):
        return False
    until = clock.monotonic() + AWAY
    while clock.monotonic() < until:
        clock.sleep(AGAIN)
        if _there(root):
            return True
    raise ClusterError(
        f"archive {root} was there when the job began and has been away for {AWAY:.0f} s; mount it again and run the "
        "job again, what was finished is kept"
    )


def _there(root: str) -> bool:
    """A disk that is not mounted leaves an empty folder behind, or none."""
    try:
        filesystem, top = files.filesystem(root)
        if not root.startswith("file:"):
            return bool(filesystem.info(top))
        with os.scandir(top) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def in_reading_order(rows: DataFrame, count: int, tasks: int = 0, run: int = CHUNK) -> DataFrame:
    """Rows of a listing spread over tasks so that each reads runs of neighbours; a tar.gz is read by one task.

    Without `tasks` there is one for `CHUNK` rows, one a slot at the least.
    """
    place = f.when(f.col("kind") == "tar.gz", f.lit(0)).when(
        f.col("kind") == "file", f.abs(f.xxhash64("path")) % 1_000_000
    )
    chunk = place.otherwise((f.col("index") / run).cast("int"))
    spread = tasks or min(max(session.slots(rows.sparkSession), -(-count // CHUNK)), 20_000)
    unread = f.col("reason").isNotNull()
    return (
        in_microseconds(rows).repartition(spread, "file", chunk).sortWithinPartitions("file", unread, "offset", "path")
    )


def contents(root: str, batches: Iterable[pd.DataFrame], max_bytes: int) -> Iterator[tuple[Any, bytes | ImageError]]:
    """(row, its bytes or why there are none) for rows of a listing in reading order.

    A container is opened once for all of its rows, however many batches these fill. Rows that the listing gave a
    reason are not read.
    """
    rows = (row for batch in batches for row in batch.itertuples(index=False))
    for (name, kind, unread), group in groupby(rows, key=lambda row: (row.file, row.kind, row.reason is not None)):
        if unread:
            for row in group:
                yield row, ImageError(row.reason, row.detail)
        elif kind == "file":
            for row in group:
                yield row, _bytes_of(root, row, max_bytes)
        else:
            yield from _members_of(root, name, kind, group)


def _bytes_of(root: str, row: Any, max_bytes: int) -> bytes | ImageError:
    attempt = 0
    while True:
        attempt += 1
        try:
            with opened(root, row.file, row.raw) as file:
                content = bytes(file.read(max_bytes + 1))
            if len(content) > max_bytes:
                return ImageError("too_many_bytes", f"over {max_bytes} bytes when it was read")
            return content
        except OSError as error:
            if returned(root):
                attempt = 0
            elif isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                if attempt > 1:  # the archive may just have come back
                    return ImageError(decoding.GONE, files.reason(error))
            elif attempt == ATTEMPTS:
                return ImageError(decoding.GONE, f"{files.reason(error)} ({ATTEMPTS} attempts)")
            else:
                time.sleep(attempt)


def _members_of(root: str, name: str, kind: str, rows: Iterable[Any]) -> Iterator[tuple[Any, bytes | ImageError]]:
    rows = iter(rows)
    first = next(rows)
    asked: dict[int, Any] = {}  # rows whose bytes have not come yet

    def wanted(rows: Iterable[Any]) -> Iterator[containers.Member]:
        for row in rows:
            asked[int(row.index)] = row
            crc = None if pd.isna(row.crc) else int(row.crc)
            numbers = (int(row.index), int(row.offset), int(row.stored), int(row.length), int(row.method))
            yield containers.Member(row.member, *numbers, crc)

    left = chain((first,), rows)
    members = wanted(left)
    detail = ""
    while not detail:
        try:
            with opened(root, name, first.raw) as file:
                for member, content in containers.read(file, kind, members):
                    yield asked.pop(member.index), content
            detail = "the container ends before it"
        except OSError as error:
            if returned(root):
                members = wanted(chain(list(asked.values()), left))
            else:
                detail = files.reason(error)
    for _ in members:  # those that were not asked for any more
        pass
    for row in asked.values():
        yield row, ImageError(decoding.GONE, detail)


def read_ahead(found: Iterator[tuple[Any, bytes | ImageError]]) -> Iterator[tuple[Any, bytes | ImageError]]:
    """What `contents` gives, fetched in a thread while the last is used, some at a time.

    Handing over costs a tenth of decoding a small image, if it is done for each of them.
    """

    some = runs(found, FILES_AHEAD, lambda pair: len(pair[1]) if isinstance(pair[1], bytes) else 0, BYTES_AHEAD)
    return chain.from_iterable(ahead(some, lambda held: held))


def decode(
    listed: DataFrame,
    count: int,
    settings: config.Settings,
    write: Write | None = None,
    told: Any = schemas.DECODED,
    meter: session.Meter | None = None,
) -> DataFrame:
    """Each of `count` rows of a listing as a row of `schemas.DECODED`: its pixels and hashes, or why it has none.

    With `write` the rows go there, within the task, and what it tells of them comes back. `meter` hears of every task.
    """
    limits, size = settings.ingest, settings.image_size
    root, _ = located(settings.archive)

    def rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        field = schemas.images_schema(size).fields["image"]
        waiting = Waits(read_ahead(contents(root, batches, limits.max_bytes)))
        began, done, read = time.monotonic(), 0, 0

        def decoded() -> Iterator[tuple[Any, ...]]:
            nonlocal done, read
            for row, content in waiting:
                done, read = done + 1, read + (0 if isinstance(content, ImageError) else len(content))
                yield row.source_uri, row.length, moment(row.modified), *_decoded(content, size, limits, field)

        for held in runs(decoded(), LISTED_AT_ONCE, lambda row: len(row[IMAGE] or b""), READ_AT_ONCE):
            yield pd.DataFrame(held, columns=schemas.DECODED.names, dtype=object)
        if meter is not None:
            meter.add(done, read, waiting.seconds, time.monotonic() - began - waiting.seconds)

    def written(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return rows(batches) if write is None else write(rows(batches))

    return in_reading_order(listed, count).mapInPandas(written, told)  # type: ignore[arg-type]


def hashed(listed: DataFrame, count: int, settings: config.Settings) -> DataFrame:
    """Each of `count` rows of a listing, with `source_key`, as a row of `schemas.READ`: what its content is."""
    root, _ = located(settings.archive)
    max_bytes, name = settings.ingest.max_bytes, naming(settings)

    def told(row: Any, content: bytes | ImageError) -> tuple[Any, ...]:
        if isinstance(content, ImageError):
            return (row.source_key, name(row.image_id), None, content.reason, content.detail)
        return (row.source_key, name(row.image_id), decoding.sha256(content), None, None)

    def rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        found = read_ahead(contents(root, batches, max_bytes))
        yield from frames((told(row, content) for row, content in found), schemas.READ)

    return in_reading_order(listed, count).mapInPandas(rows, schemas.READ)  # type: ignore[arg-type]


def computed(
    listed: DataFrame,
    count: int,
    settings: config.Settings,
    compute: Compute,
    batch_size: int,
    write: Write,
    told: Any,
) -> DataFrame:
    """Each of `count` rows of a listing as a row of `schemas.SOURCE` and what `compute` finds, handed to `write`.

    `compute` is handed the files' bytes, or why there are none, `batch_size` at a time, and gives a frame for each, in
    one stage with the reading: images do not travel to the JVM and back, and a slot has one worker. What `write` tells
    of the rows, of schema `told`, comes back.
    """
    root, _ = located(settings.archive)
    max_bytes, name = settings.ingest.max_bytes, naming(settings)

    def rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        read: deque[tuple[Any, ...]] = deque()  # of the files that were handed out

        def held() -> Iterator[list[bytes | ImageError]]:
            found = contents(root, batches, max_bytes)
            while batch := list(islice(found, batch_size)):
                for row, content in batch:
                    sha256 = None if isinstance(content, ImageError) else decoding.sha256(content)
                    whose = name(getattr(row, "patient_id", None))
                    read.append((row.source_uri, row.length, moment(row.modified), name(row.image_id), whose, sha256))
                yield [content for _, content in batch]

        for frame in compute(held()):
            places = [read.popleft() for _ in range(len(frame))]
            yield pd.concat([pd.DataFrame(places, columns=schemas.SOURCE.names, dtype=object), frame], axis=1)

    def written(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return write(rows(batches))

    # Tasks that take seconds each, so that no slot waits long for the last one of another
    tasks = session.partitions_for(listed.sparkSession, count)
    return in_reading_order(listed, count, tasks, batch_size).mapInPandas(written, told)  # type: ignore[arg-type]


def image_id(path: str, kind: str) -> str:
    """The id of a listed image. A member whose name came twice carries a number behind it, which is not of the id."""
    return layouts.image_id(path if kind == "file" else re.sub(r"#\d+$", "", path))


def _decoded(content: bytes | ImageError, size: int, limits: config.Ingest, field: Any) -> tuple[Any, ...]:
    """sha256, pixel_sha256, perceptual_hash, width, height, format, image, reason, detail, flags."""
    sha256 = None
    try:
        if isinstance(content, ImageError):
            raise content
        sha256 = decoding.sha256(content)
        found = decoding.look(
            *(content, size, limits.min_side, limits.max_pixels, limits.allow_recognisable),
            accept_damaged=limits.damaged == "accept",
        )
    except ImageError as error:
        return (sha256, None, None, None, None, None, None, error.reason, error.detail, None)
    hashes = decoding.pixel_hash(found.hashed), decoding.perceptual_hash(found.hashed)
    stored = bytes(field.codec.encode(field, found.pixels))
    flags = quality.DAMAGED if found.damage else None
    return (sha256, *hashes, found.width, found.height, found.format, stored, None, None, flags)


def table_heads(
    listed: DataFrame, settings: config.Settings, set_aside: dict[str, str] | None = None
) -> tuple[list[layouts.TableHead], list[Any]]:
    """The first bytes of the archive's tables, and their rows of the listing.

    Raises `DataError` naming a table that cannot be read, or how many tables there are over `MOST_TABLES`; with
    `set_aside` these and the reason go there.
    """
    rows = listed.where("role = 'table' and reason is null").orderBy("path").limit(MOST_TABLES + 1).collect()
    found = [SimpleNamespace(**row.asDict()) for row in rows]  # of a Row `index` is a method
    root, _ = located(settings.archive)
    aside: dict[str, str] = {}
    if len(found) > MOST_TABLES:
        aside[f"{found.pop().path} and what follows"] = (
            f"are over the limit of {MOST_TABLES} tables; join them to fewer"
        )

    def head_of(row: Any) -> layouts.TableHead | None:
        try:
            return layouts.TableHead(row.path, next(iter_table(root, row), b"")[:HEAD_BYTES])
        except DataError as error:
            aside[row.path] = str(error)
            return None

    with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:  # on S3 each takes a moment
        heads = [head for head in pool.map(head_of, found) if head]
    if aside and set_aside is None:
        path = min(aside)
        raise DataError(f"{path} {aside[path]}")
    if set_aside is not None:
        set_aside |= aside
    return heads, found


def all_tables(listed: DataFrame) -> list[str]:
    """The paths of the tables of a listing, also of those that cannot be read."""
    rows = listed.where(f.lower("path").rlike(TABLE_NAME)).select("path").limit(MOST_TABLES + 1).collect()
    return [row.path for row in rows]


def unreadable_tables(listed: DataFrame) -> dict[str, str]:
    """Path -> why of tables that the listing knows already to be unreadable; the first by path."""
    refused = f.col("reason").isNotNull() & ~f.col("reason").isin(*UNSEEN)
    rows = listed.where(refused & f.lower("path").rlike(TABLE_NAME)).orderBy("path").limit(MOST_TABLES).collect()
    return {row.path: f"cannot be read: {row.reason}, {row.detail}" for row in rows}


def iter_table(root: str, row: Any) -> Iterator[bytes]:
    """The bytes of a table, in pieces, from a file or from a container's member.

    Raises `DataError` where it cannot be read: without it images would silently lose their labels. The table's path
    belongs before its text.
    """
    try:
        if row.kind == "file":
            with opened(root, row.file, row.raw) as file:
                while piece := file.read(1024 * 1024):
                    yield piece
        else:
            for _, content in _members_of(root, row.file, row.kind, [row]):
                if isinstance(content, ImageError):
                    raise content
                yield content
    except (OSError, ImageError) as error:
        why = error.detail if isinstance(error, ImageError) else files.reason(error)
        way_out = "make it readable, or take it out of the archive, and run ingest again"
        raise DataError(f"cannot be read: {why}; {way_out}") from None


class Pieces(io.RawIOBase):
    """An iterator of bytes as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def images_of_rows(listed: DataFrame, settings: config.Settings) -> DataFrame:
    """The images of a listing that rows of tables may be about, with what people are `shown` of each.

    A file that cannot be read is among them: a row may be about it, and not about another of its name.
    """
    private = settings.privacy.source_names == "hash"
    there = f.col("reason").isNull() | ~f.col("reason").isin(*UNSEEN)
    return listed.where((f.col("role") == "image") & there).withColumn(
        "shown", f.col("source_uri" if private else "path")
    )


def folders(listed: DataFrame) -> dict[str, int]:
    """Folder (relative to the archive) -> images directly in it; the 10,000 largest."""
    parent = f.regexp_extract("path", r"^(.*)/[^/]*$", 1)
    counted = listed.where("role = 'image' and reason is null").groupBy(parent.alias("folder")).count()
    rows = counted.orderBy(f.desc("count"), "folder").limit(10_000).collect()
    return {row.folder: row["count"] for row in rows}


def records(spark: SparkSession, layout: layouts.Layout, rows: list[Any], settings: config.Settings) -> DataFrame:
    """The rows of a layout's tables as `schemas.RECORDS`, read by executors, table by table.

    A table that turns out to be damaged raises `DataError` in the task that reads it.
    """
    return _records(spark, layout, rows, settings).drop("error")


def readable_records(
    spark: SparkSession, layout: layouts.Layout, rows: list[Any], settings: config.Settings, set_aside: dict[str, str]
) -> DataFrame:
    """As `records`, without the rows of tables that are damaged: their paths and the reasons go to `set_aside`."""
    found = session.fixed(_records(spark, layout, rows, settings, keep_going=True))
    set_aside |= {row.table: row.error for row in found.where("error is not null").select("table", "error").collect()}
    return found.where(~f.col("table").isin(*set_aside)).drop("error") if set_aside else found.drop("error")


def _records(
    spark: SparkSession, layout: layouts.Layout, rows: list[Any], settings: config.Settings, keep_going: bool = False
) -> DataFrame:
    """`schemas.RECORDS` with `error`: null, but in the row with which a damaged table ends."""
    root, _ = located(settings.archive)
    chosen = {row.path: row for row in rows}
    work = [(table, chosen[table.path]) for table in layout.tables]
    schema = schemas.add(schemas.RECORDS, "error")

    def told(table: layouts.Table, row: Any) -> Iterator[tuple[Any, ...]]:
        found = layouts.read_table(io.BufferedReader(Pieces(iter_table(root, row))), table)
        try:
            for record in found:
                yield (*(getattr(record, name) for name in schemas.RECORDS.names), None)
        except DataError as error:
            if not keep_going:
                raise
            why = str(error).removeprefix(f"{table.path} ")
            yield (*(table.path if name == "table" else None for name in schemas.RECORDS.names), why)

    def read(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for place in batch["id"]:
                yield from frames(told(*work[int(place)]), schema)

    return spark.range(0, len(work), 1, max(1, -(-len(work) // TABLES_A_TASK))).mapInPandas(read, schema)  # type: ignore[arg-type]
