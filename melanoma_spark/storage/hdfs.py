"""HDFS for fsspec by hdfs-native, without a JVM and libhdfs.so. Every failure is an `OSError`, within seconds.

`hdfs://HOST:PORT/path`, or `hdfs://SERVICE/path` and `hdfs:///path` as `HADOOP_CONF_DIR` defines them. The user is
`HADOOP_USER_NAME`, the holder of a Kerberos ticket, or the process's own.
"""

import functools
import re
import threading
from collections.abc import Callable
from typing import Any

from fsspec.spec import AbstractBufferedFile
from hdfs_native import Client, FileReader
from hdfs_native.fsspec import HdfsFileSystem

BUFFER = 1 << 20  # bytes written at once, and read ahead: each read is a request to a DataNode
GREETING_SECONDS = 10  # for the first answer of a name node
# For that answer alone. By default clients of HDFS retry for minutes, which is right later, within an ingest.
GREETING_OPTIONS = {
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "1000",
}
HINT = (
    "name the host and RPC port of a running name node, hdfs://HOST:8020/path, or a name service, hdfs://SERVICE/path, "
    "with HADOOP_CONF_DIR set for the driver and every worker"
)


def as_os_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that hdfs-native's errors become an `OSError` of one line."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise type(error)(first_line(error)) from error
        except (RuntimeError, ValueError, OverflowError) as error:
            kind = PermissionError if "AccessControlException" in str(error) else OSError
            raise kind(first_line(error)) from error

    return wrapped


def first_line(error: Exception) -> str:
    r"""Return a name node's message without Java's stack: `RPCError("class", "text\n\tat ...")` -> text."""
    text = str(error)
    quoted = re.match(r'\w+\((?:"[\w.$]+", )?"(.*)"\)$', text, re.DOTALL)
    line = re.split(r"\\n|\n", quoted[1] if quoted else text)[0]
    return line.replace('\\"', '"').strip() or type(error).__name__


# fsspec forgets its file systems in a forked process. A client must not be freed there: it would wait for its threads,
# which were not forked. Horovod forks the driver once, to see what it was built with.
_CLIENTS: list[Client] = []


class Hdfs(HdfsFileSystem):
    """hdfs-native's file system with plain names. Opening one checks that its name node answers."""

    def __init__(self, host: str | None = None, port: int | None = None, **options: Any) -> None:
        _check_name_node(f"hdfs://{host or ''}{f':{port}' if port else ''}", options)
        super().__init__(host, port, **options)
        _CLIENTS.append(self.client)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        # hdfs-native interprets '#', '?' and ';' in a name as parts of a URL.
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = str(path)
        if path.startswith("hdfs://"):
            path = "/" + path.removeprefix("hdfs://").partition("/")[2]
        return path.rstrip("/") or "/"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        # A name service may have capitals, which urllib would lower.
        authority = path.removeprefix("hdfs://").partition("/")[0]
        host, _, port = authority.rpartition(":")
        return {"host": host, "port": int(port)} if host and port.isdigit() else {"host": authority or None}

    info = as_os_errors(HdfsFileSystem.info)
    ls = as_os_errors(HdfsFileSystem.ls)
    mkdir = as_os_errors(HdfsFileSystem.mkdir)
    mv = as_os_errors(HdfsFileSystem.mv)
    rm = as_os_errors(HdfsFileSystem.rm)
    pipe_file = as_os_errors(HdfsFileSystem.pipe_file)

    @as_os_errors
    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        file = super()._open(path, mode)
        return file if mode == "ab" else HdfsFile(file, self, path, mode, block_size or BUFFER, **options)


class HdfsFile(AbstractBufferedFile):  # type: ignore[misc, unused-ignore]
    """A file open for reading in ranges, or for writing.

    hdfs-native's own has no `readinto`, panics beyond its end, and does not know its position while it is written,
    which Parquet's footers need.
    """

    def __init__(self, file: Any, *arguments: Any, **options: Any) -> None:
        self._file = file
        super().__init__(*arguments, size=len(file) if isinstance(file, FileReader) else None, **options)

    @as_os_errors
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self._file.read_range(start, end - start))

    @as_os_errors
    def _upload_chunk(self, final: bool = False) -> None:
        self._file.write(self.buffer.getvalue())
        if final:
            self._file.close()


def _check_name_node(url: str, options: dict[str, Any]) -> None:
    """Raise `OSError` where no name node answers soon. hdfs-native itself would wait forever."""
    failures: list[Exception] = []

    def ask() -> None:
        try:
            Client(url, {**GREETING_OPTIONS, **options}).get_file_info("/")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(GREETING_SECONDS)
    if thread.is_alive():
        raise OSError(f"no name node answered in {GREETING_SECONDS} s; {HINT}")
    for error in failures:
        if not str(error).startswith("RPCError"):  # any reply of the server is an answer
            raise OSError(f"{first_line(error)}; {HINT}") from error
