"""Metrics against scikit-learn, the bootstrap against a plain loop over the same draws, and what is undefined."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import example, given
from hypothesis import strategies as st
from samples import TIED, scored

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.metrics import binary, counts
from melanoma_spark.metrics.binary import ConfusionMatrix
from melanoma_spark.metrics.bootstrap import Bootstrap

auprc = functools.partial(counts.figure, counts.average_precision)
above = functools.partial(counts.figure, counts.area_above_sensitivity)
right_of = functools.partial(counts.figure, counts.area_right_of_sensitivity)


@given(scored())
def test_curves_are_those_of_scikit_learn(sample):
    labels, probabilities, _ = sample
    fpr, tpr, thresholds = binary.roc_curve(labels, probabilities)
    expected = sklearn.metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0], atol=1e-15)
    np.testing.assert_allclose(tpr, expected[1], atol=1e-15)
    np.testing.assert_array_equal(thresholds, expected[2])
    assert np.trapz(tpr, fpr) == pytest.approx(binary.auroc(labels, probabilities), abs=1e-12)

    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(labels, probabilities)
    result = binary.precision_recall_curve(labels, probabilities)
    np.testing.assert_allclose(result.recall, recall[-2::-1])
    np.testing.assert_allclose(result.precision, precision[-2::-1])
    np.testing.assert_array_equal(result.thresholds, thresholds[::-1])

    for fpr, tpr, threshold in zip(*binary.roc_curve(labels, probabilities), strict=True):
        confusion = binary.confusion_matrix_at(labels, probabilities, threshold)
        assert (confusion.sensitivity, 1 - confusion.specificity) == pytest.approx((tpr, fpr), abs=1e-15)


@given(scored(both_classes=False), st.one_of(TIED, st.just(math.inf)))
def test_confusion_matrix_agrees_with_scikit_learn(sample, threshold):
    labels, probabilities, _ = sample
    expected = sklearn.metrics.confusion_matrix(labels, probabilities >= threshold, labels=[0, 1]).ravel()
    result = binary.confusion_matrix_at(labels, probabilities, threshold)
    assert (result.tn, result.fp, result.fn, result.tp) == tuple(expected)
    assert result.accuracy == sklearn.metrics.accuracy_score(labels, probabilities >= threshold)


@given(scored(both_classes=False))
@example(([0], [0.3], None))
@example(([1, 1], [1.0, 0.0], None))
@example(([0, 0, 1], [0.0, 0.0, 0.0], None))
def test_figures_of_one_label_or_both_agree_with_scikit_learn(sample):
    labels, probabilities = np.array(sample[0]), np.array(sample[1])
    decided = probabilities >= 0.5
    one_label = len(set(labels)) == 1
    matrix = binary.confusion_matrix_at(labels, probabilities, 0.5)
    expected = {
        # of positives alone scikit-learn says 1, whatever the scores: no ranking, so undefined here
        "auprc": np.nan if one_label else sklearn.metrics.average_precision_score(labels, probabilities),
        "auroc": np.nan if one_label else sklearn.metrics.roc_auc_score(labels, probabilities),
        "brier": np.mean((probabilities - labels) ** 2),
        "log_loss": sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1]),
        "accuracy": np.mean(decided == labels),
    }
    precision, recall, *_ = sklearn.metrics.precision_recall_fscore_support(
        labels, decided, labels=[0, 1], average=None, zero_division=np.nan
    )
    expected |= {"npv": precision[0], "ppv": precision[1], "specificity": recall[0], "sensitivity": recall[1]}
    expected["balanced_accuracy"] = np.nan if one_label else recall.mean()
    for name, value in expected.items():
        metric = auprc if name == "auprc" else getattr(binary, name, None)
        result = getattr(matrix, name) if hasattr(matrix, name) else metric(labels, probabilities)
        np.testing.assert_allclose(result, value, rtol=1e-9, atol=1e-12, err_msg=name)


ISIC = json.loads(Path(__file__).with_name("isic_scorer.json").read_text())  # see isic_scorer.py


@pytest.mark.parametrize("case", ISIC, ids=lambda case: str(len(case["labels"])))
def test_figures_are_those_of_isics_scorer(case):
    rows = case["labels"], case["probabilities"]
    confusion = binary.confusion_matrix_at(*rows, np.nextafter(0.5, 1))  # the scorer decides by > 0.5
    result = {
        "auc": binary.auroc(*rows),
        "auc_sens_80": right_of(*rows, sensitivity=0.8),
        "ap": auprc(*rows),
        **{name: getattr(confusion, name) for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv")},
    }
    for name, value in result.items():
        assert value == pytest.approx(case[name], abs=1e-12), name


def isic_2024(labels, probabilities, min_tpr):
    """The partial AUC as ISIC 2024's metric computes it: by classes and scores turned round, and McClish undone."""
    max_fpr = 1 - min_tpr
    scaled = sklearn.metrics.roc_auc_score(1 - labels, 1 - probabilities, max_fpr=max_fpr)
    return 0.5 * max_fpr**2 + (max_fpr - 0.5 * max_fpr**2) / (1.0 - 0.5) * (scaled - 0.5)


