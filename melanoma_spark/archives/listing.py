"""Lists the files of an archive on executors: a folder tree, or one container, and the members of containers in it.

The driver holds none of the rows.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, ids, layouts, plan
from melanoma_spark.archives.contents import open_file, wait_until_available
from melanoma_spark.archives.rows import ListedFile, from_microseconds, in_frames, listed_files, with_microseconds
from melanoma_spark.errors import DataError
from melanoma_spark.images import formats
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.spark import session
from melanoma_spark.storage import files

LINK_OUT = "a link out of the archive"  # the start of the detail of links that are not followed


def list_archive(spark: SparkSession, settings: config.Settings) -> DataFrame:
    """Every file, and every member of a container, as a row of `schemas.LISTING`. No image is read.

    One task walks the folders, others list the containers. Raises `ConfigError` if no archive is named, `DataError` if
    it does not exist, or is a file but not a container.
    """
    root, only = plan.locate(settings.archive)
    name = plan.stored_name(settings)
    limits = plan.container_limits(settings.ingest)
    max_bytes, follow = settings.ingest.max_bytes, settings.ingest.links == "follow"

    def with_stored_names(rows: Iterable[ListedFile]) -> Iterator[pd.DataFrame]:
        for frame in in_frames(rows):
            yield frame.assign(source_uri=frame["source_uri"].map(name))

    def walk(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for _ in batches:  # to its end: Spark ends a worker that leaves some, and the next stage starts another
            yield from with_stored_names(walk_folder(root, only, max_bytes, follow))

    def expand(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for container in listed_files(batches):
            yield from with_stored_names(expand_container(root, container, limits))

    in_folders = session.checkpointed(spark.range(0, 1, 1, 1).mapInPandas(walk, schemas.LISTING))  # type: ignore[arg-type]
    unlisted = in_folders.where("kind = 'container'").repartition(session.slots(spark), "file")
    members = with_microseconds(unlisted).mapInPandas(expand, schemas.LISTING)  # type: ignore[arg-type]
    return in_folders.where("kind != 'container'").unionByName(members)


def settled_before(seconds: float) -> datetime:
    """The time since which a file must not have changed to count as completely written."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def settled_files(listed: DataFrame, seconds: float) -> DataFrame:
    """The rows of a listing whose file, or container, has not changed for some seconds; all rows for 0."""
    if not seconds:
        return listed
    return listed.where(f.col("modified").isNull() | (f.col("modified") <= f.lit(settled_before(seconds))))


def walk_folder(root: str, only: str, max_bytes: int, follow: bool = False) -> Iterator[ListedFile]:
    """The files below a folder; containers have the kind `container`.

    With `follow`, links lead out of the archive, too, and into each folder once, so loops end.

    Raises `DataError` if this machine cannot read the folder, though the driver could.
    """
    hint = "packages, HADOOP_CONF_DIR and credentials must be the same on every worker as on the driver"
    try:
        filesystem, top = files.filesystem(root)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"archive {root} cannot be read by a worker: {files.reason(error)}; {hint}") from None
    links = _Links(os.path.realpath(top) if root.startswith("file:") else "", follow)
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            entries = filesystem.ls(folder, detail=True)
        except OSError as error:
            why = files.reason(error)
            if folder == top:
                raise DataError(f"archive {root} cannot be read by a worker: {why}; {hint}") from None
            if wait_until_available(root):
                folders.append(folder)
                continue
            yield _loose_file(root, folder[len(top) + 1 :], reason=UNREADABLE, detail=f"the folder: {why}")
            continue
        subfolders = []
        for entry in sorted(entries, key=lambda entry: entry["name"]):
            # The last part is empty between two slashes of a key of S3.
            path = f"{folder}/{entry['name'].removeprefix(f'{folder}/').rstrip('/').rpartition('/')[2]}"
            name = path[len(top) + 1 :]
            if only and name != only:
                continue
            if entry["type"] == "directory" or (entry.get("islink") and links.enter(path)):
                subfolders.append(path)
                continue
            reason, detail = (None, None) if only else _check_file(name, path, entry, links, max_bytes)
            kind = "file"
            if only or (containers.is_container(name) and reason in (None, "too_many_bytes")):
                kind, reason, detail = "container", None, None
            length, modified = int(entry["size"] or 0), files.modification_time(entry)
            yield _loose_file(root, name, kind=kind, length=length, modified=modified, reason=reason, detail=detail)
        folders.extend(reversed(subfolders))


