"""Reads zip files, from the central directory or, if that is missing, from one member to the next.

Python's zipfile holds every entry as an object of 1 kB, and cannot read a zip without a central directory.
"""

import bz2
import lzma
import stat
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.archives.containers import common
from melanoma_spark.archives.containers.common import MOST, Entry, Format, Limits, Member, Stop
from melanoma_spark.errors import ImageError

LOCAL, CENTRAL, END, END64 = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"
LOCATOR64, DESCRIPTOR, SIGNED = b"PK\x06\x07", b"PK\x07\x08", b"PK\x05\x05"
SIGNATURES = (LOCAL, END, DESCRIPTOR, b"PK00")

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST = _CENTRAL.size + 3 * 0xFFFF
_CHUNK = 1 << 20
_LZMA_MEMORY = 256 << 20  # bytes: its header may ask for 4 GiB

STORED, DEFLATE, BZIP2, LZMA = 0, 8, 12, 14


class Directory(NamedTuple):
    """Where a central directory lies. `shift` is the length of what precedes the zip: all offsets are off by it."""

    start: int
    size: int
    files: int
    shift: int


class DirectoryRecord(NamedTuple):
    """A file in a central directory. `span` is the least that it takes in the zip, with its header, in bytes."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    offset: int
    mode: int
    span: int


class BrokenDirectory(Exception):
    """A central directory cannot be read."""


def _entries(file: BinaryIO, limits: Limits) -> Iterator[Entry]:
    """The members of a zip. Raises `Stop` at damage."""
    length = common.file_length(file)
    if length == 0:
        raise Stop("damaged_archive", "0 bytes", 0)
    directory = _find_directory(file, length)
    try:
        if directory is None:
            raise BrokenDirectory
        overlaps = _find_overlaps(file, directory, limits.max_members)
    except BrokenDirectory:
        yield from _scan_members(file, length, limits)
        return
    for record, overlap in zip(_directory_records(file, directory), overlaps, strict=False):
        name = common.decode_name(record.name, "cp437")
        if name.endswith("/") or (record.size == 0 and (name.endswith("\\") or stat.S_ISDIR(record.mode))):
            continue
        reason, detail = _why_not_read(record.flags, record.method, record.stored, record.size, record.mode)
        if not reason and record.offset + record.span > directory.start:
            reason, detail = "damaged_member", "its bytes would lie beyond those of all members"
        elif not reason and overlap:
            reason, detail = "bomb", "it shares bytes with another member"
        numbers = min(record.offset, MOST), min(record.stored, MOST), min(record.size, MOST)
        yield Entry(name, *numbers, record.method, record.crc, reason, detail)
    if len(overlaps) > limits.max_members:  # folders included
        raise Stop("too_many_members", f"more than {limits.max_members}, the rest is not listed", directory.start)


def _reader(file: BinaryIO) -> Callable[[Member], bytes]:
    """Returns a function that reads a member of a zip."""

    def get(member: Member) -> bytes:
        file.seek(member.offset)
        header = common.read_exactly(file, _LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(LOCAL):
            raise ImageError("damaged_member", f"no header at byte {member.offset}")
        flags, name, extra = struct.unpack_from("<6xH18xHH", header)
        if flags & 1:
            raise ImageError("encrypted", "by its own header")
        common.read_exactly(file, name + extra)
        content = common.check_complete(common.read_exactly(file, member.stored), member.stored)
        try:
            content = _decompress(content, member.method, member.size, flags)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, struct.error) as error:
            raise ImageError("damaged_member", str(error)) from None
        if len(content) != member.size:
            actual = "more" if len(content) > member.size else len(content)
            raise ImageError("damaged_member", f"{member.size} bytes are listed, it has {actual}")
        if zlib.crc32(content) != member.crc:
            raise ImageError("damaged_member", "its checksum differs")
        return content

    return get


def _decompress(content: bytes, method: int, size: int, flags: int) -> bytes:
    """At most one byte more than the stated size, which is enough to detect a wrong size."""
    if method == DEFLATE:
        return zlib.decompressobj(-15).decompress(content, size + 1)
    if method == BZIP2:
        return bz2.BZ2Decompressor().decompress(content, size + 1)
    if method == LZMA:
        # Zip's own header (version, length of the properties) for that of an .lzma file, which states the size;
        # flag 1 says that the end is marked instead.
        (length,) = struct.unpack_from("<2xH", content)
        stated = -1 if flags & 2 else size
        content = content[4 : 4 + length] + struct.pack("<q", stated) + content[4 + length :]
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY).decompress(content, size + 1)
    return content


def _why_not_read(flags: int, method: int, stored: int, size: int, mode: int = 0) -> tuple[str | None, str | None]:
    """Reason and detail of an entry that must not be read, by its header."""
    if stat.S_ISLNK(mode):
        return "link", "a symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "special_file", f"its mode is {mode:o}"
    if flags & 0x2041:
        return "encrypted", "it needs a password"
    if method not in (STORED, DEFLATE, BZIP2, LZMA) or flags & 0x20:
        return "unsupported_compression", f"zip's method {method}" + (", a patch" if flags & 0x20 else "")
    if (method == STORED and stored != size) or stored > 2 * size + (1 << 16):  # no compression takes so much more
        return "damaged_member", f"{stored} bytes cannot be {size} uncompressed ones"
    return None, None


def _find_directory(file: BinaryIO, length: int) -> Directory | None:
    """The central directory, by the record at the end of the zip, which a comment of up to 64 KiB may follow."""
    base = max(0, length - _END.size - 0xFFFF)
    file.seek(base)
    tail = common.read_exactly(file, length - base)
    place = len(tail)
    for _ in range(8):  # the comment may hold the signature, but hardly more often
        place = tail.rfind(END, 0, place)
        if place < 0:
            break
        if place + _END.size <= len(tail):
            *_, count, size, offset, comment = _END.unpack_from(tail, place)
            # Anything else after it is another zip, or makes this one suspect.
            if place + _END.size + comment <= len(tail) and not tail[place + _END.size + comment :].strip(b"\0\r\n"):
                directory = _verify_directory(file, base + place, count, size, offset)
                if directory:
                    return directory
    return None


def _verify_directory(file: BinaryIO, end: int, count: int, size: int, offset: int) -> Directory | None:
    """The central directory that ends before `end`, if there is one."""
    if count == 0xFFFF or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
        locator = _read_at(file, end - 20, 20)
        if locator.startswith(LOCATOR64):
            (stated,) = struct.unpack_from("<8xQ", locator)
            for place in (end - 20 - _END64.size, stated):
                record = _read_at(file, place, _END64.size)
                if len(record) == _END64.size and record.startswith(END64):
                    *_, count, size, offset = _END64.unpack(record)
                    end = place
                    break
    if count == size == 0 and end == offset:
        return Directory(end, 0, 0, 0)
    for start, shift in ((end - size, end - size - offset), (offset, 0)):
        # A zip with another one before it is the last of its members, and the rest of the outer one is lost.
        if shift > 0 and _read_at(file, 0, 4) == LOCAL:
            continue
        if shift >= 0 and size and start + size <= end and _read_at(file, start, 4) == CENTRAL:
            return Directory(start, size, count, shift)
    return None


def _read_at(file: BinaryIO, place: int, length: int) -> bytes:
    if not 0 <= place <= MOST:
        return b""
    file.seek(place)
    return common.read_exactly(file, length)


def _directory_records(file: BinaryIO, directory: Directory) -> Iterator[DirectoryRecord]:
    """The files of a central directory, which is read in parts. Raises `BrokenDirectory`."""
    buffer, at, place = b"", 0, directory.start
    end = directory.start + directory.size
    while True:
        if len(buffer) - at < _LONGEST and place < end:
            more = _read_at(file, place, min(_CHUNK, end - place))
            buffer, at = buffer[at:] + more, 0
            place = place + len(more) if more else end
        if at == len(buffer) or buffer.startswith(SIGNED, at):
            return
        if len(buffer) - at < _CENTRAL.size or not buffer.startswith(CENTRAL, at):
            raise BrokenDirectory
        fields = _CENTRAL.unpack_from(buffer, at)
        _, _, system, _, _, flags, method, _, _, crc, stored, size, named, extra, comment, _, _, outer, offset = fields
        start = at + _CENTRAL.size
        name = buffer[start : start + named]
        at = start + named + extra + comment
        if at > len(buffer):
            raise BrokenDirectory
        if 0xFFFFFFFF in (size, stored, offset):
            size, stored, offset = _zip64_numbers(buffer[start + named : start + named + extra], size, stored, offset)
        mode = outer >> 16 if system in (3, 19) else 0  # made on Unix or macOS
        span = _LOCAL.size + named + stored
        yield DirectoryRecord(name, flags, method, crc, stored, size, offset + directory.shift, mode, span)


def _zip64_numbers(extra: bytes, *numbers: int) -> list[int]:
    """The numbers, those over 32 bits from the extra field of zip64, where they stand in the same order."""
    at = 0
    while at + 4 <= len(extra):
        code, length = struct.unpack_from("<HH", extra, at)
        if code == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra[at + 4 : at + 4 + length].ljust(length, b"\xff")))
            return [next(wide, number) if number == 0xFFFFFFFF else number for number in numbers]
        at += 4 + length
    return list(numbers)


def _find_overlaps(file: BinaryIO, directory: Directory, most: int) -> NDArray[np.bool_]:
    """For each file of a central directory, whether it shares bytes with another one, as in zip bombs: bool (files,).

    Reads one file more than may be listed. Raises `BrokenDirectory` if the directory is damaged anywhere.
    """
    spans = array("Q")
    count = 0
    for count, record in enumerate(_directory_records(file, directory), 1):
        end = record.offset + record.span
        inside = end <= directory.start  # others are damaged, and must not make their neighbors suspect
        spans.extend((record.offset, end) if inside else (0, 0))
        if count > most:
            break
    if count <= most and (count - directory.files) % 0x10000:  # some writers count no further than 16 bits
        raise BrokenDirectory
    if not count:
        return np.zeros(0, bool)
    starts, ends = np.frombuffer(spans, np.uint64).reshape(-1, 2).T
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    overlap = np.zeros(count, bool)
    overlap[1:] = starts[1:] < np.maximum.accumulate(ends)[:-1]
    overlap[:-1] |= ends[:-1] > starts[1:]
    unsorted = np.empty_like(overlap)
    unsorted[order] = overlap
    return unsorted


def _scan_members(file: BinaryIO, length: int, limits: Limits) -> Iterator[Entry]:
    """The members of a zip without a central directory, one after another. Always ends with `Stop`."""
    place = next(_find_signature(file, LOCAL, 0, limits.max_member_bytes), None)
    if place is None:
        raise Stop("damaged_archive", "no sound central directory, and no member", 0)
    while True:
        header = _read_at(file, place, _LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(LOCAL):
            raise Stop("damaged_archive", f"no sound central directory; members were found up to byte {place}", place)
        _, _, flags, method, _, _, crc, stored, size, named, extra = _LOCAL.unpack(header)
        rest = common.read_exactly(file, named + extra)
        data = place + _LOCAL.size + named + extra
        if 0xFFFFFFFF in (size, stored):
            size, stored = _zip64_numbers(rest[named:], size, stored)
        stop = data + stored
        if flags & 8:  # sizes and checksum stand behind the data
            measured = None if flags & 0x2041 else _measure_member(file, data, method, limits.max_member_bytes)
            if measured is None:
                raise Stop(
                    "damaged_archive", f"no sound central directory, and no end of the member at byte {place}", place
                )
            stored, size, crc, stop = measured
        if stop > length:
            raise Stop("damaged_archive", f"cut within the member that starts at byte {place}", place)
        name = common.decode_name(rest[:named], "cp437")
        if not name.endswith("/"):
            yield Entry(name, place, stored, min(size, MOST), method, crc, *_why_not_read(flags, method, stored, size))
        place = stop


def _find_signature(file: BinaryIO, signature: bytes, start: int, stop: int) -> Iterator[int]:
    """All places of a signature of four bytes between two places of a file, or a little beyond."""
    place, buffer = start, b""
    while place <= stop and (chunk := _read_at(file, place + len(buffer), _CHUNK)):
        buffer += chunk
        match = buffer.find(signature)
        while match >= 0:
            yield place + match
            match = buffer.find(signature, match + 1)
        place += max(0, len(buffer) - 3)
        buffer = buffer[-3:]


def _measure_member(file: BinaryIO, data: int, method: int, most: int) -> tuple[int, int, int, int] | None:
    """(stored, size, crc, place of the next header) of a member whose length stands behind its data."""
    if method == STORED:
        for place in _find_signature(file, DESCRIPTOR, data, data + most):
            size = place - data
            behind = _read_at(file, place, 24)
            for layout in ("<4xLLL", "<4xLQQ"):
                length = struct.calcsize(layout)
                crc, *lengths = struct.unpack(layout, behind[:length].ljust(length, b"\xff"))
                if lengths == [size, size]:
                    return size, size, crc, place + length
    if method != DEFLATE:
        return None
    inflater = zlib.decompressobj(-15)
    size = crc = taken = 0
    content = b""
    file.seek(data)
    while not inflater.eof and size <= most:
        if not content:
            content = file.read(1 << 16)
            taken += len(content)
        try:
            output = inflater.decompress(content, 1 << 18)
        except zlib.error:
            return None
        if not output and not content:
            return None  # cut
        size, crc = size + len(output), zlib.crc32(output, crc)
        content = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    if not inflater.eof:
        return None
    stored = taken - len(content)
    behind = _read_at(file, data + stored, 24)
    for layout in ("<4sLLL", "<4sLQQ", "<LLL", "<LQQ"):
        length = struct.calcsize(layout)
        fields = struct.unpack(layout, behind[:length]) if len(behind) >= length else ()
        if fields[-3:] == (crc, stored, size) and fields[:-3] in ((), (DESCRIPTOR,)):
            return stored, size, crc, data + stored + length
    return None


FORMAT = Format((".zip",), lambda head: head[:4] in SIGNATURES, _entries, _reader)