@given(scored(), st.sampled_from([0.05, 0.5, 0.8, 0.95]))
def test_partial_auc_above_a_sensitivity_is_that_of_isic_2024(sample, sensitivity):
    labels, probabilities, _ = sample
    probabilities = np.round(probabilities, 6)  # 1 - p must keep ties and order
    expected = isic_2024(labels, probabilities, sensitivity)
    assert counts.figure(
        counts.area_above_sensitivity, labels, probabilities, sensitivity=sensitivity
    ) == pytest.approx(expected, abs=1e-9)


@given(scored(), st.floats(0.01, 1))
def test_both_partial_aucs_share_a_corner(sample, sensitivity):
    labels, probabilities, _ = sample
    area = above(labels, probabilities, sensitivity=sensitivity)
    right = right_of(labels, probabilities, sensitivity=sensitivity)
    assert -1e-12 <= area <= 1 - sensitivity + 1e-12
    assert area - 1e-12 <= right <= binary.auroc(labels, probabilities) + 1e-12


def test_known_values_of_partial_areas_decision_curves_and_calibration_error():
    perfect, wrong, none = (
        ([0, 0, 1, 1], [0.2, 0.4, 0.6, 0.8]),
        ([0, 0, 1, 1], [0.8, 0.6, 0.4, 0.2]),
        ([0, 1], [0.5] * 2),
    )
    assert right_of(*perfect) == pytest.approx(1.0)
    assert above(*perfect) == pytest.approx(0.2)
    assert right_of(*wrong) == above(*wrong) == 0
    # the diagonal: a triangle of side 0.2, and the trapezoid under it
    assert above(*none) == pytest.approx(0.02)
    assert right_of(*none) == pytest.approx(0.18)

    labels, probabilities = [0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]
    curve = binary.decision_curve(labels, probabilities)
    assert curve.thresholds.tolist() == [percent / 100 for percent in range(1, 100)]
    assert curve.benefit[[24, 49, 74]].tolist() == [2 / 4 - 1 / 4 / 3, 0.0, 1 / 4]
    assert curve.of_all[[24, 49, 74]].tolist() == pytest.approx([0.5 - 0.5 / 3, 0.0, 0.5 - 1.5])
    # Two of ten bins: 0.25 with one in two positive, 0.75 with all positive.
    assert binary.expected_calibration_error([0, 1, 1, 1], [0.25, 0.25, 0.75, 0.75]) == 0.25
    assert binary.expected_calibration_error([0, 1], [0.0, 1.0]) == 0.0
    assert binary.ppv_at_prevalence(0.9, 0.9, 0.01) == pytest.approx(1 / 12)
    assert binary.npv_at_prevalence(0.9, 0.9, 0.01) == pytest.approx(891 / 892)
    assert math.isnan(binary.ppv_at_prevalence(0.0, 1.0, 0.5))


@given(scored(), st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]))
def test_rates_at_a_rate_are_the_best_points_of_the_roc(sample, rate):
    labels, probabilities, _ = sample
    points = [binary.confusion_matrix_at(labels, probabilities, t) for t in [math.inf, *probabilities]]
    assert counts.figure(counts.best_sensitivity, labels, probabilities, specificity=rate) == pytest.approx(
        max(point.sensitivity for point in points if point.specificity >= rate)
    )
    assert counts.figure(counts.best_specificity, labels, probabilities, sensitivity=rate) == pytest.approx(
        max(point.specificity for point in points if point.sensitivity >= rate)
    )


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_predictive_values_at_a_sets_own_prevalence_are_its_own(tn, fp, fn, tp):
    confusion = ConfusionMatrix(tn=tn, fp=fp, fn=fn, tp=tp)
    if tp + fn == 0 or tn + fp == 0:
        return
    rates = confusion.sensitivity, confusion.specificity, (tp + fn) / (tn + fp + fn + tp)
    assert binary.ppv_at_prevalence(*rates) == pytest.approx(confusion.ppv, nan_ok=True)
    assert binary.npv_at_prevalence(*rates) == pytest.approx(confusion.npv, nan_ok=True)


