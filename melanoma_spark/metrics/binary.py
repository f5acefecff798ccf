"""Metrics of a binary classifier: ranking, calibration, decisions at a threshold. Their intervals are in `bootstrap`.

Every function takes `labels`, shape (n,), 0 or 1 (1 is the target, say melanoma) as integers, booleans or floats, and
`probabilities`, shape (n,), of the target, in [0, 1]; both are plain arrays or lists and are computed with as int64 and
float64. A decision is `probability >= threshold`. What has no value, such as the AUROC of one class, is NaN, never a
number that looks like a result. Rows may come in any order: no result depends on it by more than float rounding.

Every function raises `DataError` for no rows, arrays that are not one-dimensional numbers or differ in length, NaN or
out-of-range probabilities, and labels other than 0 and 1. Settings out of range (`images`, `threshold`, ...) raise
`ConfigError`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics.arrays import Floats, Ints, check_arrays, check_fraction, group_index
from melanoma_spark.metrics.counts import counts_by_threshold

# What log_loss moves 0 and 1 inwards by: the spacing of float64 at 1, as scikit-learn does.
LOG_LOSS_EPSILON = float(np.finfo(np.float64).eps)
BINS = 10  # of a reliability plot and of the expected calibration error


class RocCurve(NamedTuple):
    """The ROC curve: fpr, tpr, thresholds, each (k + 1,) float64, from (0, 0) at threshold inf to (1, 1)."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class PrecisionRecall(NamedTuple):
    """The precision-recall curve: recall, precision, thresholds, each (k,) float64, by falling threshold."""

    recall: Floats
    precision: Floats
    thresholds: Floats


class DecisionCurve(NamedTuple):
    """Net benefit by threshold, each (k,): of the model, and of taking every image for positive."""

    thresholds: Floats
    benefit: Floats
    of_all: Floats


class Reliability(NamedTuple):
    """A reliability plot's bins: each (bins,); mean_probability and observed_fraction are NaN where n is 0."""

    mean_probability: Floats
    observed_fraction: Floats
    n: Ints


@dataclass(frozen=True)
class ConfusionMatrix:
    """Numbers of images by truth and decision; rates whose denominator is zero are NaN.

    Rates as in Altman and Bland, Diagnostic tests 1 and 2 (BMJ 308 and 309, 1994).
    """

    tn: int
    fp: int
    fn: int
    tp: int

    @property
    def sensitivity(self) -> float:
        """The share of positives that are decided positive."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """The share of negatives that are decided negative."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> float:
        """Positive predictive value at this set's own prevalence."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """Negative predictive value at this set's own prevalence."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> float:
        """The share of right decisions."""
        return _ratio(self.tn + self.tp, self.tn + self.fp + self.fn + self.tp)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of sensitivity and specificity (Brodersen et al., ICPR 2010)."""
        return (self.sensitivity + self.specificity) / 2


def roc_curve(labels: ArrayLike, probabilities: ArrayLike) -> RocCurve:
    """The ROC at every observed score (Fawcett, Pattern Recognition Letters 27, 2006).

    Without negatives fpr is all NaN, without positives tpr is.
    """
    thresholds, true_positives, false_positives = counts_by_threshold(labels, probabilities)
    return RocCurve(_cumulative_rate(false_positives), _cumulative_rate(true_positives), np.append(np.inf, thresholds))


def precision_recall_curve(labels: ArrayLike, probabilities: ArrayLike) -> PrecisionRecall:
    """Precision and recall at every observed score. Without positives recall is all NaN."""
    thresholds, true_positives, false_positives = counts_by_threshold(labels, probabilities)
    precision = true_positives / (true_positives + false_positives)
    return PrecisionRecall(_cumulative_rate(true_positives)[1:], precision, thresholds)


def auroc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The area under the ROC: how often a positive scores above a negative, a tie counting half.

    The Mann-Whitney U statistic over its maximum (Hanley and McNeil, Radiology 143, 1982), in whole numbers up to the
    last division. NaN if a class is missing.
    """
    truth, scores = check_arrays(labels, probabilities)
    below, not_above = negatives_under(truth, scores)
    positives, negatives = len(below), len(truth) - len(below)
    return _ratio(int(below.sum() + not_above.sum()), 2 * positives * negatives)


def ppv_at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> float:
    """The positive predictive value where `prevalence` of the images are positive, by Bayes' theorem.

    See Altman and Bland, BMJ 309, 1994. It is meant for the prevalence where a model is used, which an archive rarely
    has. NaN where nothing would be positive, or a rate is NaN. Raises ConfigError unless 0 <= prevalence <= 1.
    """
    check_fraction("prevalence", prevalence)
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return true / (true + false) if true + false else float("nan")


def npv_at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> float:
    """The negative predictive value where `prevalence` of the images are positive; see `ppv_at_prevalence`."""
    return ppv_at_prevalence(specificity, sensitivity, 1 - prevalence)


