"""The bootstrap over groups: a plain loop over the same draws, and intervals that cover what they say."""

import functools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from samples import grouped_sample, resamples_of, scored

from melanoma_spark.metrics import binary, bootstrap, counts
from melanoma_spark.metrics.bootstrap import Bootstrap


def auroc_interval(labels, probabilities, groups, **settings):
    drawn = Bootstrap(groups, **settings)
    return drawn.interval(drawn.auroc(labels, probabilities))


@given(scored(both_classes=False), st.integers(0, 5))
def test_bootstrap_equals_a_loop_over_the_same_draws(sample, seed):
    labels, probabilities, groups = sample
    drawn = Bootstrap(groups, resamples=6, seed=seed)
    areas = drawn.auroc(labels, probabilities)
    sensitivity, specificity = drawn.rates(labels, probabilities, 0.5)
    assert areas.shape == sensitivity.shape == specificity.shape == (6,)
    for k, rows in enumerate(resamples_of(groups, 6, seed)):
        np.testing.assert_equal(areas[k], binary.auroc(labels[rows], probabilities[rows]))
        confusion = binary.confusion_matrix_at(labels[rows], probabilities[rows], 0.5)
        np.testing.assert_equal(sensitivity[k], confusion.sensitivity)
        np.testing.assert_equal(specificity[k], confusion.specificity)


CURVES = [
    counts.average_precision,
    functools.partial(counts.area_above_sensitivity, sensitivity=0.8),
    functools.partial(counts.area_right_of_sensitivity, sensitivity=0.8),
    functools.partial(counts.best_sensitivity, specificity=0.9),
    functools.partial(counts.best_specificity, sensitivity=0.9),
]


@given(scored(both_classes=False), st.integers(0, 5))
def test_every_figure_of_a_resample_is_that_of_its_images(sample, seed):
    labels, probabilities, groups = sample
    rows, drawn = list(resamples_of(groups, 4, seed)), Bootstrap(groups, resamples=4, seed=seed)

    def check(result, metric):
        expected = [metric(labels[own], probabilities[own]) for own in rows]
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)

    for statistic in CURVES:
        metric = functools.partial(counts.figure, statistic)
        check(drawn.curve(labels, probabilities, statistic), metric)
    check(drawn.calibration_error(labels, probabilities), binary.expected_calibration_error)
    check(drawn.mean((labels - probabilities) ** 2), binary.brier)


def test_models_share_resamples_and_copies_do_not_narrow_intervals():
    labels, probabilities, groups = grouped_sample(seed=8)
    worse = np.clip(probabilities + np.random.default_rng(0).normal(0, 0.05, len(labels)), 0, 1)
    drawn = Bootstrap(groups, resamples=400)
    both = [drawn.auroc(labels, p) for p in (probabilities, worse)]
    paired, alone = np.std(both[0] - both[1]), np.hypot(*(np.std(areas) for areas in both))
    assert paired < alone / 3
    assert drawn.interval(both[0] - both[1]) == pytest.approx(tuple(np.quantile(both[0] - both[1], [0.025, 0.975])))

    labels, probabilities, groups = grouped_sample(seed=5)
    once = auroc_interval(labels, probabilities, groups, resamples=300)
    copied = [np.repeat(values, 5) for values in (labels, probabilities, groups)]
    assert auroc_interval(*copied, resamples=300) == once
    as_if_independent = auroc_interval(copied[0], copied[1], np.arange(len(copied[0])), resamples=300)
    assert as_if_independent[1] - as_if_independent[0] < (once[1] - once[0]) * 0.7


def test_bootstrap_intervals_equal_those_of_a_loop():
    labels, probabilities, groups = grouped_sample(seed=3, groups=60)
    resampled = list(resamples_of(groups, 200, seed=7))
    areas = [sklearn.metrics.roc_auc_score(labels[rows], probabilities[rows]) for rows in resampled]
    recalls = [sklearn.metrics.recall_score(labels[rows], probabilities[rows] >= 0.6) for rows in resampled]
    drawn = Bootstrap(groups, resamples=200, seed=7)
    sensitivity, specificity = (drawn.interval(rates) for rates in drawn.rates(labels, probabilities, 0.6))
    result = drawn.interval(drawn.auroc(labels, probabilities))
    assert result == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=1e-12)
    assert sensitivity == pytest.approx(tuple(np.quantile(recalls, [0.025, 0.975])), abs=1e-12)
    assert specificity[0] < specificity[1]


def test_chunks_and_the_order_of_rows_change_no_resample(monkeypatch):
    labels, probabilities, groups = grouped_sample(seed=4)
    drawn = Bootstrap(groups, resamples=50)
    complete, rates = drawn.auroc(labels, probabilities), drawn.rates(labels, probabilities, 0.5)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    reordered = Bootstrap(groups[shuffled], resamples=50)
    np.testing.assert_array_equal(reordered.auroc(labels[shuffled], probabilities[shuffled]), complete)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 3 * len(labels))
    np.testing.assert_array_equal(drawn.auroc(labels, probabilities), complete)
    np.testing.assert_array_equal(drawn.rates(labels, probabilities, 0.5), rates)


def test_intervals_cover_the_true_value_about_as_often_as_they_say():
    # Scores are N(label, 1): AUROC is Phi(1 / sqrt 2), and sensitivity at the logit 0.5 is Phi(0.5).
    true_auroc = 0.5 * (1 + math.erf(1 / 2))
    true_rate = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    threshold = 1 / (1 + math.exp(-0.5))
    covered = np.zeros(2)
    for seed in range(100):
        sample = grouped_sample(seed, groups=100)
        low, high = auroc_interval(*sample, resamples=150, seed=seed)
        drawn = Bootstrap(sample[2], resamples=150, seed=seed)
        rate_low, rate_high = drawn.interval(drawn.rates(*sample[:2], threshold)[0])
        covered += (low <= true_auroc <= high, rate_low <= true_rate <= rate_high)
    # 95 expected; a percentile interval on 60 positive groups is a little short.
    assert (covered >= 87).all()
    assert (covered <= 100).all()


def test_one_class_one_group_and_groups_named_by_text():
    # One positive group of three: (2/3)^3 of the resamples lack it.
    labels, probabilities, groups = [1, 0, 0], [0.9, 0.1, 0.2], ["a", "b", "c"]
    areas = Bootstrap(groups, resamples=1000).auroc(labels, probabilities)
    assert 270 < np.isnan(areas).sum() < 370
    assert auroc_interval(labels, probabilities, groups) == (1.0, 1.0)
    assert bootstrap.percentile_interval(np.array([np.nan, 0.5, 0.7])) == pytest.approx((0.505, 0.695))

    drawn = Bootstrap(["a", "a"])
    assert np.isnan([drawn.interval(rates) for rates in drawn.rates([0, 1], [0.1, 0.9], 0.5)]).all()
    assert np.isnan(auroc_interval([0, 1], [0.1, 0.9], ["a", "a"])).all()

    labels, probabilities, groups = grouped_sample(seed=6, groups=9)
    expected = Bootstrap(groups, resamples=20).auroc(labels, probabilities)
    texts = np.array([f"lesion {group}" for group in groups])
    for named in (texts, texts.astype(object), list(texts)):
        np.testing.assert_array_equal(Bootstrap(named, resamples=20).auroc(labels, probabilities), expected)
