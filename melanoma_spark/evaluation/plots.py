"""The plots of a report, as PNG. A new plot is a function here with the decorator `plot`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from melanoma_spark import pages, plotting
from melanoma_spark.evaluation.facts import Facts
from melanoma_spark.pages import NEUTRAL
from melanoma_spark.plotting import CHANCE


@dataclass(frozen=True)
class Plot:
    """A plot of the report, and the texts around it."""

    draw: Callable[[Facts], Figure]
    title: str
    caption: str  # goes on after the title
    alt: str  # for readers who cannot see it
    needs: Callable[[Facts], bool]  # it is left out where this is False


PLOTS: dict[str, Plot] = {}  # by name of the file, in the order of the report


def plot(
    file: str, *, title: str, caption: str, alt: str, needs: Callable[[Facts], bool] = lambda facts: True
) -> Callable[[Callable[[Facts], Figure]], Callable[[Facts], Figure]]:
    """Add the decorated function to `PLOTS`; see `Plot`."""

    def add(draw: Callable[[Facts], Figure]) -> Callable[[Facts], Figure]:
        PLOTS[file] = Plot(draw, title, caption, alt, needs)
        return draw

    return add


def draw(facts: Facts) -> dict[str, bytes]:
    """Draw all of `PLOTS`: PNG files by name. Equal facts give equal bytes."""
    return {file: plotting.png(entry.draw(facts)) for file, entry in PLOTS.items() if entry.needs(facts)}


@plot(
    "roc.png",
    title="ROC",
    caption=", test split. The large marker on each curve is its operating point; the gray diagonal is chance.",
    alt="ROC curves on the test split",
)
def _roc(facts: Facts) -> Figure:
    figure, axes = plotting.unit_square("1 - specificity", "sensitivity")
    for k, model in enumerate(facts.models):
        label = f"{plotting.plain(model.name)}: {pages.decimal(model.auroc.value)}"
        axes.plot(model.roc.fpr, model.roc.tpr, linewidth=1.8, zorder=3, label=label, **plotting.style(k))
        axes.plot(
            1 - model.test.specificity,
            model.test.sensitivity,
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            markersize=8,
            color=plotting.style(k)["color"],
            markeredgecolor="white",
            zorder=4,
        )
    axes.legend(title="AUROC by model", loc="lower right", fontsize=9, title_fontsize=9)
    return figure


@plot(
    "precision_recall.png",
    title="Precision and recall",
    caption=", test split. The gray line is chance, the prevalence of this split.",
    alt="Precision-recall curves on the test split",
)
def _precision_recall(facts: Facts) -> Figure:
    figure, axes = plotting.unit_square("recall (sensitivity)", "precision (PPV)")
    axes.lines[0].remove()
    axes.axhline(facts.models[0].prevalence, color=CHANCE, linewidth=0.8, zorder=1)
    for k, model in enumerate(facts.models):
        recall, precision, _ = model.precision_recall
        label = f"{plotting.plain(model.name)}: {pages.decimal(model.figures['auprc'].value)}"
        # Steps whose area is AUPRC: straight lines would be too high (Davis and Goadrich, ICML 2006).
        steps = np.append(0, recall), np.append(precision[0], precision)
        axes.step(*steps, where="pre", linewidth=1.8, zorder=3, label=label, **plotting.style(k))
    axes.legend(title="AUPRC by model", loc="lower left", fontsize=9, title_fontsize=9)
    return figure


@plot(
    "calibration.png",
    title="Calibration",
    caption=", test split, ten bins of equal width. Marker area grows with the images in the bin; a calibrated model "
    "lies on the gray diagonal. Thin dotted lines are the networks before calibration, which was fitted on validation.",
    alt="Reliability plot on the test split",
)
def _calibration(facts: Facts) -> Figure:
    figure, axes = plotting.unit_square("mean predicted probability", "observed fraction")
    for k, model in enumerate(facts.models):
        table, style = model.reliability, plotting.style(k)
        if model.calibration.method != "none":
            before = model.raw_reliability
            filled = before.n > 0
            x, y = before.mean_probability[filled], before.observed_fraction[filled]
            axes.plot(x, y, linewidth=0.9, alpha=0.45, zorder=2, color=style["color"], linestyle="dotted")
        filled = table.n > 0
        x, y = table.mean_probability[filled], table.observed_fraction[filled]
        axes.plot(x, y, linewidth=1.4, zorder=3, label=plotting.plain(model.name), **style)
        axes.scatter(
            x,
            y,
            12 + 160 * table.n[filled] / np.sum(table.n),
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            color=style["color"],
            edgecolor="white",
            zorder=4,
            alpha=0.9,
        )
    axes.legend(loc="upper left", fontsize=9)
    return figure


@plot(
    "decision_curve.png",
    title="Decision curve",
    caption=", test split: net benefit of acting at a probability, in true positives per image. The gray lines are to "
    "act on none and, dotted, on all.",
    alt="Decision curves on the test split",
)
def _decision_curve(facts: Facts) -> Figure:
    figure = plotting.new_figure(0.75 * plotting.PLOT_WIDTH)
    axes = figure.add_subplot()
    first = facts.models[0]
    axes.axhline(0, color=CHANCE, linewidth=0.8, zorder=1)
    curve = first.decision_curve
    axes.plot(curve.thresholds, curve.of_all, color=CHANCE, linewidth=1.2, linestyle="dotted", zorder=2)
    for k, model in enumerate(facts.models):
        curve, label = model.decision_curve, plotting.plain(model.name)
        axes.plot(curve.thresholds, curve.benefit, linewidth=1.8, zorder=3, label=label, **plotting.style(k))
    most = max(first.prevalence, 0.05)
    axes.set(xlim=(0, 1), ylim=(-0.15 * most, 1.1 * most), xlabel="threshold probability", ylabel="net benefit")
    plotting.open_frame(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


@plot(
    "histogram.png",
    title="Predicted probabilities",
    caption=" by true label, test split.",
    alt="Histograms of predicted probability by label",
)
def _histogram(facts: Facts) -> Figure:
    figure = plotting.new_figure(0.5 + 2.1 * len(facts.models))
    panels = figure.subplots(len(facts.models), 1, sharex=True, squeeze=False)[:, 0]
    for k, (axes, model) in enumerate(zip(panels, facts.models, strict=True)):
        color, threshold = plotting.style(k)["color"], model.operating_point.threshold
        negative, positive = facts.dataset.labels
        for label, counts, edge, hatch, alpha in (
            (negative, model.histograms.negative, NEUTRAL, None, 0.25),
            (positive, model.histograms.positive, color, "////", 0.0),
        ):
            total = int(np.sum(counts))
            axes.stairs(
                counts / max(total, 1),
                model.histograms.edges,
                fill=True,
                facecolor=(edge, alpha),
                edgecolor=edge,
                linewidth=1.4,
                hatch=hatch,
                label=f"{plotting.plain(label)} ({pages.count(total)})",
            )
        label = f"threshold {pages.significant(threshold)}"
        axes.axvline(threshold, color="black", linestyle="dotted", linewidth=1.2, label=label)
        axes.set_title(plotting.plain(model.name), color=color, fontweight="bold", fontsize=11, loc="left")
        axes.set(xlim=(0, 1), ylabel="share of its label")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
        # Room above the bars for the legend, on the side that the threshold leaves free.
        axes.set_ylim(0, 1.6 * axes.dataLim.y1)
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1])
        axes.legend(frameon=False, fontsize=9, loc="upper right" if threshold < 0.5 else "upper left")
    panels[-1].set_xlabel("predicted probability")
    return figure


@plot(
    "training.png",
    title="Training",
    caption=", phase by phase. Rings mark the epochs whose weights were kept.",
    alt="Loss and validation AUROC by epoch",
    needs=lambda facts: bool(facts.training),
)
def _training(facts: Facts) -> Figure:
    """Losses and validation AUROC over all epochs in order, phases divided by lines, kept epochs ringed."""
    figure = plotting.new_figure(4.4)
    losses, areas = figure.subplots(2, 1, sharex=True)
    phases = list(dict.fromkeys(epoch.phase for epoch in facts.training))
    for number, phase in enumerate(phases):
        places, epochs = zip(
            *((k, epoch) for k, epoch in enumerate(facts.training) if epoch.phase == phase), strict=True
        )
        x = np.array(places) + 1
        if number:
            for axes in (losses, areas):
                axes.axvline(x[0] - 0.5, color=CHANCE, linewidth=0.8)
        above = 1.02 + 0.09 * (number % 2)  # phases of few epochs are narrower than their names
        losses.text(
            x.mean(), above, plotting.plain(phase, 14), ha="center", transform=losses.get_xaxis_transform(), fontsize=9
        )
        kept = [epoch.epoch == facts.best.get(phase) for epoch in epochs]
        for axes, key, line in ((losses, "loss", 0), (losses, "validation_loss", 1), (areas, "validation_auroc", 0)):
            values = np.array([getattr(epoch, key) for epoch in epochs])
            label = key.replace("_", " ") if number == 0 and axes is losses else None
            style = {"color": NEUTRAL, "linestyle": plotting.LINE_STYLES[line]}
            axes.plot(x, values, linewidth=1.6, marker=".", label=label, **style)
            if key != "loss":
                axes.plot(x[kept], values[kept], "o", markersize=10, markerfacecolor="none", color="black")
    losses.set_ylabel("cross-entropy (nats)")
    losses.legend(frameon=False, fontsize=9)
    areas.set(xlabel="epoch, all phases", ylabel="validation AUROC")
    areas.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, areas):
        plotting.open_frame(axes)
    return figure


@plot(
    "confusion.png",
    title="Decisions at the operating point",
    caption=", test split. Shares are of the images with that true label.",
    alt="Confusion matrices on the test split",
)
def _confusion(facts: Facts) -> Figure:
    columns = min(2, len(facts.models))
    rows = math.ceil(len(facts.models) / columns)
    figure = plotting.new_figure(0.3 + 2.6 * rows)
    names = [plotting.plain(label, 14) for label in facts.dataset.labels]
    for k, model in enumerate(facts.models):
        axes = figure.add_subplot(rows, columns, k + 1)
        table, tint = model.test, plotting.style(k)["color"]
        for row, counts in enumerate(((table.tn, table.fp), (table.fn, table.tp))):
            for column, count in enumerate(counts):
                share = count / sum(counts) if sum(counts) else math.nan
                shade = 0.0 if math.isnan(share) else share
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, alpha=0.06 + 0.44 * shade))
                axes.text(column + 0.5, row + 0.42, pages.count(count), ha="center", va="center", fontsize=13)
                axes.text(column + 0.5, row + 0.7, pages.percent(share), ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, 2), ylim=(2, 0), aspect="equal", xlabel="decision")
        axes.set_title(plotting.plain(model.name), color=tint, fontweight="bold", fontsize=11)
        first = k % columns == 0
        axes.set_xticks([0.5, 1.5], names)
        axes.set_yticks([0.5, 1.5], names if first else ["", ""], rotation=90, va="center")
        axes.set_ylabel("truth" if first else "")
        axes.tick_params(length=0, labelsize=9)
    return figure
