"""Calibration: what is fitted is right, keeps every order, and has an end on degenerate data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from melanoma_spark.errors import DataError
from melanoma_spark.metrics import binary
from melanoma_spark.models import calibration
from melanoma_spark.models.calibration import Calibration, fit


def drawn(seed=0, n=8000, slope=1.0, shift=0.0):
    """Labels that follow the probabilities q, and the same on a moved scale of logits."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(-0.5, 2, n)
    labels = (generator.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    return labels, 1 / (1 + np.exp(-(slope * logit + shift)))


@pytest.mark.parametrize(("slope", "shift"), [(1, 0), (3, 0), (0.4, 1.0), (2, -2)])
def test_overconfidence_and_a_wrong_mean_are_undone(slope, shift):
    labels, probabilities = drawn(slope=slope, shift=shift)
    result = fit(labels, probabilities)
    assert result.slope == pytest.approx(1 / slope, rel=0.1)
    assert result.intercept == pytest.approx(-shift / slope, abs=0.15)
    other = drawn(1, slope=slope, shift=shift)  # not the images that it was fitted on
    assert binary.expected_calibration_error(other[0], result.apply(other[1])) < 0.03
    if (slope, shift) != (1, 0):
        assert binary.expected_calibration_error(*other) > 0.08


@pytest.mark.parametrize("seed", range(5))
def test_platt_is_that_of_scikit_learn(seed):
    labels, probabilities = drawn(seed, n=300, slope=2, shift=1)
    x = calibration.logits(probabilities)[:, None]
    line = LogisticRegression().fit(x, labels)
    line.coef_, line.intercept_ = np.ones((1, 1)), np.zeros(1)  # its decision is then the logit itself
    theirs = CalibratedClassifierCV(FrozenEstimator(line), method="sigmoid", ensemble=False, cv=2).fit(x, labels)
    expected = theirs.predict_proba(x)[:, 1]
    np.testing.assert_allclose(fit(labels, probabilities).apply(probabilities), expected, atol=1e-5)


def test_temperature_is_the_best_slope_and_platt_keeps_the_mean():
    labels, probabilities = drawn(slope=3, shift=0.5)
    result = fit(labels, probabilities, "temperature")
    assert (result.method, result.intercept) == ("temperature", 0.0)
    slopes = np.linspace(0.05, 2, 400)
    losses = [binary.log_loss(labels, Calibration("temperature", s).apply(probabilities)) for s in slopes]
    assert result.slope == pytest.approx(slopes[int(np.argmin(losses))], abs=0.01)

    labels, probabilities = drawn(shift=2)
    assert fit(labels, probabilities).apply(probabilities).mean() == pytest.approx(labels.mean(), abs=1e-3)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0.05, 5), st.floats(-5, 5))
def test_a_higher_probability_never_becomes_a_lower_one(values, slope, intercept):
    ordered = np.sort(np.array(values))
    moved = Calibration("platt", slope, intercept).apply(ordered)
    assert (np.diff(moved) >= 0).all()
    assert ((moved >= 0) & (moved <= 1)).all()


def test_neighboring_values_stay_apart_and_none_changes_no_bit():
    values = np.array([0, 1e-30, 1e-8, 0.5, 1 - 2**-23, np.float32(1 - 2**-24), 1.0])
    assert (np.diff(Calibration("platt", 0.5, 0.1).apply(values)) > 0).all()
    values = np.array([0.0, 1e-300, 0.1, 1.0, np.nan])
    np.testing.assert_array_equal(fit([0, 1], [0.2, 0.4], "none").apply(values), values)
    assert np.isnan(Calibration("platt", 2, 1).apply(values)[-1])


def test_fits_of_degenerate_data():
    result = fit([0] * 50 + [1] * 50, np.r_[np.linspace(0, 0.4, 50), np.linspace(0.6, 1, 50)])
    assert result.method == "platt"
    assert 0 < result.slope < 100
    moved = fit(np.repeat([0, 1], [80, 20]), np.full(100, 0.6)).apply([0.6])
    assert moved == pytest.approx(0.2, abs=0.02)
    with pytest.raises(DataError, match=r"evaluate\.calibration=platt needs images of both labels: all 2 have label 1"):
        fit([1, 1], [0.2, 0.4])


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_rankings_worse_than_chance_are_not_calibrated(method):
    assert fit(np.repeat([0, 1], 50), np.linspace(1, 0, 100), method) == Calibration()


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (-1, 0), (float("nan"), 0), (1, float("inf")), ("2", 0)])
def test_a_damaged_calibration_is_refused(slope, intercept):
    with pytest.raises(DataError, match="slope"):
        Calibration("platt", slope, intercept)
