"""Trains base and head together, in phases, on Horovod ranks that Spark starts.

`jobs/finetune.py` has the text for users.
"""

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config, lineage, logs
from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.images import augmentation
from melanoma_spark.models import backbones, network
from melanoma_spark.runner.context import StageContext, Summary, read_input
from melanoma_spark.spark import executors, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, FinetunedManifest, HeadManifest, ImagesManifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.storage.tensors import WEIGHTS, pack_tensors, unpack_tensors
from melanoma_spark.training import horovod, loop, reading, sharding

CHECKPOINT = "checkpoint.npz"
# Settings that do not change the result.
HOW = {"accumulate", "checkpoint_steps", "read_ahead_mb", "retries", "start_timeout"}


@dataclass(frozen=True)
class Source:
    """A column of a dataset, and the index of its rows by split; of the train split, one for each view."""

    url: str
    column: str
    indexes: dict[str, list[sharding.Index]]


def finetune(context: StageContext) -> Summary:
    """Train base and head together in the phases of the settings; publish the best weights."""
    settings, warehouse = context.settings, context.warehouse
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    head = manifests.require(HeadManifest, warehouse)
    manifests.check_fit(images, features, head)
    recipe = settings.finetune.model_dump(mode="json", exclude=HOW)
    drawn = settings.augment.model_dump(mode="json") if settings.augment.enabled else None
    seeds = [settings.seed, settings.training_seed]
    made_from = lineage.content_id([images.id, features.id, features.views, head.id, recipe, drawn, seeds])
    known = manifests.read(FinetunedManifest, warehouse)
    if known and known.made_from == made_from:
        return Summary(f"nothing new, models/finetuned stands, validation AUROC {known.validation_auroc:.4f}")
    ranks = horovod.choose_ranks(settings)
    sources = find_sources(context, images, features)
    for source in sources.values():  # before ranks start
        sharding.check(len(source.indexes["train"][0]), settings.finetune.batch_size, ranks)
    start = files.join(head.url(warehouse), WEIGHTS)
    target = files.join(warehouse, "models/finetuned", made_from)
    spec, threads = network.Spec.model_validate(head.spec), session.task_threads(context.spark)
    records = train_on_ranks(context, ranks, settings, spec, sources, start, target, threads)
    names = [phase.name for phase in settings.finetune.phases]
    best = {name: loop.best_of([record for record in records if record.phase == name]) for name in names}
    tensors_id = lineage.tensors_id(unpack_tensors(files.read_bytes(files.join(target, WEIGHTS))))
    manifest = FinetunedManifest(
        id=lineage.content_id([made_from, tensors_id]),
        path=made_from,
        made_from=made_from,
        head_id=head.id,
        tensors_id=tensors_id,
        **head.model_dump(include={"spec", "weights_id", "weights_origin", "dataset_id", "features_id"}),
        ranks=ranks,
        validation_auroc=best[names[-1]].validation_auroc,
        training=[asdict(record) for record in records],
        best={name: record.epoch for name, record in best.items()},
        run_id=context.run_id,
    )
    manifests.publish(manifest, warehouse)
    files.remove(files.join(target, CHECKPOINT))
    context.tracker.log_epochs(records)
    trained = [record for record in records if record.epoch]
    speed = float(np.mean([record.images_per_second for record in trained]))
    waited = sum(record.waited for record in trained) / max(sum(record.seconds for record in trained), 1e-9)
    kept = ", ".join(
        f"{name} kept epoch {record.epoch} (validation AUROC {record.validation_auroc:.4f})"
        for name, record in best.items()
    )
    named = "1 rank" if ranks == 1 else f"{ranks} ranks"
    return Summary(f"{named} at {speed:.1f} images/s, {waited:.0%} of the time waiting for them, {kept}")


def train_on_ranks(context: StageContext, ranks: int, *arguments: Any) -> list[loop.EpochRecord]:
    """Run `train` with these arguments on all ranks and return the log of rank 0."""
    chosen = context.settings.finetune
    if not horovod.is_installed():
        logs.info("Horovod is not installed: training with one rank in this process", "single_process")
        return train(loop.Rank(), *arguments)
    executors.check_ready(context.spark, ranks)
    session.describe_jobs(context.spark, f"finetune: {ranks} Horovod ranks")
    found = horovod.run_on_spark(context.spark, ranks, chosen.start_timeout, train, *arguments, retries=chosen.retries)
    return found[0]


