"""Counts of images by threshold, and the figures that follow from them, for one set of images or for many resamples.

Figures take cumulative counts of positives and negatives by falling threshold, each (..., k). One image may count
several times, as in a resample. They return (...,) float64, NaN where a class is missing. `figure` computes one of them
for a set of images.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics.arrays import Floats, Ints, check_arrays, check_fraction

# Cumulative counts of positives and of negatives by falling threshold, each (..., k), and rates -> (...,)
Statistic = Callable[..., Floats]


class ThresholdCounts(NamedTuple):
    """How many images are at or above each observed score.

    thresholds: (k,) float64, the distinct scores, falling.
    true_positives, false_positives: (k,) int64, images of label 1 and 0 with probability >= threshold. The last entry
    holds all images of the class.
    """

    thresholds: Floats
    true_positives: Ints
    false_positives: Ints


def counts_by_threshold(labels: ArrayLike, probabilities: ArrayLike) -> ThresholdCounts:
    """Counts at every observed score, from which ROC, precision and operating points follow exactly."""
    truth, scores = check_arrays(labels, probabilities)
    ascending, block = np.unique(scores, return_inverse=True)
    positives = np.bincount(block[truth == 1], minlength=len(ascending))
    negatives = np.bincount(block[truth == 0], minlength=len(ascending))
    return ThresholdCounts(ascending[::-1], np.cumsum(positives[::-1]), np.cumsum(negatives[::-1]))


def figure(statistic: Statistic, labels: ArrayLike, probabilities: ArrayLike, **at: float) -> float:
    """A figure of this module, such as `average_precision`, for a set of images; raises as `binary` does."""
    _, true_positives, false_positives = counts_by_threshold(labels, probabilities)
    return float(statistic(true_positives, false_positives, **at))


def average_precision(true_positives: Ints, false_positives: Ints) -> Floats:
    """Average precision: the precision at each observed score, weighted by the recall gained there.

    A step function, not the trapezoids that Davis and Goadrich (ICML 2006) show to be too high. Chance level is the
    prevalence, so report both.
    """
    both = true_positives + false_positives
    precision = np.divide(true_positives, both, out=np.zeros(both.shape), where=both > 0)
    return ratio(
        (np.diff(true_positives, prepend=0) * precision).sum(axis=-1), *_totals(true_positives, false_positives)
    )


def area_above_sensitivity(true_positives: Ints, false_positives: Ints, sensitivity: float = 0.8) -> Floats:
    """The area under the ROC and above the sensitivity: 1 - sensitivity is perfect, 0.2 by default.

    The partial AUC of ISIC 2024 (`p_auc_tpr`, "pAUC above 80 % TPR"); not that of ISIC's scorer, which is
    `area_right_of_sensitivity`. Raises ConfigError unless 0 < sensitivity <= 1.
    """
    return _area(true_positives, false_positives, sensitivity)[0]


def area_right_of_sensitivity(true_positives: Ints, false_positives: Ints, sensitivity: float = 0.8) -> Floats:
    """The area under the ROC right of the point where the sensitivity is reached, down to zero: 1.0 is perfect.

    `auc_sens_80` of ISIC's scorer (isic-challenge-scoring 5.6.0, `auc_above_sensitivity`); not ISIC 2024's partial AUC,
    which is `area_above_sensitivity`. The ROC is a straight line between its points. Raises ConfigError unless
    0 < sensitivity <= 1.
    """
    above, width = _area(true_positives, false_positives, sensitivity)
    return above + sensitivity * width


def best_sensitivity(true_positives: Ints, false_positives: Ints, specificity: float) -> Floats:
    """The highest sensitivity of the thresholds whose specificity is at least this, on these very images.

    Points of the ROC only, nothing in between: each is a threshold that one can set. 0 where only a threshold above all
    probabilities is that specific.
    """
    check_fraction("specificity", specificity)
    positives, negatives = _totals(true_positives, false_positives)
    # Not 1 - false positive rate, whose rounding would miss a rate that is met exactly.
    kept = ratio(negatives[..., None] - false_positives, negatives[..., None]) >= specificity
    return ratio(np.where(kept, true_positives, 0).max(axis=-1), positives, negatives)


def best_specificity(true_positives: Ints, false_positives: Ints, sensitivity: float) -> Floats:
    """The highest specificity of the thresholds whose sensitivity is at least this; see `best_sensitivity`."""
    check_fraction("sensitivity", sensitivity)
    positives, negatives = _totals(true_positives, false_positives)
    kept = ratio(true_positives, positives[..., None]) >= sensitivity
    most = np.where(kept, negatives[..., None] - false_positives, 0).max(axis=-1)
    return ratio(np.where(sensitivity == 0, negatives, most), negatives, positives)


def _totals(true_positives: Ints, false_positives: Ints) -> tuple[Ints, Ints]:
    """All positives and all negatives, each (...,)."""
    return np.asarray(true_positives[..., -1]), np.asarray(false_positives[..., -1])


def ratio(part: Floats | Ints, whole: Floats | Ints, needed: Floats | Ints | int = 1) -> Floats:
    """Part / whole, NaN where the whole, or what else is needed, is 0."""
    defined = (whole > 0) & (np.asarray(needed) > 0)
    return np.asarray(np.where(defined, part, np.nan) / np.where(defined, whole, 1))


def _area(true_positives: Ints, false_positives: Ints, sensitivity: float) -> tuple[Floats, Floats]:
    """Of the ROC from where it reaches the sensitivity: the area between it and that level, and its width."""
    if not 0 < sensitivity <= 1:
        raise ConfigError(f"sensitivity must lie in (0, 1], found {sensitivity}")
    positives, negatives = (total[..., None] for total in _totals(true_positives, false_positives))
    x, y = ratio(false_positives, negatives, positives), ratio(true_positives, positives, negatives)
    steps = np.diff(x, prepend=0)
    high = y - sensitivity
    low = np.concatenate([np.full_like(high[..., :1], -sensitivity), high[..., :-1]], axis=-1)
    rise = high - low
    # The part of each piece of the line that lies above; NaN stays NaN through `steps`.
    part = np.divide(high, rise, out=(high >= 0).astype(np.float64), where=rise > 0).clip(0, 1)
    width = part * steps
    return (width * (np.maximum(low, 0) + np.maximum(high, 0)) / 2).sum(axis=-1), width.sum(axis=-1)
