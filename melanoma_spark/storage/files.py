"""Small files under any URL that fsspec knows (file, hdfs, s3, ...), written complete or not at all."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import fsspec

from melanoma_spark.errors import ClusterError, ConfigError, DataError

# Imported when the first URL of theirs is opened, so that nobody else pays for them, or has to have them.
REMOTE = {
    "hdfs": ("melanoma_spark.storage.hdfs.Hdfs", "hdfs-native"),
    "s3": ("melanoma_spark.storage.s3.S3", "s3fs"),
    "s3a": ("melanoma_spark.storage.s3.S3", "s3fs"),
}
for _protocol, (_class, _package) in REMOTE.items():
    _missing = (
        f"{_protocol}:// takes {_package}, which is not installed: run `make install`, or `pip install {_package}` "
        "with the Python of the driver and of every worker"
    )
    fsspec.register_implementation(_protocol, _class, clobber=True, errtxt=_missing)


def url_of(path_or_url: str) -> str:
    """An absolute URL without a slash at its end; plain paths become `file://` URLs."""
    if "://" in path_or_url:
        return path_or_url.rstrip("/")
    if path_or_url.startswith("file:/"):
        return "file://" + path_or_url.removeprefix("file:").rstrip("/")
    return "file://" + os.path.abspath(path_or_url)


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it. Names with `::`, `#` or `%` in them are names.

    Raises `ImportError` or `ValueError` where nothing installed reads such URLs, `OSError` where no server answers.
    """
    if url.startswith("file:") or "://" not in url:
        return fsspec.filesystem("file"), "/" + url_of(url).removeprefix("file://").lstrip("/")
    protocol = url.partition("://")[0]
    if protocol in REMOTE:
        kind = fsspec.get_filesystem_class(protocol)
        return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    found, path = fsspec.core.url_to_fs(url)
    return found, str(path)


def spelt(url: str) -> str:
    """A URL as sources are stored: `file:/path` for a local one, as Hadoop spells it, else as it is."""
    absolute = url_of(url)
    return "file:" + absolute.removeprefix("file://") if absolute.startswith("file://") else absolute


def exists(url: str) -> bool:
    """Raises `ConfigError` for a URL of a kind that nothing installed can read, `ClusterError` where none answers."""
    try:
        store, path = filesystem(url)
        return bool(store.exists(path))
    except OSError as error:
        raise ClusterError(f"{url}: {reason(error)}") from None
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{url}: {reason(error)}") from None


def matches(url: str, pattern: str) -> list[str]:
    """Names directly below a folder that match a pattern; none where there is no such folder."""
    store, path = filesystem(url)
    try:
        found = store.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return fnmatch.filter((name.rstrip("/").rpartition("/")[2] for name in found), pattern)


def modified(info: Mapping[str, Any]) -> datetime | None:
    """When a file was changed last, by what its file system tells of it."""
    for key in ("mtime", "modified", "LastModified", "modification_time", "last_modified"):
        found = info.get(key)
        if isinstance(found, datetime):
            return found.astimezone(UTC)
        if isinstance(found, int | float):
            seconds = found / 1000 if found > 1e11 else found  # HDFS counts milliseconds
            return datetime.fromtimestamp(seconds, UTC)
    return None


def walk(url: str) -> Iterator[tuple[str, int, datetime | None]]:
    """The path below a folder, the size and the time of change of every file below it. Links are left out.

    Raises `OSError` for a folder that cannot be read; where there is none, there are no files.
    """
    store, top = filesystem(url)
    # S3 tells a thousand files a request, whatever folders they are in
    for info in store.find(top, detail=True).values() if "s3" in store.protocol else _below(store, top):
        if info["type"] == "file" and not info.get("islink"):
            yield info["name"].removeprefix(f"{top}/"), int(info["size"]), modified(info)


def _below(store: Any, top: str) -> Iterator[dict[str, Any]]:
    folders = [top] if store.exists(top) else []
    while folders:  # fsspec's own walk passes over a folder that it cannot read
        for info in store.ls(folders.pop(), detail=True):
            if info["type"] == "directory":
                folders.append(info["name"])
            yield info