class _Links:
    """Decides which links of an archive on this machine are followed. `root` is its real path, or empty."""

    def __init__(self, root: str, follow: bool) -> None:
        self.root, self.follow = root, follow
        self.entered: list[str] = []  # real paths of folders that links led to

    def enter(self, path: str) -> bool:
        """Whether to list the folder that a link leads to. It is noted, so that no link leads there again."""
        target = os.path.realpath(path)
        around = _is_inside(self.root, target)  # a link upwards: the archive would be listed again
        if not (self.root and self.follow and os.path.isdir(target)) or around:
            return False
        if any(_is_inside(target, folder) for folder in (self.root, *self.entered)):
            return False
        self.entered.append(target)
        return True

    def refuse(self, path: str) -> tuple[str, str] | None:
        """The reason and detail for which a link is not read, if there are any."""
        target = os.path.realpath(path)
        if self.root and not self.follow and not _is_inside(target, self.root):
            return "link", f"{LINK_OUT}; ingest.links=follow reads what it leads to"
        if self.root and not os.path.isfile(target):
            return "link", "a link to nothing, or to a folder that is listed at its own place"
        return None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def describe_links(listed: DataFrame, most: int = 3) -> str:
    """For the end of a summary: the links that lead out of the archive, and how to read them; empty without any."""
    out = listed.where(f.col("detail").startswith(LINK_OUT))
    names = [row.source_uri.removeprefix("file:") for row in out.orderBy("path").limit(most + 1).collect()]
    if not names:
        return ""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"; {out.count()} links lead out of the archive and were not read ({shown}), ingest.links=follow reads them"


def expand_container(root: str, container: ListedFile, limits: containers.Limits) -> Iterator[ListedFile]:
    """The members of a container, or the file itself if it is no container in spite of its name."""
    modified = from_microseconds(container.modified)
    file_itself = partial(
        _loose_file, root, container.file, length=container.length, modified=modified, raw=container.raw
    )
    count = 0  # of members that were listed before the archive was away
    try:
        with open_file(root, container.file, container.raw) as file:
            head = file.read(512)
            kind = containers.detect_format(head)
            if kind is None and formats.find_format(head) is None:
                kind = containers.detect_format(head, container.file)
            if kind is None and container.length:
                _, reason, detail = layouts.classify_file(container.file)
                if not reason:
                    reason, detail = _check_length(container.length, limits.max_member_bytes)
                yield file_itself(reason=reason, detail=detail)
                return
            kind = kind or "zip"
            file.seek(0)
            for member in containers.list_members(file, kind, limits):
                yield _member(root, container, kind, member)
                count += 1
            if not count:
                yield file_itself(reason="empty", detail=f"a {kind} without files in it")
    except OSError as error:
        if wait_until_available(root):
            yield from islice(expand_container(root, container, limits), count, None)
            return
        yield file_itself(reason=UNREADABLE, detail=files.reason(error))


def printable_name(name: str) -> str:
    r"""A file name as valid text: bytes that are not UTF-8 become `\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def image_id(path: str, kind: str) -> str:
    """The id of a listed image. The number after a member's name that came twice is no part of it."""
    return ids.image_id(path if kind == "file" else _without_number(path))


def _without_number(name: str) -> str:
    """A member's name without the number that it got because the name came twice."""
    return re.sub(r"#\d+$", "", name)


def _check_file(
    name: str, path: str, entry: Mapping[str, Any], links: _Links, max_bytes: int
) -> tuple[str | None, str | None]:
    """Reason and detail for which a file is not read, as far as its name and its entry in the folder show."""
    role, reason, detail = layouts.classify_file(printable_name(name))
    if reason == layouts.SYSTEM:
        return reason, detail
    if entry.get("islink"):
        if refused := links.refuse(path):
            return refused
    elif entry["type"] != "file":
        return "special_file", f"of type {entry['type']}"
    if reason == "mask" and containers.is_container(name):  # each of its members has a name of its own
        reason = detail = None
    if reason or role != "image":
        return reason, detail
    return _check_length(entry["size"], max_bytes) if entry["size"] else ("empty", "0 bytes")


def _check_length(length: int, max_bytes: int) -> tuple[str | None, str | None]:
    return ("too_many_bytes", f"{length} bytes, the limit is {max_bytes}") if length > max_bytes else (None, None)


def _member(root: str, container: ListedFile, kind: str, member: containers.Member) -> ListedFile:
    path = posixpath.join(container.file, member.name) if member.name else container.file
    # Of a tar to which a table was added again both count
    role, reason, detail = layouts.classify_file(_without_number(member.name))
    if member.reason and reason not in (layouts.SYSTEM, layouts.HIDDEN):
        role, reason, detail = "image", member.reason, member.detail
    place = (f"{root}/{container.file}!/{member.name}", path, image_id(path, kind), role, container.file, container.raw)
    numbers = (member.index, member.offset, member.stored, member.method, member.crc, member.size)
    return ListedFile(*place, kind, member.name, *numbers, from_microseconds(container.modified), reason, detail)


def _loose_file(
    root: str,
    name: str,
    *,
    kind: str = "file",
    length: int = 0,
    modified: datetime | None = None,
    raw: bytes | None = None,
    reason: str | None = None,
    detail: str | None = None,
) -> ListedFile:
    """A row for a file that is not in a container. `raw` is its name if that is not valid text."""
    text = printable_name(name)
    raw = os.fsencode(name) if raw is None and text != name else raw
    role = layouts.classify_file(text)[0] if reason in (None, layouts.SYSTEM) else "image"
    place = (f"{root}/{text}", text, image_id(text, "file"), role, text, raw, kind)
    return ListedFile(*place, length=length, modified=modified, reason=reason, detail=detail)
