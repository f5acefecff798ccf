"""The figures of a report: each metric of a model on one split, with its name, its interval and how it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.metrics import arrays, binary, bootstrap, counts
from melanoma_spark.metrics.arrays import Floats

TOP = 15  # images of a patient that a person looks at: ISIC 2024's second prize
RATES = (0.90, 0.95)  # at which sensitivity and specificity are told


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; NaN stands for undefined."""

    name: str  # for people
    value: float
    interval: tuple[float, float]
    percent: bool = False


def of_split(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    prevalences: Sequence[float] = (),
    resamples: int = 2000,
    seed: int = 0,
    patients: Sequence[str | None] | None = None,
) -> dict[str, Figure]:
    """Key, as MLflow has it, -> figure; by the bootstrap over `groups`, and decisions at `threshold`.

    Takes and raises what `metrics` does. Predictive values are told for each of `prevalences`. `patients` is (n,): what
    a worklist by patient finds is told of the images that have one, where there are any.
    """
    y, p = arrays.check_arrays(labels, probabilities)
    drawn = {"resamples": resamples, "seed": seed}
    found: dict[str, Figure] = {}

    def add(key: str, name: str, value: float, resampled: Floats, percent: bool = False) -> None:
        found[key] = Figure(name, value, bootstrap.interval(resampled, groups), percent)

    def curve(key: str, name: str, metric: Callable[..., float], statistic: Callable[..., Floats], **at: float) -> None:
        resampled = bootstrap.resampled_curve(y, p, groups, partial(statistic, **at), **drawn)
        add(key, name, metric(y, p, **at), resampled, percent=key.endswith(("90", "95")))

    curve("auprc", "AUPRC", binary.auprc, counts.average_precision)
    curve(
        "pauc_above_80",
        "Partial AUC above 80 % sensitivity (ISIC 2024; perfect is 0.2)",
        binary.auc_above_sensitivity,
        counts.area_above_sensitivity,
        sensitivity=0.8,
    )
    curve(
        "auc_sens_80",
        "AUC right of 80 % sensitivity (isic-challenge-scoring; perfect is 1)",
        binary.auc_right_of_sensitivity,
        counts.area_right_of_sensitivity,
        sensitivity=0.8,
    )
    for rate in RATES:
        curve(
            f"sensitivity_at_specificity_{100 * rate:.0f}",
            f"Best sensitivity at a specificity of {100 * rate:.0f} %",
            binary.sensitivity_at_specificity,
            counts.best_sensitivity,
            specificity=rate,
        )
        curve(
            f"specificity_at_sensitivity_{100 * rate:.0f}",
            f"Best specificity at a sensitivity of {100 * rate:.0f} %",
            binary.specificity_at_sensitivity,
            counts.best_specificity,
            sensitivity=rate,
        )

    squares = (p - y) ** 2
    add("brier", "Brier score", binary.brier(y, p), bootstrap.resampled_mean(squares, groups, **drawn))
    calibration = bootstrap.resampled_calibration_error(y, p, groups, **drawn)
    add("ece", "Expected calibration error", binary.expected_calibration_error(y, p), calibration)
    losses = binary.log_losses(y, p)
    add("log_loss", "Log loss, nats", binary.log_loss(y, p), bootstrap.resampled_mean(losses, groups, **drawn))

    decided = binary.confusion_matrix_at(y, p, threshold)
    sensitivity, specificity = bootstrap.resampled_rates(y, p, groups, threshold, **drawn)
    add("sensitivity", "Sensitivity", decided.sensitivity, sensitivity, percent=True)
    add("specificity", "Specificity", decided.specificity, specificity, percent=True)
    add(
        "balanced_accuracy",
        "Balanced accuracy",
        decided.balanced_accuracy,
        (sensitivity + specificity) / 2,
        percent=True,
    )
    right = (p >= threshold) == y
    add("accuracy", "Accuracy", decided.accuracy, bootstrap.resampled_mean(right, groups, **drawn), percent=True)
    for prevalence in prevalences:
        for key, name, value in (
            ("ppv", "Positive predictive value", binary.ppv_at_prevalence),
            ("npv", "Negative predictive value", binary.npv_at_prevalence),
        ):
            resampled = np.array([value(*rates, prevalence) for rates in zip(sensitivity, specificity, strict=True)])
            add(
                f"{key}_at_prevalence_{100 * prevalence:g}",
                f"{name} at a prevalence of {100 * prevalence:g} %",
                value(decided.sensitivity, decided.specificity, prevalence),
                resampled,
                percent=True,
            )
    known = np.array([patient is not None for patient in patients or ()], bool)
    if known.any():
        own = binary.found_in_top(y[known], p[known], [patient for patient in patients or () if patient], TOP)
        sums = bootstrap.resampled_sums(np.stack([own, y[known]], axis=1), np.asarray(groups)[known], **drawn)
        shares = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        name = f"Sensitivity among the {TOP} highest of each patient ({known.sum()} images name theirs)"
        whole = float(own.sum() / y[known].sum()) if y[known].any() else float("nan")
        found[f"sensitivity_in_top_{TOP}"] = Figure(
            name, whole, bootstrap.interval(shares, np.asarray(groups)[known]), percent=True
        )
    return found
