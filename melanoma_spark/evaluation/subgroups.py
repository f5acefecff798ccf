"""Subgroups: the figures of a model by age, sex, site, skin type, source, image type, size of the file and quality.

What the archive says of an image is taken as ingest stored it. An image of which nothing is said is `unknown`, a
subgroup like the others. Of quality flags an image may have several, and is then in several subgroups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark import attributes
from melanoma_spark.attributes import UNKNOWN
from melanoma_spark.evaluation.figures import Figure
from melanoma_spark.metrics import arrays, binary, bootstrap

COLUMNS = tuple(name for name, attribute in attributes.ATTRIBUTES.items() if attribute.subgroup)  # of images/
# Attribute -> its label.
ATTRIBUTES = {
    **{name: attributes.ATTRIBUTES[name].label for name in COLUMNS},
    "size": "size of the file",
    "quality": "quality",
}
OTHERS, ENOUGH = "all others", "large enough"
NO_FLAG, ANY_FLAG = "no flag", "any flag"
FIRST = ("under 30", NO_FLAG, ANY_FLAG)  # else by alphabet
FEWEST = 5  # images of each label: of fewer a rate is what one image says
MOST_VALUES = 12  # of an attribute, by number of images; the rest are taken together


@dataclass(frozen=True)
class Subgroup:
    """A value of an attribute, and a model's figures on its test images.

    `sufficient` is False where there are fewer images than were asked for, or fewer than `FEWEST` of a label: then the
    figures are NaN, because they would be read.
    """

    attribute: str
    value: str
    n: int
    positives: int
    sufficient: bool
    auroc: Figure
    sensitivity: Figure
    specificity: Figure

    @property
    def prevalence(self) -> float:
        return self.positives / self.n

    def as_record(self) -> dict[str, Any]:
        """For JSON: undefined figures are None."""
        told = {key: getattr(self, key).value for key in ("auroc", "sensitivity", "specificity")}
        plain = {"attribute": self.attribute, "value": self.value, "n": self.n, "positives": self.positives}
        return plain | {key: None if math.isnan(value) else value for key, value in told.items()}


@dataclass(frozen=True)
class Gap:
    """The largest difference in a figure between two subgroups of one attribute."""

    attribute: str
    figure: str  # auroc, sensitivity or specificity
    best: Subgroup
    worst: Subgroup

    @property
    def value(self) -> float:
        return float(getattr(self.best, self.figure).value - getattr(self.worst, self.figure).value)


def values(
    told: Mapping[str, Sequence[str | None]], sides: NDArray, image_size: int, flags: Sequence[tuple[str, ...]]
) -> dict[str, list[tuple[str, ...]]]:
    """Attribute -> the subgroups of each image, one but for quality; left out is what is known of no image.

    told: `COLUMNS` -> their values, text or None. sides: (n,), the shorter side of each file in pixels. flags: those of
    `quality.flags` of each image.
    """
    found: dict[str, list[str]] = {}
    for name in COLUMNS:
        found[name] = [attributes.ATTRIBUTES[name].category(text) for text in told[name]]
    found["size"] = [f"enlarged to {image_size} px" if side < image_size else ENOUGH for side in sides]
    known = {name: merged(column) for name, column in found.items() if set(column) - {UNKNOWN} not in (set(), {ENOUGH})}
    each: dict[str, list[tuple[str, ...]]] = {name: [(value,) for value in known[name]] for name in known}
    return each | {"quality": [(ANY_FLAG, *map(in_words, names)) if names else (NO_FLAG,) for names in flags]}


def in_words(flag: str) -> str:
    return flag.replace("_", " ")


def merged(column: list[str]) -> list[str]:
    """At most `MOST_VALUES` values besides `unknown`: the rarest become `all others`."""
    ranked = sorted(
        Counter(value for value in column if value != UNKNOWN).items(), key=lambda item: (-item[1], item[0])
    )
    kept = {value for value, _ in (ranked if len(ranked) <= MOST_VALUES else ranked[: MOST_VALUES - 1])}
    return [value if value in kept or value == UNKNOWN else OTHERS for value in column]


def of_split(
    columns: Mapping[str, Sequence[tuple[str, ...]]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    least: int = 30,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Subgroup]:
    """Figures with 95 % intervals of every value of `columns`, as `values` makes them; those of few images are empty.

    Rows as in `metrics`; bootstrap over `groups` within each subgroup. `least`: images below which a subgroup has no
    figures. Raises DataError as `metrics` does.
    """
    truth, scores = arrays.check_arrays(labels, probabilities)
    of_group = np.asarray(groups)
    found = []
    for attribute, column in columns.items():
        for value in sorted({value for own in column for value in own}, key=_place):
            rows = np.array([value in own for own in column])
            n, positives = int(rows.sum()), int(truth[rows].sum())
            sufficient = n >= least and min(positives, n - positives) >= FEWEST
            auroc = sensitivity = specificity = math.nan
            bounds = [(math.nan, math.nan)] * 3
            if sufficient:
                given = truth[rows], scores[rows]
                decided = binary.confusion_matrix_at(*given, threshold)
                auroc, sensitivity, specificity = binary.auroc(*given), decided.sensitivity, decided.specificity
                drawn = {"resamples": resamples, "seed": seed}
                rates = bootstrap.rate_intervals(*given, of_group[rows], threshold, **drawn)
                bounds = [bootstrap.auroc_interval(*given, of_group[rows], **drawn), *rates]
            found.append(
                Subgroup(
                    attribute,
                    value,
                    n,
                    positives,
                    sufficient,
                    Figure("AUROC", auroc, bounds[0]),
                    Figure("Sensitivity", sensitivity, bounds[1], percent=True),
                    Figure("Specificity", specificity, bounds[2], percent=True),
                )
            )
    return found


def _place(value: str) -> tuple[bool, int, str]:
    return value in (UNKNOWN, OTHERS), FIRST.index(value) if value in FIRST else len(FIRST), value


def largest_gaps(found: Sequence[Subgroup]) -> list[Gap]:
    """For each of AUROC, sensitivity and specificity the widest gap between two sufficient subgroups of an attribute.

    `unknown` and `all others` are no population, and take no part.
    """
    gaps = []
    for figure in ("auroc", "sensitivity", "specificity"):
        candidates = []
        for attribute in dict.fromkeys(subgroup.attribute for subgroup in found):
            own = [s for s in found if s.attribute == attribute and s.sufficient and s.value not in (UNKNOWN, OTHERS)]
            own = [s for s in own if not math.isnan(getattr(s, figure).value)]
            if len(own) > 1:
                ranked = sorted(own, key=lambda s: getattr(s, figure).value)
                candidates.append(Gap(attribute, figure, best=ranked[-1], worst=ranked[0]))
        gaps += sorted(candidates, key=lambda gap: gap.value)[-1:]
    return gaps
