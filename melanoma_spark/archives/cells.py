"""Cells of tables as labels and shares; `attributes` has the values of attributes."""

import math
from collections.abc import Iterable, Mapping

from melanoma_spark.attributes import MAX_WORD, MISSING
from melanoma_spark.words import key

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MISSING_LABEL = MISSING - {"unknown"}  # an unknown diagnosis is a diagnosis: the third state


def label(cell: str, words: Mapping[str, str]) -> str:
    """The label in a cell, replaced by what `words` (by their `key`) say that it means; empty where it is missing."""
    cell = cell.strip()[:MAX_WORD]
    return "" if cell.lower() in MISSING_LABEL else words.get(key(cell), cell) if words else cell


def label_of_one_hot(cells: list[str], one_hot: Iterable[tuple[int, str]], neither: str) -> str:
    """The diagnosis whose column holds the highest value, if that is over 0.5 and no other column holds it.

    `one_hot` are places and diagnoses, `neither` is the diagnosis where all values are 0. Empty where all are missing.
    """
    texts = [(cells[place].strip(), word) for place, word in one_hot]
    if all(value.lower() in MISSING for value, _ in texts):
        return ""
    ranked = sorted(((_share(value), word) for value, word in texts if is_share(value)), reverse=True)
    if len(ranked) < len(texts):
        return "unknown"
    if ranked[0][0] <= 0.5:
        return neither if ranked[0][0] == 0 else "unknown"
    return "unknown" if ranked[1][0] == ranked[0][0] else ranked[0][1]


def is_share(cell: str) -> bool:
    """Whether a cell is a number from 0 to 1."""
    return 0 <= _share(cell) <= 1


def _share(cell: str) -> float:
    try:
        return float(cell[:MAX_WORD])
    except ValueError:
        return math.nan
