"""Shards: every row once an epoch, the same steps on any number of ranks, and each rank in few row groups."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from melanoma_spark.errors import DataError
from melanoma_spark.training.sharding import NONE, check, deal, share, stretches

GROUPS = st.lists(st.integers(1, 30), min_size=1, max_size=15).map(
    lambda sizes: np.repeat(np.arange(len(sizes)), sizes)
)
BATCH, RANKS = st.integers(1, 40), st.integers(1, 9)
SEEDS = st.none() | st.integers(0, 2**40)


def of(step):
    return sorted(int(row) for row in np.ravel(step) if row != NONE)


@given(GROUPS, BATCH, SEEDS)
def test_steps_are_full_and_hold_every_row_once(groups, batch, seed):
    dealt = deal(groups, batch, seed)
    assert of(dealt) == list(range(len(groups)))
    assert dealt.shape == (-(-len(groups) // min(batch, len(groups))), batch)
    assert all(len(of(step)) == min(batch, len(groups)) for step in dealt[:-1])
    assert of(dealt[-1])


@given(GROUPS, BATCH, RANKS, SEEDS)
def test_ranks_share_each_step_and_read_what_they_use(groups, batch, ranks, seed):
    assume(batch >= ranks)
    dealt = deal(groups, batch, seed)
    parts = [share(dealt, rank, ranks) for rank in range(ranks)]
    assert len({part.shape for part in parts}) == 1, "as many steps, and as many places in each, on all ranks"
    for step, *own in zip(dealt, *parts, strict=True):
        assert of(own) == of(step)

    shared = parts[-1]
    reads = stretches(shared, groups)
    assert of([row for _, rows in reads for row in rows]) == of(shared)
    assert all((groups[rows] == group).all() for group, rows in reads)
    first = {row: step for step, rows in enumerate(shared) for row in rows.tolist()}
    starts = [min(first[row] for row in rows.tolist()) for _, rows in reads]
    assert starts == sorted(starts)


@given(GROUPS, BATCH, RANKS, SEEDS)
def test_ranks_have_about_as_much_to_do(groups, batch, ranks, seed):
    assume(batch >= ranks and len(groups) >= ranks)
    loads = [len(of(share(deal(groups, batch, seed), rank, ranks))) for rank in range(ranks)]
    steps = -(-len(groups) // min(batch, len(groups)))
    last = -(-batch // ranks)
    assert max(loads) - min(loads) <= steps + last, "one image a step, and what the last step lacks"
    assert min(loads) > 0


def test_row_groups_are_mixed_in_a_step_and_few_for_a_rank():
    groups = np.repeat(np.arange(100), 50)
    shared = share(deal(groups, 32, seed=1), 0, 4)  # 8 columns of 156 rows, which is about 3 row groups each
    assert len(stretches(shared, groups)) <= 8 * 5
    groups = np.repeat(np.arange(16), 20)
    for step in deal(groups, 16, seed=3):
        assert len(set(groups[step].tolist())) >= 8


def test_seeds_decide_the_steps():
    groups = np.repeat(np.arange(10), 10)
    first, again, other = (deal(groups, 8, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not any(of(a) == of(b) for a, b in zip(first, other, strict=True))
    dealt = deal(np.array([0, 0, 1, 1, 2, 2, 2]), 3, 2)
    assert dealt.tolist() == [[2, 6, 4], [3, 5, 0], [-1, -1, 1]]
    assert {dealt.dtype, share(dealt, 0, 2).dtype} == {np.dtype(np.int32)}


def test_few_rows_and_rows_without_a_seed():
    np.testing.assert_array_equal(deal(np.zeros(7, int), 3), [[0, 2, 4], [1, 3, 5], [NONE, NONE, 6]])
    dealt = deal(np.zeros(2, int), 8)
    assert [of(share(dealt, rank, 2)) for rank in (0, 1)] == [[0], [1]]
    assert deal(np.zeros(0, int), 4, seed=1).shape == (0, 4)
    first, second = stretches(np.array([[0], [1]]), np.array([1, 0]))
    assert (first, second) == ((1, [0]), (0, [1])), "by first use, not by number"


def test_fewer_images_than_ranks_is_an_error_with_a_hint():
    check(4, 4, 4)
    with pytest.raises(DataError, match="3 images for 4 ranks: each rank needs at least one; set ranks=3"):
        check(3, 16, 4)
    with pytest.raises(
        DataError, match=r"3 images a step for 4 ranks: .*; set ranks=3, or a larger finetune.batch_size"
    ):
        check(10, 3, 4)
