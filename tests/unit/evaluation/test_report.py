"""The report: what it says, that it needs nothing else, and that hostile or undefined facts do no harm."""

import base64
import copy
import html
import io
import re

import numpy as np
import pytest
from page import Page
from PIL import Image

from melanoma_spark.dataset import card_pictures
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import figures, plots, report, report_facts, subgroups
from melanoma_spark.metrics import binary, bootstrap
from melanoma_spark.models import operating_points
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint, choose
from melanoma_spark.training import search

PLOTS = {"roc.png", "precision_recall.png", "calibration.png", "decision_curve.png"}
PLOTS |= {"confusion.png", "histogram.png", "training.png"}
DRAW = plots.draw
FITTED = Calibration("platt", 0.7, -0.2)
HOSTILE = "<script>alert('x')</script>\" onload=\"steal() $\\frac{1}$ & <b>"


def model(name, shift, seed, one_class=False):
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [70, 30])
    groups = np.arange(100) // 2
    probabilities = 1 / (1 + np.exp(-generator.normal(shift * (labels - 0.5), 1)))
    point = choose(labels, FITTED.apply(probabilities))
    test_labels = np.zeros(100, dtype=int) if one_class else labels
    return report_facts.model_facts(
        name, FITTED, point, (labels, probabilities), (test_labels, probabilities, groups), resamples=50, seed=1
    )


def deciding():
    generator = np.random.default_rng(5)
    labels, groups = generator.integers(0, 2, 90), np.arange(90)
    probabilities = np.clip(labels * 0.3 + generator.random(90) * 0.7, 0, 1)
    columns = {
        "sex": [("female",)] * 40 + [("male",)] * 45 + [("unknown",)] * 5,
        "site": [("back",)] * 50 + [("arm",)] * 40,
        "quality": [("no flag",)] * 50 + [("any flag", "not skin")] * 40,
    }
    image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    heat = generator.random((2, 2)).astype(np.float32)
    return report_facts.Deciding(
        name="fine-tuned",
        about="A base and a head, 64 x 64 pixels.",
        subgroups=subgroups.of_split(columns, labels, probabilities, groups, 0.5, 30, resamples=20),
        subgroup_minimum=30,
        shortcuts={
            "painted": figures.Figure("AUROC", 0.8123, (0.7, 0.9)),
            "colours": figures.Figure("AUROC", 0.9012, (0.8, 0.95)),
        },
        mistakes=[
            {"label": 1, "probability": 0.0123, "image": image, "heat": heat},
            {"label": 0, "probability": 0.9876, "image": image, "heat": 0 * heat},
        ],
    )


@pytest.fixture(scope="module")
def measured():
    return [model("head alone", 1.5, 0), model("fine-tuned", 3.0, 1)]


@pytest.fixture
def facts(measured):
    return report_facts.Facts(
        title="Melanoma, demo",
        created_at="2024-05-17T09:21:44Z",
        run_id="9f1c2a7b",
        dataset={
            "id": "sha256:5a0d",
            "labels": ("benign", "malignant"),
            "counts": {"train": {"benign": 14622, "malignant": 3120}, "test": {"benign": 70, "malignant": 30}},
            "groups": {"test": 50},
            "rejects": {"truncated": 3, "segmentation mask": 2074},
            "sources": ["a hospital | <b>"],
            "licences": ["CC BY-NC 4.0"],
        },
        settings={"target": "malignant", "tracking": "https://mlflow.example/"},
        lineage={"weights": "sha256:bfe5", "git commit": "3f2d9c4"},
        models=copy.deepcopy(measured),
        gains=[{"of": "fine-tuned", "over": "head alone", "auroc": 0.134, "interval": (-0.0021, 0.2)}],
        champion="",
        deciding=deciding(),
        training=[
            {"phase": "head", "epoch": 1, "loss": 0.51, "validation_loss": 0.61, "validation_auroc": 0.81},
            {"phase": "head", "epoch": 2, "loss": 0.4444, "validation_loss": 0.5555, "validation_auroc": 0.8765},
            {"phase": "block5", "epoch": 1, "loss": 0.39, "validation_loss": 0.41, "validation_auroc": float("nan")},
        ],
        best={"head": 2, "block5": 1},
        limits=["Few images of dark skin.", "Patients are not known."],
        weights_are_random=False,
    )


