"""Operating points: thresholds chosen by a rule, on the validation split only, and applied unchanged afterwards."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.metrics.counts import counts_by_threshold

# Reported next to the deciding one: a screening misses little, a specific test raises few false alarms.
NAMED = {"screening": "sensitivity>=0.95", "balanced": "balanced", "specific": "specificity>=0.95"}
TOLERANCE = 1e-4  # by which probabilities of two engines may differ
VALID_RULES = "sensitivity>=X, specificity>=X (0 < X <= 1), " + ", ".join(NAMED)


class UnreachedError(DataError):
    """No observed probability, taken as the threshold, meets the rule."""


@dataclass(frozen=True)
class OperatingPoint:
    """A named threshold and the rule that chose it. A probability >= threshold is positive."""

    name: str
    threshold: float
    rule: str


def choose(
    labels: ArrayLike, probabilities: ArrayLike, rule: str = "sensitivity>=0.95", name: str = "screening"
) -> OperatingPoint:
    """Choose the threshold among the observed probabilities. Use validation, never the split that is evaluated.

    labels: (n,) 0 or 1. probabilities: (n,) in [0, 1]. rule, one of:

    - `sensitivity>=X`: the largest threshold whose sensitivity is at least X; it gives the most specificity.
    - `specificity>=X`: the smallest threshold whose specificity is at least X; it gives the most sensitivity.
    - `balanced`: the greatest Youden J, sensitivity + specificity - 1 (Cancer 3, 1950). Of equal ones the smallest
      threshold, since a missed melanoma costs more than a false alarm.

    Raises ConfigError for another rule, DataError for invalid arrays, for one class only, and where no observed
    probability reaches the specificity: a threshold above all of them would find nothing.
    """
    kind, target = parse_rule(rule)
    thresholds, true_positives, false_positives = counts_by_threshold(labels, probabilities)
    positives, negatives = int(true_positives[-1]), int(false_positives[-1])
    if positives == 0 or negatives == 0:
        present = 0 if positives == 0 else 1
        raise DataError(f"rule {rule!r} needs images of both labels: all {positives + negatives} have label {present}")
    # Thresholds fall, so sensitivity rises and specificity falls along the arrays.
    if kind == "sensitivity":
        index = np.flatnonzero(true_positives / positives >= target)[0]
    elif kind == "specificity":
        # Not 1 - false positive rate, whose rounding would miss targets that are met exactly.
        specificity = (negatives - false_positives) / negatives
        reached = np.flatnonzero(specificity >= target)
        if len(reached) == 0:
            raise UnreachedError(
                f"no threshold reaches rule {rule!r}: the highest probability, {thresholds[0]}, "
                f"gives a specificity of {specificity[0]:.4f} on {negatives} images of label 0"
            )
        index = reached[-1]
    else:
        # Youden's J times positives * negatives: whole numbers, so equal ones compare as equal.
        youden = true_positives * negatives - false_positives * positives
        index = np.flatnonzero(youden == youden.max())[-1]
    return OperatingPoint(name=name, threshold=float(thresholds[index]), rule=rule)


def lower_threshold(point: OperatingPoint, probabilities: ArrayLike) -> OperatingPoint:
    """Lower the threshold a little under the observed probability, so that these decisions stay the same.

    Otherwise the image that set the threshold changes its decision where another engine or processor rounds
    differently. Lowers by `TOLERANCE`, or half the distance to the next lower probability where that is less.
    """
    observed = np.asarray(probabilities, np.float64)
    lower = observed[observed < point.threshold]
    gap = point.threshold - (float(lower.max()) if len(lower) else 0.0)
    return point if math.isinf(point.threshold) else replace(point, threshold=point.threshold - min(TOLERANCE, gap / 2))


def choose_named(labels: ArrayLike, probabilities: ArrayLike) -> list[OperatingPoint]:
    """Choose the operating points of `NAMED`. One that no threshold reaches has the threshold inf: it finds nothing.

    Raises as `choose`.
    """
    points = []
    for name, rule in NAMED.items():
        try:
            points.append(choose(labels, probabilities, rule, name))
        except UnreachedError:
            points.append(OperatingPoint(name=name, threshold=float("inf"), rule=rule))
    return points


def resolve_rule(setting: str) -> tuple[str, str]:
    """Name and rule of a setting, which may be either: `screening` -> ("screening", "sensitivity>=0.95").

    The name of a rule that is not in `NAMED` is the rule itself. Raises ConfigError as `parse_rule`.
    """
    rule = NAMED.get(setting.strip(), setting.strip())
    parse_rule(rule)
    return next((name for name, known in NAMED.items() if known == rule), rule), rule


def parse_rule(rule: str) -> tuple[str, float]:
    """Parse a rule or a name of `NAMED`: `sensitivity>=0.95` -> ("sensitivity", 0.95), `balanced` -> ("balanced", NaN).

    Raises ConfigError for anything else. Call it when settings are read, hours before the first validation scores.
    """
    if NAMED.get(rule.strip()) == "balanced":
        return "balanced", float("nan")
    named_rule = NAMED.get(rule.strip(), rule)
    match = re.fullmatch(r"\s*(sensitivity|specificity)\s*>=\s*([0-9]*\.?[0-9]+)\s*", named_rule)
    if match is None:
        raise ConfigError(f"unknown operating point rule {rule!r}; valid rules: {VALID_RULES}")
    target = float(match[2])
    if not 0 < target <= 1:
        raise ConfigError(f"operating point rule {rule!r} has target {match[2]}, not in (0, 1]; valid: {VALID_RULES}")
    return match[1], target
