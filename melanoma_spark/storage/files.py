"""Small files under any URL that fsspec knows (file, hdfs, s3, ...), written complete or not at all."""

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
from fsspec import AbstractFileSystem

from melanoma_spark.errors import ClusterError, ConfigError, DataError

# Imported when their first URL is opened, so that other users need not install or load them.
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
    """Return an absolute URL without a slash at its end; plain paths become `file://` URLs."""
    if "://" in path_or_url:
        return path_or_url.rstrip("/")
    if path_or_url.startswith("file:/"):
        return "file://" + path_or_url.removeprefix("file:").rstrip("/")
    return "file://" + os.path.abspath(path_or_url)


def join(url: str, *parts: str) -> str:
    """Append path segments to a URL."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Open the file system of a URL, and return it with the path on it. `::`, `#` and `%` are parts of names.

    Raises `ImportError` or `ValueError` where nothing installed reads such URLs, `OSError` where no server answers.
    """
    if url.startswith("file:") or "://" not in url:
        return fsspec.filesystem("file"), "/" + url_of(url).removeprefix("file://").lstrip("/")
    protocol = url.partition("://")[0]
    if protocol in REMOTE:
        kind = fsspec.get_filesystem_class(protocol)
        return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    store, path = fsspec.core.url_to_fs(url)
    return store, str(path)


def hadoop_style_url(url: str) -> str:
    """Return a URL as sources are stored: `file:/path` for a local one, as Hadoop spells it, else unchanged."""
    absolute = url_of(url)
    return "file:" + absolute.removeprefix("file://") if absolute.startswith("file://") else absolute


def exists(url: str) -> bool:
    """Return whether there is a file or folder.

    Raises `ConfigError` for a URL that nothing installed can read, `ClusterError` where no server answers.
    """
    try:
        store, path = filesystem(url)
        return bool(store.exists(path))
    except OSError as error:
        raise ClusterError(f"{url}: {reason(error)}") from None
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{url}: {reason(error)}") from None


def list_names(url: str, pattern: str) -> list[str]:
    """List the names directly below a folder that match a pattern; none where there is no such folder."""
    store, path = filesystem(url)
    try:
        paths = store.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return fnmatch.filter((name.rstrip("/").rpartition("/")[2] for name in paths), pattern)


