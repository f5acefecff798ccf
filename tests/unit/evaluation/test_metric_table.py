"""The figures of a report: each is the metric, its interval that of a loop, and a model of one class harms nothing."""

import math

import numpy as np
import pytest
import sklearn.metrics
from samples import grouped_sample, resamples_of

from melanoma_spark.evaluation import metric_table
from melanoma_spark.metrics import binary, counts
from melanoma_spark.metrics.bootstrap import Bootstrap

THRESHOLD, PREVALENCES = 0.45, (0.02, 0.2)


def by_hand(labels, probabilities):
    """Each figure, by scikit-learn where it has the definition."""
    decided = probabilities >= THRESHOLD
    fpr, tpr, _ = sklearn.metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    sensitivity = sklearn.metrics.recall_score(labels, decided)
    specificity = sklearn.metrics.recall_score(labels, decided, pos_label=0)
    result = {
        "auprc": sklearn.metrics.average_precision_score(labels, probabilities),
        "pauc_above_80": counts.figure(counts.area_above_sensitivity, labels, probabilities),
        "auc_sens_80": counts.figure(counts.area_right_of_sensitivity, labels, probabilities),
        "brier": sklearn.metrics.brier_score_loss(labels, probabilities),
        "ece": binary.expected_calibration_error(labels, probabilities),
        "log_loss": sklearn.metrics.log_loss(labels, probabilities),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, decided),
        "accuracy": sklearn.metrics.accuracy_score(labels, decided),
    }
    for rate in (90, 95):
        result[f"sensitivity_at_specificity_{rate}"] = tpr[1 - fpr >= rate / 100 - 1e-12].max()
        result[f"specificity_at_sensitivity_{rate}"] = (1 - fpr)[tpr >= rate / 100 - 1e-12].max()
    for prevalence in PREVALENCES:
        alarms = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
        result[f"ppv_at_prevalence_{100 * prevalence:g}"] = sensitivity * prevalence / alarms
        result[f"npv_at_prevalence_{100 * prevalence:g}"] = specificity * (1 - prevalence) / (1 - alarms)
    return result


def test_figures_and_intervals_are_those_of_a_loop():
    labels, probabilities, groups = grouped_sample(seed=2, groups=80)
    result = metric_table.measure_figures(
        labels, probabilities, Bootstrap(groups, resamples=60, seed=4), THRESHOLD, prevalences=PREVALENCES
    )
    expected = by_hand(labels, probabilities)
    assert result.keys() == expected.keys()
    drawn = [by_hand(labels[rows], probabilities[rows]) for rows in resamples_of(groups, 60, seed=4)]
    for key, figure in result.items():
        assert figure.value == pytest.approx(expected[key]), key
        bounds = np.quantile([resample[key] for resample in drawn], [0.025, 0.975])
        assert figure.interval == pytest.approx(tuple(bounds)), key
        assert figure.interval[0] < figure.interval[1], key
    assert len({figure.name for figure in result.values()}) == len(result)


def test_one_class_and_one_group_are_undefined_and_not_an_error():
    result = metric_table.measure_figures(
        [0, 0, 0], [0.1, 0.5, 0.9], Bootstrap(["a", "b", "b"], 20), THRESHOLD, prevalences=PREVALENCES
    )
    assert math.isnan(result["auprc"].value)
    assert math.isnan(result["sensitivity"].value)
    assert result["specificity"].value == pytest.approx(1 / 3)
    alone = metric_table.measure_figures([0, 1], [0.1, 0.9], Bootstrap(["a", "a"], 20), THRESHOLD)
    assert all(np.isnan(figure.interval).all() for figure in alone.values())


def test_sensitivity_of_a_worklist_needs_patient_ids():
    labels = np.array([1, *[0] * 19, 1, 0, 1])
    probabilities = np.array([0.1, *np.linspace(0.2, 0.9, 19), 0.5, 0.6, 0.01])
    patients = ["a"] * 20 + ["b"] * 2 + [None]
    groups = [patient or "c" for patient in patients]
    result = metric_table.measure_figures(labels, probabilities, Bootstrap(groups, 20), THRESHOLD, patients=patients)
    output = result["sensitivity_in_top_15"]
    assert output.value == 0.5, "of a's only melanoma and b's; the third has no patient"
    assert "22 images name theirs" in output.name
    assert output.interval == (0, 1)
    assert not metric_table.measure_figures(
        [0, 1], [0.1, 0.9], Bootstrap(["a", "b"], 20), THRESHOLD, patients=[None, None]
    ).keys() & {"sensitivity_in_top_15"}
    without = metric_table.measure_figures(
        [0, 1], [0.1, 0.9], Bootstrap(["a", "b"], 20), THRESHOLD, patients=["x", None]
    )
    assert math.isnan(without["sensitivity_in_top_15"].value)
