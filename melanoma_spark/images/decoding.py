"""Decodes, orients and resizes images: bytes -> uint8 RGB at the model's size. Nothing else does, but for `damage`.

Ingest calls `decode_with_hashes` and scoring `decode`, which give the same pixels: a score is of what training saw.
Files whose headers do not bound what decoding costs, and large images, are decoded by a `child` process.
"""

import contextlib
import ctypes
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    Jpeg2KImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from melanoma_spark.errors import ImageError
from melanoma_spark.images import child, color, damage, dicom, tiff
from melanoma_spark.images.child import COPIES, DecodedImage, Request
from melanoma_spark.images.dicom_elements import SimpleFile
from melanoma_spark.images.formats import describe_content, encode, find_format, webp_size
from melanoma_spark.images.hashes import HASH_SIZE
from melanoma_spark.images.limits import (
    DEFAULT_LIMITS,
    PIXEL_BYTES,
    ImageLimits,
    check_bytes,
    check_scans,
    check_size,
)

# Part of every dataset's and feature's id, and of every model. Raise it whenever `decode` gives other pixels for the
# same bytes, and keep giving those of the versions before: a registered model scores as it did.
# 2: libjpeg scales down to WORKING_SIDE at most, so JPEGs of 512 pixels and more differ at sizes under 224.
# 3: ICC profiles are converted to sRGB; of a TIFF file of several images the largest is taken, not the first.
PIXELS_VERSION = 3
UNMANAGED = 2  # the last version without these

WORKING_SIDE = 448  # pixels, what libjpeg may scale down to: twice the usual size, so one decode serves hashes as well
MOST_IN_PROCESS = 256 * 1024 * 1024  # bytes of an image and its copies that are not left to the child
# Formats of nested structures, decoded by libraries of many formats -> what finds the files that are simple
BOUNDED: dict[str, Callable[[bytes], bytes | SimpleFile | None]] = {
    "TIFF": tiff.bounded,
    "DICOM": dicom.bounded,
    **dict.fromkeys(("JPEG2000", "AVIF"), lambda content: None),  # none of them is simple
}

# Pillow's modes of images that can become RGB. Samples of 32 bits and CIELAB are left out: no rule says which value is
# white.
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"}

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
PLUGINS = (AvifImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin)

# The reason of a broken file is in `rejects`; Pillow's own log lines would go to stderr.
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError):  # a Pillow built without libtiff
    # libtiff prints its errors itself, to the process's stderr; the symbol is warning through Pillow's own library
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class _Decoded:
    """Upright RGB, with the accepted damage."""

    image: Image.Image
    damage: str | None = None
    profile: color.Profile = None


@dataclass(frozen=True)
class _Source:
    """An image whose header was read, but not its pixels."""

    format: str
    width: int
    height: int
    scales: bool  # whether libjpeg can scale it down
    load: Callable[[int], _Decoded]  # Decodes, once; no side is scaled below so many pixels.
    memory: int = 0  # bytes that decoding takes, about
    patient: str | None = None
    study: str | None = None


def decode_with_hashes(
    content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS, version: int = PIXELS_VERSION
) -> DecodedImage:
    """Decode an image to `size` x `size` pixels, and to those of its hashes, in one pass if possible.

    `version` is that of the pixels, see `PIXELS_VERSION`. Raises `ImageError` with one of `reasons.REASONS`, and no
    other error.
    """
    return _decode(content, Request(size, limits, version, hashes=True))


def decode(
    content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS, version: int = PIXELS_VERSION
) -> NDArray[np.uint8]:
    """Decode an image as the model sees it: uint8 RGB (size, size, 3), the same as `pixels` of `decode_with_hashes`.

    The image is squashed and not cropped: lesions often reach the border. Raises `ImageError`.
    """
    return decode_described(content, size, limits, version).pixels


def decode_described(
    content: bytes, size: int, limits: ImageLimits = DEFAULT_LIMITS, version: int = PIXELS_VERSION
) -> DecodedImage:
    """The pixels of `decode` with what is known of the image; `hash_pixels` are empty. Raises `ImageError`."""
    return _decode(content, Request(size, limits, version, hashes=False))


def decode_in_child(content: bytes, request: Request) -> DecodedImage:
    """Decode in this process, which is a child that may die. Raises `ImageError`."""
    return _decode(content, request, in_child=True)


def _decode(content: bytes, request: Request, in_child: bool = False) -> DecodedImage:
    try:
        with _without_warnings():
            return _decode_within_memory(content, request, in_child)
    except MemoryError:
        raise ImageError("too_costly", "its pixels take more memory than there is for one image") from None


