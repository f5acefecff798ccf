"""Reads tar: v7, ustar, GNU and pax, plain or in gzip.

Python's tarfile takes a damaged header for the end, and recurses into whatever extension headers come; so its format is
read here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from melanoma_spark.archives.containers.parts import MOST, Entry, Limits, Member, Stop, decoded, exactly, length_of
from melanoma_spark.errors import ImageError

BLOCK = 512  # bytes: everything in a tar starts at a multiple of it
GZIP = b"\x1f\x8b\x08"
ZEROS = bytes(BLOCK)
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax attributes
MAX_PADDING = 1 << 20  # bytes of zeros after the last member; writers fill up to 10 KiB

NO_DATA = {b"1": "link", b"2": "link", b"3": "special_file", b"4": "special_file", b"5": None, b"6": "special_file"}
REGULAR = (b"0", b"\0", b"7")


def starts(head: bytes) -> bool:
    """Whether a file of these first 512 bytes is a tar, if only an empty one."""
    return len(head) >= BLOCK and (head[:BLOCK] == ZEROS or _sound(head[:BLOCK]))


def entries(stream: Plain | Gunzip) -> Iterator[Entry]:
    """The members of a tar. Ends with `Stop` where it is damaged; in gzip, a member comes after it was gone through."""
    longer: dict[str, bytes] = {}  # what extension headers say of the next member
    zeros = 0
    while True:
        place = stream.place
        header = stream.read(BLOCK)
        if zeros and header.count(0) == len(header):  # after the end: padding
            if len(header) < BLOCK:
                return
            zeros += 1
            if zeros * BLOCK > MAX_PADDING:
                raise Stop("damaged_archive", f"nothing but zeros for {MAX_PADDING} bytes up to byte {place}", place)
            continue
        if len(header) < BLOCK:
            where = "within a header" if header else "without the mark of its end" if place else "before it starts"
            raise Stop("damaged_archive", f"cut at byte {place + len(header)}, {where}", place)
        if header == ZEROS and not longer:
            zeros = 1
            continue
        if not _sound(header):
            what = "something follows the end" if zeros else "no member's header"
            raise Stop("damaged_archive", f"{what} at byte {place}", place)
        zeros = 0  # or one tar was appended to another
        try:
            size = _number(header[124:136])
            kind = header[156:157]
            if kind in b"xXgLK":
                _extend(longer, kind, _extension(stream, size))
                continue
            size = int(longer.get("size", size))
            if size < 0:
                raise ValueError("a negative size")
        except ValueError as error:
            raise Stop("damaged_archive", f"{error} in the header at byte {place}", place) from None
        if kind in NO_DATA:
            size = 0
        more = kind == b"S" and header[482]
        while more:  # a sparse file's map goes on
            block = stream.read(BLOCK)
            more = len(block) == BLOCK and block[504]
        name = decoded(_name(header, longer))
        data = stream.place
        if not stream.skip_to(data + size):
            raise Stop("damaged_archive", f"cut within the member that starts at byte {place}", place)
        folder = kind == b"5" or (kind in REGULAR and name.endswith("/"))  # v7 has no kind for folders
        if not folder:
            reason = NO_DATA.get(kind) or (None if kind in REGULAR else "special_file")
            detail = f"tar's type {kind.decode('latin-1')!r}"
            if any(key.startswith("GNU.sparse.") for key in longer):
                reason, detail = "special_file", "a sparse file"
            yield Entry(name, data, size, size, reason=reason, detail=detail if reason else None)
        longer.clear()
        stream.skip_to(data + size + -size % BLOCK)


def reader(file: BinaryIO) -> Callable[[Member], bytes]:
    """A function that reads members of a plain tar."""

    def get(member: Member) -> bytes:
        file.seek(member.offset)
        content = exactly(file, member.size)
        if len(content) < member.size:
            raise ImageError("damaged_member", f"{len(content)} of {member.size} bytes, then the archive ends")
        return content

    return get


def gz_reader(file: BinaryIO) -> Callable[[Member], bytes]:
    """A function that reads members of a tar.gz, in order."""
    stream = Gunzip(file)

    def get(member: Member) -> bytes:
        if member.offset < stream.place:
            raise ValueError("members of a tar.gz are read in order of their offset, each of them once")
        try:
            stream.skip_to(member.offset)
            content = stream.read(member.size)
        except Stop as stop:
            raise ImageError("damaged_member", stop.detail) from None
        if len(content) < member.size:
            raise ImageError("damaged_member", f"{len(content)} of {member.size} bytes, then the archive ends")
        return content

    return get


class Plain:
    """A tar's bytes. Skipping is seeking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = length_of(file)
        self._skipped = False
        self.place = 0

    def read(self, length: int) -> bytes:
        """So many bytes, fewer at the end."""
        if self._skipped:
            self._file.seek(self.place)
            self._skipped = False
        content = exactly(self._file, length)
        self.place += len(content)
        return content

    def skip_to(self, place: int) -> bool:
        """Whether the file reaches there."""
        self._skipped = self._skipped or place != self.place
        self.place = min(place, self._length)
        return place <= self._length


