"""The training reference: distributions of the training images, which show unlike images and drift.

Registration makes it once, as part of the model. It holds distributions and no rows: means, directions, counts in bins,
and no value of a category that fewer than `FEWEST` images have.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark.errors import DataError

FILES = ("reference.json", "reference.npz")
BINS = 20  # of a histogram, with as many images in each
FEWEST = 5  # images of a category that keeps its name
OTHERS, UNKNOWN = "all others", "unknown"
EXPLAINED = 0.9  # of the variance of the features, by the axes ...
MOST_AXES = 64  # ... of which there are at most so many
WITHIN = 0.99  # of the validation images have a distance of at most 1
ARRAYS = ("mean", "axes", "variances", "noise", "unit")


@dataclass(frozen=True)
class FeatureSpace:
    """A normal distribution of averaged features (c,) of length 1: probabilistic PCA (Tipping and Bishop, 1999).

    Along `axes` (k, c), which are orthonormal, the variance is `variances` (k,); across them it is `noise` everywhere.
    Features are scaled to length 1 first: else images with weak activations lie near the mean (Mueller and Hein,
    "Mahalanobis++", 2025; docs/decisions/drift.md has measurements).
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]
    noise: float
    unit: float  # a Mahalanobis distance

    def distances(self, features: ArrayLike) -> NDArray[np.float64]:
        """Mahalanobis distances (Lee et al., 2018) of features (n, c): (n,), 99 % of validation images have at most 1.

        NaN where a feature is NaN.
        """
        centered = directions(features) - self.mean
        along = centered @ self.axes.T.astype(np.float64)
        across = np.maximum((centered**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(axis=1) + across / self.noise) / self.unit)


def directions(features: ArrayLike) -> NDArray[np.float64]:
    """Scale each row of (n, c) to length 1; zeros stay zeros."""
    rows = np.asarray(features, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def fit(train: NDArray[np.float32], validation: NDArray[np.float32]) -> FeatureSpace:
    """Fit the distribution of the features (n, c) of train images; the unit comes from validation images.

    Raises `DataError` where there are fewer than two train images or no validation images.
    """
    from sklearn.decomposition import PCA

    if len(train) < 2 or not len(validation):
        counts = f"{len(train)} train and {len(validation)} validation images"
        raise DataError(f"{counts} are too few for a training reference; add images, or set register.reference=0")
    rows = directions(train)
    most = max(1, min(MOST_AXES, len(rows) // 4))  # the variance along an axis takes several images
    with np.errstate(invalid="ignore"):  # of images that are all the same
        pca = PCA(n_components=min(most, rows.shape[1] - 1), svd_solver="full").fit(rows)
    total = float(rows.var(axis=0, ddof=1).sum())
    share = np.cumsum(pca.explained_variance_) / max(total, 1e-30)
    if share[-1] > EXPLAINED:
        pca = PCA(n_components=int(np.argmax(share > EXPLAINED)) + 1, svd_solver="full").fit(rows)
    least = max(1e-9 * float(pca.explained_variance_[0]), 1e-30)  # features of a dead network have none at all
    space = FeatureSpace(
        mean=pca.mean_.astype(np.float32),
        axes=pca.components_.astype(np.float32),
        variances=np.maximum(pca.explained_variance_, least).astype(np.float32),
        noise=max(float(pca.noise_variance_), least),
        unit=1.0,
    )
    unit = float(np.quantile(space.distances(validation), WITHIN))
    return replace(space, unit=max(unit, 1e-12))


@dataclass(frozen=True)
class Histogram:
    """Counts of values by bin: bin i holds values over edge i - 1 and not over edge i."""

    edges: tuple[float, ...]  # rising, one fewer than there are bins
    counts: tuple[int, ...]


def histogram(values: ArrayLike) -> Histogram:
    """Count values in at most `BINS` bins, as even as values allow; NaN is left out. Equal values make fewer bins."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Histogram((), (0,))
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def categories(counts: Mapping[str, int], known: Sequence[str] | None = None) -> dict[str, int]:
    """Merge the counts of values that are not in `known`, by default of those of too few images.

    `unknown` is left out.
    """
    if known is None:
        known = [value for value, count in counts.items() if count >= FEWEST and value != UNKNOWN]
    merged = dict.fromkeys((*known, OTHERS), 0)
    for value, count in counts.items():
        if value != UNKNOWN:
            merged[value if value in merged else OTHERS] += count
    return merged


@dataclass(frozen=True)
class Reference:
    """Of train and validation images; `raw_probability` and `distance` of validation images alone."""

    space: FeatureSpace
    histograms: Mapping[str, Histogram]
    shares: Mapping[str, Mapping[str, int]]  # attribute of the archive's tables -> value -> images
    images: Mapping[str, int]  # split -> images whose features were used

    def pack(self) -> dict[str, bytes]:
        """Pack it into `FILES`: readable JSON, and the arrays of the feature space."""
        readable = {
            "histograms": {name: vars(counted) for name, counted in self.histograms.items()},
            "shares": {name: dict(counts) for name, counts in self.shares.items()},
            "images": dict(self.images),
        }
        arrays = io.BytesIO()
        np.savez(arrays, **{name: np.asarray(getattr(self.space, name)) for name in ARRAYS})
        return dict(
            zip(FILES, (json.dumps(readable, indent=1, sort_keys=True).encode(), arrays.getvalue()), strict=True)
        )


def unpack(contents: Mapping[str, bytes]) -> Reference:
    """Read packed files. Raises `KeyError`, `TypeError` or `ValueError` where they are damaged."""
    readable: dict[str, Any] = json.loads(contents[FILES[0]])
    try:
        with np.load(io.BytesIO(contents[FILES[1]]), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{FILES[1]}: {error}") from None
    arrays |= {name: float(arrays[name]) for name in ("noise", "unit")}
    return Reference(
        space=FeatureSpace(**arrays),
        histograms={
            name: Histogram(tuple(counted["edges"]), tuple(counted["counts"]))
            for name, counted in readable["histograms"].items()
        },
        shares=readable["shares"],
        images=readable["images"],
    )
