"""What decoding an image may cost, as far as its header tells."""

from dataclasses import dataclass

from melanoma_spark.errors import ImageError

MAX_SIDE = 65_535  # pixels; larger declared sizes are bogus and would exhaust memory
MAX_SCANS = 32  # of a progressive JPEG at the limit of pixels; an image of fewer pixels may have more of them
PIXEL_BYTES = 4  # for each of `max_pixels`: those of RGBA or CMYK


@dataclass(frozen=True)
class ImageLimits:
    """Which images are accepted.

    Attributes:
        min_side: the least width and height of the image in the file, in pixels.
        max_pixels: the most pixels of the image in the file.
        allow_recognisable: accept DICOM photographs whose header says that the patient can be recognized.
        accept_damaged: accept images that can be decoded, though the decoder warns of missing or corrupt data.
        max_seconds: the most processor seconds of a child for the image.
    """

    min_side: int = 1
    max_pixels: int = 100_000_000
    allow_recognisable: bool = False
    accept_damaged: bool = False
    max_seconds: int = 60

    @property
    def max_bytes(self) -> int:
        """The most bytes of an image in memory."""
        return PIXEL_BYTES * self.max_pixels


DEFAULT_LIMITS = ImageLimits()


def check_size(width: int, height: int, max_pixels: int, what: str = "") -> None:
    """Raise `ImageError` if an image, or `what` of it, has too many pixels."""
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, the limit is {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise ImageError("too_many_pixels", f"{what}{width} x {height} pixels, no side may be over {MAX_SIDE}")


def check_scans(content: bytes, width: int, height: int, max_pixels: int) -> int:
    """The number of scans of a JPEG, or more. Raises `ImageError` if these are too many."""
    # For each scan of a few bytes libjpeg goes through all pixels: a small file could keep it busy for hours.
    scans = content.count(b"\xff\xda")
    if scans * width * height > MAX_SCANS * max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels in {scans} scans")
    return scans


def check_bytes(number: int, limits: ImageLimits) -> None:
    """Raise `ImageError` if the pixels of an image take too many bytes."""
    if number > limits.max_bytes:
        raise ImageError(
            "too_large", f"{number} bytes of pixels, the limit is {PIXEL_BYTES} for each of {limits.max_pixels} pixels"
        )
