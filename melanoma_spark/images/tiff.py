"""The directories of a TIFF file: which of its images is the photograph, by TIFF 6.0, its supplements 1 and 3, and DNG.

Pillow reads whole directories before it can be asked anything. This reads only numbers that say what an image is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from melanoma_spark.errors import ImageError

MOST_DIRECTORIES = 10_000
MOST_SEGMENTS = 1_000_000  # strips or tiles of an image; Pillow makes a Python number of each

# Tags
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS = 254, 255, 256, 257, 258
PHOTOMETRIC, SAMPLES, SUB_DIRECTORIES = 262, 277, 330
SEGMENTS = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
WANTED = {SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, SUB_DIRECTORIES, *SEGMENTS}
TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
MOST_VALUES = 64  # of a tag that are read

REDUCED, MASK = 1, 4  # bits of NewSubfileType
RAW = {32803, 34892}  # photometric interpretations of a camera's sensor, which only a raw converter makes an image of


@dataclass(frozen=True)
class Directory:
    """An image of a TIFF file, as its directory describes it."""

    offset: int
    tags: dict[int, tuple[int, ...]]  # of WANTED, the first MOST_VALUES values
    segments: int  # strips or tiles

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self._first(WIDTH) * self._first(HEIGHT)

    @property
    def unpacked(self) -> int:
        """Bytes of its pixels, unpacked."""
        bits = max(self.tags.get(BITS) or (1,))
        return self.pixels * self._first(SAMPLES, 1) * bits // 8

    @property
    def is_raw(self) -> bool:
        """Whether it holds a sensor's values."""
        return self._first(PHOTOMETRIC) in RAW

    @property
    def is_part(self) -> bool:
        """Whether it belongs to another image of the file: a smaller version of it, or a mask."""
        return bool(self._first(SUBFILE) & (REDUCED | MASK)) or self._first(OLD_SUBFILE) == 2

    def _first(self, tag: int, default: int = 0) -> int:
        return (self.tags.get(tag) or (default,))[0]


def choose_image(content: bytes) -> tuple[Directory, Directory] | None:
    """The largest full-resolution image of a file, and the first image. None if there is no directory.

    Raises `ImageError`: `preview_only` if all that can be shown is a smaller version, `too_costly`.
    """
    found = list(_directories(content))
    if not found:
        return None
    whole = [directory for directory in found if not directory.is_part and not directory.is_raw]
    if not whole and any(directory.is_part for directory in found):
        raw = "; its full image is a camera's raw data" if any(directory.is_raw for directory in found) else ""
        raise ImageError("preview_only", f"{len(found)} images, each a smaller version or a mask{raw}")
    return max(whole or found[:1], key=lambda directory: directory.pixels), found[0]


def make_first(content: bytes, directory: Directory) -> bytes:
    """The file with its header changed so that a directory is the first one, which is what decoders show."""
    order, wide = _layout(content)
    place, form = (8, "Q") if wide else (4, "I")
    offset = struct.pack(order + form, directory.offset)
    return content[:place] + offset + content[place + len(offset) :]


def _layout(content: bytes) -> tuple[str, bool]:
    """Byte order for `struct`, and whether it is a BigTIFF."""
    order = "<" if content[:2] == b"II" else ">"
    return order, content[2:4] in (b"+\0", b"\0+")


def _directories(content: bytes) -> Iterator[Directory]:
    """Those that the header leads to, in the file's order, each followed by its subdirectories."""
    order, wide = _layout(content)
    pointer = struct.Struct(order + ("Q" if wide else "I"))
    count_of, entry, inline = (order + "Q", order + "HHQ", 8) if wide else (order + "H", order + "HHI", 4)
    step = struct.calcsize(entry) + inline
    if len(content) < 8 + pointer.size:
        return
    pending, seen = [pointer.unpack_from(content, 8 if wide else 4)[0]], set[int]()
    while pending:
        offset = pending.pop()
        start = offset + struct.calcsize(count_of)
        if offset in seen or offset == 0 or start > len(content):
            continue
        seen.add(offset)
        if len(seen) > MOST_DIRECTORIES:
            raise ImageError("too_costly", f"over {MOST_DIRECTORIES} images in a TIFF file")
        (count,) = struct.unpack_from(count_of, content, offset)
        end = start + step * count
        tags: dict[int, tuple[int, ...]] = {}
        segments = 0
        for place in range(start, min(end, len(content) - step + 1), step):
            tag, kind, number = struct.unpack_from(entry, content, place)
            if tag not in WANTED or kind not in TYPES or tag in tags:
                continue
            segments = max(segments, number if tag in SEGMENTS else 0)
            values = struct.Struct(f"{order}{min(number, MOST_VALUES)}{TYPES[kind]}")
            at = place + step - inline
            if struct.calcsize(TYPES[kind]) * number > inline:
                (at,) = pointer.unpack_from(content, at)
            if at + values.size <= len(content):
                tags[tag] = values.unpack_from(content, at)
        if WIDTH in tags:
            yield Directory(offset, tags, segments)
        after = [pointer.unpack_from(content, end)[0]] if end + pointer.size <= len(content) else []
        pending += after + [*tags.get(SUB_DIRECTORIES, ())][::-1]
