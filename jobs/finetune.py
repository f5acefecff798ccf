"""finetune: base and head joined, trained on by phases on Horovod ranks that Spark starts.

The last block first, then the whole network (conf: finetune.phases). A phase with a `cut` reads that cut's features
instead of computing the frozen part again. The best epoch by validation AUROC is kept, the start included.

example: ./spark-submit.sh finetune warehouse=/data/warehouse ranks=2
"""

from __future__ import annotations

import functools

import numpy as np

from jobs.job import Job, main, say
from melanoma_spark import backbones, config, files, lineage, network, ranks, session, sharding, store, training
from melanoma_spark.errors import ConfigError


def run(job: Job) -> str:
    settings, warehouse = job.settings, job.warehouse
    images = store.need(warehouse, "images", "ingest")
    features = store.need(warehouse, "features", "featurize")
    head = store.need(warehouse, "models/head", "train_head")
    made_from = lineage.content_id(
        [images["id"], features["id"], head["id"], settings.finetune.model_dump(mode="json"), settings.ranks]
    )
    known = store.manifest(warehouse, "models/finetuned")
    if known and known["made_from"] == made_from:
        return f"nothing new, models/finetuned stands, validation AUROC {known['validation_auroc']:.4f}"
    lacking = set(backbones.cuts_read(settings)) - set(features["cuts"])
    if lacking:
        raise ConfigError(
            f"features/ lacks {', '.join(sorted(lacking))}, which finetune.phases read; it holds "
            f"{', '.join(features['cuts'])}; run `./spark-submit.sh featurize` with these settings first"
        )
    labels = store.labels(job.spark, warehouse, images)
    shards = {
        split: sharding.deal(list(wanted), settings.ranks, settings.finetune.batch_size)
        for split, wanted in labels.items()
    }
    sources = {
        None: (store.data_url(warehouse, "images", images), "image"),
        **{cut: (store.data_url(warehouse, "features", features), cut) for cut in features["cuts"]},
    }
    session.describe(job.spark, f"finetune: {settings.ranks} Horovod ranks")
    start = files.join(store.data_url(warehouse, "models/head", head), "weights.npz")
    result = files.join(warehouse, "models/finetuned", made_from, "weights.npz")
    records: list[training.EpochRecord] = ranks.run_on_spark(
        job.spark,
        settings.ranks,
        settings.finetune.start_timeout,
        train,
        settings,
        network.Spec.model_validate(head["spec"]),
        labels,
        shards,
        sources,
        start,
        result,
        session.task_threads(job.spark),
    )[0]
    names = [phase.name for phase in settings.finetune.phases]
    best = {name: training.best_of([record for record in records if record.phase == name]) for name in names}
    tensors_id = lineage.tensors_id(files.unpack_tensors(files.read_bytes(result)))
    facts = {
        **{key: head[key] for key in ("spec", "weights_id", "weights_origin", "dataset_id", "features_id")},
        "id": lineage.content_id([made_from, tensors_id]),
        "path": made_from,
        "made_from": made_from,
        "head_id": head["id"],
        "tensors_id": tensors_id,
        "ranks": settings.ranks,
        "validation_auroc": best[names[-1]].validation_auroc,
        "training": [training.as_dict(record) for record in records],
        "best": {name: record.epoch for name, record in best.items()},
        "run_id": job.run_id,
    }
    store.publish(warehouse, "models/finetuned", facts)
    job.tracker.epochs(records)
    speeds = [record.images_per_second for record in records if record.epoch]
    told = ", ".join(
        f"{name} kept epoch {record.epoch} (validation AUROC {record.validation_auroc:.4f})"
        for name, record in best.items()
    )
    return f"{settings.ranks} ranks at {np.mean(speeds):.1f} images/s, {told}"


def train(
    rank: training.Rank,
    settings: config.Settings,
    spec: network.Spec,
    labels: dict[str, dict[str, int]],
    shards: dict[str, list[sharding.Shard]],
    sources: dict[str | None, tuple[str, str]],
    start: str,
    result: str,
    threads: int,
) -> list[training.EpochRecord]:
    """What each rank does: all phases, one after the other, each from the best weights of the one before."""
    import keras

    network.use_threads(threads)
    keras.utils.set_random_seed(settings.seed)  # before the network is built: dropout takes its seed then
    model = network.build(spec, files.unpack_tensors(files.read_bytes(start)))
    own = {split: shards[split][rank.rank] for split in shards}
    wanted = {split: {sha: labels[split][sha] for sha in own[split].rows} for split in shards}
    records = []
    for phase in settings.finetune.phases:
        cut = backbones.cut_of(spec.backbone, phase.cut) if phase.cut else None
        url, column = sources[cut]
        part = network.tail(model, cut)

        read = functools.partial(phase_rows, url, column, wanted, part.input.dtype, settings.seed)
        plan = training.Plan(
            phase=phase.name,
            learning_rate=phase.learning_rate,
            epochs=phase.epochs,
            patience=phase.patience,
            class_weights=training.class_weights(labels["train"].values()),
            seed=settings.seed,
        )
        records += training.train(
            rank,
            part,
            plan,
            own["train"],
            functools.partial(read, "train"),
            own["validation"],
            functools.partial(read, "validation"),
            say,
        )
    if rank.rank == 0:
        files.write_bytes(result, files.pack_tensors(model.get_weights()))
    return records


def phase_rows(
    url: str, column: str, wanted: dict[str, dict[str, int]], dtype: str, seed: int, split: str, epoch: int
) -> training.Rows:
    """This rank's rows of an epoch; those of the train split come in the epoch's own order."""
    order = seed + epoch if split == "train" else None
    for value, label in store.rows(url, column, wanted[split], order):
        yield value.astype(dtype), label


if __name__ == "__main__":
    main("finetune", __doc__, run)
