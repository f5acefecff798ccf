"""The report: what it shows, that it needs nothing else, and that hostile or undefined facts do no harm."""

import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from page import Page
from PIL import Image

from melanoma_spark.dataset import card_pictures
from melanoma_spark.evaluation import metric_table, plots, report, subgroups
from melanoma_spark.evaluation.facts import Dataset, Deciding, Facts, Gain, Mistake, Shortcuts, measure_model
from melanoma_spark.metrics import binary
from melanoma_spark.metrics.bootstrap import Bootstrap
from melanoma_spark.models import operating_points
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint, choose
from melanoma_spark.training import search
from melanoma_spark.training.loop import EpochRecord

PLOTS = {"roc.png", "precision_recall.png", "calibration.png", "decision_curve.png"}
PLOTS |= {"confusion.png", "histogram.png", "training.png"}
FITTED = Calibration("platt", 0.7, -0.2)
HOSTILE = "<script>alert('x')</script>\" onload=\"steal() $\\frac{1}$ & <b>"


def model(name, shift, seed, one_class=False):
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [70, 30])
    groups = np.arange(100) // 2
    probabilities = 1 / (1 + np.exp(-generator.normal(shift * (labels - 0.5), 1)))
    point = choose(labels, FITTED.apply(probabilities))
    test_labels = np.zeros(100, dtype=int) if one_class else labels
    return measure_model(
        name, FITTED, point, (labels, probabilities), (test_labels, probabilities), Bootstrap(groups, 50, seed=1)
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
    return Deciding(
        name="fine-tuned",
        about="A base and a head, 64 x 64 pixels.",
        subgroups=subgroups.measure_subgroups(columns, labels, probabilities, Bootstrap(groups, 20), 0.5),
        subgroup_minimum=30,
        shortcuts=Shortcuts(
            painted=metric_table.Figure("AUROC", 0.8123, (0.7, 0.9)),
            colors=metric_table.Figure("AUROC", 0.9012, (0.8, 0.95)),
        ),
        mistakes=[Mistake(1, 0.0123, image, heat), Mistake(0, 0.9876, image, 0 * heat)],
    )


@pytest.fixture(scope="module")
def measured():
    return [model("head alone", 1.5, 0), model("fine-tuned", 3.0, 1)]


@pytest.fixture
def facts(measured):
    return Facts(
        title="Melanoma, demo",
        created_at="2024-05-17T09:21:44Z",
        run_id="9f1c2a7b",
        dataset=Dataset(
            id="sha256:5a0d",
            labels=("benign", "malignant"),
            counts={"train": {"benign": 14622, "malignant": 3120}, "test": {"benign": 70, "malignant": 30}},
            groups={"test": 50},
            rejects={"truncated": 3, "segmentation mask": 2074},
            sources=["a hospital | <b>"],
            licenses=["CC BY-NC 4.0"],
        ),
        settings={"target": "malignant", "tracking": "https://mlflow.example/"},
        lineage={"weights": "sha256:bfe5", "git commit": "3f2d9c4"},
        models=measured,
        gains=[Gain("fine-tuned", "head alone", 0.134, (-0.0021, 0.2))],
        deciding=deciding(),
        training=[
            EpochRecord("head", 1, 0.51, 0.61, 0.81, seconds=1, images_per_second=9),
            EpochRecord("head", 2, 0.4444, 0.5555, 0.8765, seconds=1, images_per_second=9),
            EpochRecord("block5", 1, 0.39, 0.41, float("nan"), seconds=1, images_per_second=9),
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


def test_a_model_is_measured_by_the_metrics_of_the_test_split():
    generator = np.random.default_rng(3)
    labels, groups = generator.integers(0, 2, 80), np.arange(80) // 3
    raw, raw_validation = generator.random(80), generator.random(40)
    probabilities, validation = FITTED.apply(raw), (labels[:40], FITTED.apply(raw_validation))
    point = OperatingPoint("triage", 0.4, "balanced")
    drawn = Bootstrap(groups, 40, seed=2)
    given = (labels[:40], raw_validation), (labels, raw), drawn
    facts = measure_model("head", FITTED, point, *given, prevalences=(0.02,))
    interval = drawn.interval(drawn.auroc(labels, probabilities))
    assert facts.auroc == metric_table.Figure("AUROC", binary.auroc(labels, probabilities), interval)
    assert facts.figures == metric_table.measure_figures(labels, probabilities, drawn, 0.4, prevalences=(0.02,))
    assert facts.prevalence == labels.mean()
    assert facts.calibration == FITTED
    assert facts.raw_figures["brier"] == binary.brier(labels, raw) != binary.brier(labels, probabilities)
    np.testing.assert_equal(facts.raw_reliability, binary.reliability(labels, raw))
    assert facts.test == binary.confusion_matrix_at(labels, probabilities, 0.4)
    assert facts.validation == binary.confusion_matrix_at(*validation, 0.4)
    others = [other for other in operating_points.choose_named(*validation) if other.rule != point.rule]
    assert [entry.point for entry in facts.points] == [point, *others]
    assert len(others) == len(operating_points.NAMED) - 1
    for entry in facts.points:
        assert entry.test == binary.confusion_matrix_at(labels, probabilities, entry.point.threshold)
        assert entry.validation == binary.confusion_matrix_at(*validation, entry.point.threshold)
    assert facts.histograms.negative.sum() == (labels == 0).sum()
    assert facts.histograms.positive.sum() == (labels == 1).sum()


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


def test_the_page_holds_every_plot_and_nothing_from_outside(facts, drawn):
    document = report.render(facts, drawn)
    page = Page(document)
    pictures = [value for name, value in page.attributes if name == "src"]
    assert all(re.match("data:image/(png|jpeg);base64,", picture) for picture in pictures)
    shown = [base64.b64decode(picture.partition(",")[2]) for picture in pictures]
    assert set(drawn.values()) < set(shown)
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


def test_page_shows_all_facts_with_shortcuts_subgroups_and_mistakes(facts, drawn):
    words = Page(report.render(facts, drawn)).words
    for model in facts.models:
        assert model.name in words
        low, high = model.auroc.interval
        assert f"{model.auroc.value:.3f} 95 % interval {low:.3f} to {high:.3f}" in words
        for figure in model.figures.values():
            low, high = figure.interval
            if figure.percent:
                shown = f"{100 * figure.value:.1f} % {100 * low:.1f} % to {100 * high:.1f} %"
            else:
                shown = f"{figure.value:.3f} {low:.3f} to {high:.3f}"
            assert figure.name in words
            assert shown in words
        assert f"{100 * model.validation.specificity:.1f} %" in words
        assert f"{model.prevalence:.3f}" in words
        assert f"{model.operating_point.threshold:.4g}" in words
        assert f"{model.raw_figures['ece']:.3f}" in words
        assert "platt slope 0.700, intercept -0.200" in words
        for entry in model.points:
            point, table = entry.point, entry.test
            rates = f"{100 * table.sensitivity:.1f} % {100 * table.specificity:.1f} %"
            rule = "" if point.rule == point.name else f" {point.rule}"
            line = f"{model.name} {point.name}{rule} {point.threshold:.4g} test {rates}"
            assert f"{line} {table.tp} {table.fn} {table.fp} {table.tn}" in words
    for text in (
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
        assert text in words
    assert words.count("It gives no diagnosis and is not a medical device.") == 2
    assert "Sources: a hospital | <b>. Licenses: CC BY-NC 4.0" in words
    assert "SIIM-ISIC 2020 AUROC 0.949 18 models together; Ha et al. 2020" in words
    assert not re.search(r"\.py\b|\.html\b|melanoma_spark|site-packages", words)
    document = report.render(facts, drawn)
    headings = ("95&nbsp;% interval", "<img", "Figures by model", "Limits", "Lineage")
    places = [document.index(part) for part in headings]
    assert places == sorted(places), "the headline stands before plots and tables"

    assert "still ranks with an AUROC of 0.812 (0.700 to 0.900)" in words
    assert "and no shape, has 0.901 (0.800 to 0.950)" in words
    gap = subgroups.largest_gaps(facts.deciding.subgroups)[0]
    low, high = gap.best.auroc.interval
    best = f"{gap.best.value} {gap.best.auroc.value:.3f} ({low:.3f} to {high:.3f})"
    assert f"Largest gap in AUROC, by {gap.attribute}: {best}" in words
    assert "no flag 50" in words
    assert "not skin: few pixels are redder than blue, as skin is." in words
    assert "underexposed" not in words, "no image is"
    for subgroup in facts.deciding.subgroups:
        figure = f"{subgroup.auroc.value:.3f}" if subgroup.sufficient else "insufficient"
        assert f"{subgroup.value} {subgroup.n} {100 * subgroup.prevalence:.1f} % {figure}" in words
    assert "malignant, decided benign: probability of malignant 0.0123" in words
    assert "benign, decided malignant: probability of malignant 0.9876" in words


def test_missing_parts_have_no_section(facts):
    bare = replace(facts.deciding, shortcuts=None, mistakes=[], subgroups=[])
    facts = replace(facts, training=[], gains=[], deciding=bare)
    drawn = plots.draw(facts)
    assert drawn.keys() == PLOTS - {"training.png"}
    words = Page(report.render(facts, drawn)).words
    for heading in (
        "Validation loss",
        "on the same images",
        "Without the lesion",
        "Subgroups",
        "Most confident mistakes",
    ):
        assert heading not in words


def test_random_weights_have_a_banner_and_only_they(facts, drawn):
    assert "Random weights" not in Page(report.render(facts, drawn)).words
    page = Page(report.render(replace(facts, weights_are_random=True), drawn))
    assert "Random weights: demo only" in page.words
    assert ("role", "alert") in page.attributes


def test_the_model_card_shows_the_same(facts):
    card = report.card(facts)
    model = facts.models[1]
    low, high = model.auroc.interval
    assert f"| AUROC | {model.auroc.value:.3f} | {low:.3f} to {high:.3f} |" in card
    for figure in model.figures.values():
        assert f"| {figure.name} | " in html.unescape(card)
    assert f"from {model.operating_point.threshold:.4g} on" in card
    assert "calibrated (platt, slope 0.700, intercept" in card
    for subgroup in facts.deciding.subgroups:
        figure = f"{subgroup.auroc.value:.3f} (" if subgroup.sufficient else "insufficient | | |"
        share = f"{100 * subgroup.prevalence:.1f}\N{NO-BREAK SPACE}%"
        assert f"| {subgroup.attribute} | {subgroup.value} | {subgroup.n} | {share} | {figure}" in card
    assert "painted over it still has an AUROC of 0.812" in card
    assert "CC BY-NC 4.0" in card
    assert "not a medical device" in card
    assert "<b>" not in card
    assert "[14, 23b]" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    bare = replace(facts.deciding, shortcuts=None, subgroups=[])
    assert "no subgroup was measured" in report.card(replace(facts, deciding=bare))


def test_hostile_text_is_escaped_in_page_and_plots(facts, drawn):
    first, second = facts.models
    point = OperatingPoint(HOSTILE, 0.5, HOSTILE)
    dataset = replace(facts.dataset, labels=(HOSTILE, "malignant"), rejects={HOSTILE: 1}, id=HOSTILE)
    hostile = replace(
        facts,
        title=HOSTILE,
        run_id=HOSTILE,
        dataset=replace(dataset, counts={HOSTILE: {HOSTILE: 2, "malignant": 1}}),
        settings={HOSTILE: HOSTILE},
        lineage={HOSTILE: HOSTILE},
        limits=[HOSTILE],
        models=[replace(first, name=HOSTILE), replace(second, operating_point=point)],
        training=[replace(facts.training[0], phase=HOSTILE)],
    )
    page = Page(report.render(hostile, drawn))
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(HOSTILE) >= 12
    # Matplotlib reads text between dollar signs as TeX and raises where it is none.
    formulas = replace(
        facts,
        models=[replace(facts.models[0], name=r"$\frac{$")],
        dataset=replace(facts.dataset, labels=(r"$\no$", "malignant"), counts={}),
        training=[replace(facts.training[0], phase=r"$\so$")],
    )
    assert plots.draw(formulas).keys() == PLOTS


def test_undefined_is_written_and_never_nan(facts):
    dataset = replace(facts.dataset, rejects={})
    facts = replace(facts, models=[model("head alone", 1.5, 0, one_class=True)], dataset=dataset)
    words = Page(report.render(facts, plots.draw(facts))).words
    assert "Test AUROC undefined 95 % interval undefined" in words
    assert "Sensitivity undefined undefined Specificity" in words
    assert "AUPRC, test undefined" in words
    assert "No image was rejected." in words
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)


def test_a_report_compares_any_number_of_models(facts):
    facts = replace(facts, models=[replace(facts.models[0], name=f"model {k}") for k in range(5)])
    words = Page(report.render(facts, plots.draw(facts))).words
    assert words.count("Test AUROC") == 5


def test_a_plot_is_one_entry(facts, monkeypatch):
    monkeypatch.setattr(plots, "PLOTS", {})
    plots.plot("new.png", title="New", caption=": a plot.", alt="A new plot")(lambda facts: Figure(figsize=(1, 1)))
    monkeypatch.setattr(report, "PLOTS", plots.PLOTS)
    page = Page(report.render(facts, plots.draw(facts)))
    assert ("alt", "A new plot: head alone, fine-tuned") in page.attributes
    assert "New: a plot." in page.words


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
