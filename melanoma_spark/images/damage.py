"""Finds damage that Pillow does not report: it fills the missing part with gray, or keeps wrong pixels.

libjpeg warns of such data and continues; Pillow drops the warnings. simplejpeg, on the same libjpeg-turbo, stops at the
first one. Texts here quote a decoder, which names numbers only, never the content.
"""

import io
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin

# The starts of libjpeg's warnings about image data (jerror.h). Its other warnings are about metadata and color.
DATA_WARNINGS = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
# Pillow's mode -> simplejpeg's name for how Pillow keeps its pixels in memory, and bytes of a pixel
MODES = {"RGB": ("RGBX", 4), "L": ("GRAY", 1)}

# Second byte of a JPEG marker
SOS, COMMENT, END = 0xDA, 0xFE, 0xD9
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
ALONE = {0x01, *range(0xD0, 0xD9)}  # without a length and a body
APPLICATION = range(0xE0, 0xF0)

# TIFF tags and compressions
COMPRESSION, TABLES = 259, 347
JPEG, DEFLATE = 7, (8, 32946)
PIECE = 1 << 20  # bytes unpacked at once


def decode_jpeg(content: bytes, mode: str, size: tuple[int, int], scale: int) -> Image.Image | None:
    """Decode a JPEG to the same pixels as Pillow's draft.

    `mode` and `size` (width, height) are Pillow's, `scale` (1, 2, 4 or 8) is the factor by which it is scaled down.
    Returns None if libjpeg warns of anything, or cannot decode it: `jpeg_damage` finds out whether that is damage.
    """
    if mode not in MODES:
        return None
    layout, samples = MODES[mode]
    width, height = (-(-side // scale) for side in size)
    # A buffer of the size that Pillow read: simplejpeg would allocate any size that a hostile file declares
    pixels = np.empty((height, width, samples), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(content, layout, min_height=height, min_width=width, buffer=pixels)
    except ValueError:
        return None
    if decoded.shape != pixels.shape:
        return None
    image = Image.new(mode, (width, height), None)
    image.frombytes(pixels.data, "raw", layout if mode == "RGB" else mode)
    return image


def jpeg_damage(content: bytes, size: tuple[int, int]) -> str | None:
    """The first warning of libjpeg that image data is missing or corrupt; None without one, or if it cannot decode.

    Harmless bytes between the segments before the first scan are left out. `size` is the largest width and height that
    is decoded.
    """
    plain = _without_metadata(content, size)
    if plain is None:
        return None
    width, height = (-(-side // 8) for side in size)
    gray = np.empty((height, width, 1), np.uint8)
    try:
        # At an eighth of the size, which is fast and still reads all data
        simplejpeg.decode_jpeg(plain, "GRAY", min_height=1, min_width=1, buffer=gray)
    except ValueError as error:
        if str(error).startswith(DATA_WARNINGS):
            return f"libjpeg: {error}"
    return None


def _without_metadata(content: bytes, size: tuple[int, int]) -> bytes | None:
    """A JPEG without application segments, comments, and bytes between segments before its first scan.

    None if it has no scan, or its frame is larger than `size`.
    """
    kept = [b"\xff\xd8"]
    start = 2
    while True:
        start = content.find(b"\xff", start)
        if start < 0:
            return None
        while content[start + 1 : start + 2] == b"\xff":  # fill bytes
            start += 1
        if start + 4 > len(content):
            return None
        marker, length = content[start + 1], int.from_bytes(content[start + 2 : start + 4], "big")
        if marker == SOS:
            return b"".join([*kept, content[start:]])
        if marker == END:
            return None
        if marker == 0 or marker in ALONE:
            start += 2
            continue
        segment = content[start : start + 2 + length]
        start += 2 + length
        if marker in FRAMES:
            height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
            if width > size[0] or height > size[1]:
                return None
        if marker not in APPLICATION and marker != COMMENT:
            kept.append(segment)


def png_damage(content: bytes) -> str | None:
    """Whether a chunk of a PNG has a wrong checksum, or its end is missing; Pillow checks neither when it decodes."""
    try:
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()
    except Exception as error:  # its text quotes four bytes of the content
        return "PNG: the checksum of a chunk is wrong" if isinstance(error, SyntaxError) else "PNG: its end is missing"
    return None


def tiff_damage(image: TiffImagePlugin.TiffImageFile, content: bytes) -> str | None:
    """The damage that libjpeg or zlib find in the strips or tiles of a TIFF; None for other compressions.

    libtiff drops libjpeg's warnings, and stops before zlib's checksum.
    """
    tags = image.tag_v2
    compression, tables = tags.get(COMPRESSION), tags.get(TABLES)
    if compression != JPEG and compression not in DEFLATE:
        return None
    try:
        size, segments = _segments(tags, content)
        for segment in segments:
            if compression in DEFLATE:
                damage = _deflate_damage(segment, size[0] * size[1] * 16)  # 4 samples of 32 bits, more than is read
            else:
                damage = jpeg_damage(tables[:-2] + segment[2:] if isinstance(tables, bytes) else segment, size)
            if damage:
                return damage
    except (KeyError, TypeError, ValueError):  # libtiff can read this directory, this function cannot
        pass
    return None


def _segments(tags: TiffImagePlugin.ImageFileDirectory_v2, content: bytes) -> tuple[tuple[int, int], Iterator[bytes]]:
    """Width and height of a strip or tile in pixels, and the bytes of each one."""
    tiled = 324 in tags
    size = (tags[322], tags[323]) if tiled else (tags[256], min(tags.get(278, tags[257]), tags[257]))
    places = zip(tags[324 if tiled else 273], tags[325 if tiled else 279], strict=False)
    return size, (content[offset : offset + length] for offset, length in places)


def _deflate_damage(content: bytes, most: int) -> str | None:
    """The damage that zlib finds in a stream, which may unpack to `most` bytes."""
    stream, unpacked = zlib.decompressobj(), 0
    try:
        while content and not stream.eof and unpacked <= most:
            unpacked += len(stream.decompress(content, min(PIECE, most + 1 - unpacked)))
            content = stream.unconsumed_tail
    except zlib.error as error:
        return f"zlib: {error}"
    return "zlib: the end of the stream is missing" if not stream.eof and unpacked <= most else None
