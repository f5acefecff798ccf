"""Cells of tables as values: text, labels, ages, skin types, shares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from melanoma_spark.words import key

MAX_WORD = 200  # characters of a label or a number; the rest is cut
MAX_AGE = 120  # years

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MISSING = {"", "na", "n/a", "nan", "none", "null", "unknown", "missing", "not available", "none selected", "-", "?"}
MISSING_LABEL = MISSING - {"unknown"}  # an unknown diagnosis is a diagnosis: the third state
SEXES = {**dict.fromkeys(("f", "female", "w", "woman"), "female"), **dict.fromkeys(("m", "male", "man"), "male")}
SKIN_TYPES = ("I", "II", "III", "IV", "V", "VI")  # Fitzpatrick's


def text(cell: str) -> str | None:
    """The text of a cell, None where it is missing."""
    cell = cell.strip()
    return None if cell.lower() in MISSING else cell


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


def _lower_text(cell: str) -> str | None:
    return (text(cell) or "").lower() or None


def _age(cell: str) -> float | None:
    """Years; `85+` is 85."""
    number = r"[>≥]?\s*(\d{1,3}(?:[.,]\d{1,6})?)\s*\+?\s*(y|yrs?|years?)?"
    found = re.fullmatch(number, cell.strip()[:MAX_WORD], re.I | re.A)
    years = float(found[1].replace(",", ".")) if found else math.inf
    return years if years <= MAX_AGE else None


def _skin_type(cell: str) -> str | None:
    name = re.sub(r"(?i)^((fitzpatrick|fst|skin|type)[\s_:-]*)*", "", cell.strip()[:MAX_WORD]).upper()
    if re.fullmatch(r"[1-6](\.0*)?", name, re.A):
        return SKIN_TYPES[int(name[0]) - 1]
    return name if name in SKIN_TYPES else None


# Field -> its value in a cell; `text` for all others
VALUES: Mapping[str, Callable[[str], Any]] = {
    "age": _age,
    "sex": lambda cell: SEXES.get(cell.strip().lower()),
    "skin_type": _skin_type,
    "split": lambda cell: SPLITS.get(cell.strip().lower()),
    "site": _lower_text,
    "image_type": _lower_text,
}
