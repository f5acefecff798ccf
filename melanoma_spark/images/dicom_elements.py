"""The elements of a DICOM file, walked through without pydicom, which makes objects of all that it passes.

Two questions are answered before pydicom sees a file: whether its header is within the limits, and whether it is so
simple that decoding it takes time and memory for its pixels alone.
"""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from melanoma_spark.errors import ImageError

# Transfer syntaxes, PS3.6 annex A: how the dataset and its pixels are packed
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG_8_BIT = "1.2.840.10008.1.2.4.50"
SIMPLE = {IMPLICIT, EXPLICIT, JPEG_8_BIT}

MOST_ELEMENTS, MOST_DEPTH = 100_000, 32
MOST_SIMPLE = 1_000  # elements, and fragments of pixels, of a simple file
MOST_TEXT = 1 << 10  # bytes of a value in it
MOST_DATA = 1 << 22  # bytes of a color profile or a palette in it
MOST_OFFSETS = 8  # bytes of the table of the places of its single frame

# Value representations by the bytes of their length, PS3.5 table 7.1-1
SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
BINARY = frozenset((b"OB", b"OW"))

UNDEFINED = 0xFFFFFFFF
SYNTAX, PIXELS = 0x00020010, 0x7FE00010
MARKS = ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DELIMITED, FRAGMENTS = 0, -1


class Element(NamedTuple):
    """Where an element lies in a file. `kind` is its VR, or empty if it is implicit, an item or a delimiter."""

    level: int  # of open sequences and items
    tag: int
    kind: bytes
    place: int
    start: int  # of its value
    size: int


@dataclass(frozen=True)
class SimpleFile:
    """A file whose elements have been looked at: nothing in it can cost more than its pixels."""

    header: bytes  # a file without its pixels
    pixels: bytes
    kind: str  # VR of the pixels


def meta_information(syntax: str) -> bytes:
    """Meta information that names a transfer syntax."""
    value = syntax.encode() + bytes(len(syntax) % 2)
    element = b"\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value
    return b"\x02\0\0\0UL\x04\0" + len(element).to_bytes(4, "little") + element


def check_elements(content: bytes) -> None:
    """Raise `ImageError` if a header has more elements, or deeper sequences, than `MOST_ELEMENTS` and `MOST_DEPTH`."""
    for count, element in enumerate(_walk(content)):
        if count >= MOST_ELEMENTS or element.level > 2 * MOST_DEPTH:  # a sequence and an item are a level
            raise ImageError(
                "too_costly", f"its header has over {MOST_ELEMENTS} elements, or over {MOST_DEPTH} levels of sequences"
            )


def simplify(content: bytes, wanted: Container[int]) -> SimpleFile | None:
    """The wanted elements and the pixels of a file; None if the file is not simple.

    A simple file begins with a preamble and has a few elements of the kinds that its transfer syntax defines, whose
    wanted ones are small, and plain pixels or JPEG data.
    """
    if content[128:132] != b"DICM":
        return None
    syntax, kept = "", list[bytes]()
    for count, (level, tag, kind, place, start, size) in enumerate(_walk(content)):
        implicit, pixels = syntax == IMPLICIT and tag >> 16 != 2, tag == PIXELS and not level
        sequence = size == UNDEFINED and not pixels
        if count > MOST_SIMPLE or level > 2 * MOST_DEPTH or (tag in MARKS and not level):
            return None
        if tag not in MARKS and (bool(kind) == implicit or (sequence and kind not in (b"", b"SQ"))):
            return None
        if pixels:
            end = start + size if size != UNDEFINED else _end_of_fragments(content, start)
            if syntax not in SIMPLE or kind not in (b"", *BINARY) or end > len(content):
                return None
            header = b"".join((bytes(128), b"DICM", meta_information(syntax), *kept))
            return SimpleFile(header, content[start:end], kind.decode() or "OW")
        if tag == SYNTAX and not level:
            syntax = content[start : start + size].decode("latin-1").strip("\0 ")
        elif not level and tag in wanted:
            if size > (MOST_DATA if kind in BINARY else MOST_TEXT if kind not in LONG else -1):
                return None
            kept.append(content[place : start + size])
    return None


def _end_of_fragments(content: bytes, place: int) -> int:
    """Where the fragments of a single frame end; past the end of the file if they are not simple."""
    for number in range(MOST_SIMPLE):
        if place + 8 > len(content):
            break
        group, element, size = struct.unpack_from("<HHI", content, place)
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            return place
        if tag != ITEM or (number == 0 and size > MOST_OFFSETS):
            break
        place += 8 + size
    return len(content) + 1


def _walk(content: bytes) -> Iterator[Element]:
    """The elements of a file with a preamble up to its pixels, and those in what pydicom goes into.

    That is sequences without a length. What cannot be followed is left to pydicom and to the limits of the process.
    """
    place, explicit, order = 132, True, "<"
    # Of the sequences and items that are open; DELIMITED where a delimiter ends it, FRAGMENTS if that holds no elements
    ends: list[int] = []
    syntax = EXPLICIT
    while place + 8 <= len(content):
        while ends and 0 < ends[-1] <= place:
            ends.pop()
        if not ends and content[place : place + 2] != b"\2\0" and (explicit, order) == (True, "<"):
            explicit, order = syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"  # the meta information has ended
        group, number = struct.unpack_from(order + "HH", content, place)
        tag, kind = group << 16 | number, content[place + 4 : place + 6]
        if explicit and group != 0xFFFE and kind in SHORT:
            size, start = struct.unpack_from(order + "H", content, place + 6)[0], place + 8
        elif explicit and group != 0xFFFE and kind in LONG:
            if place + 12 > len(content):
                return
            size, start = struct.unpack_from(order + "I", content, place + 8)[0], place + 12
        else:  # an item, a delimiter, or implicit: also what a sequence of VR UN holds
            kind, size, start = b"", struct.unpack_from(order + "I", content, place + 4)[0], place + 8
        yield Element(len(ends), tag, kind, place, start, size)
        if tag == PIXELS and not ends:
            return
        if tag == SYNTAX and not ends:
            syntax = content[start : start + size].decode("latin-1").strip("\0 ")
        if tag in (ITEM_END, SEQUENCE_END):
            del ends[-1:]
        elif size == UNDEFINED:
            ends.append(FRAGMENTS if kind in BINARY else DELIMITED)
        elif tag == ITEM and ends[-1:] != [FRAGMENTS]:
            ends.append(start + size)
        else:
            start += size
        place = start
