"""The gate: each rule alone lets a model pass and refuses it, with its figures; what is undefined never passes."""

import numpy as np
import pytest

from melanoma_spark import config
from melanoma_spark.evaluation.facts import measure_gain
from melanoma_spark.metrics import binary
from melanoma_spark.metrics.bootstrap import Bootstrap
from melanoma_spark.registry import gate

NONE = {"auroc_margin": None, "sensitivity": None, "calibration_error": None, "subgroup_auroc": None, "apart": False}


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 150)
    logit = generator.normal(2.5 * labels - 1.25, 1)
    return labels, np.arange(300) // 2, 1 / (1 + np.exp(-logit)), generator.random(300)


def check(rules, labels, groups, challenger, champion, aurocs=None, overlap=0, note=""):
    more = {"subgroup_aurocs": aurocs or {}, "overlap": overlap}
    gain = None
    if champion is not None:
        gain = measure_gain("challenger", "champion", labels, Bootstrap(groups, 200), challenger, champion)
    return gate.check_rules(rules, labels, challenger, 0.5, gain=gain, note=note, **more)


def verdicts(rows, rule, champion=None, swapped=False, aurocs=None, overlap=0):
    labels, groups, good, poor = rows
    rules = config.Gate(**{**NONE, **rule})
    return check(rules, labels, groups, poor if swapped else good, champion, aurocs=aurocs, overlap=overlap)


def test_every_rule_has_a_verdict(rows):
    rules = config.Gate(sensitivity=0.9, calibration_error=0.1, subgroup_auroc=0.8)
    result = check(rules, *rows)
    assert [verdict.rule for verdict in result] == list(config.Gate.model_fields)
    assert verdicts(rows, {}) == []


def test_a_model_passes_within_the_margin_of_the_champion(rows):
    labels, groups, good, poor = rows
    rule = {"auroc_margin": 0.02}
    (better,) = verdicts(rows, rule, champion=poor)
    (same,) = verdicts(rows, rule, champion=good)
    (worse,) = verdicts(rows, rule, champion=good, swapped=True)
    (alone,) = verdicts(rows, rule)
    assert (better.holds, same.holds, worse.holds, alone.holds) == (True, True, False, True)
    gain = binary.auroc(labels, poor) - binary.auroc(labels, good)
    drawn = Bootstrap(groups, 200)
    low, high = drawn.interval(drawn.auroc(labels, poor) - drawn.auroc(labels, good))
    interval = f"{gain:+.4f} [{low:+.4f} to {high:+.4f}]"
    assert worse.found == f"AUROC less the champion's {interval}, wanted: lower bound >= -0.02"
    assert alone == gate.Verdict("auroc_margin", True, "there is no champion to compare with")

    little = np.where(np.arange(300) % 50 == 0, 1 - good, good)
    low, _ = drawn.interval(drawn.auroc(labels, little) - drawn.auroc(labels, good))
    assert low < 0
    for margin, passes in ((-low + 1e-6, True), (-low, True), (max(-low - 1e-6, 0), False)):
        rules = config.Gate(**NONE | {"auroc_margin": margin})
        (result,) = check(rules, labels, groups, little, good, note="2 images are left out.")
        assert result.holds is passes
        assert result.found.endswith(f"wanted: lower bound >= {-margin:g} (2 images are left out)")


@pytest.mark.parametrize(("rule", "figure"), [("sensitivity", "sensitivity"), ("calibration_error", "error")])
def test_floors_and_ceilings_are_at_the_figure_itself(rows, rule, figure):
    labels, _, good, _ = rows
    if rule == "sensitivity":
        value, easier, harder = binary.confusion_matrix_at(labels, good, 0.5).sensitivity, -1e-9, 1e-9
    else:
        value, easier, harder = binary.expected_calibration_error(labels, good), 1e-9, -1e-9
    assert verdicts(rows, {rule: value})[0].holds
    assert verdicts(rows, {rule: value + easier})[0].holds
    refused = verdicts(rows, {rule: value + harder})[0]
    assert not refused.holds
    assert f"{value:.4f}" in refused.found


def test_poor_subgroups_and_training_images_in_the_test_set_are_refused(rows):
    aurocs = {"sex: male": 0.8, "site: back": 0.55, "site: arm": None}
    (refused,) = verdicts(rows, {"subgroup_auroc": 0.6}, aurocs=aurocs)
    assert not refused.holds
    assert "2 subgroups with enough images, the lowest AUROC 0.5500 (site: back)" in refused.found
    assert verdicts(rows, {"subgroup_auroc": 0.55}, aurocs=aurocs)[0].holds
    assert verdicts(rows, {"subgroup_auroc": 0.6})[0].holds

    assert verdicts(rows, {"apart": True})[0].holds
    assert verdicts(rows, {"apart": True}, overlap=1)[0] == gate.Verdict(
        "apart", False, "1 test images that training has seen, wanted: 0"
    )


def test_undefined_metrics_pass_no_rule():
    labels, groups, probabilities = np.zeros(40, int), np.arange(40), np.linspace(0, 1, 40)
    rules = config.Gate(**NONE | {"auroc_margin": 1.0, "sensitivity": 0.0})
    result = check(rules, labels, groups, probabilities, probabilities)
    assert [verdict.holds for verdict in result] == [False, False]