def find_sources(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> dict[str | None, Source]:
    """Return what the phases read: a cut -> its features, None -> the pixels.

    Raises:
        ConfigError: features/ lacks a cut.
    """
    settings = context.settings
    lacking = set(backbones.cuts_read(settings)) - set(features.cuts)
    if lacking:
        raise ConfigError(
            f"features/ lacks {', '.join(sorted(lacking))}, which finetune.phases read; it holds "
            f"{', '.join(features.cuts)}; run `melanoma-spark featurize` with these settings first"
        )
    labels = training_labels(context.spark, images.url(context.warehouse))
    cuts = {backbones.cut_of(settings.backbone.name, phase.cut) for phase in settings.finetune.phases if phase.cut}
    sources: dict[str | None, Source] = {}
    if cuts:
        url = features.url(context.warehouse)
        stored = reading.indexes(context.spark, url, labels, features.views)
        sources |= {cut: Source(url, cut, stored) for cut in cuts}
    if not all(phase.cut for phase in settings.finetune.phases):
        url = images.url(context.warehouse)
        sources[None] = Source(url, "image", reading.indexes(context.spark, url, labels))
    return sources


def train(
    rank: loop.Rank,
    settings: config.Settings,
    spec: network.Spec,
    sources: dict[str | None, Source],
    start: str,
    target: str,
    threads: int,
) -> list[loop.EpochRecord]:
    """Train all phases on one rank, each from the best weights of the one before.

    Args:
        rank: This rank.
        settings: The settings of the job.
        spec: The spec of the network.
        sources: What the phases read, from `find_sources`.
        start: The URL of the weights to start from.
        target: The URL of the folder for checkpoints and weights.
        threads: Threads for TensorFlow and for reading.
    """
    import keras

    network.use_threads(threads)
    network.use_gpus(rank.gpus)
    keras.utils.set_random_seed(settings.training_seed)  # before the network is built: dropout takes its seed then
    chosen = settings.finetune
    with backbones.precision(chosen.precision):
        model = network.build(spec, unpack_tensors(files.read_bytes(start)))
    state = read_checkpoint(target)
    records = list(state.earlier) if state else []
    names = [phase.name for phase in chosen.phases]
    for phase in chosen.phases[names.index(state.phase) if state else 0 :]:
        source = sources[backbones.cut_of(spec.backbone, phase.cut) if phase.cut else None]
        part = network.tail(model, source.column if phase.cut else None)
        plan = loop.Plan(
            phase=phase.name,
            learning_rate=phase.learning_rate * chosen.batch_size / (chosen.rates_for_batch or chosen.batch_size),
            epochs=phase.epochs,
            patience=phase.patience,
            class_weights=loop.class_weights(source.indexes["train"][0].labels),
            seed=settings.training_seed,
            batch_size=chosen.batch_size,
            accumulate=chosen.accumulate,
            warmup_epochs=phase.warmup_epochs,
            float16_gradients=chosen.float16_gradients,
        )

        def write_checkpoint(state: loop.State, earlier: tuple[loop.EpochRecord, ...] = tuple(records)) -> None:
            tensors = pack_tensors(loop.pack(replace(state, earlier=earlier)))
            files.write_bytes(files.join(target, CHECKPOINT), tensors)

        read = functools.partial(epoch_images, source, threads, settings)
        records += loop.train(
            rank,
            part,
            plan,
            functools.partial(read, "train"),
            functools.partial(read, "validation"),
            log=logs.info,
            network=model,
            state=state,
            checkpoint=write_checkpoint,
            checkpoint_steps=chosen.checkpoint_steps,
        )
        state = None
    if rank.rank == 0:
        files.write_bytes(files.join(target, WEIGHTS), pack_tensors(model.get_weights()))
    return records


def epoch_images(source: Source, threads: int, settings: config.Settings, split: str, epoch: int) -> loop.Images:
    """Return the images of a split for one epoch; of train images each epoch reads another view."""
    views = source.indexes[split]
    index = views[(epoch - 1) % len(views)]
    read_ahead = settings.finetune.read_ahead_mb * 1024**2

    def read(shared: NDArray[Any]) -> Iterator[NDArray[Any]]:
        return reading.values(source.url, source.column, index, shared, threads, read_ahead)

    def read_augmented(shared: NDArray[Any]) -> Iterator[NDArray[Any]]:
        for row, image in zip(shared[shared != sharding.NONE], read(shared), strict=True):
            generator = augmentation.generator(settings.seed, epoch, index.keys[row].decode())
            yield augmentation.augment(image, settings.augment, generator)

    augment = split == "train" and source.column == "image" and settings.augment.enabled
    return loop.Images(index.groups, index.labels, read_augmented if augment else read)


def read_checkpoint(target: str) -> loop.State | None:
    """Return the state of an unfinished training, or None. Raise `DataError` if it cannot be read."""
    url = files.join(target, CHECKPOINT)
    if not files.exists(url):
        return None
    try:
        return loop.unpack(unpack_tensors(files.read_bytes(url)))
    except (DataError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise DataError(
            f"checkpoint {url} cannot be read ({files.reason(error)}); remove it, and fine-tuning starts from the head"
        ) from None
