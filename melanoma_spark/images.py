"""Image bytes -> uint8 RGB at model size. The only place that decodes, orients or resizes.

Ingest and scoring both call `decode`, so a score is computed from the very pixels that training saw.
"""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from melanoma_spark.errors import ImageError

REASONS = {
    "empty": "the file has no bytes",
    "hidden": "its name, or a folder's, starts with . or _; rename it to have it read",
    "unreadable_name": "its name holds a colon, which Hadoop does not read from a local disk; rename it",
    "too_many_bytes": "the file is over ingest.max_bytes and was not read",
    "not_an_image": "the content is not JPEG or PNG, whatever the name says",
    "corrupt": "the image cannot be decoded to its end",
    "too_many_pixels": "the image is over ingest.max_pixels and was not decoded",
    "too_small": "a side is under ingest.min_side pixels",
    "no_label": "neither metadata.csv nor the folder gives a label",
    "unknown_label": "the label is in neither ingest.labels.positive nor ingest.labels.negative",
    "conflicting_labels": "images of the same pixels carry different labels",
    "duplicate": "another image with the same pixels is kept",
}

# Part of every dataset's and feature's id. Raise it whenever `decode` gives other pixels for the same bytes.
PIXELS_VERSION = 1

HASH_SIZE = 128  # pixels, the side at which ingest takes the hashes that tell duplicates

# By content, not by name: suffixes lie. Other decoders stay shut, which keeps their bugs out of reach.
FORMATS = ("JPEG", "PNG")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def decode(content: bytes, size: int, min_side: int = 1, max_pixels: int = 100_000_000) -> np.ndarray:
    """The image as the model sees it: uint8 RGB of shape (size, size, 3), upright, squashed to a square.

    The whole image is kept rather than a centre crop: lesions often reach the border. Raises `ImageError` with one of
    `REASONS`.
    """
    if not content:
        raise ImageError("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of a bomb at its own limit; ours is checked below
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ImageError("too_many_pixels", "over Pillow's own limit") from None
        except Exception as error:
            if content.startswith(SIGNATURES):
                raise ImageError("corrupt", "its header cannot be read") from error
            raise ImageError("not_an_image", _found(content)) from error
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height} pixels, the limit is {max_pixels}")
        if min(width, height) < min_side:
            raise ImageError("too_small", f"{width} x {height} pixels, each side must be at least {min_side}")
        try:
            # libjpeg scales down while it decodes, never below twice the target: a large photograph takes a tenth
            # of the time. A no-op for PNG and for images under four times the target.
            image.draft("RGB", (2 * size, 2 * size))
            image.load()
            image = ImageOps.exif_transpose(image)
            image = _rgb(image)
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        except Exception as error:
            raise ImageError("corrupt", f"{type(error).__name__} while decoding {width} x {height} pixels") from error
    return np.asarray(image, dtype=np.uint8)


def dimensions(content: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image file as it came, before orientation and resizing."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.size


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes: the identity of an image file."""
    return hashlib.sha256(content).hexdigest()


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of decoded pixels: equal for the same picture in another container or with other metadata."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """A difference hash of 8 x 8 bits as 16 hexadecimal digits, equal under quarter turns and mirroring.

    Each bit says whether brightness rises to the right (dHash, Krawetz 2013). The smallest of the eight
    orientations' hashes stands for the image.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)
    height, width = grey.shape
    # Whole numbers, so exact: Pillow's box filter rounds between its two passes, and a turned image gets other values.
    small = _overlap(height, 24) @ grey @ _overlap(width, 24).T
    hashes = []
    for turns in range(4):
        turned = np.rot90(small, turns)
        for view in (turned, turned[:, ::-1]):
            hashes.append(_dhash(view))
    return min(hashes)


def _overlap(side: int, cells: int) -> np.ndarray:
    """How much of each of `side` pixels lies in each of `cells` equal cells: (cells, side), in 1/cells pixel."""
    pixel, cell = np.arange(side) * cells, np.arange(cells)[:, None] * side
    return (np.minimum(pixel + cells, cell + side) - np.maximum(pixel, cell)).clip(0).astype(np.float64)


def _dhash(square: np.ndarray) -> str:
    # three columns to a cell and the middle one left out, so that a mirrored image compares the same two
    cells = square.reshape(8, 3, 8, 3).sum(axis=1)
    return np.packbits(cells[:, :, 2] > cells[:, :, 0]).tobytes().hex()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):  # before the rest: Pillow cuts these at 255 when it converts
        deep = np.asarray(image, dtype=np.float32)
        grey = (deep / 257.0).clip(0, 255).astype(np.uint8)
        grey[deep == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # On white, as a viewer shows it; a plain conversion would uncover whatever the hidden pixels hold.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _found(content: bytes) -> str:
    start = content[:12].lstrip().lower()
    if start.startswith((b"<!doc", b"<html")):
        return "the content is an HTML page"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in content[:64]):
        return "the content is text"
    return f"unknown content, starting with bytes {content[:4].hex()}"
