"""Bootstrap over groups: how far a figure of `metrics` may be off, where images of one patient or lesion are alike.

A resample draws as many groups as there are, with replacement, and an image counts as often as its group was drawn
(Efron's percentile bootstrap, of clusters: Field and Welsh, Journal of the Royal Statistical Society B 69, 2007). The
draws depend on the seed, the number of resamples and of groups alone, so the figures of two models on the same images
are of the same resamples, and their difference is a paired one. Arrays, and the errors raised, are those of `metrics`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics import counts
from melanoma_spark.metrics.arrays import Floats, Ints, check_arrays, group_index
from melanoma_spark.metrics.binary import bin_of, negatives_under, outcome

# Weights held at once by a bootstrap: 2**20 int64 are 8 MiB an array, whatever the number of images or resamples.
WEIGHTS_AT_ONCE = 2**20


class RateIntervals(NamedTuple):
    """Intervals (low, high) of the sensitivity and the specificity at one threshold."""

    sensitivity: tuple[float, float]
    specificity: tuple[float, float]


def resampled_auroc(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, resamples: int = 2000, seed: int = 0
) -> Floats:
    """The AUROC of every bootstrap resample of groups: (resamples,) float64, NaN where a resample lacks a class.

    A resample draws as many groups as there are, with replacement; an image counts as often as its group was drawn.
    The draws depend on `seed`, `resamples` and the number of groups only, so two models scored on the same images are
    resampled alike. `groups` is (n,), text or integers; missing groups raise DataError.
    """
    truth, scores = check_arrays(labels, probabilities)
    group_of, group_count = group_index(groups, len(truth))
    below, not_above = negatives_under(truth, scores)
    of_positive = group_of[truth == 1]
    negative = np.flatnonzero(truth == 0)
    of_negative = group_of[negative[np.argsort(scores[negative], kind="stable")]]
    areas = []
    for drawn in _draw_groups(group_count, resamples, seed, width=len(truth)):
        positive_weight = drawn[:, of_positive]
        under = np.zeros((len(drawn), len(of_negative) + 1), dtype=np.int64)
        np.cumsum(drawn[:, of_negative], axis=1, out=under[:, 1:])
        wins = (positive_weight * (under[:, below] + under[:, not_above])).sum(axis=1)
        areas.append(counts.ratio(wins, 2 * positive_weight.sum(axis=1) * under[:, -1]))
    return np.concatenate(areas)


def resampled_rates(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Sensitivity and specificity at `threshold` of every resample, drawn as by `resampled_auroc`.

    Two (resamples,) float64, NaN where a resample lacks the class.
    """
    truth, scores = check_arrays(labels, probabilities)
    of_each = np.eye(4)[outcome(truth, scores, threshold)]
    tn, fp, fn, tp = resampled_sums(of_each, groups, resamples=resamples, seed=seed).T
    return counts.ratio(tp, tp + fn), counts.ratio(tn, tn + fp)


def resampled_sums(values: Floats, groups: ArrayLike, resamples: int = 2000, seed: int = 0) -> Floats:
    """The sums over every resample, drawn as by `resampled_auroc`, of values (n, m): (resamples, m) float64.

    Ratios of sums over images, such as a Brier score, follow from these.
    """
    group_of, group_count = group_index(groups, len(values))
    by_group = np.zeros((group_count, values.shape[1]))
    np.add.at(by_group, group_of, values)
    # Whole numbers below 2**53 are exact in float64, whose matrix product is many times faster than that of int64.
    chunks = _draw_groups(group_count, resamples, seed, width=group_count)
    return np.concatenate([drawn.astype(np.float64) @ by_group for drawn in chunks])


def resampled_mean(values: ArrayLike, groups: ArrayLike, resamples: int = 2000, seed: int = 0) -> Floats:
    """The mean over every resample of values (n,), such as squared errors: (resamples,) float64."""
    each = np.asarray(values, np.float64)
    total, count = resampled_sums(np.stack([each, np.ones(len(each))], axis=1), groups, resamples, seed).T
    return np.asarray(total / count)


def resampled_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    *,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """`binary.expected_calibration_error` of every resample, drawn as by `resampled_auroc`: (resamples,) float64."""
    truth, scores = check_arrays(labels, probabilities)
    of_bin = np.eye(bins)[bin_of(scores, bins)]
    gaps = resampled_sums(of_bin * (scores - truth)[:, None], groups, resamples=resamples, seed=seed)
    images = resampled_sums(np.ones((len(truth), 1)), groups, resamples=resamples, seed=seed)[:, 0]
    return np.asarray(np.abs(gaps).sum(axis=1) / images)


def resampled_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    statistic: counts.Statistic,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """A figure of counts by threshold, such as `counts.average_precision`, of every resample: (resamples,) float64."""
    truth, scores = check_arrays(labels, probabilities)
    group_of, group_count = group_index(groups, len(truth))
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of images with the same probability
    figures = []
    for drawn in _draw_groups(group_count, resamples, seed, width=len(truth)):
        weights = drawn[:, group_of[order]]
        positives = np.cumsum(weights * truth[order], axis=1)[:, ends]
        figures.append(statistic(positives, np.cumsum(weights, axis=1)[:, ends] - positives))
    return np.concatenate(figures)


def percentile_interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of resampled values (Efron's percentile interval), linear between ranks.

    NaN entries, resamples with no value, are left out; `np.isnan(values).sum()` is their number. (NaN, NaN) if none is
    left. Raises ConfigError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, found {level}")
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(values: Floats, groups: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """`percentile_interval`; (NaN, NaN) for one group, which has no spread between groups."""
    return percentile_interval(values if len(np.unique(np.asarray(groups))) > 1 else np.array([np.nan]), level)


def auroc_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """The bootstrap interval (low, high) of the AUROC over groups: patients, lesions, duplicates.

    Images of one group are not independent; resampling images instead would make the interval too narrow. One group
    has no spread between groups: (NaN, NaN). See `resampled_auroc` for the resamples themselves.
    """
    return interval(resampled_auroc(labels, probabilities, groups, resamples=resamples, seed=seed), groups, level)


def auroc_difference(
    labels: ArrayLike,
    probabilities: ArrayLike,
    others: ArrayLike,
    groups: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of the AUROC of `others` less that of `probabilities`, on the same images: a paired bootstrap."""
    one, other = (resampled_auroc(labels, p, groups, resamples=resamples, seed=seed) for p in (probabilities, others))
    return interval(other - one, groups, level)


def rate_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> RateIntervals:
    """Bootstrap intervals over groups of sensitivity and specificity at `threshold`, as `auroc_interval`."""
    rates = resampled_rates(labels, probabilities, groups, threshold, resamples=resamples, seed=seed)
    return RateIntervals(*(interval(values, groups, level) for values in rates))


def _draw_groups(group_count: int, resamples: int, seed: int, width: int) -> Iterator[Ints]:
    """Yield (rows, group_count): how often each resample drew each group, in chunks of about WEIGHTS_AT_ONCE."""
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, found {resamples}")
    generator = np.random.default_rng(seed)
    rows = max(1, WEIGHTS_AT_ONCE // width)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(0, group_count, size=(size, group_count))
        drawn += np.arange(size)[:, None] * group_count
        yield np.bincount(drawn.ravel(), minlength=size * group_count).reshape(size, group_count)