def _decode_within_memory(content: bytes, request: Request, in_child: bool) -> DecodedImage:
    size, limits, version = request.size, request.limits, request.version
    kind = _find_format(content)
    file: bytes | SimpleFile | None = BOUNDED[kind](content) if kind in BOUNDED and not in_child else content
    if file is None:
        return child.decode(content, request)
    source = _read_header(file, kind, limits, version)
    if source.memory > MOST_IN_PROCESS and not in_child:
        return child.decode(content, request)
    side = max(WORKING_SIDE, 2 * size)
    decoded = _decode_source(source, side)
    pixels, hash_pixels = _square(decoded.image, size), np.empty((0, HASH_SIZE, 3), np.uint8)
    if request.hashes:
        image, shape = decoded.image, (source.width, source.height)
        if source.scales and _draft(shape, side) != _draft(shape, WORKING_SIDE):  # hashes do not depend on the size
            image = _decode_source(_read_header(file, kind, limits, version), WORKING_SIDE).image
        hash_pixels = _square(image, HASH_SIZE)
    facts = source.width, source.height, source.format, decoded.damage, source.patient, source.study, decoded.profile
    return DecodedImage(pixels, hash_pixels, *facts)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags, and of bombs at Pillow's own limit; ours is checked
        yield


def _find_format(content: bytes) -> str:
    """A key of SIGNATURES. Raises `ImageError`."""
    if not content:
        raise ImageError("empty", "0 bytes")
    kind = find_format(content)
    if kind is None:
        raise ImageError(*describe_content(content))
    return kind


def _read_header(content: bytes | SimpleFile, kind: str, limits: ImageLimits, version: int) -> _Source:
    """An image whose header is within the limits, not yet decoded. Raises `ImageError`."""
    try:
        if kind == "DICOM" or isinstance(content, SimpleFile):
            source = _read_dicom(content, limits, version)
        else:
            source = _read_photograph(content, kind, limits, version)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError("too_many_pixels", "over Pillow's own limit") from None
    except Exception as error:  # its text may quote the content
        raise _explain(error, "its header cannot be read") from None
    check_size(source.width, source.height, limits.max_pixels)
    if min(source.width, source.height) < limits.min_side:
        size = f"{source.width} x {source.height} pixels"
        raise ImageError("too_small", f"{size}, each side must be at least {limits.min_side}")
    return source


def _explain(error: Exception, detail: str) -> ImageError:
    """What one of Pillow's errors means."""
    if str(error).startswith(("Decompressed data too large", "Too much memory used in text")):
        return ImageError("too_large", "its texts or its color profile unpack to more than Pillow's limits")
    return ImageError("corrupt", detail)


