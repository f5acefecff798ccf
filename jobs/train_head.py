"""train_head: bottleneck features of the train split -> a fully connected head, the best of its epochs by validation.

example: ./spark-submit.sh train_head warehouse=/data/warehouse head.learning_rate=1e-3
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.job import Job, main, say
from melanoma_spark import (
    backbones,
    config,
    lineage,
    network,
    ranks,
    reading,
    session,
    sharding,
    store,
    training,
    weights,
)


def run(job: Job) -> str:
    settings, warehouse = job.settings, job.warehouse
    images = store.need(warehouse, "images", "ingest")
    features = store.need(warehouse, "features", "featurize")
    store.check_fit(images, features)
    views, recipe = int(features.get("views", 1)), settings.head.model_dump(mode="json")
    made_from = lineage.content_id([images["id"], features["id"], views, recipe, settings.training_seed])
    known = store.manifest(warehouse, "models/head")
    if known and known["made_from"] == made_from:
        return f"nothing new, models/head stands, validation AUROC {known['validation_auroc']:.4f}"
    base = weights.resolve(settings.backbone, settings.seed)
    if base.content_id != features["weights"]:
        raise weights.changed(base, features["weights"], "features/", "featurize")

    labels = store.labels(job.spark, warehouse, images)
    url = store.data_url(warehouse, "features", features)
    session.describe(job.spark, "train_head: averages of the bottleneck features")
    cut = backbones.backbone(settings.backbone.name).cuts[-1]
    pooled = reading.averages(job.spark, url, cut, labels)
    train = {"train": labels["train"]}
    augmented = [reading.averages(job.spark, url, cut, train, view)["train"] for view in range(1, views)]
    spec = network.Spec(
        backbone=settings.backbone.name,
        image_size=images["image_size"],
        hidden=settings.head.hidden,
        dropout=settings.head.dropout,
    )
    head, records = ranks.run_alone(fit, settings, spec, [pooled["train"], *augmented], pooled["validation"])[0]
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


def fit(
    rank: training.Rank,
    settings: config.Settings,
    spec: network.Spec,
    views: list[reading.Averages],
    validation: reading.Averages,
) -> tuple[list[np.ndarray], list[training.EpochRecord]]:
    """The head's tensors and the log; an epoch takes one of the views. Works on averaged features: 2 kB an image for
    VGG16, so they stay in memory.
    """
    import keras

    keras.utils.set_random_seed(settings.training_seed)
    features = keras.Input((1, 1, validation.values.shape[-1]), name="features")
    model = keras.Model(features, network.build_head(features, spec), name="head")
    plan = training.Plan(
        phase="head",
        learning_rate=settings.head.learning_rate,
        epochs=settings.head.epochs,
        patience=settings.head.patience,
        class_weights=training.class_weights(views[0].labels.tolist()),
        seed=settings.training_seed,
        batch_size=settings.head.batch_size,
    )
    train, judged = [in_memory(view) for view in views], in_memory(validation)
    records = training.train(rank, model, plan, lambda epoch: train[(epoch - 1) % len(train)], lambda _: judged, say)
    return model.get_weights(), records


def in_memory(averages: reading.Averages) -> training.Images:
    values = averages.values[:, None, None]

    def read(shared: np.ndarray) -> Iterator[np.ndarray]:
        return iter(values[shared[shared != sharding.NONE]])

    return training.Images(np.zeros(len(values), np.int32), averages.labels, read)


if __name__ == "__main__":
    main("train_head", __doc__, run)
