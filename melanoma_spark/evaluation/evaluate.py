"""Evaluates the head alone and the fine-tuned network side by side on the test split -> `reports/`.

`jobs/evaluate.py` holds the text of --help.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from melanoma_spark import config, lineage
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import (
    champion_comparison,
    external,
    feature_twins,
    gather,
    predictions,
    shortcuts,
    subgroups,
)
from melanoma_spark.evaluation.facts import Facts, Gain, ModelFacts, measure_gain
from melanoma_spark.evaluation.predictions import FINETUNED, HEAD
from melanoma_spark.models import calibration, network, operating_points
from melanoma_spark.runner.context import StageContext, Summary, archive_id, read_images, read_input, report_throughput
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest, ModelManifest
from melanoma_spark.training.loop import EpochRecord

PAINTED = "lesion painted over"  # as a model's name in rows of predictions
LIMITS = (
    "A high AUROC on archive images shows that the pipeline works, not that it diagnoses: borders, colors and rulers "
    "alone often give the label away.",
    "Images without patient or lesion ids can only be grouped when they look the same, so the test split may hold "
    "lesions that were used in training.",
    "The operating point was chosen on the validation split; another population needs its own.",
)


def evaluate(context: StageContext) -> Summary:
    """Run the job: on the warehouse's own test split, or on another archive when one is named."""
    images = manifests.read(ImagesManifest, context.warehouse)
    archive = context.settings.archive
    if archive and images and images.archive not in ("", archive_id(archive)):
        return external.evaluate_external(context)
    return evaluate_test_split(context)