@given(scored(), st.sampled_from([0.0, 0.1, 0.5, 0.75]))
def test_net_benefit_is_what_its_authors_wrote(sample, threshold):
    labels, probabilities, _ = sample
    decided = probabilities >= threshold
    hits, alarms = (decided & (labels == 1)).mean(), (decided & (labels == 0)).mean()
    expected = hits - alarms * threshold / (1 - threshold)
    assert binary.net_benefit(labels, probabilities, threshold) == pytest.approx(expected)


@given(scored(), st.integers(1, 6))
def test_sensitivity_in_top_is_the_mean_over_ways_to_break_ties(sample, images):
    labels, probabilities, patients = sample
    result = []
    for seed in range(40):
        order = np.lexsort((np.random.default_rng(seed).random(len(labels)), -probabilities))
        taken = sum(labels[[row for row in order if patients[row] == one][:images]].sum() for one in set(patients))
        result.append(taken / labels.sum())
    value = binary.chance_in_top(labels, probabilities, patients, images).sum() / labels.sum()
    assert min(result) - 1e-12 <= value <= max(result) + 1e-12
    if len(set(probabilities)) == len(labels):
        assert value == pytest.approx(result[0])


def test_rates_by_hand_with_ties_and_without_a_denominator():
    result = ConfusionMatrix(tn=60, fp=20, fn=5, tp=15)
    assert (result.sensitivity, result.specificity, result.ppv, result.npv) == (15 / 20, 60 / 80, 15 / 35, 60 / 65)
    assert (result.accuracy, result.balanced_accuracy) == (0.75, 0.75)
    only_negatives = ConfusionMatrix(tn=3, fp=0, fn=0, tp=0)
    assert math.isnan(only_negatives.sensitivity)
    assert math.isnan(only_negatives.ppv)
    assert math.isnan(only_negatives.balanced_accuracy)
    assert only_negatives.specificity == 1.0
    only_positives = ConfusionMatrix(tn=0, fp=0, fn=0, tp=3)
    assert math.isnan(only_positives.specificity)
    assert math.isnan(only_positives.npv)
    assert math.isnan(ConfusionMatrix(0, 0, 0, 0).accuracy)

    assert binary.auroc([0, 1], [0.5, 0.5]) == 0.5
    assert binary.auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == 3.5 / 4
    assert binary.auroc([0, 1], [0.9, 0.1]) == 0.0
    assert binary.confusion_matrix_at([0, 1], [0.5, 0.5], 0.5) == ConfusionMatrix(tn=0, fp=1, fn=0, tp=1)
    assert binary.confusion_matrix_at([0, 1], [0.5, 0.5], 0.5000001) == ConfusionMatrix(tn=1, fp=0, fn=1, tp=0)
    assert binary.chance_in_top([1, 0, 0, 1], [0.5, 0.5, 0.5, 0.9], list("aaab"), 1).tolist() == [1 / 3, 0, 0, 1]
    assert binary.chance_in_top([1, 0, 1], [0.5, 0.5, 0.5], list("aaa"), 2).tolist() == pytest.approx([2 / 3, 0, 2 / 3])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_ranking_undefined_and_the_rest_defined(label):
    labels, probabilities = [label] * 3, [0.2, 0.5, 0.9]
    assert math.isnan(binary.auroc(labels, probabilities))
    assert math.isnan(auprc(labels, probabilities))
    fpr, tpr, _ = binary.roc_curve(labels, probabilities)
    missing, present = (tpr, fpr) if label == 0 else (fpr, tpr)
    assert np.isnan(missing).all()
    assert (present[0], present[-1]) == (0.0, 1.0)
    assert np.isfinite(binary.brier(labels, probabilities))
    assert np.isfinite(binary.log_loss(labels, [0.0, 0.5, 1.0]))
    assert np.isfinite(binary.expected_calibration_error(labels, probabilities))
    assert np.isnan(Bootstrap([1, 2, 3]).auroc(labels, probabilities)).all()

    rows = [label] * 3, [0.1, 0.5, 0.9]
    assert math.isnan(above(*rows))
    assert math.isnan(right_of(*rows))
    assert math.isnan(counts.figure(counts.best_sensitivity, *rows, specificity=0.9))
    assert math.isnan(counts.figure(counts.best_specificity, *rows, sensitivity=0.9))


