"""train_head: bottleneck features of the train split -> a fully connected head, the best of its epochs by validation.

example: ./spark-submit.sh train_head warehouse=/data/warehouse head.learning_rate=1e-3
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.job import Job, main, say
from melanoma_spark import backbones, lineage, network, ranks, sharding, store, training, weights


def run(job: Job) -> str:
    settings, warehouse = job.settings, job.warehouse
    images = store.need(warehouse, "images", "ingest")
    features = store.need(warehouse, "features", "featurize")
    made_from = lineage.content_id([images["id"], features["id"], settings.head.model_dump(mode="json"), settings.seed])
    known = store.manifest(warehouse, "models/head")
    if known and known["made_from"] == made_from:
        return f"nothing new, models/head stands, validation AUROC {known['validation_auroc']:.4f}"
    base = weights.resolve(settings.backbone, settings.seed)
    if base.content_id != features["weights"]:
        raise weights.changed(base, features["weights"], "features/", "featurize")

    labels = store.labels(job.spark, warehouse, images)
    url = store.data_url(warehouse, "features", features)
    cut = backbones.backbone(settings.backbone.name).cuts[-1]
    pooled = {
        split: [(average(value), label) for value, label in store.rows(url, cut, wanted, None)]
        for split, wanted in labels.items()
    }
    spec = network.Spec(
        backbone=settings.backbone.name,
        image_size=images["image_size"],
        hidden=settings.head.hidden,
        dropout=settings.head.dropout,
    )
    head, records = ranks.run_alone(train, settings, spec, labels, pooled)[0]
    tensors = [*base.tensors, *head]
    best = training.best_of(records)
    facts = {
        "id": lineage.content_id([made_from, lineage.tensors_id(tensors)]),
        "made_from": made_from,
        "spec": spec.model_dump(),
        "tensors_id": lineage.tensors_id(tensors),
        "weights_id": base.content_id,
        "weights_origin": base.origin,
        "dataset_id": images["id"],
        "features_id": features["id"],
        "validation_auroc": best.validation_auroc,
        "training": [training.as_dict(record) for record in records],
        "best": {"head": best.epoch},
        "run_id": job.run_id,
    }
    store.save_model(warehouse, "models/head", tensors, facts)
    job.tracker.epochs(records)
    return (
        f"{len(labels['train'])} train and {len(labels['validation'])} validation images, kept epoch {best.epoch} of "
        f"{records[-1].epoch}, validation AUROC {best.validation_auroc:.4f}"
    )


def train(
    rank: training.Rank,
    settings: Any,
    spec: network.Spec,
    labels: dict[str, dict[str, int]],
    pooled: dict[str, list[Any]],
) -> tuple[list[np.ndarray], list[training.EpochRecord]]:
    """The head's tensors and the log. Works on averaged features: 2 kB an image for VGG16, so they stay in memory."""
    import keras

    keras.utils.set_random_seed(settings.seed)
    channels = pooled["train"][0][0].shape[-1]
    features = keras.Input((1, 1, channels), name="features")
    model = keras.Model(features, network.build_head(features, spec), name="head")
    shards = {
        split: sharding.deal(list(wanted), rank.size, settings.head.batch_size)[rank.rank]
        for split, wanted in labels.items()
    }
    plan = training.Plan(
        phase="head",
        learning_rate=settings.head.learning_rate,
        epochs=settings.head.epochs,
        patience=settings.head.patience,
        class_weights=training.class_weights(labels["train"].values()),
        seed=settings.seed,
    )
    records = training.train(
        rank,
        model,
        plan,
        shards["train"],
        lambda epoch: pooled["train"],
        shards["validation"],
        lambda epoch: pooled["validation"],
        say,
    )
    return model.get_weights(), records


def average(value: np.ndarray) -> np.ndarray:
    """Features (h, w, c) of any float dtype -> their mean over the image, float32 (1, 1, c): what the head sees."""
    return value.astype(np.float32).mean(axis=(0, 1), keepdims=True)


if __name__ == "__main__":
    main("train_head", __doc__, run)
