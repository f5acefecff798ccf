"""Cross-validate heads on `features/`: each group of train and validation images is held out once."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import types as t

from melanoma_spark import config, lineage, schemas
from melanoma_spark.errors import DataError
from melanoma_spark.models import backbones, network, weights
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import head, loop, reading, trials
from melanoma_spark.training.trials import Task

TASK = "trial int, seed long, fold int, auroc double, loss double, epoch int, reason string"  # trials.Task
MOST_PARTITIONS = 10_000


@dataclass(frozen=True)
class CrossValidation:
    """The figures of all fits, and the sizes of what they were fitted on.

    Attributes:
        tasks: One for each trial, seed and fold; trials are numbered as `trials.combine` lists them.
        images: Of the train and validation splits.
        groups: Of these images.
        folds: Images of each fold.
    """

    tasks: list[Task]
    images: int
    groups: int
    folds: list[int]


def cross_validate(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    heads: list[config.Head],
    ttas: Sequence[int],
    seeds: Sequence[int],
    folds: int,
    *,
    grouped: bool = True,
) -> CrossValidation:
    """Fit each head for each seed without each fold in turn, and validate it on that fold. Test images have no part.

    Args:
        context: Of the stage.
        images: The images.
        features: The features of these images.
        heads: The heads, with a number of views each.
        ttas: By how many symmetries each head is validated.
        seeds: Of the fits.
        folds: How many.
        grouped: False puts each image into a fold of its own choice, away from its patient, its lesion and its
            twins: the difference is what a split without groups would flatter the head by.

    Raises:
        ConfigError: The weights of the backbone are not those of the features.
        DataError: A fold lacks a class.
    """
    settings = context.settings
    base = weights.resolve_again(settings.backbone, settings.seed, features.weights)
    labels = training_labels(context.spark, images.url(context.warehouse))
    table = read_images(context, images).where("split != 'test'")
    group_of = {row.sha256: row.group for row in table.select("sha256", "group").collect()}
    # in the order of `reading.averages`
    keys = [(split, key) for split in ("train", "validation") for key in sorted(labels[split])]
    groups = [group_of[key] for _, key in keys]
    truth = np.array([labels[split][key] for split, key in keys], np.int8)
    fold_of = trials.assign_folds(groups if grouped else [key for _, key in keys], truth, folds, settings.seed)
    values = average_features(context, features, labels, max(tried.views or 1 for tried in heads))
    copies = average_symmetries(context, images, features, base, [key for _, key in keys], values[0], max(ttas))
    specs = [head.network_spec(tried, settings.backbone.name, images.image_size) for tried in heads]
    tasks = fit_heads(context, heads, specs, ttas, seeds, folds, head.Fold(values, truth, fold_of, copies))
    return CrossValidation(tasks, len(truth), len(set(groups)), np.bincount(fold_of).tolist())


def average_features(
    context: StageContext, features: FeaturesManifest, labels: dict[str, dict[str, int]], views: int
) -> list[NDArray[Any]]:
    """Return `head.Fold.views`: view 0 of train and validation images, and further views of train images."""
    session.describe_jobs(context.spark, "cross-validation: averages of the bottleneck features")
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

        def finish(outputs: list[NDArray[Any]], errors: Any) -> pd.DataFrame:
            return pd.DataFrame({"means": [row.tobytes() for row in outputs[0]]})

        batch, kind = context.settings.featurize.batch_size, t.StructType([t.StructField("means", t.BinaryType())])
        decode = schemas.image_decoder(size)
        udf = inference.column_udf(f"symmetries {recipe}", load, decode, finish, kind, batch_size=batch)
        session.set_arrow_batch_rows(context.spark, batch)
        session.describe_jobs(context.spark, f"cross-validation: {count - 1} symmetries of {len(keys)} images")
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
    ttas: Sequence[int],
    seeds: Sequence[int],
    folds: int,
    data: head.Fold,
) -> list[Task]:
    """Fit each head for each seed and fold, one Spark task each.

    `data` is sent to each executor once; instead of `held_out` it has the fold of each image.
    """
    spark = context.spark
    wanted = list(itertools.product(range(len(heads)), seeds, range(folds)))
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

    session.describe_jobs(spark, f"cross-validation: {len(wanted)} heads")
    with session.progress(spark, "heads"):
        numbers = spark.range(0, len(wanted), 1, min(len(wanted), MOST_PARTITIONS))
        rows = numbers.mapInPandas(fit, TASK).collect()  # type: ignore[arg-type]
    return cast(list[Task], [row.asDict() for row in rows])
