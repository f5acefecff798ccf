"""Arrays of labels, probabilities and groups as all metrics take them, checked."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark.errors import ConfigError, DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def check_arrays(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Return int64 labels and float64 probabilities, both (n,); raises `DataError` as `binary` says."""
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    for name, values in (("labels", truth), ("probabilities", scores)):
        if values.ndim != 1:
            raise DataError(f"{name} must be one-dimensional, found shape {values.shape}")
    if len(truth) != len(scores):
        raise DataError(f"labels and probabilities differ in length: {len(truth)} and {len(scores)}")
    if len(truth) == 0:
        raise DataError("no rows: labels and probabilities are empty")
    for name, values in (("labels", truth), ("probabilities", scores)):
        if values.dtype.kind not in "biuf":
            raise DataError(f"{name} must be numbers, found dtype {values.dtype}")
    _refuse("labels are neither 0 nor 1", truth, ~np.isin(truth, (0, 1)))
    _refuse("probabilities are NaN", scores, np.isnan(scores))
    _refuse("probabilities lie outside [0, 1]", scores, (scores < 0) | (scores > 1))
    return truth.astype(np.int64), scores.astype(np.float64)


def _refuse(complaint: str, values: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
    if wrong.any():
        rows = np.flatnonzero(wrong)
        shown = ", ".join(f"{values[row]} in row {row}" for row in rows[:3])
        more = ", ..." if len(rows) > 3 else ""
        raise DataError(f"{len(rows)} of {len(values)} {complaint}: {shown}{more}")


def group_index(groups: ArrayLike, n: int) -> tuple[Ints, int]:
    """The group of each image as 0 .. group_count - 1 in sorted order, so that no draw depends on the order of rows."""
    named = np.asarray(groups)
    if named.shape != (n,):
        raise DataError(f"groups must have shape ({n},) like labels, found {named.shape}")
    if named.dtype.kind == "O":
        texts = np.array([isinstance(name, str) for name in named])
        _refuse("groups are not text", named, ~texts)
        named = named.astype(str)
    elif named.dtype.kind == "f":
        # NaN is how a missing integer reaches an array; np.unique would make one large group of the missing ones.
        _refuse("groups are NaN", named, np.isnan(named))
    names, index = np.unique(named, return_inverse=True)
    return index.astype(np.int64), len(names)


def check_fraction(name: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], found {value}")
