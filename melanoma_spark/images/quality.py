"""Quality of an image: measures of it, and flags if they pass a limit or the file is damaged.

Measures are of the pixels at the network's input size. Of 660 ISIC Archive images at 224 px, less than one in a hundred
passes each default limit (docs/decisions/quality.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config
from melanoma_spark.attributes import PIXEL_MEASURES

MEASURES = tuple(PIXEL_MEASURES)
BORDER = 16  # a 16th of the side is border
DARK, CLIPPED = 30, 245  # of 255
DAMAGED = "damaged"
FLAGS = {
    DAMAGED: "the file is damaged: a part of the picture may be missing",
    "blurred": "sharpness is low: out of focus, or moved",
    "dark": "underexposed",
    "bright": "overexposed",
    "clipped": "much of it is white: a reflection, or overexposed",
    "heavy_border": "the border is black: a dermatoscope's edge, or a frame",
    "not_skin": "few pixels are redder than blue, as skin is",
    "too_small": "the file has fewer pixels than the model takes, so it was enlarged",
    "unlike": "far from the training images in feature space",
}
AT_ONCE = 32  # images measured in one go


def measures(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 RGB (n, size, size, 3) -> (n, 5) float32, columns as `MEASURES`.

    sharpness: variance of the Laplacian of the gray image (Pech-Pacheco et al., ICPR 2000), in gray levels squared;
    brightness: mean gray over 255; clipped: share of pixels with a gray of 245 and more; dark_border: share of the
    pixels in the outer sixteenth under 30; warm: share of pixels with at least as much red as blue. Gray is that of
    ITU-R BT.601.
    """
    parts = [_measures(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros((0, len(MEASURES)), np.float32)


def _measures(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    gray = images @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    size = images.shape[1]
    wide = max(1, size // BORDER)
    frame = np.ones((size, size), bool)
    frame[wide:-wide, wide:-wide] = False
    columns = (
        (around - 4 * inner).var(axis=(1, 2)),
        gray.mean(axis=(1, 2)) / 255,
        (gray >= CLIPPED).mean(axis=(1, 2)),
        (gray[:, frame] < DARK).mean(axis=1),
        (images[..., 0] >= images[..., 2]).mean(axis=(1, 2)),
    )
    return np.asarray(np.stack(columns, axis=1), np.float32)


def flags(
    values: NDArray[np.float32],
    limits: config.Quality,
    side: NDArray[Any] | None = None,
    distance: NDArray[Any] | None = None,
    damaged: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> list[tuple[str, ...]]:
    """The `FLAGS` of each row of `measures`. A measure that is NaN, or is not given, sets no flag.

    Args:
        values: (n, 5), from `measures`.
        limits: the settings `score.quality`.
        side: (n,), the shorter side of the image in the file over that of the model's input.
        distance: (n,), in feature space, see `training_reference`.
        damaged: (n,), whether the decoder warned of missing or corrupt data.
    """
    sharpness, brightness, clipped, dark_border, warm = values.T
    unknown = np.full(len(values), np.nan)
    bound = {name: np.nan if value is None else value for name, value in limits.model_dump(exclude={"action"}).items()}
    passed = {
        DAMAGED: np.zeros(len(values), bool) if damaged is None else damaged,
        "blurred": sharpness < bound["sharpness"],
        "dark": brightness < bound["darkest"],
        "bright": brightness > bound["brightest"],
        "clipped": clipped > bound["clipped"],
        "heavy_border": dark_border > bound["dark_border"],
        "not_skin": warm < bound["warm"],
        "too_small": (unknown if side is None else side) < bound["side"],
        "unlike": (unknown if distance is None else distance) > bound["distance"],
    }
    return [tuple(name for name in FLAGS if passed[name][row]) for row in range(len(values))]


def describe_flags(names: Sequence[str]) -> str:
    """The meaning of flags in one line."""
    return "; ".join(f"{name}: {FLAGS[name]}" for name in names)
