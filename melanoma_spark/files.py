"""Small files under any URL that fsspec knows (file, hdfs, s3, ...), written complete or not at all."""

from __future__ import annotations

import io
import json
import os
import uuid
from typing import Any

import fsspec
import numpy as np

from melanoma_spark.errors import ClusterError, ConfigError, DataError


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
    """The file system of a URL and the path on it. Names with `::`, `#` or `%` in them are names."""
    if url.startswith("file:") or "://" not in url:
        return fsspec.filesystem("file"), "/" + url_of(url).removeprefix("file://").lstrip("/")
    found, path = fsspec.core.url_to_fs(url)
    return found, str(path)


def spelt(url: str) -> str:
    """A URL as sources are stored: `file:/path` for a local one, as Hadoop spells it, else as it is."""
    absolute = url_of(url)
    return "file:" + absolute.removeprefix("file://") if absolute.startswith("file://") else absolute


def exists(url: str) -> bool:
    """Raises `ConfigError` for a URL of a kind that nothing installed can read."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{url}: {reason(error)}") from None
    return bool(filesystem.exists(path))


def matches(url: str, pattern: str) -> list[str]:
    """Names directly below a folder that match a pattern; none where there is no such folder."""
    filesystem, path = fsspec.core.url_to_fs(url)
    return [found.rpartition("/")[2] for found in filesystem.glob(f"{path}/{pattern}")]


def read_bytes(url: str) -> bytes:
    """Raises `DataError` naming the URL when it cannot be read."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        return bytes(filesystem.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot read {url}: {reason(error)}") from None


def write_bytes(url: str, content: bytes) -> None:
    """Write beside the target, then rename: a reader sees the old content or the new, never a part."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        folder, _, name = path.rpartition("/")
        filesystem.makedirs(folder, exist_ok=True)
        beside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        filesystem.pipe_file(beside, content)
        if "file" in filesystem.protocol:
            os.replace(beside, path)
        else:
            if filesystem.exists(path):
                filesystem.rm(path)
            filesystem.mv(beside, path)
    except (OSError, ValueError, ImportError) as error:
        raise ClusterError(f"cannot write {url}: {reason(error)}; choose another warehouse=URL") from None


def check_writable(url: str) -> None:
    """Raises `ClusterError` now rather than after an hour of work."""
    probe = join(url, f".writable-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    remove(probe)


def remove(url: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def rename(source: str, target: str) -> None:
    """Move a folder; on `file` and `hdfs` this is atomic."""
    filesystem, old = fsspec.core.url_to_fs(source)
    _, new = fsspec.core.url_to_fs(target)
    filesystem.makedirs(new.rpartition("/")[0], exist_ok=True)
    if "file" in filesystem.protocol:
        os.rename(old, new)
    else:
        filesystem.mv(old, new, recursive=True)


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


def pack_tensors(tensors: list[np.ndarray]) -> bytes:
    """Weights as one .npz: arrays only, nothing in it can run code."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"w{place:03d}": tensor for place, tensor in enumerate(tensors)})
    return buffer.getvalue()


def unpack_tensors(content: bytes) -> list[np.ndarray]:
    """The weights in order. Raises `DataError` when the content is anything but plain arrays."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            tensors = [archive[name] for name in archive.files]
    except Exception as error:
        raise DataError(f"weights are damaged or hold something that is no array: {error}") from None
    if not all(isinstance(tensor, np.ndarray) for tensor in tensors):  # numpy hands out other members as bytes
        raise DataError("weights are damaged or hold something that is no array")
    return tensors


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return str(text)
