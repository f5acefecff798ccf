"""Compares heads on features/: a small search over head.hidden, .dropout, .learning_rate and .views.

`jobs/search.py` has the text for users.
"""

from collections.abc import Sequence

import pandas as pd

from melanoma_spark import lineage, logs, plotting
from melanoma_spark.pages import COLORS, NEUTRAL
from melanoma_spark.runner.context import StageContext, Summary, read_input
from melanoma_spark.storage import manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest, Manifest
from melanoma_spark.training import cross_validation, head, trials
from melanoma_spark.training.trials import Result, Task


class SearchManifest(Manifest):
    """`reports/search/<id>`: what was tried, the best first."""

    place = "reports/search"
    job = "search"

    made_from: list[str]  # ids of images and features
    images: int
    groups: int
    grouped: bool = True  # whether a group stands in one fold
    folds: list[int]  # images of each
    seeds: list[int]
    best: dict[str, int | float]  # settings
    trials: list[Result]
    tasks: list[Task]
    run_id: str


def search(context: StageContext) -> Summary:
    """Compare the heads of `settings.search` by cross-validation; write a report."""
    settings, warehouse, search = context.settings, context.warehouse, context.settings.search
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    manifests.check_fit(images, features)
    stored = features.views
    in_force = settings.head.model_copy(update={"views": head.count_views(settings.head, stored)})
    for views in search.views:
        head.count_views(settings.head.model_copy(update={"views": views}), stored)
    heads = trials.draw_heads(search, in_force, settings.seed)
    ttas = trials.list_ttas(search, settings.evaluate.tta)
    seeds = [settings.training_seed + number for number in range(search.seeds)]
    recipe = [[tried.model_dump(mode="json") for tried in heads], ttas, search.folds, seeds, settings.seed]
    recipe += [] if search.grouped else ["by image"]  # so that earlier searches keep their ids
    search_id = lineage.content_id([images.id, features.id, recipe])
    place = f"reports/search/{search_id}"
    known = manifests.read(SearchManifest, warehouse, search_id)
    if known:
        return Summary(f"nothing new, {describe(known)}; {place}")
    result = cross_validation.cross_validate(
        context, images, features, heads, ttas, seeds, search.folds, grouped=search.grouped
    )
    good, failed = trials.summarize(trials.combine(heads, ttas), result.tasks, search.folds, seeds)
    for trial in [*good, *failed]:
        outcome = f"failed: {trial['reason']}" if trial["reason"] else f"AUROC {trials.describe_auroc(trial)}"
        logs.info(f"{trials.as_words(trial['settings'])}: {outcome}{', in force' if trial['in_force'] else ''}")
    manifest = SearchManifest(
        id=search_id,
        path="",
        made_from=[images.id, features.id],
        images=result.images,
        groups=result.groups,
        grouped=search.grouped,
        folds=result.folds,
        seeds=seeds,
        best=good[0]["settings"],
        trials=[*good, *failed],
        tasks=result.tasks,
        run_id=context.run_id,
    )
    track(context, manifest)
    return Summary(f"{describe(manifests.publish(manifest, warehouse, search_id))}; {place}")


def track(context: StageContext, manifest: SearchManifest) -> None:
    """Log all trials to MLflow: in the run, and each in a nested run."""
    for result in manifest.trials:
        tags = {"search_id": manifest.id, "in_force": str(result["in_force"]).lower()}
        tags |= {"failed": result["reason"]} if result["reason"] else {}
        with context.tracker.run(f"trial {result['trial']}", {"stage": "search", **tags}):
            context.tracker.log_parameters(
                {trials.SETTINGS[key]: str(value) for key, value in result["settings"].items()}
            )
            if not result["reason"]:
                context.tracker.log_metrics(as_metrics(result))
    figures = {f"best_{key}": value for key, value in as_metrics(manifest.trials[0]).items()}
    context.tracker.log_metrics({**figures, "trials": len(manifest.trials), "failed": count_failed(manifest)})
    context.tracker.set_tags({"search_id": manifest.id, "best": trials.as_words(manifest.best)})
    rows = [{**row, **row["settings"]} for row in manifest.trials]
    columns = ["trial", *trials.SETTINGS, "in_force", "mean", "std", "std_seeds", "reason"]
    context.tracker.log_artifact("trials.csv", pd.DataFrame(rows)[columns].to_csv(index=False).encode())
    context.tracker.log_artifact("tasks.csv", pd.DataFrame(manifest.tasks).to_csv(index=False).encode())
    context.tracker.log_artifact("plots/trials.png", plot_trials(manifest.trials))


def as_metrics(result: Result) -> dict[str, float]:
    """Return flat names for MLflow: `auroc_mean`, `auroc_fold_0`, ..."""
    figures = {"mean": result["mean"], "std": result["std"], "std_seeds": result["std_seeds"]}
    figures |= {f"fold_{fold}": value for fold, value in enumerate(result["folds"])}
    return {f"auroc_{key}": value for key, value in figures.items() if value is not None}


def count_failed(manifest: SearchManifest) -> int:
    """Return how many trials failed."""
    return sum(bool(result["reason"]) for result in manifest.trials)


def describe(manifest: SearchManifest) -> str:
    """Describe a search in a line: the best trial, and how far the runner-up and the settings in force are behind."""
    best, *others = (result for result in manifest.trials if not result["reason"])

    def behind(other: Result) -> str:
        return "{:.4f} +- {:.4f} behind".format(*trials.paired_difference(best, other, manifest.tasks))

    count, ignored = len(manifest.trials), "" if manifest.grouped else ", ignored"
    parts = [
        f"{count} {'trials' if count > 1 else 'trial'} x {len(manifest.folds)} folds x {len(manifest.seeds)} seeds "
        f"over {manifest.images} images of {manifest.groups} groups{ignored}, best {trials.as_words(best['settings'])}"
        f"{', the settings in force' if best['in_force'] else ''}: AUROC {trials.describe_auroc(best)}"
    ]
    if others:
        parts.append(f"the runner-up {behind(others[0])}")
    in_force = next((result for result in others if result["in_force"]), None)
    if in_force:
        parts.append(f"the settings in force {behind(in_force)}")
    elif not best["in_force"]:
        parts.append("the settings in force failed")
    if failed := count_failed(manifest):
        parts.append(f"{failed} failed")
    return ", ".join(parts)


def plot_trials(results: Sequence[Result]) -> bytes:
    """Return a PNG with the mean AUROC of each trial, its standard deviation and its folds.

    The best is at the top; the settings in force are bold.
    """
    shown = [result for result in results if not result["reason"]]
    figure = plotting.new_figure(1.2 + 0.32 * len(shown))
    axes = figure.add_subplot()
    for row, result in enumerate(shown):
        color = COLORS[1] if result["in_force"] else COLORS[0]
        axes.plot(result["folds"], [row] * len(result["folds"]), "|", color=NEUTRAL, markersize=7)
        axes.errorbar(result["mean"] or 0.0, row, xerr=result["std"], fmt="o", color=color, markersize=5, capsize=3)
    names = [", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in r["settings"].items()) for r in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=6)
    for text, result in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_fontweight("bold" if result["in_force"] else "normal")
    axes.invert_yaxis()
    legend = "AUROC on held-out folds: mean and standard deviation; |: each fold; bold: the settings in force"
    figure.supxlabel(legend, fontsize=7)
    axes.tick_params(axis="x", labelsize=8)
    plotting.open_frame(axes, grid="x")
    return plotting.png(figure)
