"""Random changes of training images after which a dermatologist still sees the same lesion: of place and of light.

The changes depend on the settings, the seed, the view or epoch and the image's hash alone: not on the number of ranks,
and not on the order in which images are read.
"""

import hashlib
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config

# Part of the id of features of augmented views. Raise it if the same settings and numbers give other pixels.
VERSION = 1

# Rec. 709's share of red, green and blue in luminance, to the digits of `feColorMatrix` in W3C's Filter Effects Module
# Level 1. `_color_matrix` uses its matrices for `saturate` and `hueRotate`: gray stays gray, luminance stays the same.
LUMINANCE = np.array([0.213, 0.715, 0.072])
HUE = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])

DRAWS = 13  # random numbers of an image, whatever is set, so that no setting changes the numbers of another one

# A task or a rank has the cores that Spark gives it; OpenCV would use all of the machine, and gains nothing by that for
# one image of these sizes. This holds for the whole process: OpenCV has no other switch.
cv2.setNumThreads(1)


def generator(seed: int, view: int, sha256: str) -> np.random.Generator:
    """The random numbers of one view of one image; without stored views, `view` is the epoch."""
    digest = hashlib.sha256(f"{seed} {view} {sha256}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def augment(image: NDArray[np.uint8], settings: config.Augment, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Change an image, uint8 RGB (h, w, 3), at random; returns the array itself if nothing is to change.

    Flips, turn, zoom and shift are one warp, so pixels are interpolated once; outside the image is its reflection.
    Brightness, contrast, saturation and hue are one matrix. Each amount is uniform from minus to plus that of the
    settings. Raises `ValueError` for another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image of {image.dtype} {image.shape} cannot be augmented; it takes uint8 (h, w, 3)")
    drawn = generator.random(DRAWS)
    if not settings.enabled:
        return image
    changed = image
    height, width, _ = image.shape
    move = _move_matrix(height, width, settings, drawn[:6])
    if not np.array_equal(move, np.eye(3)):
        linear, reflect = cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101
        warped = cv2.warpAffine(changed, move[:2], (width, height), flags=linear, borderMode=reflect)
        changed = np.asarray(warped, np.uint8)
    colors = _color_matrix(changed, settings, 2 * drawn[6:10] - 1)
    if not np.array_equal(colors, np.eye(3, 4)):
        changed = np.asarray(cv2.transform(changed, colors), np.uint8)  # rounds, and clips at 0 and 255
    side = round(settings.cutout * drawn[10] * min(height, width))
    if side:
        changed = changed.copy() if changed is image else changed
        top, left = int(drawn[11] * (height + 1 - side)), int(drawn[12] * (width + 1 - side))
        # Filled with the mean color: black corners and spots are known shortcuts of networks
        changed[top : top + side, left : left + side] = np.rint(cv2.mean(changed)[:3])
    return changed


def _move_matrix(height: int, width: int, settings: config.Augment, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place (x, y, 1) of a pixel -> its new place, float64 (3, 3): flip, turn and zoom about the middle, then shift."""
    x, y = (width - 1) / 2, (height - 1) / 2
    across, along = np.where(drawn[:2] < 0.5, -1, 1) if settings.flip else (1, 1)
    turn, zoom, right, down = 2 * drawn[2:] - 1
    angle, scale = math.radians(settings.turn * turn), 1 + settings.zoom * zoom
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    about = np.array([[cos * across, -sin * along, 0], [sin * across, cos * along, 0], [0, 0, 1]])
    there = np.array(
        [[1, 0, x + settings.shift * right * width], [0, 1, y + settings.shift * down * height], [0, 0, 1]]
    )
    return np.asarray(there @ about @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]]))


def _color_matrix(
    image: NDArray[np.uint8], settings: config.Augment, drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Color (r, g, b, 1) of a pixel -> its new color, float64 (3, 4); exactly the identity if nothing is to change.

    Hue and saturation come first, then contrast about the mean luminance of the image, then brightness.
    """
    brightness, contrast, saturation = 1 + drawn[:3] * (settings.brightness, settings.contrast, settings.saturation)
    matrix = np.eye(3)
    if settings.hue or settings.saturation:
        angle = 2 * math.pi * settings.hue * drawn[3]
        gray = np.tile(LUMINANCE, (3, 1))
        matrix = gray + saturation * (math.cos(angle) * (np.eye(3) - gray) + math.sin(angle) * HUE)
    middle = LUMINANCE @ cv2.mean(image)[:3] if settings.contrast else 0.0
    offset = np.full((3, 1), (1 - contrast) * middle)
    return np.asarray(brightness * np.hstack([contrast * matrix, offset]))