def read_bytes(url: str) -> bytes:
    """Raises `DataError` naming the URL when it cannot be read."""
    try:
        store, path = filesystem(url)
        return bytes(store.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot read {url}: {reason(error)}") from None


def write_bytes(url: str, content: bytes) -> None:
    """Write beside the target, then rename: a reader sees the old content or the new, never a part."""
    beside = ""
    try:
        store, path = filesystem(url)
        if "s3" in store.protocol:
            store.pipe_file(path, content)  # an object comes whole or not at all, and cannot be renamed
            return
        folder, _, name = path.rpartition("/")
        store.makedirs(folder, exist_ok=True)
        beside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        store.pipe_file(beside, content)
        _replace(store, beside, path)
    except (OSError, ValueError, ImportError) as error:
        with suppress(OSError):
            if beside:
                store.rm_file(beside)
        raise _unwritten(url, error) from None


def write_new(url: str, content: bytes) -> bool:
    """Write whole, unless there is such a file: then False. Of two that try at once, one gets True.

    That is the file system's doing: a link or a rename that is no replacement, on S3 a conditional write.
    """
    if exists(url):
        return False
    store, path = filesystem(url)
    if "s3" in store.protocol:
        try:
            store.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise _unwritten(url, error) from None
        return True
    beside = f"{url}.{uuid.uuid4().hex[:8]}.tmp"
    write_bytes(beside, content)
    try:
        if "file" in store.protocol:
            os.link(filesystem(beside)[1], path)
        else:
            store.mv(filesystem(beside)[1], path)
    except FileExistsError:
        return False
    finally:
        remove(beside)
    return True


def _replace(store: Any, old: str, new: str) -> None:
    """Rename, over what stands there; on `file` and `hdfs` this is atomic."""
    if "file" in store.protocol:
        os.replace(old, new)
    elif store.protocol == "hdfs":
        store.mv(old, new, overwrite=True)
    elif "s3" in store.protocol:  # which has neither folders nor renaming
        for name in store.find(old):
            store.cp_file(name, new + name.removeprefix(old))
            store.rm_file(name)
    else:
        if store.exists(new):
            store.rm(new, recursive=True)
        store.mv(old, new, recursive=True)


def _unwritten(url: str, error: Exception) -> ClusterError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    way_out = f"{'make room, or ' if full else ''}choose another warehouse=URL"
    return ClusterError(f"cannot write {url}: {reason(error)}; {way_out}")


def make_folder(url: str) -> None:
    """Raises `ClusterError` where it cannot be."""
    try:
        store, path = filesystem(url)
        store.makedirs(path, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise _unwritten(url, error) from None


def check_writable(url: str) -> None:
    """Raises `ClusterError` now rather than after an hour of work."""
    probe = join(url, f".writable-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    try:
        remove(probe)
    except OSError as error:
        raise _unwritten(probe, error) from None


def remove(url: str) -> None:
    store, path = filesystem(url)
    if store.exists(path):
        store.rm(path, recursive=True)


def remove_empty_folders(url: str) -> None:
    """Remove the folders below that hold no file. S3 has none."""
    store, top = filesystem(url)
    if "s3" in store.protocol:
        return
    folders, holding = set(), {top}
    for info in _below(store, top):
        if info["type"] == "directory" and not info.get("islink"):
            folders.add(info["name"])
            continue
        above = info["name"].rpartition("/")[0]
        while above not in holding:
            holding.add(above)
            above = above.rpartition("/")[0]
    for path in sorted(folders - holding, reverse=True):  # those in a folder before it
        store.rmdir(path)


def rename(source: str, target: str) -> None:
    """Move a file or a folder, over a file of that name; on `file` and `hdfs` this is atomic."""
    store, old = filesystem(source)
    _, new = filesystem(target)
    store.makedirs(new.rpartition("/")[0], exist_ok=True)
    _replace(store, old, new)


def read_json(url: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    if not exists(url):
        return None
    try:
        facts = json.loads(read_bytes(url))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(f"{url} is not a JSON object; it was damaged, remove it and run the job again")
    return facts


def write_json(url: str, facts: dict[str, Any]) -> None:
    write_bytes(url, json.dumps(facts, indent=1, sort_keys=True).encode())


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return str(text)
