"""Image bytes -> uint8 RGB at model size. The only place that decodes (with `damage`), orients or resizes.

Ingest calls `look` and scoring `decode`, which give the same pixels: a score is computed from what training saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from melanoma_spark.errors import ImageError
from melanoma_spark.images import damage, dicom

REASONS = {
    "empty": "the file has no bytes",
    "hidden": "made by an operating system, or its name, or a folder's, starts with a dot; rename it to have it read",
    "unreadable": "the file system did not give it; the next job tries again",
    "too_many_bytes": "the file is over ingest.max_bytes and was not read",
    "archive_by_another_name": "the content is a zip, tar or gzip archive; rename it to .zip, .tar or .tar.gz to have "
    "it read",
    "not_an_image": "the content is not a JPEG, PNG, TIFF, BMP, WebP or DICOM image, whatever the name says",
    "corrupt": "the image cannot be decoded to its end",
    "damaged": "its decoder warns that image data is missing or corrupt, so that a part of the picture may be wrong; "
    "ingest.damaged=accept takes it",
    "too_many_pixels": "the image is over ingest.max_pixels and was not decoded",
    "too_small": "a side is under ingest.min_side pixels",
    "blank": "all pixels have the same colour",
    "mask": "grey with two values only: a segmentation mask, not a photograph",
    "recognisable": "its DICOM header says that the patient can be recognised in it",
    "burned_in": "its DICOM header says that text which may name the patient is burned into its pixels",
    "dicom_not_photographic": "the DICOM object is neither a dermoscopic nor another photograph",
    "no_label": "neither a table nor the folder gives a label",
    "unknown_label": "the label is in neither diagnoses.csv nor ingest.labels.positive or .negative",
    "indeterminate": "its label does not tell the target; see target and ingest.indeterminate",
    "conflicting_labels": "its labels, or those of images with the same pixels, exclude each other",
    "ambiguous_metadata": "the row with its label fits other images as well; name the folder in the table",
    "contradictory_rows": "two rows of the archive's tables give it another patient, lesion or split",
    "split_overlap": "its group stands on the other side of the shipped split; see ingest.split_overlap",
    "duplicate": "another image with the same pixels is kept",
    "quality": "it passes a limit of score.quality, and score.quality.action is abstain",
}

GONE = "unreadable"  # the only reason that says nothing of the content: such a file is tried again by the next job

# Part of every dataset's and feature's id. Raise it whenever `decode` gives other pixels for the same bytes.
# 2: libjpeg scales down to WORKING_SIDE at most, so JPEGs of 512 pixels and more differ at sizes under 224.
PIXELS_VERSION = 2

HASH_SIZE = 128  # pixels, the side at which ingest takes the hashes that tell duplicates
WORKING_SIDE = 448  # pixels, what libjpeg may scale down to: twice the usual size, so one decode serves hashes as well
MAX_SIDE = 65_535  # pixels; what lies above are lies, with which a line or two of pixels fill the memory
MAX_SCANS = 32  # of a progressive JPEG at the limit of pixels; an image of fewer pixels may have more of them

# By content, not by name: suffixes lie. Other decoders stay shut, which keeps their bugs out of reach.
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

# What Pillow opens a file as, and how that becomes RGB is known here. Samples of 32 bits or of CIELAB are not among it:
# nobody says which value is white.
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

# Pillow knows a plugin that was imported, and would import all it has to find one that was not.
assert TiffImagePlugin
assert WebPImagePlugin

# A broken file has its reason in `rejects`, and there only: what Pillow logs besides would go to stderr.
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError):  # a Pillow built without libtiff
    # libtiff prints its errors itself, to the process's stderr; the symbol is found through Pillow's own library
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class Looked:
    """An image as ingest keeps it."""

    pixels: np.ndarray  # uint8 (size, size, 3): RGB, upright, squashed to a square
    hashed: np.ndarray  # uint8 (HASH_SIZE, HASH_SIZE, 3): the same at a size of its own, whatever `size` is
    width: int  # pixels, as it came: before orientation and resizing
    height: int
    format: str  # a key of SIGNATURES
    damage: str | None = None  # what the decoder warned of, where that is accepted


@dataclass(frozen=True)
class _Source:
    """An image of which only the header was read."""

    format: str
    width: int
    height: int
    scales: bool  # whether libjpeg can scale it down
    # Decodes, once: side in pixels -> upright RGB, and the damage that is accepted. Each side of it is at least that
    # long if the image's own is.
    load: Callable[[int], tuple[Image.Image, str | None]]


def look(
    content: bytes,
    size: int,
    min_side: int = 1,
    max_pixels: int = 100_000_000,
    allow_recognisable: bool = False,
    allow_burned_in: bool = False,
    accept_damaged: bool = False,
) -> Looked:
    """The image at `size` x `size` pixels and what its hashes are taken of, from one decode where that is possible.

    `min_side` is the least width and height and `max_pixels` the most pixels, both of the image as it came. The next
    two let DICOM photographs pass whose header says that the patient can be recognised in them or that text is burned
    in. With `accept_damaged` an image passes whose decoder warns of missing or corrupt data, if it decodes it. Raises
    `ImageError` with one of `REASONS`, and nothing else.
    """
    with _quiet():

        def opened() -> _Source:
            return _opened(content, min_side, max_pixels, allow_recognisable, allow_burned_in, accept_damaged)

        source = opened()
        side = max(WORKING_SIDE, 2 * size)
        image, damage_found = _decoded(source, side)
        pixels = _square(image, size)
        shape = source.width, source.height
        if source.scales and _draft(shape, side) != _draft(shape, WORKING_SIDE):
            image, _ = _decoded(opened(), WORKING_SIDE)  # hashes are of the same pixels at every size
        hashed = _square(image, HASH_SIZE)
    return Looked(pixels, hashed, source.width, source.height, source.format, damage_found)


def decode(
    content: bytes, size: int, min_side: int = 1, max_pixels: int = 100_000_000, accept_damaged: bool = False
) -> np.ndarray:
    """The image as the model sees it: uint8 RGB of shape (size, size, 3), the `pixels` of `look` to the bit.

    The whole image is kept rather than a centre crop: lesions often reach the border. Raises `ImageError` with one of
    `REASONS`.
    """
    return decode_sized(content, size, min_side, max_pixels, accept_damaged)[0]


def decode_sized(
    content: bytes, size: int, min_side: int = 1, max_pixels: int = 100_000_000, accept_damaged: bool = False
) -> tuple[np.ndarray, int, str | None]:
    """What `decode` gives, the shorter side of the image as it came, in pixels, and the damage that was accepted."""
    with _quiet():
        source = _opened(content, min_side, max_pixels, accept_damaged=accept_damaged)
        image, damage_found = _decoded(source, max(WORKING_SIDE, 2 * size))
    return _square(image, size), min(source.width, source.height), damage_found


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes: the identity of an image file."""
    return hashlib.sha256(content).hexdigest()


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of decoded uint8 pixels: equal for the same picture in another container or with other metadata."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)  # not a copy
    return digest.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """A difference hash of 8 x 8 bits as 16 hexadecimal digits, equal under quarter turns and mirroring.

    `pixels` is uint8 (height, width, 3). Each bit says whether brightness rises to the right (dHash, Krawetz 2013).
    The smallest of the eight orientations' hashes stands for the image.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    height, width = grey.shape
    # Whole numbers, so exact: Pillow's box filter rounds between its two passes, and a turned image gets other values.
    # The largest is the sum of three cells, 3 * 255 * height * width: float32 holds it at HASH_SIZE.
    exact = np.dtype(np.float32 if 3 * 255 * height * width < 2**24 else np.float64)
    small = _overlap(height, 24, exact) @ grey.astype(exact) @ _overlap(width, 24, exact).T
    views = []
    for lying in (small, small.T):
        # three columns to a cell and the middle one left out, so that a mirrored image compares the same two
        rows = lying.reshape(8, 3, 24).sum(axis=1)
        left, right = rows[:, 0::3], rows[:, 2::3]
        rises, falls = right > left, left > right
        # as it is, upside down, mirrored (a rise becomes a fall) and both
        views += [rises, rises[::-1], falls[:, ::-1], falls[::-1, ::-1]]
    return min(bits.tobytes() for bits in np.packbits(np.reshape(views, (8, 64)), axis=1)).hex()


@functools.lru_cache(maxsize=16)
def _overlap(side: int, cells: int, dtype: np.dtype) -> np.ndarray:
    """How much of each of `side` pixels lies in each of `cells` equal cells: (cells, side), in 1/cells pixel."""
    pixel, cell = np.arange(side) * cells, np.arange(cells)[:, None] * side
    return (np.minimum(pixel + cells, cell + side) - np.maximum(pixel, cell)).clip(0).astype(dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs at its own limit and of tags; ours is checked
        yield


def _opened(
    content: bytes,
    min_side: int = 1,
    max_pixels: int = 2**62,
    allow_recognisable: bool = False,
    allow_burned_in: bool = False,
    accept_damaged: bool = False,
) -> _Source:
    """The image of these bytes, within the limits by its header, and not yet decoded. Raises `ImageError`."""
    if not content:
        raise ImageError("empty", "0 bytes")
    kind = next((kind for kind, signature in SIGNATURES.items() if signature.match(content)), None)
    if kind is None:
        archive = next((name for name, signature in ARCHIVES.items() if signature.match(content)), None)
        if archive:
            raise ImageError("archive_by_another_name", f"the content is a {archive} archive")
        raise ImageError("not_an_image", _found(content))
    try:
        if kind == "DICOM":
            photograph = dicom.read(content, allow_recognisable, allow_burned_in)
            source = _Source(
                *(kind, photograph.width, photograph.height, photograph.is_jpeg),
                lambda side: _of_dicom(photograph, side, max_pixels, accept_damaged),
            )
        else:
            source = _photograph(content, kind, max_pixels, accept_damaged)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too_many_pixels", "over Pillow's own limit") from None
    except Exception:  # its text may quote the content
        raise ImageError("corrupt", "its header cannot be read") from None
    _check_size(source.width, source.height, max_pixels)
    if min(source.width, source.height) < min_side:
        found = f"{source.width} x {source.height} pixels"
        raise ImageError("too_small", f"{found}, each side must be at least {min_side}")
    return source


def _photograph(content: bytes, kind: str, max_pixels: int, accept_damaged: bool) -> _Source:
    """An image file of Pillow's formats. Raises `ImageError`, or whatever Pillow does where the header is broken."""
    if kind == "WEBP":  # libwebp asks for the memory of the whole canvas when it opens a file
        _check_size(*_webp_size(content), max_pixels)
    image: Image.Image = Image.open(io.BytesIO(content), formats=(kind,))
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size is of the upright picture
        width, height = image.tag_v2[256], image.tag_v2[257]
        # libtiff unpacks a whole tile, however little of it lies in the image
        _check_size(image.tag_v2.get(322, 1), image.tag_v2.get(323, 1), max_pixels, "a tile of ")
    if kind == "JPEG":
        _check_scans(content, width, height, max_pixels)
    if image.mode not in MODES and (kind, image.mode) != ("PNG", "I"):
        raise ImageError("not_an_image", f"samples of mode {image.mode}, for which nobody says which value is white")

    def load(side: int) -> tuple[Image.Image, str | None]:
        if kind == "JPEG":
            decoded, found = _decode_jpeg(content, image, side, accept_damaged)
            return _upright(decoded, image), found
        image.load()
        found = None
        if kind == "PNG":
            found = damage.png_damage(content)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            found = damage.tiff_damage(image, content)
        _check_damage(found, accept_damaged)
        return _upright(image, image), found

    return _Source(kind, width, height, kind == "JPEG", load)


