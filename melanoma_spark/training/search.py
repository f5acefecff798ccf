"""Which head does best on features/, a small sweep over head.hidden, .dropout, .learning_rate and .views.

What users are told of it is in `jobs/search.py`, the text of --help.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
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
from melanoma_spark.training import head, horovod, reading, trials
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
    settings, warehouse, search = context.settings, context.warehouse, context.settings.search
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    manifests.check_fit(images, features)
    stored = features.views
    in_force = settings.head.model_copy(update={"views": head.views_of(settings.head, stored)})
    for views in search.views:
        head.views_of(settings.head.model_copy(update={"views": views}), stored)
    heads = trials.drawn(search, in_force, settings.seed)
    ttas = trials.judged(search, settings.evaluate.tta)
    seeds = [settings.training_seed + number for number in range(search.seeds)]
    recipe = [[tried.model_dump(mode="json") for tried in heads], ttas, search.folds, seeds, settings.seed]
    search_id = lineage.content_id([images.id, features.id, recipe])
    place = f"reports/search/{search_id}"
    known = manifests.read(SearchManifest, warehouse, search_id)
    if known:
        return Summary(f"nothing new, {summary(known)}; {place}")
    base = weights.resolve(settings.backbone, settings.seed)
    if base.content_id != features.weights:
        raise weights.changed(base, features.weights, "features/", "featurize")

    labels = training_labels(context.spark, images.url(warehouse))
    table = read_images(context, images).where("split != 'test'")
    group_of = {row.sha256: row.group for row in table.select("sha256", "group").collect()}
    keys = [(split, key) for split in ("train", "validation") for key in sorted(labels[split])]  # as averages are
    groups = [group_of[key] for _, key in keys]
    truth = np.array([labels[split][key] for split, key in keys], np.int8)
    folds = trials.folds_of(groups, truth, search.folds, settings.seed)
    values = averaged(context, features, labels, max(tried.views or 1 for tried in heads))
    copies = symmetries(context, images, features, base, [key for _, key in keys], values[0], max(ttas))
    spec = {"backbone": settings.backbone.name, "image_size": images.image_size}
    tasks = fitted(context, heads, ttas, seeds, spec, (values, truth, folds, copies))
    good, failed = trials.measured(trials.combined(heads, ttas), tasks, search.folds, seeds)
    for result in [*good, *failed]:
        told = f"failed: {result['reason']}" if result["reason"] else f"AUROC {trials.told(result)}"
        logs.info(f"{trials.words(result['settings'])}: {told}{', in force' if result['in_force'] else ''}")
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
    log(context, manifest)
    return Summary(f"{summary(manifests.publish(manifest, warehouse, search_id))}; {place}")


def averaged(
    context: StageContext, features: FeaturesManifest, labels: dict[str, dict[str, int]], views: int
) -> list[np.ndarray]:
    """For `head.fit_without`: view 0 of train and validation images, and further views of those of train."""
    session.describe_jobs(context.spark, "search: averages of the bottleneck features")
    url = features.url(context.warehouse)
    cut = backbones.backbone(context.settings.backbone.name).cuts[-1]
    found = reading.averages(context.spark, url, cut, labels, views)
    (validation,), (first, *more) = ([view.values for view in found[split]] for split in ("validation", "train"))
    return [np.concatenate([first, validation]), *more]


def symmetries(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    base: weights.Weights,
    keys: list[str],
    plain: np.ndarray,
    count: int,
) -> np.ndarray:
    """The averaged features of each image's first symmetries, float32 (n, count, channels), in the order of the keys.

    `plain` is the first of them, the images as they are. The others are kept beside the searches for the next one.
    """
    if count == 1:
        return plain[:, None]
    name, size, precision = features.backbone, features.image_size, features.precision
    cut = backbones.backbone(name).cuts[-1]
    made_of = [images.id, features.weights, name, size, features.pixels_version, precision, cut, count]
    url = files.join(context.warehouse, "reports/search/symmetries", lineage.content_id(made_of))
    if not files.exists(files.join(url, "_SUCCESS")):
        pixels = schemas.images_schema(size).fields["image"]
        tensors = session.broadcast(context.spark, list(base.tensors))
        threads = session.task_threads(context.spark)

        def load() -> inference.Predict:
            network.use_threads(threads)
            with backbones.precision(precision):
                forward = network.predictor(backbones.features(backbones.build_base(name, size, tensors.value), [cut]))

            def means(batch: np.ndarray) -> list[np.ndarray]:
                views = itertools.islice(network.symmetries(batch, count), 1, None)
                return [np.stack([forward(np.ascontiguousarray(view))[0].mean(axis=(1, 2)) for view in views], axis=1)]

            return means

        def prepare(content: bytes) -> np.ndarray:
            return np.asarray(pixels.codec.decode(pixels, content))

        def finish(outputs: list[np.ndarray | None], errors: Any) -> pd.DataFrame:
            assert outputs[0] is not None, "stored pixels always decode"
            return pd.DataFrame({"means": [row.tobytes() for row in outputs[0]]})

        batch, kind = context.settings.featurize.batch_size, t.StructType([t.StructField("means", t.BinaryType())])
        udf = inference.column_udf(f"symmetries {made_of}", load, prepare, finish, kind, batch_size=batch)
        session.set_arrow_batch_rows(context.spark, batch)
        session.describe_jobs(context.spark, f"search: {count - 1} symmetries of {len(keys)} images")
        rows = read_images(context, images).where("split != 'test'")
        rows = rows.repartitionByRange(session.partitions_for(context.spark, len(keys)), "sha256")
        found = rows.select("sha256", udf("image").alias("found")).select("sha256", "found.means")
        found.write.mode("overwrite").parquet(url)
    means_of = dict(pd.DataFrame(context.spark.read.parquet(url).toPandas()).itertuples(index=False, name=None))
    others = [np.frombuffer(means_of[key], np.float32).reshape(count - 1, plain.shape[-1]) for key in keys]
    return np.concatenate([plain[:, None], np.stack(others)], axis=1)


def fitted(
    context: StageContext,
    heads: list[config.Head],
    ttas: list[int],
    seeds: list[int],
    spec: dict[str, Any],
    data: tuple[np.ndarray | list[np.ndarray], ...],
) -> list[trials.Task]:
    """One Spark task a head. `data` is sent to each executor once: views, labels, folds, symmetries of all images."""
    spark = context.spark
    wanted = list(itertools.product(range(len(heads)), seeds, range(context.settings.search.folds)))
    specs = [head.spec_of(tried, **spec) for tried in heads]
    sent = session.broadcast(spark, data)
    fit = fitter(heads, ttas, specs, wanted, sent, session.task_threads(spark))
    session.describe_jobs(spark, f"search: {len(wanted)} heads")
    with session.progress(spark, "heads"):
        numbers = spark.range(0, len(wanted), 1, min(len(wanted), MOST_PARTITIONS))
        rows = numbers.mapInPandas(fit, TASK).collect()  # type: ignore[arg-type]
    return cast(list[trials.Task], [row.asDict() for row in rows])


def fitter(
    heads: list[config.Head],
    ttas: list[int],
    specs: list[network.Spec],
    wanted: list[tuple[int, int, int]],
    sent: Any,
    threads: int,
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """For a task of Spark: numbers of `wanted` -> rows of `TASK`. A head that cannot be fitted has a reason there."""

    def fit(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        network.use_threads(threads)
        # A worker compiles one head after another, which TensorFlow takes for a mistake and warns of at length.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        views, labels, folds, copies = sent.value
        for number in itertools.chain.from_iterable(batch["id"] for batch in batches):
            at, seed, fold = wanted[number]
            data = views, labels, folds == fold, copies
            best: list[Any] = [None] * len(ttas)
            reason = ""
            try:
                best = head.fit_without(horovod.Alone(), heads[at], seed, specs[at], *data, ttas)
            except DataError as error:
                reason = str(error)
            for trial, record in enumerate(best, start=at * len(ttas)):  # as trials.combined counts
                auroc, loss, epoch = (
                    (record.validation_auroc, record.validation_loss, record.epoch) if record else (None, None, None)
                )
                yield pd.DataFrame(
                    [trials.Task(trial=trial, seed=seed, fold=fold, auroc=auroc, loss=loss, epoch=epoch, reason=reason)]
                )

    return fit


def log(context: StageContext, facts: SearchManifest) -> None:
    """All trials into the run, each as a nested run too."""
    for result in facts.trials:
        number = result["trial"]
        tags = {"search_id": facts.id, "in_force": str(result["in_force"]).lower()}
        tags |= {"failed": result["reason"]} if result["reason"] else {}
        with context.tracker.run(f"trial {number}", {"stage": "search", **tags}):
            context.tracker.log_parameters(
                {trials.SETTINGS[name]: str(value) for name, value in result["settings"].items()}
            )
            if not result["reason"]:
                context.tracker.log_metrics(as_metrics(result))
    figures = {f"best_{key}": value for key, value in as_metrics(facts.trials[0]).items()}
    context.tracker.log_metrics({**figures, "trials": len(facts.trials), "failed": len(failures(facts))})
    context.tracker.set_tags({"search_id": facts.id, "best": trials.words(facts.best)})
    rows = [{**row, **row["settings"]} for row in facts.trials]
    columns = ["trial", *trials.SETTINGS, "in_force", "mean", "std", "std_seeds", "reason"]
    context.tracker.log_artifact("trials.csv", pd.DataFrame(rows)[columns].to_csv(index=False).encode())
    context.tracker.log_artifact("tasks.csv", pd.DataFrame(facts.tasks).to_csv(index=False).encode())
    context.tracker.log_artifact("plots/trials.png", trials_plot(facts.trials))


def as_metrics(result: trials.Result) -> dict[str, float]:
    """Flat names for MLflow: `auroc_mean`, `auroc_fold_0`, ..."""
    found = {"mean": result["mean"], "std": result["std"], "std_seeds": result["std_seeds"]}
    found |= {f"fold_{fold}": value for fold, value in enumerate(result["folds"])}
    return {f"auroc_{key}": value for key, value in found.items() if value is not None}


def failures(facts: SearchManifest) -> list[trials.Result]:
    return [result for result in facts.trials if result["reason"]]


def summary(facts: SearchManifest) -> str:
    best, *others = (result for result in facts.trials if not result["reason"])

    def behind(other: trials.Result) -> str:
        return "{:.4f} +- {:.4f} behind".format(*trials.behind(best, other, facts.tasks))

    parts = [
        f"{len(facts.trials)} trials x {len(facts.folds)} folds x {len(facts.seeds)} seeds over "
        f"{facts.images} images of {facts.groups} groups, "
        f"best {trials.words(best['settings'])}{', the settings in force' if best['in_force'] else ''}: "
        f"AUROC {trials.told(best)}"
    ]
    if others:
        parts.append(f"the runner-up {behind(others[0])}")
    in_force = next((result for result in others if result["in_force"]), None)
    if in_force:
        parts.append(f"the settings in force {behind(in_force)}")
    elif not best["in_force"]:
        parts.append("the settings in force failed")
    if failures(facts):
        parts.append(f"{len(failures(facts))} failed")
    return ", ".join(parts)


def trials_plot(results: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of a search: for each of `trials.Result` that has figures the mean AUROC, with its spread and its folds.

    The best is uppermost; the settings in force are bold.
    """
    shown = [result for result in results if not result["reason"]]
    figure = plotting.new_figure(1.2 + 0.32 * len(shown))
    axes = figure.add_subplot()
    for row, result in enumerate(shown):
        colour = COLORS[1] if result["in_force"] else COLORS[0]
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
    return plotting.png(figure)