@pytest.fixture(scope="module")
def drawn():
    """A picture in place of each plot: to draw them takes a second."""
    return {
        name: card_pictures.contact_sheet([None] * count, [""] * count, 8) for count, name in enumerate(sorted(PLOTS))
    }


@pytest.fixture
def no_plots(monkeypatch, drawn):
    monkeypatch.setattr(plots, "draw", lambda facts: drawn)


def test_model_facts_are_the_metrics_of_the_test_split():
    generator = np.random.default_rng(3)
    labels, groups = generator.integers(0, 2, 80), np.arange(80) // 3
    raw, raw_validation = generator.random(80), generator.random(40)
    probabilities, validation = FITTED.apply(raw), (labels[:40], FITTED.apply(raw_validation))
    point = OperatingPoint("triage", 0.4, "balanced")
    given = (labels[:40], raw_validation), (labels, raw, groups)
    facts = report_facts.model_facts("head", FITTED, point, *given, 40, 2, (0.02,))
    interval = bootstrap.auroc_interval(labels, probabilities, groups, resamples=40, seed=2)
    assert facts.keys() == report_facts.ModelFacts.__required_keys__
    assert facts["auroc"] == binary.auroc(labels, probabilities)
    assert (facts["auroc_low"], facts["auroc_high"]) == interval
    rows = labels, probabilities, groups
    assert facts["figures"] == figures.of_split(*rows, 0.4, (0.02,), resamples=40, seed=2)
    assert facts["prevalence"] == labels.mean()
    assert facts["calibration"] == FITTED
    before = facts["uncalibrated"]
    assert before["figures"]["brier"] == binary.brier(labels, raw) != binary.brier(labels, probabilities)
    np.testing.assert_equal(before["reliability"], binary.reliability(labels, raw))
    assert facts["test"] == binary.confusion_matrix_at(labels, probabilities, 0.4)
    assert facts["validation"] == binary.confusion_matrix_at(*validation, 0.4)
    others = [other for other in operating_points.named(*validation) if other.rule != point.rule]
    assert [chosen["point"] for chosen in facts["points"]] == [point, *others]
    assert len(others) == len(operating_points.NAMED) - 1
    for chosen in facts["points"]:
        threshold = chosen["point"].threshold
        assert chosen["test"] == binary.confusion_matrix_at(labels, probabilities, threshold)
        assert chosen["validation"] == binary.confusion_matrix_at(*validation, threshold)
    assert facts["histograms"]["negative"].sum() == (labels == 0).sum()
    assert facts["histograms"]["positive"].sum() == (labels == 1).sum()


# over the limit of one test: it draws seven plots, and again
def test_plots_are_images_wide_enough_for_paper_and_equal_for_equal_facts(facts):
    drawn = plots.draw(facts)
    assert drawn.keys() == PLOTS
    for png in drawn.values():
        with Image.open(io.BytesIO(png)) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width >= 900
            assert len(image.convert("L").getcolors()) > 10
    assert plots.draw(facts) == drawn


def test_the_page_holds_every_plot_and_nothing_from_outside(facts, no_plots):
    document = report.render(facts)
    page = Page(document)
    pictures = [value for name, value in page.attributes if name == "src"]
    assert all(re.match("data:image/(png|jpeg);base64,", picture) for picture in pictures)
    shown = [base64.b64decode(picture.partition(",")[2]) for picture in pictures]
    assert set(plots.draw(facts).values()) < set(shown)
    mistakes = [picture for picture in shown if picture.startswith(b"\xff\xd8")]
    assert len(mistakes) == 2
    with Image.open(io.BytesIO(mistakes[0])) as both:
        assert both.size == (2 * 32 + 4, 32)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not any(name in ("href", "srcset", "action") or name.startswith("on") for name, _ in page.attributes)
    assert not re.search(r"url\(|@import", document)
    assert ("name", "viewport") in page.attributes
    assert "@media print" in document
    assert document.startswith("<!doctype html>")


