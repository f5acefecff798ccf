"""Patient, lesion, pair, study, image, duplicate -> group: what must never stand on two sides of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# How lasting a kind of key is, most lasting first. A group is named by its smallest key of the most lasting kind it
# has, so that its name, and with it the side of the split, stays when more images of the same patient arrive. The id of
# an image is last: each image has looks, so groups keep the names that they had before ids joined them.
KINDS = ("patient", "lesion", "pair", "study", "looks", "pixels", "image")


def components(left: NDArray[np.int64], right: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The connected components of edges `left[i] - right[i]`, both int64 (n,).

    Returns the distinct ends in order, int64 (k,), and the number of each one's component, int32 (k,). About 100 bytes
    an edge are needed while it runs.
    """
    keys, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    ends = places[: len(left)], places[len(left) :]
    graph = coo_array((np.ones(len(left), np.bool_), ends), shape=(len(keys), len(keys)))
    return keys, connected_components(graph, directed=False)[1]