def _read_photograph(content: bytes, kind: str, limits: ImageLimits, version: int) -> _Source:
    """An image in one of Pillow's formats. Raises `ImageError`, or Pillow's errors if the header is broken."""
    if kind == "WEBP":  # libwebp allocates the whole canvas when it opens a file
        check_size(*webp_size(content), limits.max_pixels)
    if kind == "TIFF":
        content = _with_photograph_first(content, limits, version)
    image: Image.Image = Image.open(io.BytesIO(content), formats=(kind,))
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` is that of the upright picture
        width, height = image.tag_v2[256], image.tag_v2[257]
        # libtiff unpacks whole tiles, however little of them lies in the image
        check_size(image.tag_v2.get(322, 1), image.tag_v2.get(323, 1), limits.max_pixels, "a tile of ")
    memory = width * height * PIXEL_BYTES * (1 if image.mode in ("RGB", "L") and kind != "TIFF" else COPIES)
    if image.info.get("compression") == "jpeg":  # in a TIFF
        check_scans(content, width, height, limits.max_pixels)
    if kind == "JPEG":
        memory //= _draft((width, height), WORKING_SIDE) ** 2
        if check_scans(content, width, height, limits.max_pixels) > 1:
            memory += 2 * width * height * len(image.getbands())  # libjpeg keeps the coefficients of all scans
    if image.mode not in MODES and (kind, image.mode) != ("PNG", "I"):
        raise ImageError("not_an_image", f"samples of mode {image.mode}: it is not known which value is white")
    profile = image.info.get("icc_profile") if version > UNMANAGED else None

    def load(side: int) -> _Decoded:
        if kind == "JPEG":
            decoded, warning = _decode_jpeg(content, image, side, limits.accept_damaged)
            return _upright(decoded, image, warning, profile)
        image.load()
        warning = None
        if kind == "PNG":
            warning = damage.png_damage(content)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            warning = damage.tiff_damage(image, content)
        _check_damage(warning, limits.accept_damaged)
        return _upright(image, image, warning, profile)

    return _Source(kind, width, height, kind == "JPEG", load, memory)


def _with_photograph_first(content: bytes, limits: ImageLimits, version: int) -> bytes:
    """A TIFF file whose first image is the one to decode."""
    chosen = tiff.choose_image(content)
    if chosen is None:
        return content
    for image in chosen:
        if image.segments > tiff.MOST_SEGMENTS:
            raise ImageError("too_large", f"{image.segments} strips or tiles, the limit is {tiff.MOST_SEGMENTS}")
    best, first = chosen
    image = first if version <= UNMANAGED else best
    if image.pixels <= limits.max_pixels:  # else that is said
        check_bytes(image.unpacked, limits)
    return content if image is first else tiff.make_first(content, image)


def _read_dicom(content: bytes | SimpleFile, limits: ImageLimits, version: int) -> _Source:
    photograph = dicom.read(content, limits.allow_recognisable)
    if photograph.width * photograph.height <= limits.max_pixels:
        check_bytes(photograph.bytes, limits)
    return _Source(
        *("DICOM", photograph.width, photograph.height, photograph.is_jpeg),
        lambda side: _decode_dicom(photograph, side, limits, version),
        memory=photograph.width * photograph.height * PIXEL_BYTES * COPIES,
        patient=photograph.patient,
        study=photograph.study,
    )


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


def _decode_dicom(photograph: dicom.Photograph, side: int, limits: ImageLimits, version: int) -> _Decoded:
    """The pixels of a DICOM photograph, which is upright."""
    profile = photograph.profile if version > UNMANAGED else None
    if not photograph.is_jpeg:
        array = photograph.array(limits.max_pixels)
        rgb, state = color.to_srgb(Image.fromarray(array), profile)
        return _Decoded(rgb, None, state)
    frame = photograph.frame(limits.max_pixels)
    image: Image.Image = Image.open(io.BytesIO(frame), formats=("JPEG",))
    if image.size != (photograph.width, photograph.height):
        raise ImageError("corrupt", "its frame is not of the size that the header says")
    check_scans(frame, *image.size, limits.max_pixels)
    # Without a marker of the color space the DICOM header defines it; libjpeg would assume YCbCr.
    plain = image.mode == "RGB" and photograph.is_rgb and not {"jfif", "adobe"} & image.info.keys()
    if plain:
        warning = damage.jpeg_damage(frame, image.size)
        _check_damage(warning, limits.accept_damaged)
        image.draft("YCbCr", (side, side))
        image.load()
        image = Image.frombytes("RGB", image.size, image.tobytes())
    else:
        image, warning = _decode_jpeg(frame, image, side, limits.accept_damaged)
    if photograph.is_inverted:
        image = ImageOps.invert(image.convert("RGB"))
    rgb, state = color.to_srgb(image, profile)
    return _Decoded(rgb, warning, state)


def _draft(size: tuple[int, int], side: int) -> int:
    """The factor, 1, 2, 4 or 8, by which libjpeg scales an image down for `side` pixels, as in `Image.draft`."""
    scale = min(size) // side
    return next((step for step in (8, 4, 2) if scale >= step), 1)


def _decode_source(source: _Source, side: int) -> _Decoded:
    """The image with no side scaled below `side` pixels. Raises `ImageError`, or `MemoryError`."""
    try:
        decoded = source.load(side)
        colors = decoded.image.getcolors(2)  # None as soon as there is a third: after a few pixels of any photograph
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # its text may quote the content
        detail = f"{type(error).__name__} while decoding {source.width} x {source.height} pixels"
        raise _explain(error, detail) from None
    if colors and len(colors) == 1:
        raise ImageError("blank", "all pixels have the same color")
    if colors and all(len(set(color)) == 1 for _, color in colors if isinstance(color, tuple)):
        raise ImageError("mask", "gray with two values only")
    return decoded


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The image squashed to uint8 (size, size, 3)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _upright(image: Image.Image, header: Image.Image, warning: str | None, profile: bytes | None) -> _Decoded:
    """The image as sRGB, turned by the EXIF data of `header`, which is the image as it was opened."""
    try:
        turn = UPRIGHT.get(header.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF must not cost the image
        turn = None
    rgb, state = color.to_srgb(image, profile)
    return _Decoded(rgb.transpose(turn) if turn is not None else rgb, warning, state)


def thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    """A JPEG of uint8 RGB pixels (h, w, 3), neither side over `side` pixels."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return encode(small, "JPEG", quality=80)