@given(scored(both_classes=False))
def test_reliability_bins_agree_with_a_loop(sample):
    (labels, probabilities, _), bins = sample, binary.BINS
    table = binary.reliability(labels, probabilities)
    error = 0.0
    for k in range(bins):
        last = k == bins - 1
        inside = (probabilities >= k / bins) & ((probabilities < (k + 1) / bins) | last)
        assert table.n[k] == inside.sum()
        if inside.any():
            assert table.mean_probability[k] == pytest.approx(probabilities[inside].mean(), abs=1e-15)
            assert table.observed_fraction[k] == pytest.approx(labels[inside].mean(), abs=1e-15)
            error += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
        else:
            assert math.isnan(table.mean_probability[k])
            assert math.isnan(table.observed_fraction[k])
    assert table.n.sum() == len(labels)
    assert binary.expected_calibration_error(labels, probabilities) == pytest.approx(error, abs=1e-12)


EVERY_METRIC = [
    above,
    right_of,
    lambda labels, probabilities: counts.figure(counts.best_sensitivity, labels, probabilities, specificity=0.9),
    lambda labels, probabilities: binary.net_benefit(labels, probabilities, 0.5),
    lambda labels, probabilities: binary.chance_in_top(labels, probabilities, ["a"] * len(labels)),
    counts.counts_by_threshold,
    binary.roc_curve,
    binary.auroc,
    auprc,
    binary.brier,
    binary.log_loss,
    binary.reliability,
    binary.expected_calibration_error,
    lambda labels, probabilities: binary.confusion_matrix_at(labels, probabilities, 0.5),
    lambda labels, probabilities: Bootstrap(np.arange(len(labels))).auroc(labels, probabilities),
    lambda labels, probabilities: Bootstrap(np.arange(len(labels))).rates(labels, probabilities, 0.5),
]


@pytest.mark.parametrize("metric", EVERY_METRIC)
@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], [], "no rows: labels and probabilities are empty"),
        ([0, 1, 1], [0.1, 0.2], "labels and probabilities differ in length: 3 and 2"),
        ([0, 1, 1], [0.1, np.nan, np.nan], "2 of 3 probabilities are NaN: nan in row 1, nan in row 2"),
        ([0, 1, 1], [0.1, 1.5, 0.3], "1 of 3 probabilities lie outside [0, 1]: 1.5 in row 1"),
        ([0, 1, 1], [0.1, -0.5, np.inf], "2 of 3 probabilities lie outside [0, 1]: -0.5 in row 1, inf in row 2"),
        ([2] * 5, [0.5] * 5, "5 of 5 labels are neither 0 nor 1: 2 in row 0, 2 in row 1, 2 in row 2, ..."),
        ([0.0, np.nan], [0.1, 0.2], "1 of 2 labels are neither 0 nor 1: nan in row 1"),
        (["benign", "malignant"], [0.1, 0.2], "labels must be numbers, found dtype <U9"),
        ([0, 1], [None, 0.2], "probabilities must be numbers, found dtype object"),
        ([0, 1], [[0.1], [0.2]], "probabilities must be one-dimensional, found shape (2, 1)"),
    ],
)
def test_invalid_arrays_are_named(metric, labels, probabilities, message):
    with pytest.raises(DataError, match=re.escape(message)):
        metric(labels, probabilities)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], "groups must have shape (3,) like labels, found (2,)"),
        (["a", None, None], "2 of 3 groups are not text: None in row 1, None in row 2"),
        ([1.0, np.nan, 2.0], "1 of 3 groups are NaN: nan in row 1"),
    ],
)
def test_missing_groups_are_named_and_never_merged(groups, message):
    with pytest.raises(DataError, match=re.escape(message)):
        Bootstrap(groups).auroc([0, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=re.escape(message)):
        Bootstrap(groups).rates([0, 1, 1], [0.1, 0.2, 0.3], 0.5)


def test_settings_out_of_range_are_named():
    labels, probabilities, groups = [0, 1], [0.1, 0.9], [0, 1]
    with pytest.raises(ConfigError, match="resamples must be at least 1, found 0"):
        Bootstrap(groups, resamples=0).auroc(labels, probabilities)
    with pytest.raises(ConfigError, match="threshold is NaN"):
        binary.confusion_matrix_at(labels, probabilities, math.nan)

    rows = [0, 1], [0.1, 0.9]
    for call in (
        lambda: above(*rows, sensitivity=0),
        lambda: right_of(*rows, sensitivity=1.1),
        lambda: counts.figure(counts.best_sensitivity, *rows, specificity=-0.1),
        lambda: counts.figure(counts.best_specificity, *rows, sensitivity=1.1),
        lambda: binary.ppv_at_prevalence(0.9, 0.9, 2),
        lambda: binary.net_benefit(*rows, 1.0),
        lambda: binary.chance_in_top(*rows, ["a", "b"], 0),
    ):
        with pytest.raises(
            ConfigError, match=r"(sensitivity|specificity|prevalence|threshold|images) must (lie in|be at least)"
        ):
            call()