def test_the_page_says_all_facts(facts, no_plots):
    words = Page(report.render(facts)).words
    for told in facts["models"]:
        assert told["name"] in words
        assert f"{told['auroc']:.3f} 95 % interval {told['auroc_low']:.3f} to {told['auroc_high']:.3f}" in words
        for figure in told["figures"].values():
            low, high = figure.interval
            if figure.percent:
                shown = f"{100 * figure.value:.1f} % {100 * low:.1f} % to {100 * high:.1f} %"
            else:
                shown = f"{figure.value:.3f} {low:.3f} to {high:.3f}"
            assert figure.name in words
            assert shown in words
        assert f"{100 * told['validation'].specificity:.1f} %" in words
        assert f"{told['prevalence']:.3f}" in words
        assert f"{told['operating_point'].threshold:.4g}" in words
        assert f"{told['uncalibrated']['figures']['ece']:.3f}" in words
        assert "platt slope 0.700, intercept -0.200" in words
        for chosen in told["points"]:
            point, table = chosen["point"], chosen["test"]
            rates = f"{100 * table.sensitivity:.1f} % {100 * table.specificity:.1f} %"
            rule = "" if point.rule == point.name else f" {point.rule}"
            line = f"{told['name']} {point.name}{rule} {point.threshold:.4g} test {rates}"
            assert f"{line} {table.tp} {table.fn} {table.fp} {table.tn}" in words
    for said in (
        "Melanoma, demo",
        "2024-05-17T09:21:44Z",
        "9f1c2a7b",
        "sha256:5a0d",
        "sensitivity>=0.95",
        "train 14,622 3,120 17,742 unknown",
        "test 70 30 100 50",
        "truncated 3",
        "segmentation mask 2,074",
        "head, kept 2 0.4444 0.5555 0.8765",
        "block5, kept 1 0.3900 0.4100 undefined",
        "AUROC of fine-tuned less that of head alone, on the same images: +0.134, 95 % interval -0.002 to "
        "+0.200 (paired bootstrap).",
        "target malignant",
        "tracking https://mlflow.example/",
        "weights sha256:bfe5",
        "git commit 3f2d9c4",
        "Few images of dark skin.",
        "Patients are not known.",
    ):
        assert said in words
    assert words.count("It gives no diagnosis and is not a medical device.") == 2
    assert "Sources: a hospital | <b>. Licences: CC BY-NC 4.0" in words
    assert all(f"{told.data} {told.result} {told.source}" in words for told in report.PUBLISHED)
    assert not re.search(r"\.py\b|\.html\b|melanoma_spark|site-packages", words)
    document = report.render(facts)
    headings = ("95&nbsp;% interval", "<img", "Figures by model", "Limits", "Lineage")
    places = [document.index(part) for part in headings]
    assert places == sorted(places), "the headline stands before plots and tables"


def test_what_was_not_made_has_no_section(facts, no_plots):
    facts |= {"training": [], "gains": []}
    facts["deciding"] |= {"shortcuts": None, "mistakes": [], "subgroups": []}
    assert DRAW(facts).keys() == PLOTS - {"training.png"}
    words = Page(report.render(facts)).words
    for heading in ("Validation loss", "on the same images", "Without the lesion", "Subgroups", "The surest mistakes"):
        assert heading not in words


def test_random_weights_are_said_loudly_and_only_then(facts, no_plots):
    assert "Random weights" not in Page(report.render(facts)).words
    facts["weights_are_random"] = True
    page = Page(report.render(facts))
    assert "Random weights: demo only" in page.words
    assert ("role", "alert") in page.attributes


def test_the_page_says_what_is_left_without_the_lesion_and_who_is_judged_worse(facts, no_plots):
    words = Page(report.render(facts)).words
    assert "still ranks with an AUROC of 0.812 (0.700 to 0.900)" in words
    assert "and no shape, has 0.901 (0.800 to 0.950)" in words
    gap = subgroups.largest_gaps(facts["deciding"]["subgroups"])[0]
    low, high = gap.best.auroc.interval
    told = f"{gap.best.value} {gap.best.auroc.value:.3f} ({low:.3f} to {high:.3f})"
    assert f"Largest gap in AUROC, by {gap.attribute}: {told}" in words
    assert "no flag 50" in words
    assert "not skin: few pixels are redder than blue, as skin is." in words
    assert "underexposed" not in words, "no image is"
    for own in facts["deciding"]["subgroups"]:
        told = f"{own.auroc.value:.3f}" if own.sufficient else "insufficient"
        assert f"{own.value} {own.n} {100 * own.prevalence:.1f} % {told}" in words
    assert "malignant, decided benign: probability of malignant 0.0123" in words
    assert "benign, decided malignant: probability of malignant 0.9876" in words