class Gunzip:
    """The bytes of a gzip file, forwards, checked against its checksum. Raises `Stop` where it is damaged or a bomb.

    All bytes before the damage are given, to the last one.
    """

    TAKE, GIVE = 1 << 16, 1 << 18  # bytes at a time

    def __init__(self, file: BinaryIO, limits: Limits | None = None) -> None:
        file.seek(0)
        self._file = file
        self._limits = limits
        self._inflater: zlib._Decompress | None = zlib.decompressobj(31)  # 31: with gzip's header and checksum
        self._input = b""
        self._taken = self._given = 0
        self._output, self._at = b"", 0
        self._stop: Stop | None = None
        self.place = 0

    def read(self, length: int) -> bytes:
        """So many bytes, fewer at the end."""
        pieces = list(self._pieces(length))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip_to(self, place: int) -> bool:
        """Whether the stream reaches there."""
        for _ in self._pieces(place - self.place):
            pass
        return self.place == place

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length > 0:
            if self._at == len(self._output):
                self._output, self._at = self._inflate(), 0
                if not self._output:
                    return
            piece = self._output[self._at : self._at + length]
            self._at += len(piece)
            self.place += len(piece)
            length -= len(piece)
            yield piece

    def _inflate(self) -> bytes:
        """The next bytes, or none at the end."""
        while True:
            if self._stop:
                raise self._stop
            if not self._input:
                self._input = self._file.read(self.TAKE)
                self._taken += len(self._input)
            if self._inflater is None:  # a gzip file may be several, one after another, or end in zeros
                ended = not self._input
                self._input = self._input.lstrip(b"\0")
                if ended:
                    return b""
                if not self._input:
                    continue
                self._inflater = zlib.decompressobj(31)
            before = self._inflater.copy()
            try:
                output = self._inflater.decompress(self._input, self.GIVE)
                if not output and not self._input:
                    self._stop = Stop("damaged_archive", f"gzip is cut at byte {self._taken}", self._given)
                elif self._inflater.eof:
                    self._input, self._inflater = self._inflater.unused_data, None
                else:
                    self._input = self._inflater.unconsumed_tail
            except zlib.error as error:
                output = _before_damage(before, self._input)
                self._stop = Stop("damaged_archive", f"gzip: {error}, before byte {self._taken}", self._given)
            self._given += len(output)
            self._check(self._taken - len(self._input))
            if output:
                return output

    def _check(self, taken: int) -> None:
        limits = self._limits
        if limits is None:
            return
        if self._given > max(1 << 20, limits.max_ratio * taken):
            detail = f"{taken} bytes unpack to {self._given}, the limit is {limits.max_ratio:g} times"
            self._stop = Stop("bomb", detail, self._given)
        # Headers are not counted as members' bytes, so they come on top; they too must end.
        if self._given > limits.max_total_bytes + 2048 * limits.max_members:
            detail = f"over {limits.max_total_bytes} bytes, the rest is not listed"
            self._stop = Stop("archive_too_large", detail, self._given)


def _before_damage(inflater: zlib._Decompress, content: bytes) -> bytes:
    """What zlib had made of these bytes when it found them damaged, which it keeps to itself."""
    output = b""
    try:
        for place in range(len(content)):
            output += inflater.decompress(content[place : place + 1])
    except zlib.error:
        pass
    return output


def _sound(header: bytes) -> bool:
    """Whether a header's checksum is right. It counts its own field as spaces; some writers summed signed bytes."""
    try:
        stated = _number(header[148:156])
    except ValueError:
        return False
    # Adler-32's lower half is the sum of up to 256 bytes, ten times as fast as sum().
    halves = (zlib.adler32(header[:256], 0) & 0xFFFF) + (zlib.adler32(header[256:], 0) & 0xFFFF)
    total = halves - sum(header[148:156]) + 8 * 32
    if total == stated:
        return True
    high = sum(byte >= 0x80 for byte in header[:148] + header[156:])
    return total - 256 * high == stated


def _number(field: bytes) -> int:
    """An octal number or, of what is too large for one, its bytes. Raises `ValueError`."""
    if field[0] == 0x80:
        return min(int.from_bytes(field[1:], "big"), MOST)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes, longer: dict[str, bytes]) -> bytes:
    name = longer.get("GNU.sparse.name") or longer.get("path") or longer.get("L")
    if name:
        return name
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extension(stream: Plain | Gunzip, size: int) -> bytes:
    if not 0 <= size <= MAX_EXTENSION:
        raise ValueError(f"an extension of {size} bytes, the limit is {MAX_EXTENSION},")
    content = stream.read(size + -size % BLOCK)
    if len(content) < size:
        raise ValueError("the archive is cut: a longer name is missing")
    return content[:size]


def _extend(longer: dict[str, bytes], kind: bytes, content: bytes) -> None:
    """Takes up what an extension header says: a long name, or pax attributes as lines of "length key=value"."""
    if kind == b"L":
        longer["L"] = content.partition(b"\0")[0]
    if kind not in b"xX":
        return  # long targets of links, and pax attributes for all members: no name or size is among them
    at = 0
    while at < len(content) and content[at]:
        length = content[at : at + 20].partition(b" ")[0]
        stop = at + int(length)
        line = content[at + len(length) + 1 : stop]
        key, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not equals or not line.endswith(b"\n") or not at < stop <= len(content):
            raise ValueError("damaged attributes")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            longer[key.decode("latin-1")] = value
        at = stop
