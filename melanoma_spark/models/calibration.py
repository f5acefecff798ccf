"""Calibration: corrects probabilities, so that about three in ten images with 0.3 are positive.

Fit it on validation, apply it unchanged afterwards. It is a rising function, so it changes no ranking: AUROC, ROC and
the decisions at an operating point of given sensitivity stay the same.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.config import CalibrationMethod
from melanoma_spark.errors import DataError
from melanoma_spark.metrics import arrays
from melanoma_spark.metrics.arrays import Floats

# Probabilities are float32: between 0 and 1 they end at about 1e-38 and at 1 - 2**-24; all of them keep their order.
LEAST, MOST = float(np.finfo(np.float32).tiny), 1 - 2.0**-25


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit = slope * logit + intercept. `none` returns every probability unchanged.

    Raises DataError where slope and intercept are not finite or the slope is not above 0.
    """

    method: CalibrationMethod = "none"
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.slope, self.intercept)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers) or self.slope <= 0:
            raise DataError(
                f"calibration: slope {self.slope!r}, intercept {self.intercept!r}; both must be finite numbers, the "
                "slope above 0; evaluate and register again"
            )

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrate probabilities (n,), NaN stays NaN -> (n,) float64."""
        values = np.asarray(probabilities, dtype=np.float64)
        if self.method == "none":
            return values
        return np.asarray(1 / (1 + np.exp(-(self.slope * logits(values) + self.intercept))))


def fit(labels: ArrayLike, probabilities: ArrayLike, method: CalibrationMethod = "platt") -> Calibration:
    """Fit the calibration with the least cross-entropy on these images, labels and probabilities as in `metrics`.

    `platt`: slope and intercept, on targets moved inwards by one image of each class, (N+ + 1) / (N+ + 2) and
    1 / (N- + 2), so that a perfect ranking has a finite fit (Platt, Advances in Large Margin Classifiers, 1999).
    `temperature`: the slope alone (Guo et al., ICML 2017), on the same targets; it cannot correct a wrong mean.

    Where the best slope is not above 0 - the model ranks no better than chance - there is nothing to calibrate: `none`.
    Raises DataError for invalid arrays and for images of one label only.
    """
    from scipy.optimize import minimize  # the registered model applies, and comes without SciPy

    truth, scores = arrays.check_arrays(labels, probabilities)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if method == "none":
        return Calibration()
    if not positives or not negatives:
        raise DataError(
            f"evaluate.calibration={method} needs images of both labels: all {len(truth)} have label {int(truth[0])}"
        )
    x = logits(scores)
    targets = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    free = 2 if method == "platt" else 1

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters if free == 2 else (parameters[0], 0.0)
        z = slope * x + intercept
        wrong = 1 / (1 + np.exp(-z)) - targets
        gradient = np.array([wrong @ x, wrong.sum()])[:free]
        return float(np.mean(np.logaddexp(0, z) - targets * z)), gradient / len(x)

    with np.errstate(over="ignore"):
        fitted = minimize(loss, np.array([1.0, 0.0])[:free], jac=True, method="BFGS", options={"gtol": 1e-8})
    slope, intercept = (*fitted.x, 0.0)[:2]
    if not slope > 0:
        return Calibration()
    return Calibration(method, float(slope), float(intercept))


def logits(probabilities: Floats) -> Floats:
    """log(p / (1 - p)), finite for every float32 from 0 to 1."""
    inside = np.clip(probabilities, LEAST, MOST)
    return np.asarray(np.log(inside) - np.log1p(-inside))