def net_benefit(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """True positives, less false ones at the odds of the threshold t: tp / n - fp / n * t / (1 - t).

    A threshold of t accepts 1 / t - 1 false alarms for one detected melanoma (Vickers and Elkin, Medical
    Decision Making 26, 2006). Over a range of t this is the decision curve. Treating nobody has a benefit of 0.
    Raises ConfigError unless 0 <= threshold < 1.
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold must lie in [0, 1), found {threshold}")
    confusion, n = confusion_matrix_at(labels, probabilities, threshold), len(np.asarray(labels))
    return confusion.tp / n - confusion.fp / n * threshold / (1 - threshold)


def decision_curve(labels: ArrayLike, probabilities: ArrayLike) -> DecisionCurve:
    """`net_benefit` at the thresholds 0.01 to 0.99."""
    thresholds = np.arange(1, 100) / 100
    benefit = np.array([net_benefit(labels, probabilities, threshold) for threshold in thresholds])
    of_all = np.array([net_benefit(labels, np.ones(np.shape(labels)), threshold) for threshold in thresholds])
    return DecisionCurve(thresholds, benefit, of_all)


def chance_in_top(labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, images: int = 15) -> Floats:
    """The probability that each positive is among the `images` highest of its patient, (n,); 0 of negatives.

    For a worklist: what a reader of so many images of each patient finds (ISIC 2024, second prize). Of images that tie
    for the last places each is there with the same probability. `patients` is (n,), text or integers.
    """
    truth, scores = check_arrays(labels, probabilities)
    if images < 1:
        raise ConfigError(f"images must be at least 1, found {images}")
    patient_of, _ = group_index(patients, len(truth))
    chances = np.zeros(len(truth))
    for patient in np.unique(patient_of[truth == 1]):
        rows = np.flatnonzero(patient_of == patient)
        for row in rows[truth[rows] == 1]:
            higher, equal = int((scores[rows] > scores[row]).sum()), int((scores[rows] == scores[row]).sum())
            chances[row] = min(1.0, max(0.0, (images - higher) / equal))
    return chances


def confusion_matrix_at(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> ConfusionMatrix:
    """The confusion matrix of the decision `probability >= threshold`; raises ConfigError for a NaN threshold."""
    truth, scores = check_arrays(labels, probabilities)
    return ConfusionMatrix(*np.bincount(outcome(truth, scores, threshold), minlength=4).tolist())


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The Brier score, mean of (probability - label)^2, in [0, 1], lower is better (Brier, 1950, for two classes)."""
    truth, scores = check_arrays(labels, probabilities)
    return float(np.mean((scores - truth) ** 2))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood, in nats (Good, Journal of the Royal Statistical Society B 14, 1952).

    Probabilities are clipped to [2^-52, 1 - 2^-52], as scikit-learn does, so that it is finite.
    """
    return float(np.mean(log_losses(labels, probabilities)))


def log_losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """What each image adds to `log_loss`, (n,)."""
    truth, scores = check_arrays(labels, probabilities)
    clipped = np.clip(scores, LOG_LOSS_EPSILON, 1 - LOG_LOSS_EPSILON)
    return -np.where(truth == 1, np.log(clipped), np.log1p(-clipped))


def reliability(labels: ArrayLike, probabilities: ArrayLike) -> Reliability:
    """Mean probability and observed fraction of label 1 in `BINS` bins of equal width.

    See DeGroot and Fienberg, The Statistician 32, 1983. Bin k is [k / BINS, (k + 1) / BINS), the last one closed.
    """
    truth, scores = check_arrays(labels, probabilities)
    places = bin_of(scores)
    n = np.bincount(places, minlength=BINS)
    filled = np.where(n > 0, n, np.nan)
    return Reliability(
        mean_probability=np.bincount(places, weights=scores, minlength=BINS) / filled,
        observed_fraction=np.bincount(places, weights=truth, minlength=BINS) / filled,
        n=n,
    )


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error: sum over bins of n_k / n * |mean probability_k - observed fraction_k|.

    The bins are those of `reliability`. The definition is that of Naeini et al. (AAAI
    2015), on the probability of the target, not on the confidence of the chosen class as in Guo et al. (ICML 2017).
    """
    table = reliability(labels, probabilities)
    filled = table.n > 0
    gap = np.abs(table.mean_probability[filled] - table.observed_fraction[filled])
    return float(np.sum(gap * table.n[filled]) / np.sum(table.n))


def bin_of(scores: Floats) -> Ints:
    """Which of `reliability`'s bins each score is in, (n,)."""
    return np.searchsorted(np.arange(1, BINS) / BINS, scores, side="right")


def negatives_under(truth: Ints, scores: Floats) -> tuple[Ints, Ints]:
    """For each positive, in the order of rows, how many negatives score below it and how many not above it."""
    negatives = np.sort(scores[truth == 0])
    positives = scores[truth == 1]
    return np.searchsorted(negatives, positives, side="left"), np.searchsorted(negatives, positives, side="right")


def outcome(truth: Ints, scores: Floats, threshold: float) -> Ints:
    """0, 1, 2, 3 for tn, fp, fn, tp."""
    if np.isnan(threshold):
        raise ConfigError("threshold is NaN")
    return 2 * truth + (scores >= threshold)


def _cumulative_rate(counts: Ints) -> Floats:
    total = counts[-1] if counts[-1] > 0 else np.nan
    return np.append(0, counts) / total


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")
