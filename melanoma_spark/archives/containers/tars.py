"""Reads tar files: v7, ustar, GNU and pax, plain or in gzip.

Python's tarfile takes a damaged header for the end of the archive, and recurses into extension headers. This reader
reports damage, and does not recurse.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from melanoma_spark.archives.containers import common
from melanoma_spark.archives.containers.common import MOST, Entry, Format, Limits, Member, Stop
from melanoma_spark.errors import ImageError

BLOCK = 512  # bytes: everything in a tar starts at a multiple of it
GZIP = b"\x1f\x8b\x08"
ZEROS = bytes(BLOCK)
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax attributes
MAX_PADDING = 1 << 20  # bytes of zeros after the last member; writers fill up to 10 KiB

NO_DATA = {b"1": "link", b"2": "link", b"3": "special_file", b"4": "special_file", b"5": None, b"6": "special_file"}
REGULAR = (b"0", b"\0", b"7")


def _starts(head: bytes) -> bool:
    """Whether these first 512 bytes are those of a tar, even an empty one."""
    return len(head) >= BLOCK and (head[:BLOCK] == ZEROS or _has_right_checksum(head[:BLOCK]))


def _entries(stream: PlainStream | GunzipStream) -> Iterator[Entry]:
    """The members of a tar. Raises `Stop` at damage. A member in gzip is yielded after its bytes were passed."""
    attributes: dict[str, bytes] = {}  # of the next member, from extension headers
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
        if header == ZEROS and not attributes:
            zeros = 1
            continue
        if not _has_right_checksum(header):
            what = "something follows the end" if zeros else "no member's header"
            raise Stop("damaged_archive", f"{what} at byte {place}", place)
        zeros = 0  # or one tar was appended to another
        try:
            size = _parse_number(header[124:136])
            kind = header[156:157]
            if kind in b"xXgLK":
                _apply_extension(attributes, kind, _read_extension(stream, size))
                continue
            size = int(attributes.get("size", size))
            if size < 0:
                raise ValueError("a negative size")
        except ValueError as error:
            raise Stop("damaged_archive", f"{error} in the header at byte {place}", place) from None
        if kind in NO_DATA:
            size = 0
        more = kind == b"S" and header[482]
        while more:  # the map of a sparse file continues
            block = stream.read(BLOCK)
            more = len(block) == BLOCK and block[504]
        name = common.decode_name(_member_name(header, attributes))
        data = stream.place
        if not stream.skip_to(data + size):
            raise Stop("damaged_archive", f"cut within the member that starts at byte {place}", place)
        folder = kind == b"5" or (kind in REGULAR and name.endswith("/"))  # v7 has no type for folders
        if not folder:
            reason = NO_DATA.get(kind) or (None if kind in REGULAR else "special_file")
            detail = f"tar's type {kind.decode('latin-1')!r}"
            if any(key.startswith("GNU.sparse.") for key in attributes):
                reason, detail = "special_file", "a sparse file"
            yield Entry(name, data, size, size, reason=reason, detail=detail if reason else None)
        attributes.clear()
        stream.skip_to(data + size + -size % BLOCK)


def _reader(file: BinaryIO) -> Callable[[Member], bytes]:
    """Returns a function that reads a member of a plain tar."""

    def get(member: Member) -> bytes:
        file.seek(member.offset)
        return common.check_complete(common.read_exactly(file, member.size), member.size)

    return get


def _gzip_reader(file: BinaryIO) -> Callable[[Member], bytes]:
    """Returns a function that reads a member of a tar.gz; members come in order."""
    stream = GunzipStream(file)

    def get(member: Member) -> bytes:
        if member.offset < stream.place:
            raise ValueError("members of a tar.gz are read in order of their offset, each of them once")
        try:
            stream.skip_to(member.offset)
            content = stream.read(member.size)
        except Stop as stop:
            raise ImageError("damaged_member", stop.detail) from None
        return common.check_complete(content, member.size)

    return get


class PlainStream:
    """The bytes of a plain tar; skipping seeks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = common.file_length(file)
        self._skipped = False
        self.place = 0

    def read(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end."""
        if self._skipped:
            self._file.seek(self.place)
            self._skipped = False
        content = common.read_exactly(self._file, length)
        self.place += len(content)
        return content

    def skip_to(self, place: int) -> bool:
        """Move to a place. Returns False if the file ends before it."""
        self._skipped = self._skipped or place != self.place
        self.place = min(place, self._length)
        return place <= self._length


class GunzipStream:
    """The bytes of a gzip file, read forward and checked against its checksum. Raises `Stop` at damage or a bomb.

    It gives all bytes before the damage.
    """

    TAKE, GIVE = 1 << 16, 1 << 18  # bytes read and given at a time

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
        """The next `length` bytes, fewer at the end."""
        pieces = list(self._pieces(length))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip_to(self, place: int) -> bool:
        """Move to a place. Returns False if the stream ends before it."""
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
        """The next bytes; empty at the end."""
        while True:
            if self._stop:
                raise self._stop
            if not self._input:
                self._input = self._file.read(self.TAKE)
                self._taken += len(self._input)
            if self._inflater is None:  # gzip files may be concatenated, or end in zeros
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
                output = _decompress_before_damage(before, self._input)
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
        # Headers do not count as bytes of members; they need a limit, too.
        if self._given > limits.max_total_bytes + 2048 * limits.max_members:
            detail = f"over {limits.max_total_bytes} bytes, the rest is not listed"
            self._stop = Stop("archive_too_large", detail, self._given)


def _decompress_before_damage(inflater: zlib._Decompress, content: bytes) -> bytes:
    """The output that zlib had before it found damage in these bytes; zlib itself does not return it."""
    output = b""
    try:
        for place in range(len(content)):
            output += inflater.decompress(content[place : place + 1])
    except zlib.error:
        pass
    return output


def _has_right_checksum(header: bytes) -> bool:
    """Whether the checksum of a header is right. It counts its own field as spaces; some writers sum signed bytes."""
    try:
        stated = _parse_number(header[148:156])
    except ValueError:
        return False
    # Adler-32's lower half is the sum of up to 256 bytes, ten times as fast as sum().
    halves = (zlib.adler32(header[:256], 0) & 0xFFFF) + (zlib.adler32(header[256:], 0) & 0xFFFF)
    total = halves - sum(header[148:156]) + 8 * 32
    if total == stated:
        return True
    high = sum(byte >= 0x80 for byte in header[:148] + header[156:])
    return total - 256 * high == stated


def _parse_number(field: bytes) -> int:
    """A number in octal digits, or in binary if it is too large for them. Raises `ValueError`."""
    if field[0] == 0x80:
        return min(int.from_bytes(field[1:], "big"), MOST)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _member_name(header: bytes, attributes: dict[str, bytes]) -> bytes:
    name = attributes.get("GNU.sparse.name") or attributes.get("path") or attributes.get("L")
    if name:
        return name
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _read_extension(stream: PlainStream | GunzipStream, size: int) -> bytes:
    if not 0 <= size <= MAX_EXTENSION:
        raise ValueError(f"an extension of {size} bytes, the limit is {MAX_EXTENSION},")
    content = stream.read(size + -size % BLOCK)
    if len(content) < size:
        raise ValueError("the archive is cut: a longer name is missing")
    return content[:size]


def _apply_extension(attributes: dict[str, bytes], kind: bytes, content: bytes) -> None:
    """Add what an extension header holds: a long name, or pax attributes as lines of "length key=value"."""
    if kind == b"L":
        attributes["L"] = content.partition(b"\0")[0]
    if kind not in b"xX":
        return  # long targets of links and pax attributes of all members have no name or size
    at = 0
    while at < len(content) and content[at]:
        length = content[at : at + 20].partition(b" ")[0]
        stop = at + int(length)
        line = content[at + len(length) + 1 : stop]
        key, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not equals or not line.endswith(b"\n") or not at < stop <= len(content):
            raise ValueError("damaged attributes")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            attributes[key.decode("latin-1")] = value
        at = stop


PLAIN = Format((".tar",), _starts, lambda file, _: _entries(PlainStream(file)), _reader)
GZIPPED = Format(
    suffixes=(".tar.gz", ".tgz"),
    starts=lambda head: head.startswith(GZIP),
    entries=lambda file, limits: _entries(GunzipStream(file, limits)),
    reader=_gzip_reader,
    streamed=True,
)
