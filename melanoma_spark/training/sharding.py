"""Plans which rows are in which step of an epoch, and which of them each rank reads.

A step has the same rows on any number of ranks, so training does not depend on their number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import DataError

NONE = -1  # in place of a row: padding


@dataclass(frozen=True)
class Index:
    """The rows of a dataset that are used, in storage order."""

    places: tuple[tuple[str, int], ...]  # of row groups: the file's name, and which of the file's row groups
    groups: NDArray[Any]  # int32 (n,): where each row's row group stands in `places`
    keys: NDArray[Any]  # bytes (n,), S64: sha256 of the image
    labels: NDArray[Any]  # int8 (n,)
    view: int = 0  # of features, see schemas.features_schema

    def __len__(self) -> int:
        return len(self.keys)


def deal(groups: NDArray[Any], batch: int, seed: int | None = None) -> NDArray[Any]:
    """Return the rows of each step of an epoch, int32 (steps, batch), each row once; `NONE` pads the last step.

    A column of the result goes through a stretch of row groups from start to end. So a rank, which reads some columns,
    reads few row groups in addition to theirs, and holds one row group of each column at a time.

    Args:
        groups: The row group of each row, int (n,).
        batch: Rows in a step.
        seed: Shuffles the row groups, and the rows of each; None for the order in which they are stored.
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
    """Raise `DataError` if there are fewer images than ranks, in all or in a step."""
    if count < ranks:
        raise DataError(f"{count} images for {ranks} ranks: each rank needs at least one; set ranks={count}")
    if batch < ranks:
        raise DataError(
            f"{batch} images a step for {ranks} ranks: each rank needs at least one; set ranks={batch}, or a larger "
            "finetune.batch_size"
        )


def share(dealt: NDArray[Any], rank: int, ranks: int) -> NDArray[Any]:
    """Return a rank's columns of `deal`'s result: (steps, width), with the same `width` on all ranks."""
    steps, batch = dealt.shape
    columns = dealt[:, batch * rank // ranks : batch * (rank + 1) // ranks]
    shared = np.full((steps, -(-batch // ranks)), NONE, np.int32)
    shared[:, : columns.shape[1]] = columns
    return shared


def stretches(shared: NDArray[Any], groups: NDArray[Any]) -> list[tuple[int, NDArray[Any]]]:
    """Return what to read for a rank's columns: row groups and their rows, in the order in which they are first used.

    Rows of a row group that several columns use in different steps are read at different times.
    """
    found: dict[tuple[int, int], list[NDArray[Any]]] = {}
    for column in shared.T:
        rows = column[column != NONE]  # padding stands at a column's end
        ends = np.flatnonzero(np.diff(groups[rows])) + 1
        for start, stretch in zip([0, *ends], np.split(rows, ends), strict=True):
            if len(stretch):
                found.setdefault((int(start), int(groups[stretch[0]])), []).append(stretch)
    return [(group, np.concatenate(found[start, group])) for start, group in sorted(found)]