def test_the_model_card_says_the_same(facts):
    card = report.card(facts)
    told = facts["models"][1]
    assert f"| AUROC | {told['auroc']:.3f} | {told['auroc_low']:.3f} to {told['auroc_high']:.3f} |" in card
    for figure in told["figures"].values():
        assert f"| {figure.name} | " in html.unescape(card)
    assert f"from {told['operating_point'].threshold:.4g} on" in card
    assert "calibrated (platt, slope 0.700, intercept" in card
    for own in facts["deciding"]["subgroups"]:
        figure = f"{own.auroc.value:.3f} (" if own.sufficient else "insufficient | | |"
        share = f"{100 * own.prevalence:.1f}\N{NO-BREAK SPACE}%"
        assert f"| {own.attribute} | {own.value} | {own.n} | {share} | {figure}" in card
    assert "painted over it still has an AUROC of 0.812" in card
    assert "CC BY-NC 4.0" in card
    assert "not a medical device" in card
    assert "<b>" not in card
    assert "[14, 23b]" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    facts["deciding"] |= {"shortcuts": None, "subgroups": []}
    assert "no subgroup could be looked at" in report.card(facts)


def test_hostile_text_is_shown_and_never_obeyed(facts, no_plots):
    facts["title"] = facts["run_id"] = HOSTILE
    facts["dataset"] |= {"labels": (HOSTILE, "malignant"), "rejects": {HOSTILE: 1}, "id": HOSTILE}
    facts["dataset"]["counts"] = {HOSTILE: {HOSTILE: 2, "malignant": 1}}
    facts["settings"], facts["lineage"], facts["limits"] = {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, [HOSTILE]
    facts["models"][0]["name"] = HOSTILE
    facts["models"][1]["operating_point"] = OperatingPoint(HOSTILE, 0.5, HOSTILE)
    facts["training"][0]["phase"] = HOSTILE
    page = Page(report.render(facts))
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(HOSTILE) >= 12


def test_names_in_plots_are_no_formulas(facts):
    # Matplotlib reads text between dollar signs as TeX and raises where it is none.
    facts["models"][0]["name"] = r"$\frac{$"
    facts["dataset"]["labels"] = (r"$\no$", "malignant")
    facts["dataset"]["counts"] = {}
    facts["training"][0]["phase"] = r"$\so$"
    assert plots.draw(facts).keys() == PLOTS


def test_undefined_is_written_and_never_nan(facts):
    facts["models"] = [model("head alone", 1.5, 0, one_class=True)]
    facts["dataset"]["rejects"] = {}
    words = Page(report.render(facts)).words
    assert "Test AUROC undefined 95 % interval undefined" in words
    assert "Sensitivity undefined undefined Specificity" in words
    assert "AUPRC, test undefined" in words
    assert "No image was rejected." in words
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)


def test_any_number_of_models_can_stand_side_by_side(facts):
    facts["models"] = [dict(facts["models"][0], name=f"model {k}") for k in range(5)]
    words = Page(report.render(facts)).words
    assert words.count("Test AUROC") == 5


def test_missing_facts_are_named(facts):
    short = {key: value for key, value in facts.items() if key not in ("lineage", "best")}
    with pytest.raises(DataError, match="the report lacks best, lineage"):
        report.render(short)
    del facts["models"][1]["roc"]
    with pytest.raises(DataError, match="model 2 of the report lacks roc"):
        plots.draw(facts)
    facts["models"] = []
    with pytest.raises(DataError, match="the report names no model"):
        plots.draw(facts)


def test_a_searchs_plot_shows_the_trials_that_have_figures():
    good = {"settings": {"hidden": 8, "dropout": 0.5, "learning_rate": 1e-3, "views": 1}, "reason": ""}
    results = [
        {**good, "in_force": False, "mean": 0.8, "std": 0.01, "folds": [0.79, 0.81]},
        {**good, "in_force": True, "mean": 0.7, "std": 0.02, "folds": [0.68, 0.72]},
    ]
    failed = {**good, "in_force": False, "mean": None, "std": None, "folds": [], "reason": "the loss is nan"}
    drawn = search.plot_trials(results)
    assert Image.open(io.BytesIO(drawn)).format == "PNG"
    assert search.plot_trials([*results, failed]) == drawn
    assert search.plot_trials(results[:1]) != drawn
