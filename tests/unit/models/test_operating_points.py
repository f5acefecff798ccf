"""Operating points: every rule against a search through all observed scores, ties, and what cannot be chosen."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.metrics.binary import confusion_matrix_at
from melanoma_spark.models.operating_points import (
    NAMED,
    TOLERANCE,
    OperatingPoint,
    choose,
    choose_named,
    lower_threshold,
    parse_rule,
    resolve_rule,
)

TARGETS = st.integers(1, 20).map(lambda twentieths: twentieths / 20)


@st.composite
def scored(draw):
    n = draw(st.integers(2, 40))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 1)))
    labels[:2] = (0, 1)
    return labels, draw(arrays(np.float64, n, elements=st.integers(0, 10).map(lambda tenths: tenths / 10)))


def by_threshold(labels, probabilities):
    return {threshold: confusion_matrix_at(labels, probabilities, threshold) for threshold in set(probabilities)}


@given(scored(), TARGETS)
def test_rules_take_the_best_threshold_that_reaches_their_target(sample, target):
    point = choose(*sample, rule=f"sensitivity>={target}")
    reached = [t for t, confusion in by_threshold(*sample).items() if confusion.sensitivity >= target]
    assert point.threshold == max(reached)

    reached = [t for t, confusion in by_threshold(*sample).items() if confusion.specificity >= target]
    if reached:
        assert choose(*sample, rule=f"specificity>={target}").threshold == min(reached)
    else:
        with pytest.raises(DataError, match="no threshold reaches rule"):
            choose(*sample, rule=f"specificity>={target}")


@given(scored())
def test_balanced_rule_takes_the_greatest_youden_index(sample):
    tables = by_threshold(*sample)
    point = choose(*sample, rule="balanced")
    best = max(confusion.balanced_accuracy for confusion in tables.values())
    assert tables[point.threshold].balanced_accuracy == pytest.approx(best, abs=1e-12)


def test_ties_exact_targets_and_float32():
    # At 0.4 both positives and one of two negatives, at 0.6 one positive and no negative: J is 1/2 at either.
    assert choose([0, 1, 0, 1], [0.1, 0.4, 0.5, 0.6], "balanced").threshold == 0.4
    # 1 - 0.05 and its like are not 0.95 in float64: a rate got by subtraction would pass the exact threshold by.
    labels = np.repeat([0, 1], 20)
    probabilities = np.concatenate([np.linspace(0.01, 0.2, 20), np.linspace(0.1, 0.9, 20)])
    at_sensitivity = choose(labels, probabilities, "sensitivity>=0.95")
    assert confusion_matrix_at(labels, probabilities, at_sensitivity.threshold).tp == 19
    for of_hundred in range(1, 100):
        labels = np.repeat([0, 1], 100)
        probabilities = np.arange(200) / 200
        target = of_hundred / 100
        point = choose(labels, probabilities, f"specificity>={target}")
        assert confusion_matrix_at(labels, probabilities, point.threshold).tn == of_hundred

    probabilities = np.array([0.1, 0.3, 0.7], dtype=np.float32)
    point = choose([0, 1, 1], probabilities, "sensitivity>=1")
    assert confusion_matrix_at([0, 1, 1], probabilities, point.threshold).tp == 2


@pytest.mark.parametrize("rule", ["sensitivity>=0.95", "specificity>=0.9", "balanced"])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_refused(rule, label):
    with pytest.raises(DataError, match=f"rule '{rule}' needs images of both labels: all 2 have label {label}"):
        choose([label, label], [0.1, 0.9], rule)


def test_invalid_arrays_and_unreachable_targets_are_refused():
    message = "the highest probability, 0.8, gives a specificity of 0.5000 on 2 images of label 0"
    with pytest.raises(DataError, match=message):
        choose([0, 0, 1], [0.1, 0.8, 0.8], "specificity>=0.9")
    with pytest.raises(DataError, match="1 of 2 probabilities are NaN"):
        choose([0, 1], [0.1, math.nan])


@pytest.mark.parametrize(
    "rule", ["", "accuracy>=0.9", "sensitivity>0.9", "sensitivity>=", "sensitivity>=nan", "Balanced", "sensitivity>=-1"]
)
def test_an_unknown_rule_names_the_valid_ones(rule):
    with pytest.raises(ConfigError) as caught:
        choose([0, 1], [0.1, 0.9], rule)
    assert repr(rule) in str(caught.value)
    for valid in ("sensitivity>=X", "specificity>=X", "balanced", "screening", "specific"):
        assert valid in str(caught.value)


@pytest.mark.parametrize("rule", ["sensitivity>=95", "specificity>=0", "sensitivity>=1.01"])
def test_a_target_that_is_no_fraction_is_refused(rule):
    with pytest.raises(ConfigError, match=r"not in \(0, 1\]"):
        parse_rule(rule)


def test_rules_are_parsed_and_stored_with_the_point():
    assert parse_rule("sensitivity>=0.95") == ("sensitivity", 0.95)
    assert parse_rule(" specificity >= .9 ") == ("specificity", 0.9)
    assert parse_rule(" specific ") == ("specificity", 0.95)
    kind, target = parse_rule("balanced")
    assert kind == "balanced"
    assert math.isnan(target)

    assert choose([0, 1], [0.2, 0.7]) == OperatingPoint("screening", 0.7, "sensitivity>=0.95")
    assert choose([0, 1], [0.2, 0.7], "balanced", name="triage") == OperatingPoint("triage", 0.7, "balanced")


@pytest.mark.parametrize(
    ("text", "name", "rule"),
    [
        ("screening", "screening", "sensitivity>=0.95"),
        ("sensitivity>=0.95", "screening", "sensitivity>=0.95"),
        (" specific ", "specific", "specificity>=0.95"),
        ("balanced", "balanced", "balanced"),
        ("sensitivity>=0.90", "sensitivity>=0.90", "sensitivity>=0.90"),
    ],
)
def test_only_a_point_of_that_rule_has_its_name(text, name, rule):
    assert resolve_rule(text) == (name, rule)
    with pytest.raises(ConfigError, match="unknown operating point rule 'triage'"):
        resolve_rule("triage")


def test_named_points_are_those_of_their_rules():
    labels, probabilities = [0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.7, 0.9]
    result = {point.name: point for point in choose_named(labels, probabilities)}
    assert result.keys() == NAMED.keys()
    for name, rule in NAMED.items():
        assert result[name] == choose(labels, probabilities, rule, name)

    result = choose_named([0, 1, 1], [0.9, 0.9, 0.2])
    assert [point.threshold for point in result] == [0.2, 0.2, math.inf]
    assert [(point.name, point.rule) for point in result] == list(NAMED.items())


@given(sample=scored())
def test_room_under_a_threshold_changes_no_decision(sample):
    labels, probabilities = sample
    point = choose(labels, probabilities, "balanced")
    roomy = lower_threshold(point, probabilities)
    assert point.threshold - TOLERANCE <= roomy.threshold <= point.threshold
    decided = [np.asarray(probabilities) >= each.threshold for each in (point, roomy)]
    np.testing.assert_array_equal(*decided)
    if point.threshold > 1e-3:
        assert roomy.threshold < point.threshold


def test_room_is_half_of_what_there_is_at_most():
    point = choose([0, 1], [0.5, 0.50001], "balanced")
    assert lower_threshold(point, [0.5, 0.50001]).threshold == pytest.approx(0.500005)
    above = OperatingPoint("between", 0.1 + 3e-9, "balanced")  # in float32 it is the probability
    assert lower_threshold(above, np.float32([0.1])).threshold > np.float32(0.1)
    never = OperatingPoint("specific", math.inf, "specificity>=0.95")
    assert lower_threshold(never, [0.5]) == never
