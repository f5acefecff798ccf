"""external: a registered model over a labelled archive that it has never seen -> `external/<archive>/`, and a report.

What `evaluate archive=URL` does where images/ was made from another archive. Nothing is chosen here: calibration and
operating point are the registered model's. Images that training has seen are left out, and counted.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
from pyspark.sql import DataFrame

from melanoma_spark import __version__, config, lineage, logs
from melanoma_spark.dataset import ingest
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import assessment, report_facts, shortcuts, subgroups
from melanoma_spark.models import bundle, model_registry, prediction
from melanoma_spark.runner.context import StageContext, Summary, archive_id, read_images
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest

HASHES = ("sha256", "pixel_sha256")  # not ids: two hospitals may both have a patient 17


def run(context: StageContext) -> Summary:
    settings = context.settings
    version, artifacts = model_registry.download_model(context.tracker, settings.score.model)
    scorer = bundle.unpack(artifacts)
    place = files.join(context.warehouse, "external", archive_id(str(settings.archive)))
    changes = {"warehouse": place, "split": "test", "image_size": scorer.spec.image_size}
    own = replace(context, warehouse=place, settings=settings.model_copy(update=changes))
    logs.info(f"ingest: {ingest.ingest(own).text}")
    images = manifests.require(ImagesManifest, place)
    context.tracker.log_input("images", images.id)
    if images.target != trained_target(context, scorer):
        raise DataError(
            f"{settings.score.model} tells {trained_target(context, scorer)}, target={images.target} was asked for; "
            f"run it with target={trained_target(context, scorer)}"
        )
    rows = read_images(own, images)
    seen = seen_in_training(context, scorer, rows)
    unseen = rows.join(seen, "sha256", "left_anti")
    known = seen.count()
    if known == images.accepted:
        raise DataError(f"training has seen all {known} images of {settings.archive}: it is no external set")

    session.set_arrow_batch_rows(context.spark, settings.evaluate.batch_size)
    session.describe_jobs(context.spark, f"evaluate: {settings.score.model} on another archive")
    batch = settings.evaluate.batch_size
    judged = prediction.judged(unseen, scorer.spec, scorer.tensors, f"network {scorer.model_id}", batch)
    columns = ("sha256", "split", "group", "label", "found.raw_probability")
    test = pd.DataFrame(judged.select(*columns).toPandas()).sort_values("sha256")
    test["probability"] = scorer.calibration.apply(test["raw_probability"])
    if test["label"].nunique() < 2:
        raise DataError(
            f"all {len(test)} images of {settings.archive} that training has not seen have label "
            f"{int(test['label'].iloc[0])}; sensitivity and specificity need both"
        )
    name = f"{version.name} version {version.version}"
    told = assessment.told_of_test(own, images, test)
    left = None
    if settings.evaluate.shortcuts:
        given = f"network {scorer.model_id} painted over", batch, shortcuts.without_lesion
        over = prediction.judged(unseen, scorer.spec, scorer.tensors, *given)
        painted_over = pd.DataFrame(over.select("sha256", "found.raw_probability").toPandas()).sort_values("sha256")
        train = read_images(context, training_images(context, scorer)).where("split = 'train'")
        left = assessment.without_the_lesion(own, images, train, test, painted_over)
    facts = gather_facts(own, images, scorer, name, test, told, known, left)
    folder = files.join(place, "reports", lineage.content_id([images.id, scorer.model_id, version.version]))
    assessment.write_predictions(folder, test)
    for file, content in assessment.in_isics_format(images, test, told).items():
        files.write_bytes(files.join(folder, "isic", file), content)
    assessment.publish(own, folder, facts)
    (measured,) = facts["models"]
    auroc, low, high = measured["auroc"], measured["auroc_low"], measured["auroc_high"]
    figures = {f"external_{key}": figure.value for key, figure in measured["figures"].items()}
    context.tracker.log_metrics(
        {**figures, "external_auroc": auroc, "external_auroc_low": low, "external_auroc_high": high, "seen": known}
    )
    context.tracker.set_tags({"dataset_id": images.id, "model_version": str(version.version), "external": "true"})
    return Summary(
        f"{len(test)} images of another archive, {known} left out that training has seen; {name} AUC {auroc:.4f} "
        f"[{low:.4f}-{high:.4f}]; report {folder}/report.html"
    )


def training_images(context: StageContext, scorer: bundle.Scorer) -> ImagesManifest:
    """The manifest of the images that a model learnt from. Raises `DataError` where this warehouse has others."""
    images = manifests.require(ImagesManifest, context.warehouse)
    if images.id != scorer.facts.get("dataset_id"):
        raise DataError(
            f"{context.settings.score.model} was trained on dataset {scorer.facts.get('dataset_id')}, images/ holds "
            f"{images.id}, so what it has seen cannot be told; name the warehouse on which it was trained"
        )
    return images


def trained_target(context: StageContext, scorer: bundle.Scorer) -> str:
    return training_images(context, scorer).target


def seen_in_training(context: StageContext, scorer: bundle.Scorer, rows: DataFrame) -> DataFrame:
    """`sha256` of the rows that have the bytes or the pixels of an image of train or validation."""
    own = read_images(context, training_images(context, scorer)).where("split != 'test'")
    parts = [rows.join(own.select(key).distinct(), key, "left_semi").select("sha256") for key in HASHES]
    return parts[0].union(parts[1]).distinct().cache()


def gather_facts(
    context: StageContext,
    images: ImagesManifest,
    scorer: bundle.Scorer,
    name: str,
    test: pd.DataFrame,
    told: pd.DataFrame,
    known: int,
    left: report_facts.Shortcuts | None,
) -> report_facts.Facts:
    chosen = context.settings.evaluate
    point = scorer.operating_point
    rows = tuple(test[column].to_numpy() for column in ("label", "raw_probability", "group"))
    drawn = chosen.resamples, context.settings.seed, chosen.prevalences
    patients = assessment.patients_of(told)
    measured = report_facts.model_facts(name, scorer.calibration, point, None, rows, *drawn, patients)
    own: list[subgroups.Subgroup] = assessment.by_subgroup(context, images, test, told, point.threshold)
    return {
        "title": f"{name} on another archive, dataset {images.id}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": context.run_id,
        "dataset": assessment.dataset_facts(context, images),
        "settings": config.notable_settings(context.settings),
        "lineage": {
            "dataset": images.id,
            "model": name,
            **{key: str(value) for key, value in scorer.facts.items()},
            "package": __version__,
            "commit": lineage.commit(),
        },
        "models": [measured],
        "gains": [],
        "champion": "",
        "deciding": {
            "name": name,
            "about": assessment.about(name, scorer.spec, str(scorer.facts.get("weights_origin", "unknown"))),
            "subgroups": own,
            "subgroup_minimum": chosen.subgroup_minimum,
            "shortcuts": left,
            "mistakes": assessment.mistakes(context, images, scorer.spec, scorer.tensors, test, point.threshold),
        },
        "training": [],
        "best": {},
        "limits": [
            f"{known} images were left out, because training has seen their bytes or their pixels; copies that were "
            "cropped or turned are not found, and ids of patients are not compared between archives.",
            "Calibration and operating point are those of the model's own validation images; this archive had no part.",
            "A high AUROC on archive images shows that the pipeline works, not that it diagnoses.",
        ],
        "weights_are_random": scorer.facts.get("weights_origin") == "random",
    }
