"""What the readers of all container formats share."""

import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from melanoma_spark.errors import ImageError

MOST = (1 << 63) - 1  # the largest number of a 64-bit column; larger ones in a container are bogus


@dataclass(frozen=True)
class Limits:
    """Limits of a container. Bytes are uncompressed; a ratio is uncompressed over compressed bytes."""

    max_members: int = 5_000_000
    max_member_bytes: int = 256 << 20
    max_total_bytes: int = 1 << 40
    max_ratio: float = 200.0


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a container, with all that is needed to read it. Sizes and offsets are in bytes."""

    name: str  # printable, relative, with '/'; different from those of all other members
    index: int  # from 0, in the container's order
    offset: int  # zip: of its local header, tar: of its content, tar.gz: of it in the uncompressed stream
    stored: int  # bytes in the container
    size: int  # uncompressed
    method: int  # zip's compression method, else 0
    crc: int | None
    reason: str | None = None  # why it is not read
    detail: str | None = None


class Entry(NamedTuple):
    """A member as the container describes it, before limits. Undecodable bytes of the name are surrogates."""

    name: str
    offset: int
    stored: int
    size: int
    method: int = 0
    crc: int | None = None
    reason: str | None = None
    detail: str | None = None


class Format(NamedTuple):
    """How containers of one format are recognized, listed and read.

    Attributes:
        suffixes: of file names, in lower case.
        starts: tells from the first 512 bytes whether a file has this format.
        entries: yields all members without folders; raises `Stop` where the container is damaged or over a limit.
        reader: returns a function that reads one member, or raises `ImageError`.
        streamed: whether members can be read only in order, in one pass, by one task.
    """

    suffixes: tuple[str, ...]
    starts: Callable[[bytes], bool]
    entries: Callable[[BinaryIO, Limits], Iterator[Entry]]
    reader: Callable[[BinaryIO], Callable[[Member], bytes]]
    streamed: bool = False


class Stop(Exception):
    """The listing of a container ends here, for one of `containers.REASONS`."""

    def __init__(self, reason: str, detail: str, offset: int) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.offset = reason, detail, min(offset, MOST)


class UniqueNames:
    """Makes names unique, in 6 bytes of memory for each name that may come.

    A Bloom filter (Bloom 1970) forgets no name. When it is full, it takes about one new name in 10**8 for an old one;
    that name then gets a number that it did not need.
    """

    def __init__(self, most: int) -> None:
        self._bits = 48 * max(most, 1000)
        self._seen = mmap.mmap(-1, self._bits // 8)  # untouched pages take no memory

    def unique(self, name: str, index: int) -> str:
        """The name, or `name#place` if it was given before; the place counts from 1."""
        # The place rather than a count: a million members of one name take a million steps, not half of its square.
        while not self._add(name):
            name = f"{name}#{index + 1}"
        return name

    def _add(self, name: str) -> bool:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        at, step = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
        seen, bits, new = self._seen, self._bits, False
        for bit in range(at, at + 12 * step, step):
            byte, mask = bit % bits >> 3, 1 << (bit & 7)
            old = seen[byte]
            if not old & mask:
                seen[byte] = old | mask
                new = True
        return new


def read_exactly(file: BinaryIO, length: int) -> bytes:
    """Read `length` bytes, however few a single read returns; fewer only at the end of the file."""
    content = file.read(length)
    while len(content) < length:
        more = file.read(length - len(content))
        if not more:
            break
        content += more
    return content


def check_complete(content: bytes, length: int) -> bytes:
    """Return the content of a member. Raises `ImageError` if the archive ended before it had this length."""
    if len(content) < length:
        raise ImageError("damaged_member", f"{len(content)} of {length} bytes, then the archive ends")
    return content


def file_length(file: BinaryIO) -> int:
    """The length of a file in bytes. Leaves it at its start."""
    file.seek(0, 2)
    length = file.tell()
    file.seek(0)
    return length


def decode_name(name: bytes, codepage: str = "ascii") -> str:
    """A name as text, in UTF-8 if possible, else in the code page; undecodable bytes become surrogates."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        text = name.decode(codepage, "surrogateescape")  # a character a byte
    # In Shift-JIS, Big5 and GBK a backslash is also the second half of a character, and no separator.
    return "".join(
        "\uff3c" if character == "\\" and before >= 0x81 else character
        for character, before in zip(text, b"\0" + name, strict=False)
    )
