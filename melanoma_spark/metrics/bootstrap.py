"""Bootstrap over groups: how far a figure of `metrics` may be off, where images of one patient or lesion are alike.

A resample draws as many groups as there are, with replacement, and an image counts as often as its group was drawn
(Efron's percentile bootstrap, of clusters: Field and Welsh, Journal of the Royal Statistical Society B 69, 2007). The
draws depend on the seed, the number of resamples and of groups alone, so the figures of two models on the same images
are of the same resamples, and their difference is a paired one. Arrays, and the errors raised, are those of `metrics`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics import counts
from melanoma_spark.metrics.arrays import Floats, Ints, check_arrays, group_index
from melanoma_spark.metrics.binary import BINS, bin_of, negatives_under, outcome

# Weights held at once by a bootstrap: 2**20 int64 are 8 MiB an array, whatever the number of images or resamples.
WEIGHTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of n images by their groups: patients, lesions, duplicates.

    Images of one group are not independent; resampling images instead would make intervals too narrow. `groups` is
    (n,), text or integers. Missing groups raise `DataError`, and `resamples` below 1 `ConfigError`, where figures are
    computed.
    """

    groups: ArrayLike
    resamples: int = 2000
    seed: int = 0

    def auroc(self, labels: ArrayLike, probabilities: ArrayLike) -> Floats:
        """The AUROC of every resample: (resamples,) float64, NaN where a resample lacks a class."""
        truth, scores = check_arrays(labels, probabilities)
        group_of, group_count = group_index(self.groups, len(truth))
        below, not_above = negatives_under(truth, scores)
        of_positive = group_of[truth == 1]
        negative = np.flatnonzero(truth == 0)
        of_negative = group_of[negative[np.argsort(scores[negative], kind="stable")]]
        areas = []
        for drawn in self._draw(group_count, width=len(truth)):
            positive_weight = drawn[:, of_positive]
            under = np.zeros((len(drawn), len(of_negative) + 1), dtype=np.int64)
            np.cumsum(drawn[:, of_negative], axis=1, out=under[:, 1:])
            wins = (positive_weight * (under[:, below] + under[:, not_above])).sum(axis=1)
            areas.append(counts.ratio(wins, 2 * positive_weight.sum(axis=1) * under[:, -1]))
        return np.concatenate(areas)

    def rates(self, labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> tuple[Floats, Floats]:
        """Sensitivity and specificity of every resample, each (resamples,) float64, NaN where it lacks the class."""
        truth, scores = check_arrays(labels, probabilities)
        tn, fp, fn, tp = self.sums(np.eye(4)[outcome(truth, scores, threshold)]).T
        return counts.ratio(tp, tp + fn), counts.ratio(tn, tn + fp)

    def sums(self, values: Floats) -> Floats:
        """The sums over every resample of values (n, m): (resamples, m) float64.

        Ratios of sums over images, such as a Brier score, follow from these.
        """
        group_of, group_count = group_index(self.groups, len(values))
        by_group = np.zeros((group_count, values.shape[1]))
        np.add.at(by_group, group_of, values)
        # Whole numbers below 2**53 are exact in float64, whose matrix product is many times faster than that of int64.
        chunks = self._draw(group_count, width=group_count)
        return np.concatenate([drawn.astype(np.float64) @ by_group for drawn in chunks])

    def mean(self, values: ArrayLike) -> Floats:
        """The mean over every resample of values (n,), such as squared errors: (resamples,) float64."""
        each = np.asarray(values, np.float64)
        total, count = self.sums(np.stack([each, np.ones(len(each))], axis=1)).T
        return np.asarray(total / count)

    def calibration_error(self, labels: ArrayLike, probabilities: ArrayLike) -> Floats:
        """`binary.expected_calibration_error` of every resample: (resamples,)."""
        truth, scores = check_arrays(labels, probabilities)
        gaps = self.sums(np.eye(BINS)[bin_of(scores)] * (scores - truth)[:, None])
        return np.asarray(np.abs(gaps).sum(axis=1) / self.sums(np.ones((len(truth), 1)))[:, 0])

    def curve(self, labels: ArrayLike, probabilities: ArrayLike, statistic: counts.Statistic) -> Floats:
        """A figure of counts by threshold, such as `counts.average_precision`, of every resample: (resamples,)."""
        truth, scores = check_arrays(labels, probabilities)
        group_of, group_count = group_index(self.groups, len(truth))
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of images with the same probability
        figures = []
        for drawn in self._draw(group_count, width=len(truth)):
            weights = drawn[:, group_of[order]]
            positives = np.cumsum(weights * truth[order], axis=1)[:, ends]
            figures.append(statistic(positives, np.cumsum(weights, axis=1)[:, ends] - positives))
        return np.concatenate(figures)

    def interval(self, values: Floats) -> tuple[float, float]:
        """`percentile_interval` of a figure; (NaN, NaN) for one group, which has no spread between groups."""
        one_group = len(np.unique(np.asarray(self.groups))) == 1
        return percentile_interval(np.array([np.nan]) if one_group else values)

    def _draw(self, group_count: int, width: int) -> Iterator[Ints]:
        """Yield (rows, group_count): how often each resample drew each group, in chunks of about WEIGHTS_AT_ONCE."""
        if self.resamples < 1:
            raise ConfigError(f"resamples must be at least 1, found {self.resamples}")
        generator = np.random.default_rng(self.seed)
        rows = max(1, WEIGHTS_AT_ONCE // width)
        for start in range(0, self.resamples, rows):
            size = min(rows, self.resamples - start)
            drawn = generator.integers(0, group_count, size=(size, group_count))
            drawn += np.arange(size)[:, None] * group_count
            yield np.bincount(drawn.ravel(), minlength=size * group_count).reshape(size, group_count)


def percentile_interval(values: Floats) -> tuple[float, float]:
    """The central 95 % of resampled values (Efron's percentile interval), linear between ranks.

    NaN entries, resamples with no value, are left out; `np.isnan(values).sum()` is their number. (NaN, NaN) if none is
    left.
    """
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
