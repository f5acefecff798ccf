"""Whether an image is fit to be judged: measures of it, and flags where they pass a limit or the file is damaged.

Measures of pixels are taken at the size the network sees. Their default limits are those that less than one in a
hundred of 660 ISIC Archive images at 224 px passes, each (docs/decisions/quality.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config

MEASURES = ("sharpness", "brightness", "clipped", "dark_border", "warm")
RING = 16  # a 16th of the side is border
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

    sharpness: variance of the Laplacian of the grey image (Pech-Pacheco et al., ICPR 2000), in grey levels squared;
    brightness: mean grey over 255; clipped: share of pixels with a grey of 245 and more; dark_border: share of the
    outer sixteenth's pixels under 30; warm: share of pixels whose red is not under their blue. Grey is ITU-R BT.601's.
    """
    found = [_measures(images[at : at + AT_ONCE]) for at in range(0, len(images), AT_ONCE)]
    return np.concatenate(found) if found else np.zeros((0, len(MEASURES)), np.float32)


def _measures(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = images @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    size = images.shape[1]
    wide = max(1, size // RING)
    frame = np.ones((size, size), bool)
    frame[wide:-wide, wide:-wide] = False
    columns = (
        (around - 4 * inner).var(axis=(1, 2)),
        grey.mean(axis=(1, 2)) / 255,
        (grey >= CLIPPED).mean(axis=(1, 2)),
        (grey[:, frame] < DARK).mean(axis=1),
        (images[..., 0] >= images[..., 2]).mean(axis=(1, 2)),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def flags(
    found: NDArray[np.float32],
    limits: config.Quality,
    side: NDArray | None = None,
    distance: NDArray | None = None,
    damaged: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> list[tuple[str, ...]]:
    """The `FLAGS` of each row of `measures`; none where a measure is NaN, or is not given.

    side: (n,), the shorter side of the file over that of the model's input; distance: (n,), see `reference`; damaged:
    (n,), whether the decoder warned of missing or corrupt data.
    """
    sharpness, brightness, clipped, dark_border, warm = found.T
    unknown = np.full(len(found), np.nan)
    passed = {
        DAMAGED: np.zeros(len(found), bool) if damaged is None else damaged,
        "blurred": _under(sharpness, limits.sharpness),
        "dark": _under(brightness, limits.darkest),
        "bright": _over(brightness, limits.brightest),
        "clipped": _over(clipped, limits.clipped),
        "heavy_border": _over(dark_border, limits.dark_border),
        "not_skin": _under(warm, limits.warm),
        "too_small": _under(unknown if side is None else side, limits.side),
        "unlike": _over(unknown if distance is None else distance, limits.distance),
    }
    return [tuple(name for name in FLAGS if passed[name][row]) for row in range(len(found))]


def _under(values: NDArray, limit: float | None) -> Sequence[bool]:
    return np.zeros(len(values), bool) if limit is None else values < limit  # type: ignore[return-value]


def _over(values: NDArray, limit: float | None) -> Sequence[bool]:
    return np.zeros(len(values), bool) if limit is None else values > limit  # type: ignore[return-value]


def told(names: Sequence[str]) -> str:
    """Of flags, for people."""
    return "; ".join(f"{name}: {FLAGS[name]}" for name in names)
