"""Compares heads on features/: a small search over head.hidden, .dropout, .learning_rate and .views.

`jobs/search.py` has the text for users.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import types as t

from melanoma_spark import config, lineage, logs, plotting, schemas
from melanoma_spark.errors import DataError
from melanoma_spark.models import backbones, network, weights
from melanoma_spark.pages import COLORS, NEUTRAL
from melanoma_spark.runner.context import StageContext, Summary, read_images, read_input
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest, Manifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import head, loop, reading, trials
from melanoma_spark.training.trials import Result, Task

TASK = "trial int, seed long, fold int, auroc double, loss double, epoch int, reason string"  # trials.Task
MOST_PARTITIONS = 10_000


class SearchManifest(Manifest):
    """`reports/search/<id>`: what was tried, the best first."""

    place = "reports/search"
    job = "search"

    made_from: list[str]  # ids of images and features
    images: int
    groups: int
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
    search_id = lineage.content_id([images.id, features.id, recipe])
    place = f"reports/search/{search_id}"
    known = manifests.read(SearchManifest, warehouse, search_id)
    if known:
        return Summary(f"nothing new, {describe(known)}; {place}")
    base = weights.resolve(settings.backbone, settings.seed)
    if base.content_id != features.weights:
        raise weights.changed_weights_error(base, features.weights, "features/", "featurize")

    labels = training_labels(context.spark, images.url(warehouse))
    table = read_images(context, images).where("split != 'test'")
    group_of = {row.sha256: row.group for row in table.select("sha256", "group").collect()}
    # in the order of `reading.averages`
    keys = [(split, key) for split in ("train", "validation") for key in sorted(labels[split])]
    groups = [group_of[key] for _, key in keys]
    truth = np.array([labels[split][key] for split, key in keys], np.int8)
    folds = trials.assign_folds(groups, truth, search.folds, settings.seed)
    values = average_features(context, features, labels, max(tried.views or 1 for tried in heads))
    copies = average_symmetries(context, images, features, base, [key for _, key in keys], values[0], max(ttas))
    specs = [head.network_spec(tried, settings.backbone.name, images.image_size) for tried in heads]
    tasks = fit_heads(context, heads, specs, ttas, seeds, head.Fold(values, truth, folds, copies))
    good, failed = trials.summarize(trials.combine(heads, ttas), tasks, search.folds, seeds)
    for result in [*good, *failed]:
        outcome = f"failed: {result['reason']}" if result["reason"] else f"AUROC {trials.describe_auroc(result)}"
        logs.info(f"{trials.as_words(result['settings'])}: {outcome}{', in force' if result['in_force'] else ''}")
    manifest = SearchManifest(
        id=search_id,
        path="",
        made_from=[images.id, features.id],
        images=len(truth),
        groups=len(set(groups)),
        folds=np.bincount(folds).tolist(),
        seeds=seeds,
        best=good[0]["settings"],
        trials=[*good, *failed],
        tasks=tasks,
        run_id=context.run_id,
    )
    track(context, manifest)
    return Summary(f"{describe(manifests.publish(manifest, warehouse, search_id))}; {place}")


def average_features(
    context: StageContext, features: FeaturesManifest, labels: dict[str, dict[str, int]], views: int
) -> list[NDArray[Any]]:
    """Return `head.Fold.views`: view 0 of train and validation images, and further views of train images."""
    session.describe_jobs(context.spark, "search: averages of the bottleneck features")
    cut = backbones.backbone(context.settings.backbone.name).cuts[-1]
    averages = reading.averages(context.spark, features.url(context.warehouse), cut, labels, views)
    (validation,), (first, *more) = ([view.values for view in averages[split]] for split in ("validation", "train"))
    return [np.concatenate([first, validation]), *more]


def average_symmetries(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    base: weights.Weights,
    keys: list[str],
    plain: NDArray[Any],
    count: int,
) -> NDArray[Any]:
    """Return the averaged features of each image's first symmetries, float32 (n, count, channels), by key.

    `plain` is the first of them: the images as they are. The others are kept beside the searches for the next one.
    """
    if count == 1:
        return plain[:, None]
    name, size, precision = features.backbone, features.image_size, features.precision
    cut = backbones.backbone(name).cuts[-1]
    recipe = [images.id, features.weights, name, size, features.pixels_version, precision, cut, count]
    url = files.join(context.warehouse, "reports/search/symmetries", lineage.content_id(recipe))
    if not files.exists(files.join(url, "_SUCCESS")):
        pixels = schemas.images_schema(size).fields["image"]
        tensors = session.broadcast(context.spark, list(base.tensors))
        threads = session.task_threads(context.spark)

        def load() -> inference.Predict:
            network.use_threads(threads)
            with backbones.precision(precision):
                forward = network.predictor(backbones.features(backbones.build_base(name, size, tensors.value), [cut]))

            def mean_features(batch: NDArray[Any]) -> list[NDArray[Any]]:
                views = itertools.islice(network.symmetries(batch, count), 1, None)
                return [np.stack([forward(np.ascontiguousarray(view))[0].mean(axis=(1, 2)) for view in views], axis=1)]

            return mean_features

        def prepare(content: bytes) -> NDArray[Any]:
            return np.asarray(pixels.codec.decode(pixels, content))

        def finish(outputs: list[NDArray[Any] | None], errors: Any) -> pd.DataFrame:
            assert outputs[0] is not None, "stored pixels always decode"
            return pd.DataFrame({"means": [row.tobytes() for row in outputs[0]]})

        batch, kind = context.settings.featurize.batch_size, t.StructType([t.StructField("means", t.BinaryType())])
        udf = inference.column_udf(f"symmetries {recipe}", load, prepare, finish, kind, batch_size=batch)
        session.set_arrow_batch_rows(context.spark, batch)
        session.describe_jobs(context.spark, f"search: {count - 1} symmetries of {len(keys)} images")
        rows = read_images(context, images).where("split != 'test'")
        rows = rows.repartitionByRange(session.partitions_for(context.spark, len(keys)), "sha256")
        computed = rows.select("sha256", udf("image").alias("result")).select("sha256", "result.means")
        computed.write.mode("overwrite").parquet(url)
    means_of = dict(pd.DataFrame(context.spark.read.parquet(url).toPandas()).itertuples(index=False, name=None))
    others = [np.frombuffer(means_of[key], np.float32).reshape(count - 1, plain.shape[-1]) for key in keys]
    return np.concatenate([plain[:, None], np.stack(others)], axis=1)


def fit_heads(
    context: StageContext,
    heads: list[config.Head],
    specs: list[network.Spec],
    ttas: list[int],
    seeds: list[int],
    data: head.Fold,
) -> list[Task]:
    """Fit each head for each seed and fold, one Spark task each.

    `data` is sent to each executor once; instead of `held_out` it has the fold of each image.
    """
    spark = context.spark
    wanted = list(itertools.product(range(len(heads)), seeds, range(context.settings.search.folds)))
    sent, threads = session.broadcast(spark, data), session.task_threads(spark)

    def fit(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        network.use_threads(threads)
        # A worker compiles one head after another, which TensorFlow takes for a mistake and warns of at length.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        for number in itertools.chain.from_iterable(batch["id"] for batch in batches):
            at, seed, fold = wanted[number]
            held_out = replace(sent.value, held_out=sent.value.held_out == fold)
            records: list[loop.EpochRecord | None] = [None] * len(ttas)
            reason = ""
            try:
                records = [*head.fit_fold(heads[at], seed, specs[at], held_out, ttas)]
            except DataError as error:
                reason = str(error)
            for trial, record in enumerate(records, start=at * len(ttas)):  # as trials.combine counts
                auroc, loss, epoch = (
                    (record.validation_auroc, record.validation_loss, record.epoch) if record else (None, None, None)
                )
                yield pd.DataFrame(
                    [Task(trial=trial, seed=seed, fold=fold, auroc=auroc, loss=loss, epoch=epoch, reason=reason)]
                )

    session.describe_jobs(spark, f"search: {len(wanted)} heads")
    with session.progress(spark, "heads"):
        numbers = spark.range(0, len(wanted), 1, min(len(wanted), MOST_PARTITIONS))
        rows = numbers.mapInPandas(fit, TASK).collect()  # type: ignore[arg-type]
    return cast(list[Task], [row.asDict() for row in rows])


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

    parts = [
        f"{len(manifest.trials)} trials x {len(manifest.folds)} folds x {len(manifest.seeds)} seeds over "
        f"{manifest.images} images of {manifest.groups} groups, "
        f"best {trials.as_words(best['settings'])}{', the settings in force' if best['in_force'] else ''}: "
        f"AUROC {trials.describe_auroc(best)}"
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    return plotting.png(figure)
