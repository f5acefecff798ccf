"""Trains a fully connected head on bottleneck features."""

from dataclasses import asdict

from melanoma_spark import lineage, logs
from melanoma_spark.models import backbones, weights
from melanoma_spark.runner.context import StageContext, Summary, read_input
from melanoma_spark.spark import session
from melanoma_spark.storage import manifests
from melanoma_spark.storage.manifests import FeaturesManifest, HeadManifest, ImagesManifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import head, loop, reading


def train_head(context: StageContext) -> Summary:
    """Train a head on the bottleneck features of the train split; keep the best epoch by validation."""
    settings, warehouse = context.settings, context.warehouse
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    manifests.check_fit(images, features)
    views = head.count_views(settings.head, features.views)
    recipe = settings.head.model_dump(mode="json", exclude={"views"})
    made_from = lineage.content_id([images.id, features.id, views, recipe, settings.training_seed])
    known = manifests.read(HeadManifest, warehouse)
    if known and known.made_from == made_from:
        return Summary(f"nothing new, models/head stands, validation AUROC {known.validation_auroc:.4f}")
    base = weights.resolve_again(settings.backbone, settings.seed, features.weights)

    labels = training_labels(context.spark, images.url(warehouse))
    url = features.url(warehouse)
    session.describe_jobs(context.spark, "train_head: averages of the bottleneck features")
    cut = backbones.backbone(settings.backbone.name).cuts[-1]
    pooled = reading.averages(context.spark, url, cut, labels, views)
    spec = head.network_spec(settings.head, settings.backbone.name, images.image_size)
    *train, judged = [(view.values, view.labels) for view in (*pooled["train"], *pooled["validation"])]
    model, records = head.fit(settings.head, settings.training_seed, spec, train, judged, log=logs.info)
    tensors = [*base.tensors, *model.get_weights()]
    best = loop.best_of(records)
    tensors_id = lineage.tensors_id(tensors)
    model_id = lineage.content_id([made_from, tensors_id])
    manifest = HeadManifest(
        id=model_id,
        path=model_id,
        made_from=made_from,
        spec=spec.model_dump(),
        tensors_id=tensors_id,
        weights_id=base.content_id,
        weights_origin=base.origin,
        dataset_id=images.id,
        features_id=features.id,
        validation_auroc=best.validation_auroc,
        training=[asdict(record) for record in records],
        best={"head": best.epoch},
        run_id=context.run_id,
    )
    manifests.save_model(warehouse, manifest, tensors)
    context.tracker.log_epochs(records)
    return Summary(
        f"{len(labels['train'])} train and {len(labels['validation'])} validation images, kept epoch {best.epoch} of "
        f"{records[-1].epoch}, validation AUROC {best.validation_auroc:.4f}"
    )
