"""Decodes, orients and resizes images: bytes -> uint8 RGB at the model's size. Nothing else does, but for `damage`.

Ingest calls `decode_with_hashes` and scoring `decode`, which give the same pixels: a score is of what training saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin, _imaging

from melanoma_spark.errors import ImageError
from melanoma_spark.images import damage, dicom
from melanoma_spark.images.hashes import HASH_SIZE

# Part of every dataset's and feature's id. Raise it whenever `decode` gives other pixels for the same bytes.
# 2: libjpeg scales down to WORKING_SIDE at most, so JPEGs of 512 pixels and more differ at sizes under 224.
PIXELS_VERSION = 2

WORKING_SIDE = 448  # pixels, what libjpeg may scale down to: twice the usual size, so one decode serves hashes as well
MAX_SIDE = 65_535  # pixels; larger declared sizes are bogus and would exhaust memory
MAX_SCANS = 32  # of a progressive JPEG at the limit of pixels; an image of fewer pixels may have more of them

# Formats by content: a suffix may be wrong. No other decoder is used, which keeps the bugs of the others out of reach.
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    # BM alone starts many a text; then come the file's length, two zeros, an offset and the length of the next header
    "BMP": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "DICOM": re.compile(rb".{128}DICM", re.DOTALL),
}
ARCHIVES = {
    "zip": re.compile(rb"PK\x03\x04"),
    "gzip": re.compile(rb"\x1f\x8b"),
    "tar": re.compile(rb".{257}ustar", re.DOTALL),
}

# Pillow's modes of images that can become RGB. Samples of 32 bits and CIELAB are left out: no rule says which value is
# white.
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"}
DEEP = {"I", "I;16", "I;16B", "I;16L"}  # 16 bits; Pillow had "I" for a PNG of these

# EXIF 2.32, tag 0x0112: how the stored picture has to be turned to stand upright.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow knows the plugins that were imported, and imports all others to find one that was not.
assert TiffImagePlugin
assert WebPImagePlugin

# The reason of a broken file is in `rejects`; Pillow's own log lines would go to stderr.
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError):  # a Pillow built without libtiff
    # libtiff prints its errors itself, to the process's stderr; the symbol is warning through Pillow's own library
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class ImageLimits:
    """Which images are accepted.

    Attributes:
        min_side: the least width and height of the image in the file, in pixels.
        max_pixels: the most pixels of the image in the file.
        allow_recognisable: accept DICOM photographs whose header says that the patient can be recognized.
        allow_burned_in: accept DICOM photographs whose header says that text is burned in.
        accept_damaged: accept images that can be decoded, though the decoder warns of missing or corrupt data.
    """

    min_side: int = 1
    max_pixels: int = 100_000_000
    allow_recognisable: bool = False
    allow_burned_in: bool = False
    accept_damaged: bool = False


DEFAULT_LIMITS = ImageLimits()


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


@dataclass(frozen=True)
class _Source:
    """An image whose header was read, but not its pixels."""

    format: str
    width: int
    height: int
    scales: bool  # whether libjpeg can scale it down
    # Decodes, once: side in pixels -> upright RGB, and the accepted damage. No side is scaled below that.
    load: Callable[[int], tuple[Image.Image, str | None]]
    patient: str | None = None
    study: str | None = None


def decode_with_hashes(content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode an image to `size` x `size` pixels, and to those of its hashes, in one pass if possible.

    Raises `ImageError` with one of `reasons.REASONS`, and no other error.
    """
    with _without_warnings():
        source = _read_header(content, limits)
        side = max(WORKING_SIDE, 2 * size)
        image, warning = _decode_source(source, side)
        pixels = _square(image, size)
        shape = source.width, source.height
        if source.scales and _draft(shape, side) != _draft(shape, WORKING_SIDE):
            image, _ = _decode_source(
                _read_header(content, limits), WORKING_SIDE
            )  # so that hashes do not depend on the size
        hash_pixels = _square(image, HASH_SIZE)
    facts = source.width, source.height, source.format, warning, source.patient, source.study
    return DecodedImage(pixels, hash_pixels, *facts)


