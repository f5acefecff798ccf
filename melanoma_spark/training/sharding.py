"""Which rows stand in which step of an epoch, and which of them each rank reads: known before anything is read.

A step holds the same rows on any number of ranks, so that training does not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from melanoma_spark.errors import DataError

NONE = -1  # in place of a row: padding


@dataclass(frozen=True)
class Index:
    """The rows of a dataset that take part, in storage order."""

    places: tuple[tuple[str, int], ...]  # of row groups: the file's name, and which of the file's row groups
    groups: np.ndarray  # int32 (n,): where each row's row group stands in `places`
    keys: np.ndarray  # bytes (n,), S64: sha256 of the image
    labels: np.ndarray  # int8 (n,)
    view: int = 0  # of features, see schemas.features_schema

    def __len__(self) -> int:
        return len(self.keys)


def deal(groups: np.ndarray, batch: int, seed: int | None = None) -> np.ndarray:
    """The rows of each step of an epoch, int32 (steps, batch), each row once; `NONE` where the last step is padded.

    `groups` names each row's row group. A column of the result goes through a stretch of row groups from its start to
    its end, so who reads some of the columns reads few row groups more than those hold, and needs one of each column
    at a time. With a `seed` the row groups come in another order, and the rows of each; without one, as stored.
    """
    count = len(groups)
    order = np.argsort(groups, kind="stable")
    if seed is not None and count:
        draw = np.random.default_rng(seed)
        turn = draw.permutation(int(groups.max()) + 1)
        order = np.lexsort((draw.random(count), turn[groups]))
    columns = min(batch, count)
    steps = -(-count // columns) if count else 0
    dealt = np.full((steps, batch), NONE, np.int32)
    for column in range(columns):
        stretch = order[count * column // columns : count * (column + 1) // columns]
        dealt[: len(stretch), batch * column // columns] = stretch  # few columns are spread over the ranks
    return dealt


def check(count: int, batch: int, ranks: int) -> None:
    """Raises `DataError` when there are fewer images, in all or in a step, than ranks."""
    if count < ranks:
        raise DataError(f"{count} images for {ranks} ranks: each rank needs at least one; set ranks={count}")
    if batch < ranks:
        raise DataError(
            f"{batch} images a step for {ranks} ranks: each rank needs at least one; set ranks={batch}, or a larger "
            "finetune.batch_size"
        )


def share(dealt: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """A rank's columns of `deal`'s result: (steps, width), with a `width` that is the same on all ranks."""
    steps, batch = dealt.shape
    own = dealt[:, batch * rank // ranks : batch * (rank + 1) // ranks]
    shared = np.full((steps, -(-batch // ranks)), NONE, np.int32)
    shared[:, : own.shape[1]] = own
    return shared


def stretches(shared: np.ndarray, groups: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """What to read for a rank's columns: row group and rows of it, in the order in which the first of them is used.

    Rows that several columns take from a row group in different steps are read at different times.
    """
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for column in shared.T:
        rows = column[column != NONE]  # padding stands at a column's end
        ends = np.flatnonzero(np.diff(groups[rows])) + 1
        for start, stretch in zip([0, *ends], np.split(rows, ends), strict=True):
            if len(stretch):
                found.setdefault((int(start), int(groups[stretch[0]])), []).append(stretch)
    return [(group, np.concatenate(found[start, group])) for start, group in sorted(found)]
