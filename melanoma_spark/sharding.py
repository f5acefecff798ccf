"""Which rows each rank gets, dealt from an index known beforehand, and the same number of steps on every rank."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from melanoma_spark.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One rank's part of an epoch: its rows (by key), its batch size, and the steps that all ranks take."""

    rows: tuple[str, ...]
    batch_size: int
    steps: int
    sizes: tuple[int, ...]  # rows of every rank

    def valid(self, step: int) -> int:
        """How many images over all ranks are no padding in this step (counted from 0)."""
        return sum(min(max(size - step * self.batch_size, 0), self.batch_size) for size in self.sizes)


def deal(rows: Sequence[str], ranks: int, global_batch: int) -> list[Shard]:
    """Each rank's shard: contiguous runs of `rows` (storage order, so a rank touches few row groups).

    Lengths differ by one at most; every row stands in exactly one shard. A short rank's last batch is filled with
    images of weight zero. Raises `DataError` when there are fewer rows than ranks.
    """
    if len(rows) < ranks:
        raise DataError(f"{len(rows)} images for {ranks} ranks: each rank needs at least one; set ranks={len(rows)}")
    bounds = [len(rows) * rank // ranks for rank in range(ranks + 1)]
    parts = [tuple(rows[low:high]) for low, high in itertools.pairwise(bounds)]
    batch_size = max(1, global_batch // ranks)
    sizes = tuple(len(part) for part in parts)
    steps = -(-max(sizes) // batch_size)
    return [Shard(part, batch_size, steps, sizes) for part in parts]
