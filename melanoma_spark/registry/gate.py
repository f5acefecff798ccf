"""The gate: checks the rules that a challenger must pass before it replaces the champion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import ArrayLike

from melanoma_spark import config
from melanoma_spark.evaluation.facts import Gain
from melanoma_spark.metrics import binary


@dataclass(frozen=True)
class Verdict:
    """One rule: whether it holds, and the figures that decide it."""

    rule: str
    holds: bool
    found: str


def check_rules(
    rules: config.Gate,
    labels: ArrayLike,
    challenger: ArrayLike,
    threshold: float,
    *,
    gain: Gain | None,
    note: str,
    subgroup_aurocs: Mapping[str, float | None],
    overlap: int,
) -> list[Verdict]:
    """Check every rule that is set; the model may be promoted when all of them hold. Undefined figures pass no rule.

    Args:
        rules: Of the settings.
        labels: (n,) of the test images, as in `metrics`.
        challenger: (n,) calibrated probabilities.
        threshold: The challenger's operating point.
        gain: Of the challenger over the champion, None where there is none.
        note: On images that do not count in the gain.
        subgroup_aurocs: The challenger's by subgroup, None where there are too few images.
        overlap: Test images that training has seen.

    Raises:
        DataError: As `metrics` does.
    """
    verdicts = []
    if rules.auroc_margin is not None:
        verdicts.append(_compare_with_champion(rules.auroc_margin, gain, note))
    if rules.sensitivity is not None:
        sensitivity = binary.confusion_matrix_at(labels, challenger, threshold).sensitivity
        text = f"{sensitivity:.4f} at the operating point, wanted: >= {rules.sensitivity:g}"
        verdicts.append(Verdict("sensitivity", sensitivity >= rules.sensitivity, text))
    if rules.calibration_error is not None:
        error = binary.expected_calibration_error(labels, challenger)
        text = f"{error:.4f}, wanted: <= {rules.calibration_error:g}"
        verdicts.append(Verdict("calibration_error", error <= rules.calibration_error, text))
    if rules.subgroup_auroc is not None:
        defined = {name: auroc for name, auroc in subgroup_aurocs.items() if auroc is not None}
        lowest = min(defined, key=lambda name: defined[name], default=None)
        text = f"{len(defined)} subgroups with enough images"
        if lowest:
            text += f", the lowest AUROC {defined[lowest]:.4f} ({lowest})"
        text += f", wanted: >= {rules.subgroup_auroc:g}"
        verdicts.append(Verdict("subgroup_auroc", not lowest or defined[lowest] >= rules.subgroup_auroc, text))
    if rules.apart:
        verdicts.append(Verdict("apart", overlap == 0, f"{overlap} test images that training has seen, wanted: 0"))
    return verdicts


def _compare_with_champion(margin: float, gain: Gain | None, note: str) -> Verdict:
    """Non-inferiority: the lower bound of the difference's 95 % interval, by a paired bootstrap, is above -margin."""
    if gain is None:
        return Verdict("auroc_margin", True, "there is no champion to compare with")
    low, high = gain.interval
    holds = not math.isnan(low) and low >= -margin
    text = (
        f"AUROC less the champion's {gain.auroc:+.4f} [{low:+.4f} to {high:+.4f}], wanted: lower bound >= {-margin:g}"
    )
    return Verdict("auroc_margin", holds, f"{text} ({note.rstrip('.')})" if note else text)
