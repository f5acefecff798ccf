"""Subgroups: each image in one value of each attribute, the figures those of its rows alone, no figure of too few."""

import math

import numpy as np
import pytest

from melanoma_spark.evaluation import subgroups
from melanoma_spark.metrics import binary
from melanoma_spark.metrics.bootstrap import Bootstrap


def output(n, **columns):
    return {name: columns.get(name, [None] * n) for name in subgroups.COLUMNS}


def alone(column):
    """Each image in one subgroup."""
    return [(value,) for value in column]


def test_values_are_named_and_rare_ones_merged():
    given = output(4, sex=["female", "male", None, ""], site=["back", "back", "back", "back"])
    result = subgroups.assign_subgroups(given, [100, 300, 224, 223], 224, [(), ("dark",), (), ("blurred", "dark")])
    assert result == {
        "sex": alone(["female", "male", "unknown", "unknown"]),
        "site": alone(["back"] * 4),
        "size": alone(["enlarged to 224 px", "large enough", "large enough", "enlarged to 224 px"]),
        "quality": [("no flag",), ("any flag", "dark"), ("no flag",), ("any flag", "blurred", "dark")],
    }
    assert subgroups.assign_subgroups(output(2), [224, 300], 224, [(), ()]) == {"quality": alone(["no flag"] * 2)}

    column = [f"site {k:02}" for k in range(40) for _ in range(40 - k)] + ["unknown"] * 3
    result = subgroups.merge_rare_values(column)
    assert len(result) == len(column)
    assert set(result) == {f"site {k:02}" for k in range(subgroups.MOST_VALUES - 1)} | {"all others", "unknown"}
    assert all(after in (before, "all others") for before, after in zip(column, result, strict=True))


def test_an_image_of_two_flags_is_in_the_subgroup_of_each(rows):
    labels, probabilities, groups, _ = rows
    flags = [(), ("dark",), ("blurred", "dark")] * 100
    columns = {"quality": subgroups.assign_subgroups(output(300), [500] * 300, 224, flags)["quality"]}
    result = subgroups.measure_subgroups(columns, labels, probabilities, Bootstrap(groups, 20), 0.5)
    counts = [("no flag", 100), ("any flag", 200), ("blurred", 100), ("dark", 200)]
    assert [(own.value, own.n) for own in result] == counts
    blurred = np.arange(300) % 3 == 2
    assert result[2].auroc.value == binary.auroc(labels[blurred], probabilities[blurred])
    assert result[1].auroc == result[3].auroc


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    probabilities = np.clip(0.5 + (labels - 0.5) * generator.uniform(-0.3, 1, 300), 0, 1)
    return labels, probabilities, np.arange(300) // 2, generator.choice(["a", "b", "c"], 300, p=[0.6, 0.35, 0.05])


def test_figures_are_those_of_enough_rows_of_both_labels(rows):
    labels, probabilities, groups, column = rows
    result = subgroups.measure_subgroups(
        {"site": alone(column)}, labels, probabilities, Bootstrap(groups, 60, seed=3), 0.5
    )
    assert [(s.attribute, s.value) for s in result] == [("site", "a"), ("site", "b"), ("site", "c")]
    assert sum(s.n for s in result) == 300
    assert sum(s.positives for s in result) == labels.sum()
    for subgroup in result[:2]:
        own = column == subgroup.value
        given = labels[own], probabilities[own]
        decided = binary.confusion_matrix_at(*given, 0.5)
        assert subgroup.sufficient
        assert subgroup.auroc.value == binary.auroc(*given)
        drawn = Bootstrap(groups[own], 60, seed=3)
        assert subgroup.auroc.interval == drawn.interval(drawn.auroc(*given))
        assert (subgroup.sensitivity.value, subgroup.specificity.value) == (decided.sensitivity, decided.specificity)
        rates = tuple(drawn.interval(values) for values in drawn.rates(*given, 0.5))
        assert (subgroup.sensitivity.interval, subgroup.specificity.interval) == rates
        assert subgroup.prevalence == labels[own].mean()

    few = subgroups.measure_subgroups({"site": alone(column)}, labels, probabilities, Bootstrap(groups, 20), 0.5)[2]
    assert 0 < few.n < 30
    one_label = subgroups.measure_subgroups(
        {"truth": alone(labels.astype(str))}, labels, probabilities, Bootstrap(groups, 20), 0.5
    )
    for subgroup in (few, *one_label):
        assert not subgroup.sufficient
        assert all(math.isnan(f.value) for f in (subgroup.auroc, subgroup.sensitivity, subgroup.specificity))


def test_the_largest_gap_is_within_an_attribute_and_of_populations_alone():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 1200)
    noise = np.repeat([0.2, 0.2, 2.0, 5.0], 300)  # of female, male, back, unknown
    probabilities = 1 / (1 + np.exp(-(2 * labels - 1 + generator.normal(0, noise))))
    sex = ["female"] * 300 + ["male"] * 300 + ["unknown"] * 600
    site = ["arm"] * 600 + ["back"] * 300 + ["unknown"] * 300
    result = subgroups.measure_subgroups(
        {"sex": alone(sex), "site": alone(site)}, labels, probabilities, Bootstrap(np.arange(1200), 20), 0.5
    )
    gaps = {gap.figure: gap for gap in subgroups.largest_gaps(result)}
    assert gaps.keys() == {"auroc", "sensitivity", "specificity"}
    for gap in gaps.values():
        assert (gap.attribute, gap.best.value, gap.worst.value) == ("site", "arm", "back")
        assert gap.value > 0.1
    assert subgroups.largest_gaps([s for s in result if s.value in ("female", "back")]) == []
