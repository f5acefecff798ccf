"""One run as one self-contained HTML page and its plots: what was measured, on which data, with which limits.

The page needs no script, no network and no other file, and reads on paper, a desktop and a phone. Text from outside
(titles, reject reasons, settings) is escaped, never trusted.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from melanoma_spark import pages
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import figures
from melanoma_spark.evaluation.subgroups import ATTRIBUTES, FEWEST, Subgroup, in_words, largest_gaps
from melanoma_spark.images import quality
from melanoma_spark.images.decoding import REASONS
from melanoma_spark.metrics import binary, bootstrap
from melanoma_spark.metrics.binary import ConfusionMatrix, DecisionCurve, PrecisionRecall, Reliability, RocCurve
from melanoma_spark.models import operating_points
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.pages import COLOURS, NEUTRAL

# Beside the colours, for print.
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")
MARKERS = ("o", "s", "^", "D")
HISTOGRAM_BINS = 20
# Wide enough for a phone's column at nearly full size: text of 10 pt stays readable there.
PLOT_WIDTH = 4.7
PLOT_DPI = 200
MISTAKE_SIDE = 224  # pixels


class Published(NamedTuple):
    """A result of others on dermoscopy photographs."""

    data: str
    result: str
    source: str


PUBLISHED = (
    Published(
        "malignant vs benign, 3,297 images, the half that is shipped as test",
        "accuracy 84.24 %",
        "VGG16; Ibrahim, JILSA 2023",
    ),
    Published(
        "melanoma, 10,000 images, 1,000 of them test",
        "AUROC 0.961, accuracy 88.8 %, calibration error 0.025",
        "VGG16; github.com/abarriuso/melanoma-detection-vgg16",
    ),
    Published(
        "ISIC 2020, patient split, locked test",
        "AUROC 0.834 (0.795 to 0.872)",
        "EfficientNetV2-S; github.com/Edgar-Ontiveros/melanoma-triage",
    ),
    Published("ISIC 2017, melanoma", "AUROC 0.874, the best; 0.868, the winner's", "Menegola et al.; Matsunaga et al."),
    Published("SIIM-ISIC 2020", "AUROC 0.949", "18 models together; Ha et al. 2020"),
)


class Dataset(TypedDict):
    """The images behind the models."""

    id: str
    labels: tuple[str, str]  # the names of label 0 and label 1, e.g. ("benign", "malignant")
    counts: Mapping[str, Mapping[str, int]]  # split -> label name -> images
    groups: Mapping[str, int]  # split -> groups (patients, lesions, duplicates); empty where none are known
    rejects: Mapping[str, int]  # reason -> images
    sources: list[str]  # datasets or institutions, and licences, as far as the archive tells
    licences: list[str]


class Histograms(TypedDict):
    """Numbers of test images by probability: edges (k + 1,), negative and positive (k,)."""

    edges: NDArray
    negative: NDArray
    positive: NDArray


class Uncalibrated(TypedDict):
    """What the network's own probabilities are like, before calibration: test split, keys of `figures.of_split`."""

    reliability: Reliability
    figures: Mapping[str, float]  # ece, brier, log_loss


class Point(TypedDict):
    """An operating point, chosen on validation, and what it does on both splits."""

    point: OperatingPoint
    validation: ConfusionMatrix | None
    test: ConfusionMatrix


class ModelFacts(TypedDict):
    """One model. All figures are of the test split but `validation`; NaN stands for undefined."""

    name: str
    auroc: float
    auroc_low: float  # the bounds of the 95 % interval
    auroc_high: float
    prevalence: float
    figures: Mapping[str, figures.Figure]  # what else is told, by key
    operating_point: OperatingPoint  # chosen on validation
    validation: ConfusionMatrix | None  # of which there is none for an external set
    test: ConfusionMatrix
    points: list[Point]  # that one, and those of operating_points.NAMED
    roc: RocCurve
    precision_recall: PrecisionRecall
    decision_curve: DecisionCurve
    reliability: Reliability
    calibration: Calibration  # fitted on validation
    uncalibrated: Uncalibrated
    histograms: Histograms


class Gain(TypedDict):
    """AUROC on the test split of one model less that of another, with its 95 % interval by a paired bootstrap."""

    of: str
    over: str
    auroc: float
    interval: tuple[float, float]


class Shortcuts(TypedDict):
    """AUROC on the test split of what cannot see the lesion."""

    painted: figures.Figure  # the deciding model, on images whose lesion is painted over
    colours: figures.Figure  # a logistic regression on colour histograms


