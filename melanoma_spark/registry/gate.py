"""The gate: which declared rules a challenger must hold before it takes the champion's place, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from melanoma_spark import config
from melanoma_spark.metrics import binary, bootstrap


@dataclass(frozen=True)
class Verdict:
    """One rule: whether it holds, and what was found, in figures."""

    rule: str
    holds: bool
    found: str


def verdicts(
    rules: config.Gate,
    labels: ArrayLike,
    groups: ArrayLike,
    challenger: ArrayLike,
    threshold: float,
    champion: ArrayLike | None,
    subgroups: Sequence[dict[str, Any]],
    overlap: int,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Verdict]:
    """A verdict for every rule that is set; the model may be promoted when all of them hold.

    labels, groups, challenger, champion: (n,) of the test images; probabilities as in `metrics`, calibrated; champion
    is None where there is none. threshold: the challenger's operating point. subgroups: `Subgroup.as_record` of the
    challenger. overlap: test images that training has seen. What is undefined holds no rule. Raises as `metrics` does.
    """
    found = []
    if rules.auroc_margin is not None:
        found.append(_not_worse(rules.auroc_margin, labels, groups, challenger, champion, resamples, seed))
    if rules.sensitivity is not None:
        sensitivity = binary.confusion_matrix_at(labels, challenger, threshold).sensitivity
        told = f"{sensitivity:.4f} at the operating point, wanted: >= {rules.sensitivity:g}"
        found.append(Verdict("sensitivity", sensitivity >= rules.sensitivity, told))
    if rules.calibration_error is not None:
        error = binary.expected_calibration_error(labels, challenger)
        told = f"{error:.4f}, wanted: <= {rules.calibration_error:g}"
        found.append(Verdict("calibration_error", error <= rules.calibration_error, told))
    if rules.subgroup_auroc is not None:
        known = [own for own in subgroups if own["auroc"] is not None]
        worst = min(known, key=lambda own: own["auroc"], default=None)
        told = f"{len(known)} subgroups with enough images"
        if worst:
            told += f", the lowest AUROC {worst['auroc']:.4f} ({worst['attribute']}: {worst['value']})"
        told += f", wanted: >= {rules.subgroup_auroc:g}"
        found.append(Verdict("subgroup_auroc", worst is None or worst["auroc"] >= rules.subgroup_auroc, told))
    if rules.apart:
        found.append(Verdict("apart", overlap == 0, f"{overlap} test images that training has seen, wanted: 0"))
    return found


def _not_worse(
    margin: float,
    labels: ArrayLike,
    groups: ArrayLike,
    challenger: ArrayLike,
    champion: ArrayLike | None,
    resamples: int,
    seed: int,
) -> Verdict:
    """Non-inferiority: the lower bound of the difference's 95 % interval, by a paired bootstrap, is above -margin."""
    if champion is None:
        return Verdict("auroc_margin", True, "there is no champion to be compared with")
    gain = binary.auroc(labels, challenger) - binary.auroc(labels, champion)
    low, high = bootstrap.auroc_difference(labels, champion, challenger, groups, resamples, seed)
    holds = not math.isnan(low) and low >= -margin
    told = f"AUROC less the champion's {gain:+.4f} [{low:+.4f} to {high:+.4f}], wanted: lower bound >= {-margin:g}"
    return Verdict("auroc_margin", holds, told)