def _check_size(width: int, height: int, max_pixels: int, what: str = "") -> None:
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, the limit is {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, no side may be over {MAX_SIDE}")


def _check_scans(content: bytes, width: int, height: int, max_pixels: int) -> None:
    # A scan of a few bytes sends libjpeg through all pixels again: a small file could keep it busy for hours.
    scans = content.count(b"\xff\xda")
    if scans * width * height > MAX_SCANS * max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels in {scans} scans")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels by the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        raise ValueError("a WebP file without a whole header")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _decode_jpeg(content: bytes, image: Image.Image, side: int, accept_damaged: bool) -> tuple[Image.Image, str | None]:
    """The pixels of an opened JPEG, each side at least `side` pixels if its own is, and the damage that is accepted."""
    # libjpeg scales down while it decodes, never below the side: a large photograph takes a tenth of the time.
    decoded = damage.decode_jpeg(content, image.mode, image.size, _draft(image.size, side))
    if decoded is not None:
        return decoded, None
    found = damage.jpeg_damage(content, image.size)
    _check_damage(found, accept_damaged)
    image.draft("RGB", (side, side))
    image.load()
    return image, found


def _check_damage(found: str | None, accept_damaged: bool) -> None:
    if found and not accept_damaged:
        raise ImageError("damaged", found)


def _of_dicom(
    photograph: dicom.Photograph, side: int, max_pixels: int, accept_damaged: bool
) -> tuple[Image.Image, str | None]:
    """The first frame of a DICOM photograph, RGB, and the damage that is accepted; DICOM pictures stand upright."""
    if not photograph.is_jpeg:
        array = photograph.array(max_pixels)
        return Image.fromarray(array).convert("RGB"), None
    frame = photograph.frame(max_pixels)
    image: Image.Image = Image.open(io.BytesIO(frame), formats=("JPEG",))
    if image.size != (photograph.width, photograph.height):
        raise ImageError("corrupt", "its frame is not of the size that the header says")
    _check_scans(frame, *image.size, max_pixels)
    # Without a marker that tells libjpeg the colour space DICOM's header does; libjpeg would take it for YCbCr.
    plain = image.mode == "RGB" and photograph.is_rgb and not {"jfif", "adobe"} & image.info.keys()
    if plain:
        found = damage.jpeg_damage(frame, image.size)
        _check_damage(found, accept_damaged)
        image.draft("YCbCr", (side, side))
        image.load()
        return Image.frombytes("RGB", image.size, image.tobytes()), found
    image, found = _decode_jpeg(frame, image, side, accept_damaged)
    image = image.convert("RGB")
    return (ImageOps.invert(image) if photograph.is_inverted else image), found


def _draft(size: tuple[int, int], side: int) -> int:
    """By how much libjpeg scales an image down when asked for `side` pixels: 1, 2, 4 or 8, as `Image.draft` has it."""
    scale = min(size) // side
    return next((step for step in (8, 4, 2) if scale >= step), 1)


def _decoded(source: _Source, side: int) -> tuple[Image.Image, str | None]:
    """The image as upright RGB, each side at least `side` pixels if its own is, and its damage. Raises `ImageError`."""
    try:
        image, damage_found = source.load(side)
        colours = image.getcolors(2)  # None as soon as there is a third: after a few pixels of any photograph
    except ImageError:
        raise
    except Exception as error:  # MemoryError among them; their texts may quote the content
        found = f"{type(error).__name__} while decoding {source.width} x {source.height} pixels"
        raise ImageError("corrupt", found) from None
    if colours and len(colours) == 1:
        raise ImageError("blank", "all pixels have the same colour")
    if colours and all(len(set(colour)) == 1 for _, colour in colours if isinstance(colour, tuple)):
        raise ImageError("mask", "grey with two values only")
    return image, damage_found


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Squashed to uint8 (size, size, 3)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _upright(image: Image.Image, header: Image.Image) -> Image.Image:
    """The image as RGB, turned as the EXIF data of `header`, the image as it was opened, says."""
    try:
        turn = UPRIGHT.get(header.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to lose an image
        turn = None
    rgb = _rgb(image)
    return rgb.transpose(turn) if turn is not None else rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:  # before the rest: Pillow cuts these at 255 when it converts
        deep = np.asarray(image)
        grey = (deep.clip(0, 65535) // 257).astype(np.uint8)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:
            np.subtract(255, grey, out=grey)  # white is zero; Pillow turns only 8 bits of these
        if "transparency" in image.info:
            grey[deep == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # On white, as a viewer shows it; a plain conversion would uncover whatever the hidden pixels hold.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _found(content: bytes) -> str:
    start = content[:12].lstrip().lower()
    if start.startswith((b"<!doc", b"<html")):
        return "the content is an HTML page"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in content[:64]):
        return "the content is text"
    return f"unknown content, starting with bytes {content[:4].hex()}"


def thumbnail(pixels: np.ndarray, side: int) -> bytes:
    """A JPEG of uint8 RGB pixels (h, w, 3), neither side over `side` pixels."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
