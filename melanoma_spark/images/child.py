"""Decodes images in a child process whose memory and processor time are limited, which may die in place of its parent.

A process has one child at most, which stays warm. It gets bytes and answers with pixels: nothing of it is unpickled.
Both go through memory that the two processes share, read and written like a file: a socket takes twice the time, and
memory that is mapped would take the parent along if the child cut it.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import ClusterError, ImageError
from melanoma_spark.images import color
from melanoma_spark.images.hashes import HASH_SIZE
from melanoma_spark.images.limits import ImageLimits

SPARE = 512 * 1024 * 1024  # bytes beside the pixels: copies of the file, and packages that decoders import
SERVE = f"from {__name__} import serve; serve()"
WAIT = 20  # times its processor seconds that a child may take, before it counts as hanging
COPIES = 6  # of an image that conversions hold at once
MESSAGE = 1 << 16  # bytes; longer than any request or reply
LENGTH = 8  # bytes of a request that say how long the file is
ARRAYS = ("pixels", "hash_pixels")  # of a `DecodedImage`, which go through the shared memory
KEPT = 1 << 24  # bytes of the shared memory that are kept for the next image


@dataclass(frozen=True)
class Request:
    """What to decode an image to.

    Attributes:
        size: the side of the pixels.
        limits: which images are accepted.
        version: of the pixels, see `decoding.PIXELS_VERSION`.
        hashes: whether to return the pixels of its hashes, too.
    """

    size: int
    limits: ImageLimits
    version: int
    hashes: bool

    @property
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Of the uint8 arrays: its pixels, and the pixels of its hashes, which are empty without `hashes`."""
        return (self.size, self.size, 3), (HASH_SIZE if self.hashes else 0, HASH_SIZE, 3)


@dataclass(frozen=True)
class DecodedImage:
    """An image as ingest keeps it."""

    pixels: NDArray[np.uint8]  # (size, size, 3): RGB, upright, squashed to a square
    hash_pixels: NDArray[np.uint8]  # (HASH_SIZE, HASH_SIZE, 3): the same at the size for hashes, whatever `size` is
    width: int  # pixels, as it came: before orientation and resizing
    height: int
    format: str  # a key of SIGNATURES
    damage: str | None = None  # the decoder's warning, if damage is accepted
    patient: str | None = None  # PatientID of a DICOM file
    study: str | None = None  # StudyInstanceUID of a DICOM file
    profile: color.Profile = None  # what became of its ICC profile


@dataclass(frozen=True)
class _Child:
    """A child, the socket to it, and the descriptor of the shared memory."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    memory: int


_lock = threading.Lock()
_child: _Child | None = None


def _forget() -> None:
    """After a fork the child is that of the parent."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def decode(content: bytes, request: Request) -> DecodedImage:
    """Have the child decode an image.

    Raises:
        ImageError: As `decoding` does; `too_costly` if it took more than it may, `corrupt` if the decoder crashed.
        ClusterError: The child cannot run.
    """
    seconds = request.limits.max_seconds
    pixels, hash_pixels = (np.empty(shape, np.uint8) for shape in request.shapes)
    with _lock:
        try:
            running = _running_child()
            running.connection.settimeout(WAIT * seconds)
            _write(running.memory, memoryview(content))
            running.connection.send(len(content).to_bytes(LENGTH, "big") + _encode(request))
            reply = json.loads(running.connection.recv(MESSAGE))
            if "error" not in reply:
                _read(running.memory, pixels.data, hash_pixels.data)
            if len(content) > KEPT:
                os.ftruncate(running.memory, 0)
        except TimeoutError:
            _end_child()
            raise ImageError("too_costly", f"no result within {WAIT * seconds} s") from None
        except (OSError, ValueError):  # its end is an empty message
            raise _explain_death(_end_child(), seconds) from None
        except BaseException:  # what it still sends would be taken for the answer to the next request
            _end_child()
            raise
    if "error" in reply:
        raise ImageError(*reply["error"])
    return DecodedImage(pixels, hash_pixels, **reply)


def _running_child() -> _Child:
    global _child
    if _child is None or _child.process.poll() is not None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is sent and read whole
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
        _child = _Child(process, ours, memory)
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
    memory = int(sys.argv[1])
    with socket.socket(fileno=0) as connection, contextlib.suppress(ConnectionError):
        while message := connection.recv(MESSAGE):
            length, request = int.from_bytes(message[:LENGTH], "big"), _read_request(message[LENGTH:])
            content = os.pread(memory, length, 0)
            _limit(COPIES * request.limits.max_bytes + 2 * length + SPARE, request.limits.max_seconds)
            try:
                image = decoding.decode_in_child(content, request)
                reply = {key: value for key, value in vars(image).items() if key not in ARRAYS}
                _write(memory, image.pixels.data, image.hash_pixels.data)
            except ImageError as error:
                reply = {"error": [error.reason, error.detail]}
            _limit(None, None)
            connection.send(json.dumps(reply).encode())


def _read(memory: int, *buffers: memoryview) -> None:
    if os.preadv(memory, buffers, 0) != sum(buffer.nbytes for buffer in buffers):
        raise OSError(errno.EIO, "the shared memory holds less")


def _write(memory: int, *buffers: memoryview) -> None:
    if os.pwritev(memory, buffers, 0) != sum(buffer.nbytes for buffer in buffers):
        raise OSError(errno.EIO, "the shared memory was written in part")


@lru_cache(maxsize=8)
def _encode(request: Request) -> bytes:
    return json.dumps(asdict(request)).encode()


@lru_cache(maxsize=8)
def _read_request(encoded: bytes) -> Request:
    values = json.loads(encoded)
    return Request(**{**values, "limits": ImageLimits(**values["limits"])})


def _limit(memory: int | None, seconds: int | None) -> None:
    """Let this process allocate `memory` more bytes, and take `seconds` more; None: any."""
    space = time = None
    if memory is not None:
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            pages = int(statm.read(20).split()[0])
        space = pages * resource.getpagesize() + memory
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        time = int(used.ru_utime + used.ru_stime) + 1 + seconds
    for kind, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CPU, time)):
        hard = resource.getrlimit(kind)[1]
        soft = hard if limit is None else limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))
