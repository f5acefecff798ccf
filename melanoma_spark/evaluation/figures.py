"""The figures of a report: each metric of a model on one split, with its name, its interval and its format."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.metrics import arrays, binary, bootstrap, counts
from melanoma_spark.metrics.arrays import Floats

TOP = 15  # images of a patient that a person looks at: ISIC 2024's second prize
RATES = (0.90, 0.95)  # at which the best sensitivity and specificity are reported
PERCENT = ("sensitivity", "specificity", "accuracy", "balanced_accuracy", "ppv", "npv")  # keys of shares begin so


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; NaN stands for undefined."""

    name: str  # for people
    value: float
    interval: tuple[float, float]
    percent: bool = False


def measure_figures(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    *,
    prevalences: Sequence[float] = (),
    resamples: int = 2000,
    seed: int = 0,
    patients: Sequence[str | None] | None = None,
) -> dict[str, Figure]:
    """Measure each figure by its key in MLflow, with intervals by the bootstrap over `groups`.

    Takes and raises what `metrics` does. Decisions are those at `threshold`. Predictive values are computed for each of
    `prevalences`. `patients` is (n,), None where one is not known: the sensitivity among the highest of each patient is
    computed from the images that have one, where there are any.
    """
    y, p = arrays.check_arrays(labels, probabilities)
    drawn = {"resamples": resamples, "seed": seed}
    measured: dict[str, Figure] = {}

    def add(key: str, name: str, value: float, resampled: Floats, groups: ArrayLike = groups) -> None:
        measured[key] = Figure(name, value, bootstrap.interval(resampled, groups), key.startswith(PERCENT))

    def curve(key: str, name: str, statistic: counts.Statistic, **at: float) -> None:
        resampled = bootstrap.resampled_curve(y, p, groups, partial(statistic, **at), **drawn)
        add(key, name, counts.figure(statistic, y, p, **at), resampled)

    curve("auprc", "AUPRC", counts.average_precision)
    curve(
        "pauc_above_80",
        "Partial AUC above 80 % sensitivity (ISIC 2024; perfect is 0.2)",
        counts.area_above_sensitivity,
        sensitivity=0.8,
    )
    curve(
        "auc_sens_80",
        "AUC right of 80 % sensitivity (isic-challenge-scoring; perfect is 1)",
        counts.area_right_of_sensitivity,
        sensitivity=0.8,
    )
    for rate in RATES:
        curve(
            f"sensitivity_at_specificity_{100 * rate:.0f}",
            f"Best sensitivity at a specificity of {100 * rate:.0f} %",
            counts.best_sensitivity,
            specificity=rate,
        )
        curve(
            f"specificity_at_sensitivity_{100 * rate:.0f}",
            f"Best specificity at a sensitivity of {100 * rate:.0f} %",
            counts.best_specificity,
            sensitivity=rate,
        )

    squares, losses = (p - y) ** 2, binary.log_losses(y, p)
    add("brier", "Brier score", binary.brier(y, p), bootstrap.resampled_mean(squares, groups, **drawn))
    calibration = bootstrap.resampled_calibration_error(y, p, groups, **drawn)
    add("ece", "Expected calibration error", binary.expected_calibration_error(y, p), calibration)
    add("log_loss", "Log loss, nats", binary.log_loss(y, p), bootstrap.resampled_mean(losses, groups, **drawn))

    decided = binary.confusion_matrix_at(y, p, threshold)
    sensitivity, specificity = bootstrap.resampled_rates(y, p, groups, threshold, **drawn)
    add("sensitivity", "Sensitivity", decided.sensitivity, sensitivity)
    add("specificity", "Specificity", decided.specificity, specificity)
    add("balanced_accuracy", "Balanced accuracy", decided.balanced_accuracy, (sensitivity + specificity) / 2)
    right = (p >= threshold) == y
    add("accuracy", "Accuracy", decided.accuracy, bootstrap.resampled_mean(right, groups, **drawn))
    for prevalence in prevalences:
        for key, name, metric in (
            ("ppv", "Positive predictive value", binary.ppv_at_prevalence),
            ("npv", "Negative predictive value", binary.npv_at_prevalence),
        ):
            add(
                f"{key}_at_prevalence_{100 * prevalence:g}",
                f"{name} at a prevalence of {100 * prevalence:g} %",
                metric(decided.sensitivity, decided.specificity, prevalence),
                np.array([metric(*rates, prevalence) for rates in zip(sensitivity, specificity, strict=True)]),
            )

    known = np.array([patient is not None for patient in patients or ()], bool)
    if known.any():
        in_top = binary.chance_in_top(y[known], p[known], [patient for patient in patients or () if patient], TOP)
        of_known = np.asarray(groups)[known]
        sums = bootstrap.resampled_sums(np.stack([in_top, y[known]], axis=1), of_known, **drawn)
        shares = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        name = f"Sensitivity among the {TOP} highest of each patient ({known.sum()} images name theirs)"
        value = float(in_top.sum() / y[known].sum()) if y[known].any() else float("nan")
        add(f"sensitivity_in_top_{TOP}", name, value, shares, of_known)
    return measured
