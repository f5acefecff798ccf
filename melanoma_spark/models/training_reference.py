"""What the images that a model learnt from look like to it: by what is unlike them one is told, and drift of many.

Made once, at registration, and part of the registered model. It holds distributions and no rows: means, directions,
counts in bins, and no value of a category that fewer than `FEWEST` images have.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark.errors import DataError

FILES = ("reference.json", "reference.npz")
BINS = 20  # of a histogram, with as many images in each
FEWEST = 5  # images of a category that is told by its name
OTHERS, UNKNOWN = "all others", "unknown"
EXPLAINED = 0.9  # of the variance of the features, by the directions that are kept ...
MOST_AXES = 64  # ... and at most so many
WITHIN = 0.99  # of the validation images are as near as 1
ARRAYS = ("mean", "axes", "variances", "noise", "unit")


@dataclass(frozen=True)
class FeatureSpace:
    """A normal distribution of averaged features (c,) of length 1: probabilistic PCA (Tipping and Bishop, 1999).

    Along `axes` (k, c), which are orthonormal, the variance is `variances` (k,); across them it is `noise` everywhere.
    Features are brought to length 1 first: else all that a network sees little in lies near the mean (Mueller and Hein,
    "Mahalanobis++", 2025; docs/decisions/drift.md has what was measured here).
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]
    noise: float
    unit: float  # a Mahalanobis distance

    def distances(self, features: ArrayLike) -> NDArray[np.float64]:
        """(n, c) -> (n,): Mahalanobis distances (Lee et al., 2018), with 1 where 99 % of validation images are nearer.

        NaN where a feature is.
        """
        centred = directions(features) - self.mean
        along = centred @ self.axes.T.astype(np.float64)
        across = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(axis=1) + across / self.noise) / self.unit)


def directions(features: ArrayLike) -> NDArray[np.float64]:
    """(n, c) -> the same, each of length 1; zeros stay zeros."""
    rows = np.asarray(features, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def fit(train: NDArray, validation: NDArray) -> FeatureSpace:
    """The distribution of the features (n, c) of train images; the unit is of validation's, which training never saw.

    Raises `DataError` where there are fewer than two train images or no validation images.
    """
    from sklearn.decomposition import PCA

    if len(train) < 2 or not len(validation):
        found = f"{len(train)} train and {len(validation)} validation images"
        raise DataError(f"{found} are too few to learn their look from; add images, or set register.reference=0")
    rows = directions(train)
    most = max(1, min(MOST_AXES, len(rows) // 4))  # a direction takes several images to know its variance
    with np.errstate(invalid="ignore"):  # of images that are all the same
        found = PCA(n_components=min(most, rows.shape[1] - 1), svd_solver="full").fit(rows)
    total = float(rows.var(axis=0, ddof=1).sum())
    share = np.cumsum(found.explained_variance_) / max(total, 1e-30)
    if share[-1] > EXPLAINED:
        found = PCA(n_components=int(np.argmax(share > EXPLAINED)) + 1, svd_solver="full").fit(rows)
    least = max(1e-9 * float(found.explained_variance_[0]), 1e-30)  # features of a dead network have none at all
    space = FeatureSpace(
        mean=found.mean_.astype(np.float32),
        axes=found.components_.astype(np.float32),
        variances=np.maximum(found.explained_variance_, least).astype(np.float32),
        noise=max(float(found.noise_variance_), least),
        unit=1.0,
    )
    unit = float(np.quantile(space.distances(validation), WITHIN))
    return FeatureSpace(**{**vars(space), "unit": max(unit, 1e-12)})


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin: bin i holds what is over edge i - 1 and not over edge i."""

    edges: tuple[float, ...]  # rising, one fewer than there are bins
    counts: tuple[int, ...]


def histogram(values: ArrayLike) -> Histogram:
    """Of at most `BINS` bins, as even as values allow; NaN is left out. Where many values are equal there are fewer."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Histogram((), (0,))
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def categories(counts: Mapping[str, int], known: Sequence[str] | None = None) -> dict[str, int]:
    """Counts by value, those of values outside of `known` taken together; by default of what too few images have.

    Images of which nothing is said are left out.
    """
    if known is None:
        known = [value for value, count in counts.items() if count >= FEWEST and value != UNKNOWN]
    found = dict.fromkeys((*known, OTHERS), 0)
    for value, count in counts.items():
        if value != UNKNOWN:
            found[value if value in found else OTHERS] += count
    return found


@dataclass(frozen=True)
class Reference:
    """Of train and validation images; `raw_probability` and `distance` of validation images alone."""

    space: FeatureSpace
    histograms: Mapping[str, Histogram]
    shares: Mapping[str, Mapping[str, int]]  # images by value of what the archive's tables say
    images: Mapping[str, int]  # by split, whose features were looked at

    def pack(self) -> dict[str, bytes]:
        """As `FILES`: what a person can read, and the arrays of the feature space."""
        told = {
            "histograms": {name: vars(found) for name, found in self.histograms.items()},
            "shares": {name: dict(found) for name, found in self.shares.items()},
            "images": dict(self.images),
        }
        arrays = io.BytesIO()
        np.savez(arrays, **{name: np.asarray(getattr(self.space, name)) for name in ARRAYS})
        return dict(zip(FILES, (json.dumps(told, indent=1, sort_keys=True).encode(), arrays.getvalue()), strict=True))


def unpack(contents: Mapping[str, bytes]) -> Reference:
    """What `pack` made. Raises `KeyError`, `TypeError` or `ValueError` where it was damaged."""
    told: dict[str, Any] = json.loads(contents[FILES[0]])
    try:
        with np.load(io.BytesIO(contents[FILES[1]]), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{FILES[1]}: {error}") from None
    arrays |= {name: float(arrays[name]) for name in ("noise", "unit")}
    return Reference(
        space=FeatureSpace(**arrays),
        histograms={
            name: Histogram(tuple(found["edges"]), tuple(found["counts"])) for name, found in told["histograms"].items()
        },
        shares=told["shares"],
        images=told["images"],
    )
