"""Patient, lesion, pair, study, image, duplicate -> group: what must never stand on two sides of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# How lasting a kind of key is, most lasting first. A group is named by its smallest key of the most lasting kind it
# has, so that its name, and with it the side of the split, stays when more images of the same patient arrive. The id of
# an image is last: each image has looks, so groups keep the names that they had before ids joined them.
KINDS = ("patient", "lesion", "pair", "study", "looks", "pixels", "image")
LASTING = KINDS[: KINDS.index("looks")]  # kinds that somebody has stated, in a table or a header
MOST_TWINS = 50  # images of a group that twins have joined; look-alikes would run together into larger ones


def components(left: NDArray[np.int64], right: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The connected components of edges `left[i] - right[i]`, both int64 (n,).

    Returns the distinct ends in order, int64 (k,), and the number of each one's component, int32 (k,). About 100 bytes
    an edge are needed while it runs.
    """
    keys, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    ends = places[: len(left)], places[len(left) :]
    graph = coo_array((np.ones(len(left), np.bool_), ends), shape=(len(keys), len(keys)))
    return keys, connected_components(graph, directed=False)[1]


@dataclass
class Group:
    """A group before twins join it to others."""

    name: str
    images: int
    side: str | None  # of a split that the archive ships

    @property
    def rank(self) -> tuple[int, str]:
        """Sorts the most lasting name first."""
        return KINDS.index(self.name.split(":", 1)[0]), self.name


def join_twins(pairs: Sequence[tuple[Group, Group]]) -> tuple[dict[str, str], list[str]]:
    """Join the groups of twins, `pairs` in the order in which they are to be joined: most alike first.

    A pair is not joined where that would rename a group with a lasting name, move an image of a shipped split, or make
    a group of more than `MOST_TWINS` images.

    Returns the name of each group -> its name now, and what came of each pair: "joined", "one group" where it was one
    already, or why it was not joined.
    """
    now: dict[str, Group] = {}
    joined: dict[str, str] = {}

    def group_of(group: Group) -> Group:
        name = group.name
        while name in joined:
            name = joined[name]
        return now.setdefault(name, group)

    outcomes = []
    for pair in pairs:
        one, other = sorted((group_of(group) for group in pair), key=lambda group: group.rank)
        if one.name == other.name:
            outcomes.append("one group")
        elif other.rank[0] < len(LASTING):
            outcomes.append("different ids")
        elif one.side != other.side:
            outcomes.append("two sides of the shipped split")
        elif one.images + other.images > MOST_TWINS:
            outcomes.append("too many alike")
        else:
            outcomes.append("joined")
            joined[other.name] = one.name
            one.images += other.images
    names = {group.name: group_of(group).name for pair in pairs for group in pair}
    return names, outcomes