class Mistake(TypedDict):
    """A wrong decision on a test image: image uint8 RGB (size, size, 3), heat (h, w) in [0, 1] of `gradcam`."""

    label: int
    probability: float
    image: NDArray[np.uint8]
    heat: NDArray[np.float32]


class Deciding(TypedDict):
    """What is told of the last of the models alone, the one that is registered. All of the test split."""

    name: str
    about: str  # what it is: architecture, weights, how it was trained
    subgroups: list[Subgroup]
    subgroup_minimum: int
    shortcuts: Shortcuts | None
    mistakes: list[Mistake]  # missed ones first


class Epoch(TypedDict):
    """One epoch of training. Losses are mean cross-entropies in nats."""

    phase: str
    epoch: int
    loss: float
    validation_loss: float
    validation_auroc: float


class Facts(TypedDict):
    """All that a report says."""

    title: str
    created_at: str  # ISO 8601, UTC
    run_id: str
    dataset: Dataset
    settings: Mapping[str, str]
    lineage: Mapping[str, str]  # what -> id: weights, dataset, package version, commit
    models: list[ModelFacts]
    gains: list[Gain]  # of the last model over the first, over the champion
    champion: str  # why there is no gain over one; empty where there is
    deciding: Deciding
    training: list[Epoch]
    best: Mapping[str, int]  # phase -> the epoch whose weights were kept
    limits: list[str]  # one sentence each
    weights_are_random: bool  # then a banner says that the figures mean nothing


