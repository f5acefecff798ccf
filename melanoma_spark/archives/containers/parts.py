"""What the readers of zip and of tar share."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

MOST = (1 << 63) - 1  # what a table's column holds; a larger number in a container is a lie anyway


@dataclass(frozen=True)
class Limits:
    """What a container may hold. Bytes are uncompressed ones; ratios are those over compressed ones."""

    max_members: int = 5_000_000
    max_member_bytes: int = 256 << 20
    max_total_bytes: int = 1 << 40
    max_ratio: float = 200.0


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a container, and all that it takes to read it. Sizes and offsets are in bytes."""

    name: str  # printable, relative, with '/'; different from those of all other members
    index: int  # from 0, in the container's order
    offset: int  # zip: of its local header, tar: of its content, tar.gz: of its content in the uncompressed stream
    stored: int  # what it takes in the container
    size: int  # uncompressed
    method: int  # of zip's compression; 0 otherwise
    crc: int | None
    reason: str | None = None  # why it is not read
    detail: str | None = None


class Entry(NamedTuple):
    """A member as a container has it: with the name it gives, undecodable bytes as surrogates, and before limits."""

    name: str
    offset: int
    stored: int
    size: int
    method: int = 0
    crc: int | None = None
    reason: str | None = None
    detail: str | None = None


class Stop(Exception):
    """The listing ends here, for one of `REASONS`."""

    def __init__(self, reason: str, detail: str, offset: int) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.offset = reason, detail, min(offset, MOST)


class UniqueNames:
    """Tells names apart in memory that does not grow with them: 6 bytes for each that may come, taken up as used.

    A Bloom filter forgets none. It takes a new name for an old one once in some 10**8 at the very end of its room, and
    then a name gets a number that it did not need.
    """

    def __init__(self, most: int) -> None:
        self._bits = 48 * max(most, 1000)
        self._seen = mmap.mmap(-1, self._bits // 8)  # pages that no name falls on are never made

    def unique(self, name: str, index: int) -> str:
        """The name, or `name#place` where it was given before; the place counts from 1."""
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


def exactly(file: BinaryIO, length: int) -> bytes:
    """So many bytes; fewer only at the file's end, whatever a file of its kind gives in one go."""
    content = file.read(length)
    while len(content) < length:
        more = file.read(length - len(content))
        if not more:
            break
        content += more
    return content


def length_of(file: BinaryIO) -> int:
    """Bytes of a file, which is left at its start."""
    file.seek(0, 2)
    length = file.tell()
    file.seek(0)
    return length


def decoded(name: bytes, codepage: str = "ascii") -> str:
    """A name as text: UTF-8 where it is that, else the code page; bytes that it lacks become surrogates."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        text = name.decode(codepage, "surrogateescape")  # a character a byte
    # In Shift-JIS, Big5 and GBK a backslash is also the second half of a character, and no separator.
    return "".join(
        "\uff3c" if character == "\\" and before >= 0x81 else character
        for character, before in zip(text, b"\0" + name, strict=False)
    )
