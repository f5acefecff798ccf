"""Drift: the figures of the literature, verdicts that do not grow with the batch, and what chance explains is none."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from melanoma_spark import config, drift, reference

LIMITS = config.Drift()
COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=20).filter(any)


def binned(histogram: reference.Histogram, values) -> list[int]:
    places = np.searchsorted(histogram.edges, values, side="left")
    return np.bincount(places, minlength=len(histogram.counts)).tolist()


def normal(rows: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, rows)


def known(**changes) -> reference.Reference:
    space = reference.fit(np.random.default_rng(0).normal(size=(50, 4)), np.random.default_rng(1).normal(size=(50, 4)))
    histograms = {name: reference.histogram(normal(600, seed)) for seed, name in enumerate(drift.NUMBERS)}
    shares = {"sex": {"female": 200, "male": 180, reference.OTHERS: 0}}
    return reference.Reference(**{"space": space, "histograms": histograms, "shares": shares, "images": {}, **changes})


def held(reference_, values, rows, metadata=None, unlike=0, limits=LIMITS) -> drift.Drift:
    numbers = {name: binned(reference_.histograms[name], found) for name, found in values.items()}
    return drift.held_against(reference_, numbers, metadata or {}, rows, unlike, limits)


def batch(rows: int, seed: int = 50, **changed) -> dict[str, np.ndarray]:
    return {name: changed.get(name, normal(rows, seed + place)) for place, name in enumerate(drift.NUMBERS)}


def states(found: drift.Drift) -> dict[str, str]:
    return {one.name: one.state for one in found.measures}


# --- figures


def test_psi_is_that_of_the_books():
    # Siddiqi's formula by hand, of 100,000 images so that the half image added does not tell
    before, now = np.array([30_000, 50_000, 20_000]), np.array([20_000, 50_000, 30_000])
    expected = (0.2 - 0.3) * np.log(0.2 / 0.3) + (0.3 - 0.2) * np.log(0.3 / 0.2)
    assert drift.psi(before, now) == pytest.approx(expected, rel=1e-3)
    assert 0 < drift.psi([10, 0], [0, 10]) < 10, "an empty bin is no infinity"


@given(COUNTS, st.data())
def test_figures_are_symmetric_and_zero_of_the_same(before, data):
    now = data.draw(st.lists(st.integers(0, 500), min_size=len(before), max_size=len(before)).filter(any))
    for figure in (drift.psi, drift.ks):
        assert figure(before, now) == pytest.approx(figure(now, before))
        assert figure(before, now) >= 0
        assert figure(before, before) == pytest.approx(0, abs=1e-12)
    assert drift.ks(before, now) <= 1 + 1e-12


def test_psi_of_a_shifted_normal_distribution_is_the_square_of_the_shift():
    """What makes 0.1 and 0.25 a shift of 0.32 and 0.5 standard deviations, and KS then 0.126 and 0.197."""
    for bound, other in ((LIMITS.warn.psi, LIMITS.warn.ks), (LIMITS.limit.psi, LIMITS.limit.ks)):
        shift = np.sqrt(bound)
        edges = stats.norm.ppf(np.arange(1, 400) / 400)
        before, now = (np.diff(stats.norm.cdf([-np.inf, *edges, np.inf], at)) * 1e8 for at in (0, shift))
        assert drift.psi(before, now) == pytest.approx(bound, rel=0.02)
        assert drift.ks(before, now) == pytest.approx(other, abs=0.005)


def test_ks_is_near_that_of_the_values_and_never_over_it():
    before = normal(900, 1)
    histogram = reference.histogram(before)
    for seed, shift in enumerate((0, 0.1, 0.3, 1)):
        now = normal(700, 10 + seed, shift)
        exact = stats.ks_2samp(before, now).statistic
        found = drift.ks(histogram.counts, binned(histogram, now))
        assert exact - 1 / reference.BINS <= found <= exact + 1e-12


def test_chance_is_rarely_passed_where_nothing_has_changed():
    histogram = reference.histogram(normal(400, 1))
    tenths = drift._tenths
    passed = np.zeros(2, int)
    for seed in range(1000):
        before, now = normal(400, 2000 + seed), normal(80, 5000 + seed)
        counts = [binned(histogram, values) for values in (before, now)]
        passed += [
            drift.psi(tenths(counts[0]), tenths(counts[1])) > drift.psi_by_chance(10, 400, 80),
            drift.ks(*counts) > drift.ks_by_chance(400, 80),
        ]
    assert passed.max() <= 8  # of 1000, one is expected of each


# --- verdicts


def test_a_batch_like_the_training_images_is_told_so_whatever_its_size():
    for rows in (50, 60, 200, 5000):
        found = held(known(), batch(rows), rows, {"sex": {"female": rows // 2, "male": rows - rows // 2}})
        assert found.state == drift.AS_TRAINED, found
        assert found.verdict == drift.AS_TRAINED
        assert not found.beyond
        assert {one.name for one in found.measures} == {*drift.NUMBERS, "sex", "unlike"}


def test_a_measure_that_moved_is_named_by_how_far():
    rows = 2000
    assert held(known(), batch(rows, distance=normal(rows, 1, 0.2)), rows).state == drift.AS_TRAINED
    some = held(known(), batch(rows, sharpness=normal(rows, 1, 0.4)), rows)
    assert some.verdict == "drifting: sharpness"
    much = held(known(), batch(rows, sharpness=normal(rows, 1, 0.4), distance=normal(rows, 2, 1)), rows)
    assert much.verdict == "beyond the limit: distance in feature space"
    assert much.beyond
    assert states(much)["sharpness"] == drift.DRIFTING
    wider = held(known(), batch(rows, warm=normal(rows, 3, 0, 2.5)), rows)
    assert states(wider)["warm"] == drift.BEYOND, "PSI sees what has no other middle"


def test_a_small_batch_must_move_more_than_chance():
    shifted = {"raw_probability": normal(60, 9, 0.35)}
    small = held(known(), batch(60, **shifted), 60)
    assert next(one for one in small.measures if one.name == "raw_probability").psi > LIMITS.warn.psi
    assert small.state == drift.AS_TRAINED
    assert held(known(), batch(60, raw_probability=normal(60, 9, 2)), 60).state == drift.BEYOND


def test_too_few_images_tell_nothing():
    found = held(known(), batch(49), 49)
    assert found.verdict == "too few to tell: 49 images, 50 are needed"
    assert (found.measures, found.metrics, found.beyond) == ((), {}, False)


def test_the_share_of_unlike_images_has_limits_of_its_own():
    for count, state in ((10, drift.AS_TRAINED), (100, drift.DRIFTING), (300, drift.BEYOND)):
        found = held(known(), batch(1000), 1000, unlike=count)
        assert states(found)["unlike"] == state
        assert found.metrics["share/unlike"] == count / 1000
    assert "unlike" not in states(held(known(), batch(1000), 1000, unlike=None))
    assert states(held(known(), batch(60), 60, unlike=4))["unlike"] == drift.AS_TRAINED, "four of sixty are chance"


def test_categories_are_compared_where_both_sides_name_some():
    rows = 1000
    same = {"female": 500, "male": 450, "unknown": 500}
    assert states(held(known(), batch(rows), rows, {"sex": same}))["sex"] == drift.AS_TRAINED
    found = held(known(), batch(rows), rows, {"sex": {"female": 950, "male": 50}})
    assert states(found)["sex"] == drift.BEYOND
    new = held(known(), batch(rows), rows, {"sex": {"f": 500, "m": 500}})
    assert states(new)["sex"] == drift.BEYOND, "words that the training images did not have"
    few = {"sex": {"female": 49, "unknown": rows - 49}}
    for silent in ({}, {"sex": {}}, {"sex": {"unknown": rows}}, {"site": {"arm": rows}}, few):
        assert not {"sex", "site"} & states(held(known(), batch(rows), rows, silent)).keys()


def test_what_is_ignored_is_told_and_sets_no_verdict():
    rows = 1000
    moved = batch(rows, raw_probability=normal(rows, 1, 2))
    calm = config.Drift(ignore=("raw_probability",))
    found = held(known(), moved, rows, limits=calm)
    assert found.state == drift.AS_TRAINED
    assert states(found)["raw_probability"] == drift.BEYOND
    off = config.Drift(warn={"psi": None, "ks": None}, limit={"psi": None, "ks": None})
    assert held(known(), moved, rows, limits=off).state == drift.AS_TRAINED


def test_metrics_have_the_same_names_for_every_batch():
    one, other = (held(known(), batch(rows, seed), rows) for rows, seed in ((60, 1), (900, 99)))
    assert one.metrics.keys() == other.metrics.keys() >= {"state", "psi/distance", "ks/sharpness", "share/unlike"}


def test_every_measure_can_be_named_in_the_settings():
    assert get_args(config.DriftMeasure) == tuple(drift.MEASURES)


def test_what_tables_say_is_counted_in_bands_and_as_it_is():
    assert [drift.category("age", text) for text in ("45.0", "90", None, "", "adult")] == [
        *("40-49", "80 and over", "unknown", "unknown", "unknown"),
    ]
    assert [drift.category("site", text) for text in (" arm ", None)] == ["arm", "unknown"]
