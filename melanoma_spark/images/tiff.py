"""The directories of a TIFF file: which of its images is the photograph, by TIFF 6.0, its supplements 1 and 3, and DNG.

Pillow reads whole directories before it can be asked anything. This reads only numbers that say what an image is.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from melanoma_spark.errors import ImageError

MOST_DIRECTORIES = 10_000
MOST_SEGMENTS = 1_000_000  # strips or tiles of an image; Pillow makes a Python number of each

# Of files that this process decodes itself
PLAIN = frozenset(
    {*range(254, 260), 262, 266, *range(270, 275), *range(277, 285), 296, 297, 305, 306, 315, *range(317, 321)}
    | {338, 339, 347, 530, 532, 700, 33432, 33723, 34377, 34675}
)  # no tags of tiles, and of further directories
SIMPLE = {1, 5, 7, 8, 32773, 32946}  # compressions: none, LZW, JPEG, deflate, PackBits
MOST_PLAIN, MOST_TABLES, MOST_STRIPS = 1 << 20, 1 << 12, 1 << 16  # bytes of all values, of the tables of JPEG; strips
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value of a type

# Tags
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS = 254, 255, 256, 257, 258
PHOTOMETRIC, SAMPLES, SUB_DIRECTORIES = 262, 277, 330
COMPRESSION, ROWS, PLANAR, TABLES = 259, 278, 284, 347
STRIPS = (273, 279)
LAID_OUT = {WIDTH, HEIGHT, COMPRESSION, ROWS, PLANAR, *STRIPS}
SEGMENTS = (*STRIPS, 324, 325)  # offsets and lengths of strips and tiles
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


def bounded(content: bytes) -> bytes | None:
    """The file, if decoding it takes time and memory for its pixels alone; None if nothing shows that.

    It has one directory of known tags with few values, and no subdirectory. Its strips are packed by a common method,
    and together are not longer than the file.
    """
    order, wide = _layout(content)
    if wide or len(content) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start) if start + 2 <= len(content) else (0,)
    start, end = start + 2, start + 2 + 12 * count
    if content[end : end + 4] != bytes(4):  # another directory, or the end of the file
        return None
    numbers: dict[int, tuple[int, ...]] = {}
    last = total = 0
    for place, (tag, kind, number, at) in enumerate(struct.iter_unpack(order + "HHII", content[start:end])):
        size = BYTES.get(kind, 0) * number
        total += size
        if tag not in PLAIN or tag <= last or not size or total > MOST_PLAIN or (tag == TABLES and size > MOST_TABLES):
            return None
        if tag in LAID_OUT:
            at = at if size > 4 else start + 12 * place + 8
            if kind not in (3, 4) or at + size > len(content):
                return None
            numbers[tag] = struct.unpack_from(f"{order}{number}{TYPES[kind]}", content, at)
        last = tag
    return content if _is_read_once(numbers, len(content)) else None


def _is_read_once(numbers: dict[int, tuple[int, ...]], length: int) -> bool:
    """Whether the strips of a file of so many bytes are as many as its image has, and not longer than the file."""
    if not {WIDTH, HEIGHT, *STRIPS} <= numbers.keys() or numbers.get(PLANAR, (1,)) != (1,):
        return False
    height, (offsets, lengths) = numbers[HEIGHT][0], (numbers[tag] for tag in STRIPS)
    rows = max(1, min(numbers.get(ROWS, (height,))[0], height))
    count = -(-height // rows)
    one_method = numbers.get(COMPRESSION, (1,))
    return (
        len(one_method) == 1
        and one_method[0] in SIMPLE
        and len(offsets) == len(lengths) == count <= MOST_STRIPS
        and sum(lengths) <= length
    )


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
