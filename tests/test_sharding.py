"""Shards: every row once, every rank as long as the others, and padding that counts for nothing."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from melanoma_spark.errors import DataError
from melanoma_spark.sharding import deal

ROWS = st.integers(1, 200).map(lambda count: [f"{place:064x}" for place in range(count)])
RANKS, BATCH = st.integers(1, 9), st.integers(1, 64)


@st.composite
def dealt(draw):
    rows, ranks, batch = draw(ROWS), draw(RANKS), draw(BATCH)
    assume(len(rows) >= ranks)
    return rows, ranks, batch, deal(rows, ranks, batch)


@given(dealt())
def test_every_row_stands_in_exactly_one_shard_in_its_order(case):
    rows, ranks, _, shards = case
    assert [row for shard in shards for row in shard.rows] == rows
    assert len(shards) == ranks


@given(dealt())
def test_lengths_differ_by_one_at_most_and_every_rank_knows_them(case):
    *_, shards = case
    lengths = tuple(len(shard.rows) for shard in shards)
    assert max(lengths) - min(lengths) <= 1
    assert {shard.sizes for shard in shards} == {lengths}


@given(dealt())
def test_every_rank_takes_the_same_steps_and_they_reach_its_last_row(case):
    *_, shards = case
    ((steps, batch_size),) = {(shard.steps, shard.batch_size) for shard in shards}
    longest = max(len(shard.rows) for shard in shards)
    assert (steps - 1) * batch_size < longest <= steps * batch_size


@given(dealt())
def test_global_batch_is_shared_by_the_ranks(case):
    _, ranks, batch, shards = case
    assert shards[0].batch_size == max(1, batch // ranks)


@given(dealt())
def test_images_that_count_in_each_step_add_up_to_the_rows(case):
    rows, ranks, _, shards = case
    valid = [shards[0].valid(step) for step in range(shards[0].steps)]
    assert sum(valid) == len(rows)
    assert all(0 < count <= ranks * shards[0].batch_size for count in valid)


@given(dealt())
def test_images_that_count_in_a_step_are_those_of_the_ranks_batches(case):
    *_, shards = case
    size = shards[0].batch_size
    for step in range(shards[0].steps):
        batches = [shard.rows[step * size : (step + 1) * size] for shard in shards]
        assert {shard.valid(step) for shard in shards} == {sum(map(len, batches))}


def test_no_image_counts_after_the_last_step():
    shard = deal(["a", "b", "c"], 2, 4)[0]
    assert [shard.valid(step) for step in range(4)] == [3, 0, 0, 0]


def test_fewer_rows_than_ranks_is_an_error_that_says_how_many_would_do():
    with pytest.raises(DataError, match="3 images for 4 ranks: each rank needs at least one; set ranks=3"):
        deal(["a", "b", "c"], 4, 16)


def test_as_many_rows_as_ranks_is_enough():
    assert [shard.rows for shard in deal(["a", "b"], 2, 16)] == [("a",), ("b",)]
