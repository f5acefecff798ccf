"""Splits: as large as asked for, decided for each group by itself."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.dataset.splits import SPLITS, TEST, TRAIN, VALIDATION, fold_of, split_of

GROUPS = 20_000


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize(("test", "validation"), [(0.15, 0.15), (0.3, 0.2), (0.01, 0.5)])
def test_each_split_has_its_fraction_of_the_groups(seed, test, validation):
    counts = Counter(split_of(f"patient:{n}", seed, test, validation) for n in range(GROUPS))
    for split, fraction in ((TEST, test), (VALIDATION, validation), (TRAIN, 1 - test - validation)):
        deviation = math.sqrt(GROUPS * fraction * (1 - fraction))
        assert abs(counts[split] - GROUPS * fraction) < 4 * deviation


@given(st.text(), st.integers(), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_every_group_has_one_fixed_split(group, seed, test, validation):
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


def test_another_seed_gives_other_splits_and_folds():
    def sides(seed):
        return [split_of(f"patient:{n}", seed, 0.3, 0.3) for n in range(100)]

    assert sides(1) != sides(2)
    assert [fold_of(f"patient:{n}", 5, 1) for n in range(100)] != [fold_of(f"patient:{n}", 5, 2) for n in range(100)]


def test_known_groups_stay_where_earlier_releases_put_them():
    # Written down from release 0.1.0: another hash would move every image that was ever split.
    sides = {n: split_of(f"patient:{n}", 0, 0.15, 0.15) for n in range(24)}
    assert [n for n, side in sides.items() if side == TEST] == [1, 13]
    assert [n for n, side in sides.items() if side == VALIDATION] == [0, 3, 15, 22, 23]
    assert [fold_of(f"patient:{n}", 5, 0) for n in range(12)] == [0, 2, 3, 2, 1, 0, 1, 0, 3, 4, 1, 1]


@given(st.text(), st.integers(1, 20), st.integers())
def test_every_group_has_one_fixed_fold(group, folds, seed):
    fold = fold_of(group, folds, seed)
    assert 0 <= fold < folds
    assert fold_of(group, folds, seed) == fold


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_alike_in_size_also_among_the_groups_that_are_not_in_test(folds):
    """A fold by the hash of `split_of` would lose its first groups to the test split."""
    left = [f"patient:{n}" for n in range(GROUPS) if split_of(f"patient:{n}", 3, 0.3, 0.2) != TEST]
    counts = Counter(fold_of(group, folds, 3) for group in left)
    deviation = math.sqrt(len(left) / folds * (1 - 1 / folds))
    assert set(counts) == set(range(folds))
    assert all(abs(count - len(left) / folds) < 4 * deviation for count in counts.values())


@given(st.sets(st.text(min_size=1), min_size=60, max_size=80), st.integers(2, 3), st.integers())
def test_no_fold_is_empty_where_there_are_groups_enough(groups, folds, seed):
    assert {fold_of(group, folds, seed) for group in groups} == set(range(folds))
