"""HDFS for fsspec, through hdfs-native: without a JVM and without libhdfs.so. What fails is an `OSError`, in seconds.

`hdfs://HOST:PORT/path`, or `hdfs://SERVICE/path` and `hdfs:///path` as `HADOOP_CONF_DIR` defines them. The user is
`HADOOP_USER_NAME`, the holder of a Kerberos ticket, or the process's own.
"""

from __future__ import annotations

import functools
import io
import re
import threading
from collections.abc import Callable
from typing import Any

from hdfs_native import Client, FileReader, FileWriter
from hdfs_native.fsspec import HdfsFileSystem

WRITE_AT_ONCE = 1 << 20  # bytes that are gathered before they are sent
READ_AHEAD = 1 << 20  # bytes at least of every range that is asked for: each is a request to a DataNode
PATIENCE = 10  # seconds for the first answer of a name node
# For that answer alone. By their defaults clients of HDFS try for minutes, which later, within an ingest, is right.
FIRST = {
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "1000",
}
WAY_OUT = (
    "name the host and RPC port of a running name node, hdfs://HOST:8020/path, or a name service, hdfs://SERVICE/path, "
    "with HADOOP_CONF_DIR set for the driver and every worker"
)


def in_our_words(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with hdfs-native's errors as the `OSError` of one line that they mean."""

    @functools.wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise type(error)(one_line(error)) from error
        except (RuntimeError, ValueError, OverflowError) as error:
            kind = PermissionError if "AccessControlException" in str(error) else OSError
            raise kind(one_line(error)) from error

    return told


def one_line(error: Exception) -> str:
    """What a name node says, without Java's stack below it: `RPCError("class", "text\\n\\tat ...")` -> text."""
    text = str(error)
    found = re.match(r'\w+\((?:"[\w.$]+", )?"(.*)"\)$', text, re.DOTALL)
    line = re.split(r"\\n|\n", found[1] if found else text)[0]
    return line.replace('\\"', '"').strip() or type(error).__name__


# fsspec forgets its file systems in a forked process. The last reference to a client must not go there: it would wait
# for its threads, which were not forked. Horovod forks the driver once, to see what it was built with.
_KEPT: list[Client] = []


class Hdfs(HdfsFileSystem):
    """hdfs-native's file system, to which every name is a name. Making one asks the name node for a sign of life."""

    def __init__(self, host: str | None = None, port: int | None = None, **options: Any) -> None:
        _greet(f"hdfs://{host or ''}{f':{port}' if port else ''}", options)
        super().__init__(host, port, **options)
        _KEPT.append(self.client)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        # hdfs-native takes '#', '?' and ';' of a name for parts of a URL.
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = str(path)
        if path.startswith("hdfs://"):
            path = "/" + path.removeprefix("hdfs://").partition("/")[2]
        return path.rstrip("/") or "/"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        # A name service may have capitals, which urllib would make small.
        authority = path.removeprefix("hdfs://").partition("/")[0]
        host, _, port = authority.rpartition(":")
        return {"host": host, "port": int(port)} if host and port.isdigit() else {"host": authority or None}

    info = in_our_words(HdfsFileSystem.info)
    ls = in_our_words(HdfsFileSystem.ls)
    mkdir = in_our_words(HdfsFileSystem.mkdir)
    mv = in_our_words(HdfsFileSystem.mv)
    rm = in_our_words(HdfsFileSystem.rm)
    pipe_file = in_our_words(HdfsFileSystem.pipe_file)

    @in_our_words
    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode == "rb":
            ranges = Ranges(self.client.read(self._strip_protocol(path)))
            return io.BufferedReader(ranges, block_size or READ_AHEAD)
        file = super()._open(path, mode, block_size=block_size, **options)
        return io.BufferedWriter(Told(file), WRITE_AT_ONCE) if mode == "wb" else file


class Told(io.RawIOBase):
    """A file that is written, and knows how far it is: Parquet's footers tell where their parts lie."""

    def __init__(self, file: FileWriter) -> None:
        self._file, self._at = file, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    @in_our_words
    def write(self, content: Any) -> int:
        self._file.write(bytes(content))
        self._at += len(content)
        return len(content)

    @in_our_words
    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


class Ranges(io.RawIOBase):
    """A file of HDFS as Python's files are: hdfs-native's own has no `readinto`, and panics beyond its end."""

    def __init__(self, file: FileReader) -> None:
        self._file, self._length, self._at = file, len(file), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    @in_our_words
    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        if count:
            buffer[:count] = self._file.read_range(self._at, count)
            self._at += count
        return count


def _greet(url: str, options: dict[str, Any]) -> None:
    """Raises `OSError` where no name node answers soon. hdfs-native itself would wait for one for ever."""
    failures: list[Exception] = []

    def ask() -> None:
        try:
            Client(url, {**FIRST, **options}).get_file_info("/")
        except Exception as error:
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if asking.is_alive():
        raise OSError(f"no name node answered in {PATIENCE} s; {WAY_OUT}")
    for error in failures:
        if not str(error).startswith("RPCError"):  # that is an answer
            raise OSError(f"{one_line(error)}; {WAY_OUT}") from error
