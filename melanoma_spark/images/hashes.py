"""Hashes of files and of pixels: the identity of an image, and what finds its duplicates."""

import functools
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIZE = 128  # pixels, the side of the pixels that are hashed
THUMBNAIL_SIDE = 32  # pixels; what twins are found by


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes: the identity of an image file."""
    return hashlib.sha256(content).hexdigest()


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of decoded pixels: equal for the same picture in another file format or with other metadata."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)  # not a copy
    return digest.hexdigest()


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """A difference hash of 8 x 8 bits as 16 hexadecimal digits, equal under quarter turns and mirroring.

    `pixels` is uint8 (height, width, 3). Each bit says whether brightness rises to the right (dHash, Krawetz 2013). The
    smallest of the hashes of all eight orientations is that of the image.
    """
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    height, width = gray.shape
    # Whole numbers, so exact: Pillow's box filter rounds between its two passes, and a turned image gets other values.
    # The largest is the sum of three cells, 3 * 255 * height * width: float32 holds it at HASH_SIZE.
    exact = np.dtype(np.float32 if 3 * 255 * height * width < 2**24 else np.float64)
    small = _overlap(height, 24, exact) @ gray.astype(exact) @ _overlap(width, 24, exact).T
    views = []
    for cells in (small, small.T):
        # three columns to a cell and the middle one left out, so that a mirrored image compares the same two
        rows = cells.reshape(8, 3, 24).sum(axis=1)
        left, right = rows[:, 0::3], rows[:, 2::3]
        rises, falls = right > left, left > right
        # as it is, upside down, mirrored (a rise becomes a fall) and both
        views += [rises, rises[::-1], falls[:, ::-1], falls[::-1, ::-1]]
    return min(bytes(bits) for bits in np.packbits(np.reshape(views, (8, 64)), axis=1)).hex()


def gray_thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean gray levels of `THUMBNAIL_SIDE` x `THUMBNAIL_SIDE` cells of uint8 (HASH_SIZE, HASH_SIZE, 3)."""
    return np.asarray(Image.fromarray(pixels).convert("L").reduce(HASH_SIZE // THUMBNAIL_SIDE))


@functools.lru_cache(maxsize=16)
def _overlap(side: int, cells: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """How much of each of `side` pixels lies in each of `cells` equal cells: (cells, side), in 1/cells pixel."""
    pixel, cell = np.arange(side) * cells, np.arange(cells)[:, None] * side
    return np.asarray((np.minimum(pixel + cells, cell + side) - np.maximum(pixel, cell)).clip(0), dtype)
