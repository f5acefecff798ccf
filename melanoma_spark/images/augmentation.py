"""Random changes of training images that a dermatologist would call the same lesion: moved, and otherwise lit.

An image's pixels depend on the settings, the seed, the view or epoch and the image's own key, and on nothing else: not
on the number of ranks, not on the order in which images are read.
"""

from __future__ import annotations

import hashlib
import math

import cv2
import numpy as np

from melanoma_spark import config

# Part of the id of features of augmented views. Raise it whenever the same settings and draws give other pixels.
VERSION = 1

# Rec. 709's share of red, green and blue in luminance, to the digits of `feColorMatrix` in W3C's Filter Effects Module
# Level 1, whose matrices for `saturate` and `hueRotate` `_colours` follows: grey stays grey, luminance stays.
LUMINANCE = np.array([0.213, 0.715, 0.072])
HUE = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])

DRAWS = 13  # numbers that an image takes of its generator, whatever is set, so that no setting moves another one's draw

# A task and a rank have the cores that Spark gives them; OpenCV would take all of the machine for each. For one image
# of these sizes it gains nothing by them. Of this process as a whole, as OpenCV has no other switch.
cv2.setNumThreads(1)


def generator(seed: int, view: int, sha256: str) -> np.random.Generator:
    """The random numbers of one view of one image; where there are no stored views, `view` is the epoch."""
    digest = hashlib.sha256(f"{seed} {view} {sha256}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def augmented(image: np.ndarray, settings: config.Augment, generator: np.random.Generator) -> np.ndarray:
    """uint8 RGB (h, w, 3) -> the same lesion otherwise, uint8 (h, w, 3); the array itself where nothing is to change.

    Flips, turn, zoom and shift are one warp, so pixels are interpolated once; what lies outside is the picture
    reflected at its edge. Brightness, contrast, saturation and hue are one matrix. Each amount is drawn evenly between
    none and what the settings name, to both sides. Raises `ValueError` for another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image of {image.dtype} {image.shape} cannot be augmented; it takes uint8 (h, w, 3)")
    drawn = generator.random(DRAWS)
    if not settings.enabled:
        return image
    found = image
    height, width, _ = image.shape
    move = _move(height, width, settings, drawn[:6])
    if not np.array_equal(move, np.eye(3)):
        found = cv2.warpAffine(
            found, move[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
    colours = _colours(found, settings, 2 * drawn[6:10] - 1)
    if not np.array_equal(colours, np.eye(3, 4)):
        found = cv2.transform(found, colours)  # rounds, and cuts at 0 and 255
    side = round(settings.cutout * drawn[10] * min(height, width))
    if side:
        found = found.copy() if found is image else found
        top, left = int(drawn[11] * (height + 1 - side)), int(drawn[12] * (width + 1 - side))
        # by the mean colour: black corners and spots are known short cuts of networks
        found[top : top + side, left : left + side] = np.rint(cv2.mean(found)[:3])
    return found


def _move(height: int, width: int, settings: config.Augment, drawn: np.ndarray) -> np.ndarray:
    """The place (x, y, 1) of a pixel -> its new place, float64 (3, 3): about the middle, then shifted."""
    x, y = (width - 1) / 2, (height - 1) / 2
    across, along = np.where(drawn[:2] < 0.5, -1, 1) if settings.flip else (1, 1)
    turn, zoom, right, down = 2 * drawn[2:] - 1
    angle, scale = math.radians(settings.turn * turn), 1 + settings.zoom * zoom
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    about = np.array([[cos * across, -sin * along, 0], [sin * across, cos * along, 0], [0, 0, 1]])
    there = np.array(
        [[1, 0, x + settings.shift * right * width], [0, 1, y + settings.shift * down * height], [0, 0, 1]]
    )
    return there @ about @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])


def _colours(image: np.ndarray, settings: config.Augment, drawn: np.ndarray) -> np.ndarray:
    """A pixel (r, g, b, 1) -> its new colour, float64 (3, 4), exactly the identity where nothing is to change.

    Hue and saturation first; then contrast, about the picture's mean luminance; then brightness.
    """
    brightness, contrast, saturation = 1 + drawn[:3] * (settings.brightness, settings.contrast, settings.saturation)
    matrix = np.eye(3)
    if settings.hue or settings.saturation:
        angle = 2 * math.pi * settings.hue * drawn[3]
        grey = np.tile(LUMINANCE, (3, 1))
        matrix = grey + saturation * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * HUE)
    middle = LUMINANCE @ cv2.mean(image)[:3] if settings.contrast else 0.0
    offset = np.full((3, 1), (1 - contrast) * middle)
    return brightness * np.hstack([contrast * matrix, offset])
