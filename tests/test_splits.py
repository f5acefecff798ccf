"""Splits: as large as asked for, decided for each group by itself."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.splits import SPLITS, TEST, TRAIN, VALIDATION, split_of

GROUPS = 20_000


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize(("test", "validation"), [(0.15, 0.15), (0.3, 0.2), (0.01, 0.5)])
def test_each_split_has_its_fraction_of_the_groups(seed, test, validation):
    counts = Counter(split_of(f"patient:{n}", seed, test, validation) for n in range(GROUPS))
    for split, fraction in ((TEST, test), (VALIDATION, validation), (TRAIN, 1 - test - validation)):
        deviation = math.sqrt(GROUPS * fraction * (1 - fraction))
        assert abs(counts[split] - GROUPS * fraction) < 4 * deviation


@given(st.text(), st.integers(), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_every_group_stands_on_one_side_and_always_the_same(group, seed, test, validation):
    split = split_of(group, seed, test, validation)
    assert split in SPLITS
    assert split_of(group, seed, test, validation) == split


@given(st.text(), st.integers(), st.floats(0.01, 0.3), st.floats(0, 0.19), st.floats(0.01, 0.5))
def test_larger_test_fraction_takes_no_group_out_of_test(group, seed, test, more, validation):
    if split_of(group, seed, test, validation) == TEST:
        assert split_of(group, seed, test + more, validation) == TEST


@given(st.text(), st.integers(), st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.floats(0, 0.19))
def test_larger_validation_fraction_takes_groups_from_train_alone(group, seed, test, validation, more):
    before, after = split_of(group, seed, test, validation), split_of(group, seed, test, validation + more)
    assert before == after or (before, after) == (TRAIN, VALIDATION)


def test_another_seed_splits_otherwise():
    def sides(seed):
        return [split_of(f"patient:{n}", seed, 0.3, 0.3) for n in range(100)]

    assert sides(1) != sides(2)


def test_known_groups_stay_where_earlier_releases_put_them():
    # Written down from release 0.1.0: another hash would move every image that was ever split.
    sides = {n: split_of(f"patient:{n}", 0, 0.15, 0.15) for n in range(24)}
    assert [n for n, side in sides.items() if side == TEST] == [1, 13]
    assert [n for n, side in sides.items() if side == VALIDATION] == [0, 3, 15, 22, 23]