def evaluate_test_split(context: StageContext) -> Summary:
    """Compare the trained models on the test split, and write the report that `register` reads."""
    settings, warehouse = context.settings, context.warehouse
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    models = read_models(context, images, features)
    ids = {name: model.id for name, model in models.items()}
    recipe = settings.evaluate.model_dump(mode="json"), settings.seed, settings.score.quality.model_dump(mode="json")
    # A report on few images stays as it was: twins have no part in it.
    twins_by = [feature_twins.LEAST] if feature_twins.can_compare(images, features) else []
    report_id = lineage.content_id([images.id, list(ids.values()), *recipe, *twins_by])
    folder = files.join(warehouse, "reports", report_id)
    previous = manifests.read(manifests.ReportManifest, warehouse)
    if previous and previous.id == report_id:
        return Summary(f"nothing new, the report is at {folder}/report.html")

    meter = session.Meter(context.spark)  # an image counts once for each model
    raw = predict(context, images, features, models, meter)
    speed = report_throughput(context, meter)
    twins = feature_twins.find_twins(context, images, features)
    if twins:
        feature_twins.show_on_card(context, images, twins)
    calibrations, every_row = predictions.calibrate(raw[raw["model"] != PAINTED], settings.evaluate.calibration)
    leaked = twins.leaked_hashes if twins else []
    table = feature_twins.leave_out(every_row, leaked)

    *_, deciding = models
    manifest = models[deciding]
    spec = network.Spec.model_validate({**manifest.spec, "tta": settings.evaluate.tta})
    test = predictions.rows_of(table, deciding, "test")
    painted_rows = raw[(raw["model"] == PAINTED) & raw["sha256"].isin(test["sha256"])].sort_values("sha256")
    with_twins = {name: predictions.rows_of(every_row, name, "test") for name in models}
    metadata = gather.describe_test_images(context, images, test)
    measured = [measure(table, name, calibrations[name], settings, metadata) for name in models]
    subject = gather.Subject(
        name=deciding,
        about=describe_training(spec, deciding, models),
        spec=spec,
        tensors=manifests.load_model(warehouse, manifest),
        weights_origin=manifest.weights_origin,
        test=test,
        metadata=metadata,
        train=read_images(context, images).where("split = 'train'"),
        painted=painted_rows["raw_probability"].to_numpy() if settings.evaluate.shortcuts else None,
    )
    facts = gather.gather_facts(
        context,
        images,
        subject,
        measured,
        title=f"Melanoma classification, dataset {images.id}",
        made_of={
            "backbone": f"{spec.backbone}, {manifest.weights_origin} weights {manifest.weights_id}",
            "features": manifest.features_id,
            **{f"model {name}": model_id for name, model_id in ids.items()},
        },
        limits=(*LIMITS, *feature_twins.describe_left_out(measured, with_twins, leaked)),
    )
    gains = []
    if FINETUNED in models:
        labels, drawn = test["label"].to_numpy(), predictions.bootstrap_of(test, settings)
        both = (predictions.rows_of(table, name, "test")["probability"].to_numpy() for name in (FINETUNED, HEAD))
        gains = [measure_gain(FINETUNED, HEAD, labels, drawn, *both)]
    over_champion, note = compare_with_champion(context, images, test, deciding)
    facts = replace(
        facts,
        gains=[*gains, over_champion] if over_champion else gains,
        champion=note,
        training=[EpochRecord(**record) for model in models.values() for record in model.training],
        best={phase: epoch for model in models.values() for phase, epoch in model.best.items()},
    )
    gather.publish(context, folder, table, subject, facts)
    metrics = as_metrics(facts, gains)
    left_out, left_out_text = len(with_twins[deciding]) - len(test), ""
    if left_out:
        left_out_text = f" ({left_out} with a twin in training are left out)"
        metrics["test_left_out"] = left_out
        for name, rows in with_twins.items():
            metrics[f"test_auroc_with_twins_{predictions.metric_suffix(name)}"] = feature_twins.auroc_of(rows)
    context.tracker.log_metrics(metrics)
    report = manifests.ReportManifest(
        id=report_id,
        path=report_id,
        made_from=images.id,
        models=ids,
        operating_points={
            model.name: manifests.OperatingPointEntry(**vars(model.operating_point)) for model in measured
        },
        calibrations={name: manifests.CalibrationEntry(**vars(fitted)) for name, fitted in calibrations.items()},
        tta=settings.evaluate.tta,
        metrics={key: value for key, value in metrics.items() if not math.isnan(value)},
        subgroups=[subgroup.as_record() for subgroup in facts.deciding.subgroups],
        licences=list(facts.dataset.licenses),
        run_id=context.run_id,
    )
    manifests.publish(report, warehouse)
    aurocs = (
        f"{m.name} test AUC {m.auroc.value:.4f} [{'-'.join(f'{b:.4f}' for b in m.auroc.interval)}]" for m in measured
    )
    return Summary(f"{len(test)} test images{left_out_text}, {'; '.join(aurocs)}; report {folder}/report.html{speed}")


