"""Groups: what is joined by edges, through whatever chain, is one component."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from melanoma_spark.dataset.groups import components

SMALL = st.integers(-4, 4)
LONG = st.integers(-(2**63), 2**63 - 1)  # hashes, of either sign
EDGES = st.lists(st.tuples(SMALL, SMALL) | st.tuples(LONG, LONG) | st.tuples(SMALL, LONG), max_size=30)


def arrays(edges):
    ends = np.array(edges, np.int64).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def by_hand(edges):
    """The sets of ends that chains of edges join: sets that overlap are merged until none does."""
    sets = []
    for edge in edges:
        joined = set(edge)
        for other in [result for result in sets if result & joined]:
            sets.remove(other)
            joined |= other
        sets.append(joined)
    return {frozenset(result) for result in sets}


def by_components(edges):
    keys, numbers = components(*arrays(edges))
    sets = {}
    for key, number in zip(keys.tolist(), numbers.tolist(), strict=True):
        sets.setdefault(number, set()).add(key)
    return {frozenset(result) for result in sets.values()}


@given(EDGES)
@example([])
@example([(2**63 - 1, -(2**63)), (-(2**63), 0)])
def test_components_are_what_chains_of_edges_join(edges):
    assert by_components(edges) == by_hand(edges)


@given(EDGES)
def test_each_end_is_listed_once_in_order(edges):
    keys, numbers = components(*arrays(edges))
    assert keys.tolist() == sorted({end for edge in edges for end in edge})
    assert (keys.dtype, numbers.dtype, keys.shape) == (np.int64, np.int32, numbers.shape)


@given(EDGES, st.randoms(use_true_random=False))
def test_order_direction_and_repetition_of_edges_do_not_matter(edges, rng):
    other = [edge[::-1] if rng.random() < 0.5 else edge for edge in rng.sample(edges, len(edges))]
    assert by_components(other + edges[:3]) == by_components(edges)


@given(EDGES, EDGES)
def test_more_edges_never_part_what_was_together(edges, later):
    after = by_components(edges + later)
    assert all(any(members <= result for result in after) for members in by_components(edges))


def test_missing_repeated_and_long_chains_of_edges():
    keys, numbers = components(np.array([], np.int64), np.array([], np.int64))
    assert (keys.tolist(), numbers.tolist()) == ([], [])
    assert by_components([(1, 1), (2, 3), (3, 3)]) == {frozenset([1]), frozenset([2, 3])}
    order = np.random.default_rng(0).permutation(200_000)
    keys, numbers = components(order, order + 1)
    assert (len(keys), set(numbers.tolist())) == (200_001, {0})
    many = np.zeros(65_536, np.int64)  # counted in 8 or 16 bits they are none
    keys, numbers = components(many, many + 1)
    assert (keys.tolist(), numbers.tolist()) == ([0, 1], [0, 0])
