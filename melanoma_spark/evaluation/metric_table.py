"""The figures of a report: each metric of a model on one split, with its name, its interval and its format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from melanoma_spark.metrics import arrays, binary, counts
from melanoma_spark.metrics.arrays import Floats
from melanoma_spark.metrics.bootstrap import Bootstrap

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
    drawn: Bootstrap,
    threshold: float,
    *,
    prevalences: Sequence[float] = (),
    patients: Sequence[str | None] | None = None,
) -> dict[str, Figure]:
    """Measure each figure by its key in MLflow, with intervals by the bootstrap `drawn`.

    Takes and raises what `metrics` does. Decisions are those at `threshold`. Predictive values are computed for each of
    `prevalences`. `patients` is (n,), None where one is not known: the sensitivity among the highest of each patient is
    computed from the images that have one, where there are any.
    """
    y, p = arrays.check_arrays(labels, probabilities)
    measured: dict[str, Figure] = {}

    def add(key: str, name: str, value: float, resampled: Floats, drawn: Bootstrap = drawn) -> None:
        measured[key] = Figure(name, value, drawn.interval(resampled), key.startswith(PERCENT))

    def curve(key: str, name: str, statistic: counts.Statistic, **at: float) -> None:
        add(key, name, counts.figure(statistic, y, p, **at), drawn.curve(y, p, partial(statistic, **at)))

    curve("auprc", "AUPRC", counts.average_precision)
    curve(
        "pauc_above_80",
        "Partial AUC above 80 % sensitivity (ISIC 2024; perfect is 0.2)",
        counts.area_above_sensitivity,
    )
    curve(
        "auc_sens_80",
        "AUC right of 80 % sensitivity (isic-challenge-scoring; perfect is 1)",
        counts.area_right_of_sensitivity,
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

    add("brier", "Brier score", binary.brier(y, p), drawn.mean((p - y) ** 2))
    ece = binary.expected_calibration_error(y, p)
    add("ece", "Expected calibration error", ece, drawn.calibration_error(y, p))
    add("log_loss", "Log loss, nats", binary.log_loss(y, p), drawn.mean(binary.log_losses(y, p)))

    decided = binary.confusion_matrix_at(y, p, threshold)
    sensitivity, specificity = drawn.rates(y, p, threshold)
    add("sensitivity", "Sensitivity", decided.sensitivity, sensitivity)
    add("specificity", "Specificity", decided.specificity, specificity)
    add("balanced_accuracy", "Balanced accuracy", decided.balanced_accuracy, (sensitivity + specificity) / 2)
    add("accuracy", "Accuracy", decided.accuracy, drawn.mean((p >= threshold) == y))
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
        of_known = replace(drawn, groups=np.asarray(drawn.groups)[known])
        found, positives = of_known.sums(np.stack([in_top, y[known]], axis=1)).T
        name = f"Sensitivity among the {TOP} highest of each patient ({known.sum()} images name theirs)"
        value = float(in_top.sum() / y[known].sum()) if y[known].any() else float("nan")
        add(f"sensitivity_in_top_{TOP}", name, value, counts.ratio(found, positives), of_known)
    return measured