def model_facts(
    name: str,
    calibration: Calibration,
    operating_point: OperatingPoint,
    validation: tuple[ArrayLike, ArrayLike] | None,
    test: tuple[ArrayLike, ArrayLike, ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    prevalences: Sequence[float] = (),
    patients: Sequence[str | None] | None = None,
) -> ModelFacts:
    """Measures one model for the report.

    validation: labels and the network's probabilities, each (n,); None where neither was fitted here. test: labels, the
    network's probabilities and groups, each (m,), as in `metrics`; `patients` as in `figures.of_split`. All
    figures but `uncalibrated` are of the calibrated probabilities, and so is `operating_point`. Models measured with
    the same groups and seed are resampled alike. Raises DataError as `metrics` does.
    """
    labels, raw, groups = test
    probabilities = calibration.apply(raw)
    fitted_on = None if validation is None else (validation[0], calibration.apply(validation[1]))
    threshold = operating_point.threshold
    auroc_low, auroc_high = bootstrap.auroc_interval(labels, probabilities, groups, resamples, seed)
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    points = [
        Point(
            point=point,
            validation=None if fitted_on is None else binary.confusion_matrix_at(*fitted_on, point.threshold),
            test=binary.confusion_matrix_at(labels, probabilities, point.threshold),
        )
        for point in (operating_point, *(operating_points.named(*fitted_on) if fitted_on else ()))
        if point is operating_point or point.rule != operating_point.rule
    ]
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return ModelFacts(
        name=name,
        auroc=binary.auroc(labels, probabilities),
        auroc_low=auroc_low,
        auroc_high=auroc_high,
        prevalence=float(np.mean(truth)),
        figures=figures.of_split(labels, probabilities, groups, threshold, prevalences, resamples, seed, patients),
        operating_point=operating_point,
        validation=points[0]["validation"],
        test=points[0]["test"],
        points=points,
        roc=binary.roc_curve(labels, probabilities),
        precision_recall=binary.precision_recall_curve(labels, probabilities),
        decision_curve=binary.decision_curve(labels, probabilities),
        reliability=binary.reliability(labels, probabilities),
        calibration=calibration,
        uncalibrated=Uncalibrated(
            reliability=binary.reliability(labels, raw),
            figures={
                "ece": binary.expected_calibration_error(labels, raw),
                "brier": binary.brier(labels, raw),
                "log_loss": binary.log_loss(labels, raw),
            },
        ),
        histograms=Histograms(
            edges=edges,
            negative=np.histogram(scores[truth == 0], edges)[0],
            positive=np.histogram(scores[truth == 1], edges)[0],
        ),
    )


def render(facts: Facts) -> str:
    """The report as one HTML document, plots inside. Raises DataError where a fact is missing or no model is given."""
    images = {name: base64.b64encode(png).decode("ascii") for name, png in plots(facts).items()}
    deciding = facts["deciding"]
    found = {subgroup.value for subgroup in deciding["subgroups"] if subgroup.attribute == "quality"}
    return pages.render(
        "report.html",
        facts=facts,
        images=images,
        attributes=ATTRIBUTES,
        published=PUBLISHED,
        fewest=FEWEST,
        flags={in_words(flag): meaning for flag, meaning in quality.FLAGS.items() if in_words(flag) in found},
        reasons=REASONS,
        gaps=largest_gaps(deciding["subgroups"]),
        mistakes=[
            dict(mistake, picture=base64.b64encode(_explained(mistake)).decode("ascii"))
            for mistake in deciding["mistakes"]
        ],
    )


def card(facts: Facts) -> str:
    """The deciding model's card in Markdown; text from outside is escaped as in HTML. Raises as `render`."""
    _check(facts)
    gaps = largest_gaps(facts["deciding"]["subgroups"])
    return pages.render("card.md", facts=facts, attributes=ATTRIBUTES, gaps=gaps, fewest=FEWEST)


def _explained(mistake: Mistake) -> bytes:
    """JPEG of the image and, to its right, the same under its heat map."""
    image = Image.fromarray(mistake["image"])
    size = min(image.width, MISTAKE_SIDE)
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    heat = Image.fromarray((255 * mistake["heat"]).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    strength = np.asarray(heat, np.float32) / 255
    warm = 255 * colormaps["inferno"](strength)[..., :3]
    share = 0.65 * strength[..., None]
    over = Image.fromarray(((1 - share) * np.asarray(image, np.float32) + share * warm).astype(np.uint8))
    both = Image.new("RGB", (2 * size + 4, size), "white")
    both.paste(image, (0, 0))
    both.paste(over, (size + 4, 0))
    file = io.BytesIO()
    both.save(file, "JPEG", quality=85)
    return file.getvalue()


def plots(facts: Facts) -> dict[str, bytes]:
    """PNG files by name: roc, precision_recall, calibration, decision_curve, confusion, histogram, and training if
    facts has epochs.

    Equal facts give equal bytes. Raises DataError where a fact is missing or no model is given.
    """
    _check(facts)
    models, labels = facts["models"], facts["dataset"]["labels"]
    drawn = {
        "roc.png": _roc(models),
        "precision_recall.png": _precision_recall(models),
        "calibration.png": _calibration(models),
        "decision_curve.png": _decision_curve(models),
        "confusion.png": _confusion(models, labels),
        "histogram.png": _histogram(models, labels),
    }
    if facts["training"]:
        drawn["training.png"] = _training(facts["training"], facts["best"])
    return {name: _png(figure) for name, figure in drawn.items()}


def trials_plot(results: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of a search: for each of `trials.Result` that has figures the mean AUROC, with its spread and its folds.

    The best is uppermost; the settings in force are bold.
    """
    shown = [result for result in results if not result["reason"]]
    figure = _figure(1.2 + 0.32 * len(shown))
    axes = figure.add_subplot()
    for row, result in enumerate(shown):
        colour = COLOURS[1] if result["in_force"] else COLOURS[0]
        axes.plot(result["folds"], [row] * len(result["folds"]), "|", color=NEUTRAL, markersize=7)
        axes.errorbar(result["mean"], row, xerr=result["std"], fmt="o", color=colour, markersize=5, capsize=3)
    names = [", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in r["settings"].items()) for r in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=6)
    for text, result in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_fontweight("bold" if result["in_force"] else "normal")
    axes.invert_yaxis()
    told = "AUROC on unseen folds: mean and standard deviation; |: each fold; bold: the settings in force"
    figure.supxlabel(told, fontsize=7)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    return _png(figure)


def _check(facts: Facts) -> None:
    pages.check_keys("the report", facts, Facts.__required_keys__)
    pages.check_keys("the report's deciding model", facts["deciding"], Deciding.__required_keys__)
    pages.check_keys("the report's dataset", facts["dataset"], Dataset.__required_keys__)
    if not facts["models"]:
        raise DataError("the report names no model")
    for number, model in enumerate(facts["models"], start=1):
        pages.check_keys(f"model {number} of the report", model, ModelFacts.__required_keys__)
    for number, epoch in enumerate(facts["training"], start=1):
        pages.check_keys(f"epoch {number} of the report", epoch, Epoch.__required_keys__)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the Software entry, equal facts give equal bytes whatever the version that drew them.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(PLOT_WIDTH, height), dpi=PLOT_DPI, layout="constrained", facecolor="white")


def _plain(text: str, width: int = 18) -> str:
    """Text for a plot: short, and a dollar sign is no formula."""
    line = " ".join(text.split())
    shown = line if len(line) <= width else line[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return shown.replace("$", r"\$")


def _style(model: int) -> dict[str, Any]:
    return {"color": COLOURS[model % len(COLOURS)], "linestyle": LINE_STYLES[model % len(LINE_STYLES)]}


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.8, zorder=1)


def _roc(models: list[ModelFacts]) -> Figure:
    figure = _figure(PLOT_WIDTH)
    axes = figure.add_subplot()
    _unit_square(axes, "1 - specificity", "sensitivity")
    for k, model in enumerate(models):
        told = f"{_plain(model['name'])}: {pages.decimal(model['auroc'])}"
        axes.plot(model["roc"].fpr, model["roc"].tpr, linewidth=1.8, zorder=3, label=told, **_style(k))
        axes.plot(
            1 - model["test"].specificity,
            model["test"].sensitivity,
            marker=MARKERS[k % len(MARKERS)],
            markersize=8,
            color=_style(k)["color"],
            markeredgecolor="white",
            zorder=4,
        )
    axes.legend(title="AUROC by model", loc="lower right", fontsize=9, title_fontsize=9)
    return figure


def _precision_recall(models: list[ModelFacts]) -> Figure:
    figure = _figure(PLOT_WIDTH)
    axes = figure.add_subplot()
    _unit_square(axes, "recall (sensitivity)", "precision (PPV)")
    axes.lines[0].remove()
    axes.axhline(models[0]["prevalence"], color="#8a8a8a", linewidth=0.8, zorder=1)
    for k, model in enumerate(models):
        recall, precision, _ = model["precision_recall"]
        told = f"{_plain(model['name'])}: {pages.decimal(model['figures']['auprc'].value)}"
        # Steps whose area is AUPRC: straight lines would be too high (Davis and Goadrich, ICML 2006).
        steps = np.append(0, recall), np.append(precision[0], precision)
        axes.step(*steps, where="pre", linewidth=1.8, zorder=3, label=told, **_style(k))
    axes.legend(title="AUPRC by model", loc="lower left", fontsize=9, title_fontsize=9)
    return figure


def _decision_curve(models: list[ModelFacts]) -> Figure:
    figure = _figure(0.75 * PLOT_WIDTH)
    axes = figure.add_subplot()
    first = models[0]["decision_curve"]
    axes.axhline(0, color="#8a8a8a", linewidth=0.8, zorder=1)
    axes.plot(first.thresholds, first.of_all, color="#8a8a8a", linewidth=1.2, linestyle="dotted", zorder=2)
    for k, model in enumerate(models):
        curve = model["decision_curve"]
        axes.plot(curve.thresholds, curve.benefit, linewidth=1.8, zorder=3, label=_plain(model["name"]), **_style(k))
    most = max(float(models[0]["prevalence"]), 0.05)
    axes.set(xlim=(0, 1), ylim=(-0.15 * most, 1.1 * most), xlabel="threshold probability", ylabel="net benefit")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _calibration(models: list[ModelFacts]) -> Figure:
    figure = _figure(PLOT_WIDTH)
    axes = figure.add_subplot()
    _unit_square(axes, "mean predicted probability", "observed fraction")
    for k, model in enumerate(models):
        table, style = model["reliability"], _style(k)
        if model["calibration"].method != "none":
            before = model["uncalibrated"]["reliability"]
            kept = np.asarray(before.n) > 0
            x, y = np.asarray(before.mean_probability)[kept], np.asarray(before.observed_fraction)[kept]
            axes.plot(x, y, linewidth=0.9, alpha=0.45, zorder=2, color=style["color"], linestyle="dotted")
        filled = np.flatnonzero(np.asarray(table.n) > 0)
        x, y = np.asarray(table.mean_probability)[filled], np.asarray(table.observed_fraction)[filled]
        area = 12 + 160 * np.asarray(table.n)[filled] / np.sum(table.n)
        axes.plot(x, y, linewidth=1.4, zorder=3, label=_plain(model["name"]), **style)
        axes.scatter(
            x, y, area, marker=MARKERS[k % len(MARKERS)], color=style["color"], edgecolor="white", zorder=4, alpha=0.9
        )
    axes.legend(loc="upper left", fontsize=9)
    return figure


def _confusion(models: list[ModelFacts], labels: tuple[str, str]) -> Figure:
    columns = min(2, len(models))
    rows = math.ceil(len(models) / columns)
    figure = _figure(0.3 + 2.6 * rows)
    names = [_plain(label, 14) for label in labels]
    for k, model in enumerate(models):
        axes = figure.add_subplot(rows, columns, k + 1)
        table, tint = model["test"], _style(k)["color"]
        for row, counts in enumerate(((table.tn, table.fp), (table.fn, table.tp))):
            for column, count in enumerate(counts):
                share = count / sum(counts) if sum(counts) else math.nan
                shade = 0.0 if math.isnan(share) else share
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, alpha=0.06 + 0.44 * shade))
                axes.text(column + 0.5, row + 0.42, pages.count(count), ha="center", va="center", fontsize=13)
                axes.text(column + 0.5, row + 0.7, pages.percent(share), ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, 2), ylim=(2, 0), aspect="equal", xlabel="decision")
        axes.set_title(_plain(model["name"]), color=tint, fontweight="bold", fontsize=11)
        first = k % columns == 0
        axes.set_xticks([0.5, 1.5], names)
        axes.set_yticks([0.5, 1.5], names if first else ["", ""], rotation=90, va="center")
        axes.set_ylabel("truth" if first else "")
        axes.tick_params(length=0, labelsize=9)
    return figure


def _histogram(models: list[ModelFacts], labels: tuple[str, str]) -> Figure:
    figure = _figure(0.5 + 2.1 * len(models))
    panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    for k, (axes, model) in enumerate(zip(panels, models, strict=True)):
        edges, threshold = np.asarray(model["histograms"]["edges"]), model["operating_point"].threshold
        for label, counts, colour, hatch, alpha in (
            (labels[0], model["histograms"]["negative"], NEUTRAL, None, 0.25),
            (labels[1], model["histograms"]["positive"], _style(k)["color"], "////", 0.0),
        ):
            total = int(np.sum(counts))
            shares = np.asarray(counts) / max(total, 1)
            axes.stairs(
                shares,
                edges,
                fill=True,
                facecolor=(colour, alpha),
                edgecolor=colour,
                linewidth=1.4,
                hatch=hatch,
                label=f"{_plain(label)} ({pages.count(total)})",
            )
        axes.axvline(
            threshold,
            color="black",
            linestyle="dotted",
            linewidth=1.2,
            label=f"threshold {pages.significant(threshold)}",
        )
        axes.set_title(_plain(model["name"]), color=_style(k)["color"], fontweight="bold", fontsize=11, loc="left")
        axes.set(xlim=(0, 1), ylabel="share of its label")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
        # Room above the bars for the legend, on the side that the threshold leaves free.
        axes.set_ylim(0, 1.6 * axes.dataLim.y1)
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1])
        axes.legend(frameon=False, fontsize=9, loc="upper right" if threshold < 0.5 else "upper left")
    panels[-1].set_xlabel("predicted probability")
    return figure


def _training(epochs: list[Epoch], best: Mapping[str, int]) -> Figure:
    """Losses and validation AUROC over all epochs in order, phases divided by lines, kept epochs ringed."""
    figure = _figure(4.4)
    losses, areas = figure.subplots(2, 1, sharex=True)
    phases = list(dict.fromkeys(epoch["phase"] for epoch in epochs))
    for number, phase in enumerate(phases):
        rows = [k for k, epoch in enumerate(epochs) if epoch["phase"] == phase]
        x = np.array(rows) + 1
        if number:
            for axes in (losses, areas):
                axes.axvline(x[0] - 0.5, color="#8a8a8a", linewidth=0.8)
        above = 1.02 + 0.09 * (number % 2)  # phases of few epochs are narrower than their names
        losses.text(x.mean(), above, _plain(phase, 14), ha="center", transform=losses.get_xaxis_transform(), fontsize=9)
        for axes, key, line in ((losses, "loss", 0), (losses, "validation_loss", 1), (areas, "validation_auroc", 0)):
            values = np.array([epochs[k][key] for k in rows])  # type: ignore[literal-required]
            name = key.replace("_", " ") if number == 0 and axes is losses else None
            axes.plot(x, values, linewidth=1.6, marker=".", label=name, color=NEUTRAL, linestyle=LINE_STYLES[line])
            kept = [epochs[k]["epoch"] == best.get(phase) for k in rows]
            if key != "loss":
                axes.plot(x[kept], values[kept], "o", markersize=10, markerfacecolor="none", color="black")
    losses.set_ylabel("cross-entropy (nats)")
    losses.legend(frameon=False, fontsize=9)
    areas.set(xlabel="epoch, all phases", ylabel="validation AUROC")
    areas.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, areas):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
    return figure
