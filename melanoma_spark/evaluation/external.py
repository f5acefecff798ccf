"""Evaluates a registered model on a labeled archive that it has never seen -> `external/<archive>/`, and a report.

`evaluate archive=URL` does this where images/ was made from another archive. Calibration and operating point are
those of the registered model. Images that were used in training, and twins of these by features, are left out, and
counted.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from melanoma_spark import lineage, logs
from melanoma_spark.dataset import ingest
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import feature_twins, gather, predictions, shortcuts
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.runner.context import StageContext, Summary, archive_id, read_images
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, HeadManifest, ImagesManifest

NOT_COMPARED = (
    "Other photographs of lesions of training were not looked for: that takes the features that the head was trained "
    f"on, of at least {feature_twins.FEWEST:,} train and validation images."
)


def evaluate_external(context: StageContext) -> Summary:
    """Ingest the archive, predict what training has not seen, and write the report."""
    settings = context.settings
    version, artifacts = model_registry.download_model(context.tracker, settings.score.model)
    scorer = bundle.unpack(artifacts)
    place = files.join(context.warehouse, "external", archive_id(str(settings.archive)))
    limits = settings.ingest.model_copy(update={"pixels_version": scorer.pixels_version})
    changes = {"warehouse": place, "split": "test", "image_size": scorer.spec.image_size, "ingest": limits}
    external = replace(context, warehouse=place, settings=settings.model_copy(update=changes))
    logs.info(f"ingest: {ingest.ingest(external).text}")
    images = manifests.require(ImagesManifest, place)
    context.tracker.log_input("images", images.id)
    trained_on = training_images(context, scorer)
    if images.target != trained_on.target:
        raise DataError(
            f"{settings.score.model} predicts {trained_on.target}, but target={images.target}; run it with "
            f"target={trained_on.target}"
        )
    rows, training = read_images(external, images), read_images(context, trained_on)
    # Not by ids: two hospitals may both have a patient 17.
    seen = predictions.seen_in_training(rows, training.where("split != 'test'")).cache()
    left_out = seen.count()
    if left_out == images.accepted:
        raise DataError(f"training has seen all {left_out} images of {settings.archive}: it is no external set")

    unseen = rows.join(seen, "sha256", "left_anti")
    session.describe_jobs(context.spark, f"evaluate: {settings.score.model} on another archive")
    features = feature_twins.comparable_features(context, trained_on)
    base = find_base(context, features, scorer, str(version.tags.get("model"))) if features else None
    every_row = predict(external, unseen, scorer, base)
    if every_row["label"].nunique() < 2:
        raise DataError(
            f"all {len(every_row)} images of {settings.archive} that training has not seen have label "
            f"{int(every_row['label'].iloc[0])}; sensitivity and specificity need both"
        )
    leaked: list[str] = []
    if features and base:
        session.describe_jobs(context.spark, "evaluate: twins by features")
        values, known = np.stack(every_row.pop("features").tolist()), training.where("split != 'test'")
        twin = feature_twins.find_twins_in_training(context, trained_on, features, values, known)
        leaked = every_row["sha256"][twin].tolist()
    test = feature_twins.leave_out(every_row, leaked)
    twins = len(every_row) - len(test)
    painted = None
    if settings.evaluate.shortcuts:
        painted = predictions.predict_with_scorer(external, unseen, scorer, shortcuts.without_lesion)
        painted = painted[painted["sha256"].isin(test["sha256"])]
    name = f"{version.name} version {version.version}"
    weights_origin = str(scorer.facts.get("weights_origin", "unknown"))
    metadata = gather.describe_test_images(external, images, test)
    subject = gather.Subject(
        name=name,
        about=gather.describe_model(name, scorer.spec, weights_origin),
        spec=scorer.spec,
        tensors=scorer.tensors,
        weights_origin=weights_origin,
        test=test,
        metadata=metadata,
        train=training.where("split = 'train'"),
        painted=None if painted is None else painted["raw_probability"].to_numpy(),
    )
    fitted = scorer.calibration, scorer.operating_point
    measured = gather.measure_on_test(name, *fitted, None, test, metadata, settings)
    facts = gather.gather_facts(
        external,
        images,
        subject,
        [measured],
        title=f"{name} on another archive, dataset {images.id}",
        made_of={"model": name, **{key: str(value) for key, value in scorer.facts.items()}},
        limits=(
            f"{left_out} images were left out, because training has seen their bytes or their pixels. Patient ids are "
            "not compared between archives.",
            *(feature_twins.describe_left_out([measured], {name: every_row}, leaked) if base else [NOT_COMPARED]),
            "Calibration and operating point come from the model's own validation images, not from this archive.",
            "A high AUROC on archive images shows that the pipeline works, not that it diagnoses.",
        ),
    )
    folder = files.join(place, "reports", lineage.content_id([images.id, scorer.model_id, version.version]))
    gather.publish(external, folder, test, subject, facts)
    metrics = {f"external_{key}": value for key, value in measured.metrics().items()}
    if twins:
        metrics |= {"external_left_out": twins, "external_auroc_with_twins": feature_twins.auroc_of(every_row)}
    context.tracker.log_metrics({**metrics, "seen": left_out})
    context.tracker.set_tags({"dataset_id": images.id, "model_version": str(version.version), "external": "true"})
    low, high = measured.auroc.interval
    return Summary(
        f"{len(test)} images of another archive, {left_out} left out that training has seen"
        f"{f', {twins} that have a twin in training' if twins else ''}; {name} AUC "
        f"{measured.auroc.value:.4f} [{low:.4f}-{high:.4f}]; report {folder}/report.html"
    )


def predict(external: StageContext, rows: DataFrame, scorer: bundle.Scorer, base: bundle.Scorer | None) -> pd.DataFrame:
    """Calibrated predictions of images of another archive, by `sha256`, with averaged `features` by `base`.

    Without `base` they have no features.
    """
    table = predictions.predict_with_scorer(external, rows, scorer, with_features=base is scorer)
    if base is not None and base is not scorer:
        by_base = predictions.predict_with_scorer(external, rows, base, with_features=True)
        table = table.assign(features=by_base["features"].to_numpy())
    return table.assign(probability=scorer.calibration.apply(table["raw_probability"]))


def find_base(
    context: StageContext, features: FeaturesManifest, scorer: bundle.Scorer, kind: str
) -> bundle.Scorer | None:
    """The model whose averaged features are those of features/: a head alone is that one, a fine-tuned one is not.

    None where models/head was trained on other features.
    """
    if kind == predictions.HEAD and scorer.facts.get("weights_id") == features.weights:
        return scorer
    head = manifests.read(HeadManifest, context.warehouse)
    if head is None or head.weights_id != features.weights:
        return None
    spec, tensors = network.Spec.model_validate(head.spec), manifests.load_model(context.warehouse, head)
    return replace(scorer, spec=spec, tensors=tensors, facts={**scorer.facts, "id": head.id})


def training_images(context: StageContext, scorer: bundle.Scorer) -> ImagesManifest:
    """The manifest of the images that a model was trained on. Raises `DataError` where this warehouse has others."""
    images = manifests.require(ImagesManifest, context.warehouse)
    if images.id != scorer.facts.get("dataset_id"):
        raise DataError(
            f"{context.settings.score.model} was trained on dataset {scorer.facts.get('dataset_id')}, images/ holds "
            f"{images.id}, so it is unknown what training has seen; name the warehouse on which it was trained"
        )
    return images