def read_models(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> dict[str, ModelManifest]:
    """The manifests of the trained models by name, the deciding one last.

    Raises `DataError` where there is none, or one was trained on other images.
    """
    head = manifests.require(manifests.HeadManifest, context.warehouse)
    manifests.check_fit(images, features, head)
    models: dict[str, ModelManifest] = {HEAD: head}
    finetuned = manifests.read(manifests.FinetunedManifest, context.warehouse)
    if finetuned:
        models[FINETUNED] = finetuned
    for name, model in models.items():
        if model.dataset_id != images.id:
            raise DataError(
                f"the {name} model was trained on dataset {model.dataset_id}, images/ is now {images.id}; "
                "run train_head and finetune again"
            )
    return models


def predict(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    models: Mapping[str, ModelManifest],
    meter: session.Meter,
) -> pd.DataFrame:
    """Raw predictions of all models for validation and test, and those of `PAINTED` for test."""
    options = context.settings.evaluate
    session.set_arrow_batch_rows(context.spark, options.batch_size)
    if options.tta == 1:
        rows = predictions.predict_head(context, images, features, models[HEAD], meter)
    else:  # no features of mirror images are stored
        rows = predictions.predict_network(context, images, models[HEAD], HEAD, meter)
    if FINETUNED in models:
        rows = rows.unionByName(predictions.predict_network(context, images, models[FINETUNED], FINETUNED, meter))
    if options.shortcuts:
        *_, deciding = models
        painted = predictions.predict_network(
            context, images, models[deciding], PAINTED, meter, change=shortcuts.without_lesion
        )
        rows = rows.unionByName(painted.where("split = 'test'"))
    session.describe_jobs(context.spark, "evaluate: predict validation and test")
    return pd.DataFrame(rows.toPandas())


def measure(
    table: pd.DataFrame,
    name: str,
    fitted: calibration.Calibration,
    settings: config.Settings,
    metadata: pd.DataFrame,
) -> ModelFacts:
    """Measure one model: operating point from validation, everything else on test.

    `table` has calibrated rows, `metadata` is that of the test images by `sha256`.
    """
    rows = predictions.rows_of(table, name, "validation")
    validation = rows["label"].to_numpy(), rows["raw_probability"].to_numpy()
    point_name, rule = operating_points.resolve_rule(settings.evaluate.operating_point)
    probabilities = fitted.apply(validation[1])
    point = operating_points.choose(validation[0], probabilities, rule, point_name)
    point = operating_points.lower_threshold(point, probabilities)
    test = predictions.rows_of(table, name, "test")
    return gather.measure_on_test(name, fitted, point, validation, test, metadata, settings)


def compare_with_champion(
    context: StageContext, images: ImagesManifest, test: pd.DataFrame, name: str
) -> tuple[Gain | None, str]:
    """The gain of the deciding model over the champion on the same test images, or why there is none; and a note."""
    register = context.settings.register_
    version = context.tracker.find_version(f"{register.name}@{register.alias}")
    if version is None:
        return None, f"No model has been {register.alias} before."
    stored = None
    if report_id := version.tags.get("report_id"):
        folder = files.join(context.warehouse, "reports", report_id)
        stored = predictions.read_predictions(folder, str(version.tags.get("model")), "test")
    try:
        return champion_comparison.compare(context, images, version, name, test, stored)
    except DataError as error:
        return None, f"Not compared with the {register.alias}, version {version.version}: {error}."


def as_metrics(facts: Facts, gains: list[Gain]) -> dict[str, float]:
    """Flat names for MLflow: `test_auroc_finetuned`, ...; `gains` are those of fine-tuning."""
    metrics: dict[str, float] = {}
    for model in facts.models:
        suffix = predictions.metric_suffix(model.name)
        metrics |= {f"test_{key}_{suffix}": value for key, value in model.metrics().items()}
        metrics[f"threshold_{suffix}"] = model.operating_point.threshold
    for gain in gains:
        low, high = gain.interval
        metrics |= {"test_auroc_gain": gain.auroc, "test_auroc_gain_low": low, "test_auroc_gain_high": high}
    if measured := facts.deciding.shortcuts:
        metrics |= {"test_auroc_without_lesion": measured.painted.value, "test_auroc_of_colours": measured.colors.value}
    gaps = subgroups.largest_gaps(facts.deciding.subgroups)
    return metrics | {f"test_{gap.figure}_gap_of_subgroups": gap.value for gap in gaps}


def describe_training(spec: network.Spec, name: str, models: Mapping[str, ModelManifest]) -> str:
    """Describe the deciding model, and how it was trained."""
    head = models[HEAD]
    trained = f"The head was trained first (epoch {head.best['head']} was kept)"
    if name == FINETUNED:
        best = models[FINETUNED].best
        order = dict.fromkeys(str(epoch["phase"]) for epoch in models[FINETUNED].training)
        phases = ", ".join(f"{phase} (epoch {best[phase]})" for phase in order)
        trained += f", then more of the network by phases: {phases}; epoch 0 is the start"
    return f"{gather.describe_model(name, spec, head.weights_origin)} {trained}."