def modification_time(info: Mapping[str, Any]) -> datetime | None:
    """Return when a file was last changed, from fsspec's `info`; None where its file system does not report it."""
    for key in ("mtime", "modified", "LastModified", "modification_time", "last_modified"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        if isinstance(value, int | float):
            seconds = value / 1000 if value > 1e11 else value  # HDFS counts milliseconds
            return datetime.fromtimestamp(seconds, UTC)
    return None


def walk(url: str) -> Iterator[tuple[str, int, datetime | None]]:
    """Yield the path below a folder, the size and the time of change of every file below it, without links.

    Yields nothing where there is no such folder. Raises `OSError` for a folder that cannot be read.
    """
    store, top = filesystem(url)
    # S3 lists a thousand files a request, whatever folders they are in
    for info in store.find(top, detail=True).values() if "s3" in store.protocol else _below(store, top):
        if info["type"] == "file" and not info.get("islink"):
            yield info["name"].removeprefix(f"{top}/"), int(info["size"]), modification_time(info)


def _below(store: AbstractFileSystem, top: str) -> Iterator[Mapping[str, Any]]:
    folders = [top] if store.exists(top) else []
    while folders:  # fsspec's own walk skips a folder that it cannot read
        for info in store.ls(folders.pop(), detail=True):
            if info["type"] == "directory":
                folders.append(info["name"])
            yield info


def read_bytes(url: str) -> bytes:
    """Read a file. Raises `DataError` naming the URL when it cannot be read."""
    try:
        store, path = filesystem(url)
        return bytes(store.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot read {url}: {reason(error)}") from None


def write_bytes(url: str, content: bytes) -> None:
    """Write a temporary file, then rename it: a reader sees the old content or the new, never a part.

    Raises `ClusterError` where it cannot be written.
    """
    temporary = ""
    try:
        store, path = filesystem(url)
        if "s3" in store.protocol:
            store.pipe_file(path, content)  # writing an object is atomic, and it cannot be renamed
            return
        folder, _, name = path.rpartition("/")
        store.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        store.pipe_file(temporary, content)
        _replace(store, temporary, path)
    except (OSError, ValueError, ImportError) as error:
        with suppress(OSError):
            if temporary:
                store.rm_file(temporary)
        raise _write_error(url, error) from None


def write_new(url: str, content: bytes) -> bool:
    """Write a file atomically unless it exists; then return False. Of two processes that try at once, one gets True.

    The file system guarantees that: by a link, or a rename that does not replace, on S3 by a conditional write.
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
            raise _write_error(url, error) from None
        return True
    temporary = f"{url}.{uuid.uuid4().hex[:8]}.tmp"
    write_bytes(temporary, content)
    try:
        if "file" in store.protocol:
            os.link(filesystem(temporary)[1], path)
        else:
            store.mv(filesystem(temporary)[1], path)
    except FileExistsError:
        return False
    finally:
        remove(temporary)
    return True


def _replace(store: AbstractFileSystem, old: str, new: str) -> None:
    """Rename, replacing what is there; on `file` and `hdfs` this is atomic."""
    if "file" in store.protocol:
        os.replace(old, new)
    elif store.protocol == "hdfs":
        store.mv(old, new, overwrite=True)
    elif "s3" in store.protocol:  # it has neither folders nor renaming
        for name in store.find(old):
            store.cp_file(name, new + name.removeprefix(old))
            store.rm_file(name)
    else:
        if store.exists(new):
            store.rm(new, recursive=True)
        store.mv(old, new, recursive=True)


def _write_error(url: str, error: Exception) -> ClusterError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    hint = f"{'free space, or ' if full else ''}choose another warehouse=URL"
    return ClusterError(f"cannot write {url}: {reason(error)}; {hint}")


def make_folder(url: str) -> None:
    """Make a folder and those above it. Raises `ClusterError` where that fails."""
    try:
        store, path = filesystem(url)
        store.makedirs(path, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise _write_error(url, error) from None


def check_writable(url: str) -> None:
    """Write and remove an empty file. Raises `ClusterError` now rather than after an hour of work."""
    probe = join(url, f".writable-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    try:
        remove(probe)
    except OSError as error:
        raise _write_error(probe, error) from None


def remove(url: str) -> None:
    """Remove a file, or a folder with all in it; nothing where there is none."""
    store, path = filesystem(url)
    if store.exists(path):
        store.rm(path, recursive=True)


def remove_empty_folders(url: str) -> None:
    """Remove the folders below a folder that hold no file. S3 has none."""
    store, top = filesystem(url)
    if "s3" in store.protocol:
        return
    folders, with_files = set(), {top}
    for info in _below(store, top):
        if info["type"] == "directory" and not info.get("islink"):
            folders.add(info["name"])
            continue
        above = info["name"].rpartition("/")[0]
        while above not in with_files:
            with_files.add(above)
            above = above.rpartition("/")[0]
    for path in sorted(folders - with_files, reverse=True):  # the innermost first
        store.rmdir(path)


def rename(source: str, target: str) -> None:
    """Move a file or a folder, replacing a file of that name; on `file` and `hdfs` this is atomic."""
    store, old = filesystem(source)
    _, new = filesystem(target)
    store.makedirs(new.rpartition("/")[0], exist_ok=True)
    _replace(store, old, new)


def read_json(url: str) -> Mapping[str, Any] | None:
    """Read the object of a JSON file; None where there is no such file. Raises `DataError` where it is damaged."""
    if not exists(url):
        return None
    try:
        values = json.loads(read_bytes(url))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{url} is not a JSON object; it was damaged, remove it and run the job again")
    return values


def write_json(url: str, values: Mapping[str, Any]) -> None:
    """Write a JSON file as `write_bytes` does, with sorted keys."""
    write_bytes(url, json.dumps(values, indent=1, sort_keys=True).encode())


def reason(error: Exception) -> str:
    """Return why an operation on a file failed, in one line."""
    text = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return str(text)
