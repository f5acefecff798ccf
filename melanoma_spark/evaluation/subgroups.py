"""Subgroups: the figures of a model by age, sex, site, skin type, source, image type, size of the file and quality.

An image's attributes are those that ingest stored. An image without one is `unknown`, a subgroup like the others. An
image with several quality flags is in several subgroups.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark import attributes
from melanoma_spark.attributes import UNKNOWN
from melanoma_spark.evaluation.metric_table import Figure
from melanoma_spark.metrics import arrays, binary
from melanoma_spark.metrics.bootstrap import Bootstrap

COLUMNS = tuple(name for name, attribute in attributes.ATTRIBUTES.items() if attribute.subgroup)  # of images/
# Attribute -> its label.
ATTRIBUTES = {
    **{name: attributes.ATTRIBUTES[name].label for name in COLUMNS},
    "size": "size of the file",
    "quality": "quality",
}
FIGURES = ("auroc", "sensitivity", "specificity")
OTHERS, ENOUGH = "all others", "large enough"
NO_FLAG, ANY_FLAG = "no flag", "any flag"
FIRST = ("under 30", NO_FLAG, ANY_FLAG)  # else by alphabet
FEWEST = 5  # images of each label: with fewer, one image decides the rate
MOST_VALUES = 12  # of an attribute, by number of images; the rest are merged


@dataclass(frozen=True)
class Subgroup:
    """A value of an attribute, and a model's figures on its test images.

    `sufficient` is False where there are fewer images than the minimum, or fewer than `FEWEST` of a label. The figures
    are then NaN, so that nobody reads them.
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
        """The share of positives."""
        return self.positives / self.n

    def figure_value(self, name: str) -> float:
        """The value of one of `FIGURES`."""
        return float(getattr(self, name).value)

    def as_record(self) -> dict[str, str | float | None]:
        """The subgroup for JSON: undefined figures are None."""
        figures = {key: self.figure_value(key) for key in FIGURES}
        defined = {key: None if math.isnan(value) else value for key, value in figures.items()}
        return {"attribute": self.attribute, "value": self.value, "n": self.n, "positives": self.positives, **defined}


@dataclass(frozen=True)
class Gap:
    """The largest difference in a figure between two subgroups of one attribute."""

    attribute: str
    figure: str  # one of FIGURES
    best: Subgroup
    worst: Subgroup

    @property
    def value(self) -> float:
        """The difference itself."""
        return self.best.figure_value(self.figure) - self.worst.figure_value(self.figure)


def assign_subgroups(
    values: Mapping[str, Sequence[str | None]],
    sides: Sequence[float],
    image_size: int,
    flags: Sequence[tuple[str, ...]],
) -> dict[str, list[tuple[str, ...]]]:
    """Assign each image to subgroups: one of each attribute, or several of quality.

    Args:
        values: `COLUMNS` -> their values of each image, text or None.
        sides: The shorter side of each file in pixels.
        image_size: The side of the stored images in pixels.
        flags: The `quality.flags` of each image.

    Returns:
        Attribute -> the subgroups of each image, without attributes that are unknown for all of them.
    """
    texts: dict[str, list[str]] = {}
    for name in COLUMNS:
        texts[name] = [attributes.ATTRIBUTES[name].category(value) for value in values[name]]
    texts["size"] = [f"enlarged to {image_size} px" if side < image_size else ENOUGH for side in sides]
    known = {name: column for name, column in texts.items() if set(column) - {UNKNOWN} not in (set(), {ENOUGH})}
    single: dict[str, list[tuple[str, ...]]] = {
        name: [(value,) for value in merge_rare_values(column)] for name, column in known.items()
    }
    return single | {"quality": [(ANY_FLAG, *map(flag_text, names)) if names else (NO_FLAG,) for names in flags]}


def flag_text(flag: str) -> str:
    """A quality flag as text."""
    return flag.replace("_", " ")


def merge_rare_values(column: list[str]) -> list[str]:
    """Keep at most `MOST_VALUES` values besides `unknown`: the rarest become `all others`."""
    counts = Counter(value for value in column if value != UNKNOWN)
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    kept = {UNKNOWN, *(ranked if len(ranked) <= MOST_VALUES else ranked[: MOST_VALUES - 1])}
    return [value if value in kept else OTHERS for value in column]


def measure_subgroups(
    columns: Mapping[str, Sequence[tuple[str, ...]]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    drawn: Bootstrap,
    threshold: float,
    minimum: int = 30,
) -> list[Subgroup]:
    """Measure every subgroup, with 95 % intervals by the bootstrap over groups within it.

    Args:
        columns: Attribute -> the subgroups of each image, of `assign_subgroups`.
        labels: (n,), as in `metrics`.
        probabilities: (n,), as in `metrics`.
        drawn: Of all images.
        threshold: A decision is positive from here on.
        minimum: Subgroups of fewer images have no figures.

    Raises:
        DataError: As `metrics` does.
    """
    truth, scores = arrays.check_arrays(labels, probabilities)
    measured = []
    for attribute, column in columns.items():
        for value in sorted({value for names in column for value in names}, key=_order):
            of_value = np.array([value in names for names in column])
            n, positives = int(of_value.sum()), int(truth[of_value].sum())
            sufficient = n >= minimum and min(positives, n - positives) >= FEWEST
            auroc = sensitivity = specificity = math.nan
            bounds = [(math.nan, math.nan)] * 3
            if sufficient:
                rows = truth[of_value], scores[of_value]
                decided = binary.confusion_matrix_at(*rows, threshold)
                auroc, sensitivity, specificity = binary.auroc(*rows), decided.sensitivity, decided.specificity
                own = replace(drawn, groups=np.asarray(drawn.groups)[of_value])
                bounds = [own.interval(values) for values in (own.auroc(*rows), *own.rates(*rows, threshold))]
            figures = (
                Figure("AUROC", auroc, bounds[0]),
                Figure("Sensitivity", sensitivity, bounds[1], percent=True),
                Figure("Specificity", specificity, bounds[2], percent=True),
            )
            measured.append(Subgroup(attribute, value, n, positives, sufficient, *figures))
    return measured


def _order(value: str) -> tuple[bool, int, str]:
    return value in (UNKNOWN, OTHERS), FIRST.index(value) if value in FIRST else len(FIRST), value


def largest_gaps(subgroups: Sequence[Subgroup]) -> list[Gap]:
    """The widest gap in AUROC, sensitivity and specificity between two sufficient subgroups of one attribute.

    `unknown` and `all others` are no population, and take no part.
    """
    gaps = []
    for figure in FIGURES:
        candidates = []
        for attribute in dict.fromkeys(subgroup.attribute for subgroup in subgroups):
            named = [s for s in subgroups if s.attribute == attribute and s.value not in (UNKNOWN, OTHERS)]
            defined = [subgroup for subgroup in named if not math.isnan(subgroup.figure_value(figure))]
            if len(defined) > 1:
                ranked = sorted(defined, key=lambda subgroup: subgroup.figure_value(figure))
                candidates.append(Gap(attribute, figure, best=ranked[-1], worst=ranked[0]))
        gaps += sorted(candidates, key=lambda gap: gap.value)[-1:]
    return gaps
