"""Decodes images in a child process whose memory and processor time are limited, which may die in place of its parent.

A process has one child at most, which stays warm. It gets bytes and answers with pixels: nothing of it is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melanoma_spark.errors import ClusterError, ImageError

if TYPE_CHECKING:
    _Connection = Connection[bytes, bytes]

SPARE = 512 * 1024 * 1024  # bytes beside the pixels: copies of the file, and packages that decoders import
SERVE = f"from {__name__} import serve; serve()"
WAIT = 20  # times its processor seconds that a child may take, before it counts as hanging


@dataclass(frozen=True)
class _Child:
    """A child, the socket to it, and the memory through which it gets files: a socket takes twice the time."""

    process: subprocess.Popen[bytes]
    connection: _Connection
    memory: int  # a descriptor


_lock = threading.Lock()
_child: _Child | None = None


def _forget() -> None:
    """After a fork the child is that of the parent."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def decode(request: Mapping[str, Any], content: bytes, memory: int, seconds: int) -> tuple[dict[str, Any], list[bytes]]:
    """Have `decoding.answer` decode an image in the child: its description, and the bytes of its arrays.

    Args:
        request: What `decoding.answer` takes, as JSON has it.
        content: The file.
        memory: Bytes that it may allocate for pixels.
        seconds: Of processor time.

    Raises:
        ImageError: As `decoding` does; `too_costly` if it took more than it may, `corrupt` if the decoder crashed.
        ClusterError: The child cannot run.
    """
    limits = {"memory": memory + 2 * len(content) + SPARE, "seconds": seconds}
    with _lock:
        try:
            running = _running_child()
            connection = running.connection
            with open(running.memory, "wb", closefd=False) as memory_file:
                memory_file.seek(0)
                memory_file.truncate()
                memory_file.write(content)
            connection.send_bytes(json.dumps({**request, **limits, "length": len(content)}).encode())
            if not connection.poll(WAIT * seconds):
                raise ImageError("too_costly", f"no result within {WAIT * seconds} s")
            reply = json.loads(connection.recv_bytes())
            if "error" not in reply:
                return reply, [connection.recv_bytes() for _ in range(reply["arrays"])]
        except (EOFError, OSError):
            raise _explain_death(_end_child(), seconds) from None
        except BaseException:  # what it still sends would be taken for the answer to the next request
            _end_child()
            raise
    raise ImageError(*reply["error"])


def _running_child() -> _Child:
    global _child
    if _child is None or _child.process.poll() is not None:
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("image")
        path = os.pathsep.join(filter(None, sys.path))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, str(memory)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders print there
                pass_fds=[memory],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        _child = _Child(process, Connection(ours.detach()), memory)
    return _child


def _end_child() -> int:
    """End the child, if it has not ended itself; returns its exit status, negative for a signal."""
    global _child
    if _child is None:
        return 0
    ending, _child = _child, None
    ending.connection.close()
    os.close(ending.memory)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return ending.process.wait(timeout=5)
    ending.process.kill()
    return ending.process.wait()


def _explain_death(status: int, seconds: int) -> ImageError | ClusterError:
    if status == -signal.SIGXCPU:
        return ImageError("too_costly", f"over {seconds} s of processor time")
    if status == -signal.SIGKILL:
        return ImageError("too_costly", "the system ended its decoder, which had taken too much memory")
    if status >= 0:
        return ClusterError(
            f"the process that decodes images ended with exit status {status}; run {sys.executable} -c 'import "
            f"{__name__}' on {socket.gethostname()} to see why"
        )
    return ImageError("corrupt", f"its decoder crashed by signal {-status}")


def serve() -> None:
    """Answer requests on standard input, a socket, until it is closed. The argument is the descriptor of the memory."""
    from melanoma_spark.images import decoding

    with contextlib.suppress(OSError):  # the first that Linux ends where memory is short
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection, memory = Connection(0), int(sys.argv[1])
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(connection.recv_bytes())
            length = request.pop("length")
            with mmap.mmap(memory, length, prot=mmap.PROT_READ) as view:
                content = view[:]
            _limit(request.pop("memory"), request.pop("seconds"))
            try:
                reply, arrays = decoding.answer(request, content)
            except ImageError as error:
                reply, arrays = {"error": [error.reason, error.detail]}, []
            _limit(None, None)
            connection.send_bytes(json.dumps({**reply, "arrays": len(arrays)}).encode())
            for array in arrays:
                connection.send_bytes(array)


def _limit(memory: int | None, seconds: int | None) -> None:
    """Let this process allocate `memory` more bytes, and take `seconds` more; None: any."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    space = None if memory is None else pages * resource.getpagesize() + memory
    time = None if seconds is None else int(used.ru_utime + used.ru_stime) + 1 + seconds
    for kind, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CPU, time)):
        hard = resource.getrlimit(kind)[1]
        soft = hard if limit is None else limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))
