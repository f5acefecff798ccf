"""Words for diagnoses -> the target of a run. diagnoses.csv is the table of words, for people to read and check.

Each word answers two questions, malignant? and melanoma?, with yes, no or unknown. The questions differ: basal and
squamous cell carcinoma are malignant and not melanoma, and "malignant" alone does not answer the second one.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

from melanoma_spark.words import key

TARGETS = ("melanoma", "malignant")
NO_LABEL, INDETERMINATE, UNKNOWN_LABEL = "no_label", "indeterminate", "unknown_label"
YES_NO = {"yes": True, "no": False, "unknown": None}
ASSUMED = {"assumed yes": 1, "assumed no": 0}
KINDS = ("answer", "group", "diagnosis")  # from the least to the most specific


@dataclass(frozen=True)
class Diagnosis:
    """A row of diagnoses.csv. None means that the word does not answer the question.

    `answer` is that of a bare 0 or 1, which answers the question of its own table. It counts only if no other word
    answers, and never contradicts one.
    """

    word: str
    diagnosis: str
    malignant: bool | None
    melanoma: bool | None
    answer: int | None
    kind: str
    notes: str


@dataclass(frozen=True)
class Answer:
    """The target of an image, 1 or 0; or None and the reason, one of the three above.

    `word` is the label that decided, as the archive spells it, or the most specific one if none decided. `diagnosis` is
    the most specific known diagnosis in plain words. `contradiction` names two labels that exclude each other.
    """

    target: int | None
    reason: str | None = None
    word: str | None = None
    diagnosis: str | None = None
    contradiction: str | None = None


def target_of(
    labels: str | Iterable[str] | None, target: str, positive: Iterable[str] = (), negative: Iterable[str] = ()
) -> Answer:
    """The target, "melanoma" or "malignant", of an image by its labels.

    Order, case and spaces of labels do not matter; a colon separates the levels of the ISIC Archive's hierarchy. The
    most specific label with an answer wins: a diagnosis before benign and malignant, these before 0 and 1. The user's
    words (`positive`, `negative`) win over the table. Raises ValueError for another target.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: expected one of {', '.join(TARGETS)}")
    words = (labels,) if isinstance(labels, str) else tuple(labels or ())
    return _answer(words, target, tuple(positive), tuple(negative))


@lru_cache(maxsize=1)
def diagnosis_table() -> Mapping[str, Diagnosis]:
    """The rows of diagnoses.csv by the `key` of their word."""
    text = resources.files("melanoma_spark.archives").joinpath("diagnoses.csv").read_text(encoding="utf-8")
    rows = {}
    for row in csv.DictReader(text.splitlines()):
        answers = [row["malignant"], row["melanoma"]]
        answer = next((ASSUMED[word] for word in answers if word in ASSUMED), None)
        malignant, melanoma = (None if word in ASSUMED else YES_NO[word] for word in answers)
        rows[key(row["word"])] = Diagnosis(
            row["word"], row["diagnosis"], malignant, melanoma, answer, row["kind"], row["notes"]
        )
    return MappingProxyType(rows)


def find(word: str) -> Diagnosis | None:
    """The diagnosis of a word; of a hierarchy, and of a code of ICD-10, that of its deepest known level."""
    table = diagnosis_table()
    return next((table[prefix] for prefix in _prefixes(word) if prefix in table), None)


# A code of ICD-10 with the place below its category, as C43.5, C43.59 or D225. German letters behind a code say that a
# diagnosis is suspected, excluded or past: with them it is no code here.
ICD_CODE = re.compile(r"([a-z]\d\d) ?\d{1,3}")


def _prefixes(word: str) -> list[str]:
    levels = key(word).split(":")
    prefixes = [":".join(levels[:depth]) for depth in range(len(levels), 0, -1)]
    code = ICD_CODE.fullmatch(prefixes[0])
    return [*prefixes, code[1]] if code else prefixes


def _specificity(word: str) -> tuple[int, int]:
    """How specific a word is, larger for more. An unknown word counts as a diagnosis."""
    row = find(word)
    return KINDS.index(row.kind if row else "diagnosis"), key(word).count(":")


@lru_cache(maxsize=1 << 14)
def _answer(labels: tuple[str, ...], target: str, positive: tuple[str, ...], negative: tuple[str, ...]) -> Answer:
    words = {key(label): label for label in sorted(labels, reverse=True) if key(label)}
    ordered = sorted(words.values(), key=lambda word: (*(-n for n in _specificity(word)), key(word)))
    if not ordered:
        return Answer(None, NO_LABEL)
    rows = {word: row for word in ordered if (row := find(word))}
    name = next(iter(rows.values())).diagnosis if rows else None
    user_answers = {key(word): 1 for word in positive} | {key(word): 0 for word in negative}
    answers = {
        word: user_answers[prefix] for word in ordered for prefix in reversed(_prefixes(word)) if prefix in user_answers
    }
    contradiction = _contradiction(answers)
    if not answers:
        answers = {word: int(value) for word, row in rows.items() if (value := getattr(row, target)) is not None}
        # Of both questions, whatever the target: a benign melanoma contradicts itself.
        by_question = ({word: getattr(row, question) for word, row in rows.items()} for question in TARGETS)
        contradiction = next(filter(None, map(_contradiction, by_question)), None)
    if not answers:
        answers = {word: row.answer for word, row in rows.items() if row.answer is not None}
        contradiction = contradiction or _contradiction(answers)
    if answers:
        word, value = next(iter(answers.items()))
        return Answer(value, None, word, name, contradiction)
    reason = INDETERMINATE if ordered[0] in rows else UNKNOWN_LABEL
    return Answer(None, reason, ordered[0], name, contradiction)


def _contradiction(answers: Mapping[str, bool | int | None]) -> str | None:
    """The most specific label with an answer, and the first one with another answer."""
    answered = [(word, answer) for word, answer in answers.items() if answer is not None]
    other = next((word for word, answer in answered if answer != answered[0][1]), None)
    return f"{answered[0][0]!r} against {other!r}" if other else None