def decode(content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image as the model sees it: uint8 RGB (size, size, 3), the same as `pixels` of `decode_with_hashes`.

    The image is squashed and not cropped: lesions often reach the border. Raises `ImageError`.
    """
    return decode_sized(content, size, limits)[0]


def decode_sized(
    content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[NDArray[np.uint8], int, str | None]:
    """The pixels of `decode`, the shorter side of the image in the file in pixels, and the accepted damage."""
    with _without_warnings():
        source = _read_header(content, limits)
        image, warning = _decode_source(source, max(WORKING_SIDE, 2 * size))
    return _square(image, size), min(source.width, source.height), warning


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags, and of bombs at Pillow's own limit; ours is checked
        yield


def _read_header(content: bytes, limits: ImageLimits) -> _Source:
    """An image whose header is within the limits, not yet decoded. Raises `ImageError`."""
    if not content:
        raise ImageError("empty", "0 bytes")
    kind = next((kind for kind, signature in SIGNATURES.items() if signature.match(content)), None)
    if kind is None:
        archive = next((name for name, signature in ARCHIVES.items() if signature.match(content)), None)
        if archive:
            raise ImageError("archive_by_another_name", f"the content is a {archive} archive")
        raise ImageError("not_an_image", _describe_content(content))
    try:
        if kind == "DICOM":
            photograph = dicom.read(content, limits.allow_recognisable, limits.allow_burned_in)
            source = _Source(
                *(kind, photograph.width, photograph.height, photograph.is_jpeg),
                lambda side: _decode_dicom(photograph, side, limits),
                *(photograph.patient, photograph.study),
            )
        else:
            source = _read_photograph(content, kind, limits)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too_many_pixels", "over Pillow's own limit") from None
    except Exception:  # its text may quote the content
        raise ImageError("corrupt", "its header cannot be read") from None
    _check_size(source.width, source.height, limits.max_pixels)
    if min(source.width, source.height) < limits.min_side:
        size = f"{source.width} x {source.height} pixels"
        raise ImageError("too_small", f"{size}, each side must be at least {limits.min_side}")
    return source


def _read_photograph(content: bytes, kind: str, limits: ImageLimits) -> _Source:
    """An image in one of Pillow's formats. Raises `ImageError`, or Pillow's errors if the header is broken."""
    if kind == "WEBP":  # libwebp allocates the whole canvas when it opens a file
        _check_size(*_webp_size(content), limits.max_pixels)
    image: Image.Image = Image.open(io.BytesIO(content), formats=(kind,))
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` is that of the upright picture
        width, height = image.tag_v2[256], image.tag_v2[257]
        # libtiff unpacks whole tiles, however little of them lies in the image
        _check_size(image.tag_v2.get(322, 1), image.tag_v2.get(323, 1), limits.max_pixels, "a tile of ")
    if kind == "JPEG":
        _check_scans(content, width, height, limits.max_pixels)
    if image.mode not in MODES and (kind, image.mode) != ("PNG", "I"):
        raise ImageError("not_an_image", f"samples of mode {image.mode}: it is not known which value is white")

    def load(side: int) -> tuple[Image.Image, str | None]:
        if kind == "JPEG":
            decoded, warning = _decode_jpeg(content, image, side, limits.accept_damaged)
            return _upright(decoded, image), warning
        image.load()
        warning = None
        if kind == "PNG":
            warning = damage.png_damage(content)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            warning = damage.tiff_damage(image, content)
        _check_damage(warning, limits.accept_damaged)
        return _upright(image, image), warning

    return _Source(kind, width, height, kind == "JPEG", load)


def _check_size(width: int, height: int, max_pixels: int, what: str = "") -> None:
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, the limit is {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, no side may be over {MAX_SIDE}")


def _check_scans(content: bytes, width: int, height: int, max_pixels: int) -> None:
    # For each scan of a few bytes libjpeg goes through all pixels: a small file could keep it busy for hours.
    scans = content.count(b"\xff\xda")
    if scans * width * height > MAX_SCANS * max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels in {scans} scans")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels by the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        raise ValueError("the header of a WebP file is cut")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _decode_jpeg(content: bytes, image: Image.Image, side: int, accept_damaged: bool) -> tuple[Image.Image, str | None]:
    """The pixels of an opened JPEG, no side scaled below `side` pixels, and the accepted damage."""
    # libjpeg scales down while it decodes, never below the side: a large photograph takes a tenth of the time.
    decoded = damage.decode_jpeg(content, image.mode, image.size, _draft(image.size, side))
    if decoded is not None:
        return decoded, None
    warning = damage.jpeg_damage(content, image.size)
    _check_damage(warning, accept_damaged)
    image.draft("RGB", (side, side))
    image.load()
    return image, warning


def _check_damage(warning: str | None, accept_damaged: bool) -> None:
    if warning and not accept_damaged:
        raise ImageError("damaged", warning)


def _decode_dicom(photograph: dicom.Photograph, side: int, limits: ImageLimits) -> tuple[Image.Image, str | None]:
    """The first frame of a DICOM photograph, RGB, and the accepted damage. DICOM pictures are upright."""
    if not photograph.is_jpeg:
        array = photograph.array(limits.max_pixels)
        return Image.fromarray(array).convert("RGB"), None
    frame = photograph.frame(limits.max_pixels)
    image: Image.Image = Image.open(io.BytesIO(frame), formats=("JPEG",))
    if image.size != (photograph.width, photograph.height):
        raise ImageError("corrupt", "its frame is not of the size that the header says")
    _check_scans(frame, *image.size, limits.max_pixels)
    # Without a marker of the color space the DICOM header defines it; libjpeg would assume YCbCr.
    plain = image.mode == "RGB" and photograph.is_rgb and not {"jfif", "adobe"} & image.info.keys()
    if plain:
        warning = damage.jpeg_damage(frame, image.size)
        _check_damage(warning, limits.accept_damaged)
        image.draft("YCbCr", (side, side))
        image.load()
        return Image.frombytes("RGB", image.size, image.tobytes()), warning
    image, warning = _decode_jpeg(frame, image, side, limits.accept_damaged)
    image = image.convert("RGB")
    return (ImageOps.invert(image) if photograph.is_inverted else image), warning


def _draft(size: tuple[int, int], side: int) -> int:
    """The factor, 1, 2, 4 or 8, by which libjpeg scales an image down for `side` pixels, as in `Image.draft`."""
    scale = min(size) // side
    return next((step for step in (8, 4, 2) if scale >= step), 1)


def _decode_source(source: _Source, side: int) -> tuple[Image.Image, str | None]:
    """The image as upright RGB, no side scaled below `side` pixels, and its damage. Raises `ImageError`."""
    try:
        image, warning = source.load(side)
        colors = image.getcolors(2)  # None as soon as there is a third: after a few pixels of any photograph
    except ImageError:
        raise
    except Exception as error:  # MemoryError among them; their texts may quote the content
        detail = f"{type(error).__name__} while decoding {source.width} x {source.height} pixels"
        raise ImageError("corrupt", detail) from None
    if colors and len(colors) == 1:
        raise ImageError("blank", "all pixels have the same color")
    if colors and all(len(set(color)) == 1 for _, color in colors if isinstance(color, tuple)):
        raise ImageError("mask", "gray with two values only")
    return image, warning


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The image squashed to uint8 (size, size, 3)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _upright(image: Image.Image, header: Image.Image) -> Image.Image:
    """The image as RGB, turned by the EXIF data of `header`, which is the image as it was opened."""
    try:
        turn = UPRIGHT.get(header.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF must not cost the image
        turn = None
    rgb = _rgb(image)
    return rgb.transpose(turn) if turn is not None else rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:  # before the rest: Pillow cuts these at 255 when it converts
        deep = np.asarray(image)
        gray = (deep.clip(0, 65535) // 257).astype(np.uint8)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:
            np.subtract(255, gray, out=gray)  # white is zero; Pillow inverts only 8-bit images
        if "transparency" in image.info:
            gray[deep == image.info["transparency"]] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # On white, as viewers show it; a plain conversion would show the hidden pixels.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _describe_content(content: bytes) -> str:
    """What bytes that are not an image look like, without quoting them."""
    start = content[:12].lstrip().lower()
    if start.startswith((b"<!doc", b"<html")):
        return "the content is an HTML page"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in content[:64]):
        return "the content is text"
    return f"unknown content, starting with bytes {content[:4].hex()}"


def thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    """A JPEG of uint8 RGB pixels (h, w, 3), neither side over `side` pixels."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
