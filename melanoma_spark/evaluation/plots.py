"""The plots of a report, as PNG."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from melanoma_spark import pages, plotting
from melanoma_spark.evaluation.report_facts import Epoch, Facts, ModelFacts, check
from melanoma_spark.pages import NEUTRAL


def draw(facts: Facts) -> dict[str, bytes]:
    """PNG files by name: roc, precision_recall, calibration, decision_curve, confusion, histogram, and training if
    facts has epochs.

    Equal facts give equal bytes. Raises DataError where a fact is missing or no model is given.
    """
    check(facts)
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
    return {name: plotting.png(figure) for name, figure in drawn.items()}


def _roc(models: list[ModelFacts]) -> Figure:
    figure = plotting.new_figure(plotting.PLOT_WIDTH)
    axes = figure.add_subplot()
    plotting.unit_square(axes, "1 - specificity", "sensitivity")
    for k, model in enumerate(models):
        told = f"{plotting.plain(model['name'])}: {pages.decimal(model['auroc'])}"
        axes.plot(model["roc"].fpr, model["roc"].tpr, linewidth=1.8, zorder=3, label=told, **plotting.style(k))
        axes.plot(
            1 - model["test"].specificity,
            model["test"].sensitivity,
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            markersize=8,
            color=plotting.style(k)["color"],
            markeredgecolor="white",
            zorder=4,
        )
    axes.legend(title="AUROC by model", loc="lower right", fontsize=9, title_fontsize=9)
    return figure


def _precision_recall(models: list[ModelFacts]) -> Figure:
    figure = plotting.new_figure(plotting.PLOT_WIDTH)
    axes = figure.add_subplot()
    plotting.unit_square(axes, "recall (sensitivity)", "precision (PPV)")
    axes.lines[0].remove()
    axes.axhline(models[0]["prevalence"], color="#8a8a8a", linewidth=0.8, zorder=1)
    for k, model in enumerate(models):
        recall, precision, _ = model["precision_recall"]
        told = f"{plotting.plain(model['name'])}: {pages.decimal(model['figures']['auprc'].value)}"
        # Steps whose area is AUPRC: straight lines would be too high (Davis and Goadrich, ICML 2006).
        steps = np.append(0, recall), np.append(precision[0], precision)
        axes.step(*steps, where="pre", linewidth=1.8, zorder=3, label=told, **plotting.style(k))
    axes.legend(title="AUPRC by model", loc="lower left", fontsize=9, title_fontsize=9)
    return figure


def _decision_curve(models: list[ModelFacts]) -> Figure:
    figure = plotting.new_figure(0.75 * plotting.PLOT_WIDTH)
    axes = figure.add_subplot()
    first = models[0]["decision_curve"]
    axes.axhline(0, color="#8a8a8a", linewidth=0.8, zorder=1)
    axes.plot(first.thresholds, first.of_all, color="#8a8a8a", linewidth=1.2, linestyle="dotted", zorder=2)
    for k, model in enumerate(models):
        curve = model["decision_curve"]
        axes.plot(
            curve.thresholds,
            curve.benefit,
            linewidth=1.8,
            zorder=3,
            label=plotting.plain(model["name"]),
            **plotting.style(k),
        )
    most = max(float(models[0]["prevalence"]), 0.05)
    axes.set(xlim=(0, 1), ylim=(-0.15 * most, 1.1 * most), xlabel="threshold probability", ylabel="net benefit")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _calibration(models: list[ModelFacts]) -> Figure:
    figure = plotting.new_figure(plotting.PLOT_WIDTH)
    axes = figure.add_subplot()
    plotting.unit_square(axes, "mean predicted probability", "observed fraction")
    for k, model in enumerate(models):
        table, style = model["reliability"], plotting.style(k)
        if model["calibration"].method != "none":
            before = model["uncalibrated"]["reliability"]
            kept = np.asarray(before.n) > 0
            x, y = np.asarray(before.mean_probability)[kept], np.asarray(before.observed_fraction)[kept]
            axes.plot(x, y, linewidth=0.9, alpha=0.45, zorder=2, color=style["color"], linestyle="dotted")
        filled = np.flatnonzero(np.asarray(table.n) > 0)
        x, y = np.asarray(table.mean_probability)[filled], np.asarray(table.observed_fraction)[filled]
        area = 12 + 160 * np.asarray(table.n)[filled] / np.sum(table.n)
        axes.plot(x, y, linewidth=1.4, zorder=3, label=plotting.plain(model["name"]), **style)
        axes.scatter(
            x,
            y,
            area,
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            color=style["color"],
            edgecolor="white",
            zorder=4,
            alpha=0.9,
        )
    axes.legend(loc="upper left", fontsize=9)
    return figure


def _confusion(models: list[ModelFacts], labels: tuple[str, str]) -> Figure:
    columns = min(2, len(models))
    rows = math.ceil(len(models) / columns)
    figure = plotting.new_figure(0.3 + 2.6 * rows)
    names = [plotting.plain(label, 14) for label in labels]
    for k, model in enumerate(models):
        axes = figure.add_subplot(rows, columns, k + 1)
        table, tint = model["test"], plotting.style(k)["color"]
        for row, counts in enumerate(((table.tn, table.fp), (table.fn, table.tp))):
            for column, count in enumerate(counts):
                share = count / sum(counts) if sum(counts) else math.nan
                shade = 0.0 if math.isnan(share) else share
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, alpha=0.06 + 0.44 * shade))
                axes.text(column + 0.5, row + 0.42, pages.count(count), ha="center", va="center", fontsize=13)
                axes.text(column + 0.5, row + 0.7, pages.percent(share), ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, 2), ylim=(2, 0), aspect="equal", xlabel="decision")
        axes.set_title(plotting.plain(model["name"]), color=tint, fontweight="bold", fontsize=11)
        first = k % columns == 0
        axes.set_xticks([0.5, 1.5], names)
        axes.set_yticks([0.5, 1.5], names if first else ["", ""], rotation=90, va="center")
        axes.set_ylabel("truth" if first else "")
        axes.tick_params(length=0, labelsize=9)
    return figure


def _histogram(models: list[ModelFacts], labels: tuple[str, str]) -> Figure:
    figure = plotting.new_figure(0.5 + 2.1 * len(models))
    panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    for k, (axes, model) in enumerate(zip(panels, models, strict=True)):
        edges, threshold = np.asarray(model["histograms"]["edges"]), model["operating_point"].threshold
        for label, counts, colour, hatch, alpha in (
            (labels[0], model["histograms"]["negative"], NEUTRAL, None, 0.25),
            (labels[1], model["histograms"]["positive"], plotting.style(k)["color"], "////", 0.0),
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
                label=f"{plotting.plain(label)} ({pages.count(total)})",
            )
        axes.axvline(
            threshold,
            color="black",
            linestyle="dotted",
            linewidth=1.2,
            label=f"threshold {pages.significant(threshold)}",
        )
        axes.set_title(
            plotting.plain(model["name"]), color=plotting.style(k)["color"], fontweight="bold", fontsize=11, loc="left"
        )
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
    figure = plotting.new_figure(4.4)
    losses, areas = figure.subplots(2, 1, sharex=True)
    phases = list(dict.fromkeys(epoch["phase"] for epoch in epochs))
    for number, phase in enumerate(phases):
        rows = [k for k, epoch in enumerate(epochs) if epoch["phase"] == phase]
        x = np.array(rows) + 1
        if number:
            for axes in (losses, areas):
                axes.axvline(x[0] - 0.5, color="#8a8a8a", linewidth=0.8)
        above = 1.02 + 0.09 * (number % 2)  # phases of few epochs are narrower than their names
        losses.text(
            x.mean(), above, plotting.plain(phase, 14), ha="center", transform=losses.get_xaxis_transform(), fontsize=9
        )
        for axes, key, line in ((losses, "loss", 0), (losses, "validation_loss", 1), (areas, "validation_auroc", 0)):
            values = np.array([epochs[k][key] for k in rows])  # type: ignore[literal-required]
            name = key.replace("_", " ") if number == 0 and axes is losses else None
            axes.plot(
                x, values, linewidth=1.6, marker=".", label=name, color=NEUTRAL, linestyle=plotting.LINE_STYLES[line]
            )
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
