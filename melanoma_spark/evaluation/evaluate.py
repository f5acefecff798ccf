"""The head alone and the fine-tuned network side by side on the test split -> `reports/`.

What users are told of it is in `jobs/evaluate.py`, the text of --help.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import __version__, config, lineage, schemas
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import assessment, external, report_facts, shortcuts, subgroups
from melanoma_spark.metrics import binary, bootstrap
from melanoma_spark.models import backbones, calibration, network, operating_points, prediction
from melanoma_spark.runner.context import StageContext, Summary, archive_id, read_images, read_input, report_throughput
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, HeadManifest, ImagesManifest, ModelManifest

HEAD, FINETUNED, PAINTED = "head alone", "fine-tuned", "lesion painted over"
JUDGED = "split in ('validation', 'test')"


def run(context: StageContext) -> Summary:
    settings, warehouse = context.settings, context.warehouse
    images = read_input(context, ImagesManifest)
    features = read_input(context, FeaturesManifest)
    head = manifests.require(HeadManifest, warehouse)
    manifests.check_fit(images, features, head)
    finetuned = manifests.read(manifests.FinetunedManifest, warehouse)
    models: dict[str, ModelManifest] = {HEAD: head}
    if finetuned:
        models[FINETUNED] = finetuned
    for name, facts in models.items():
        if facts.dataset_id != images.id:
            raise DataError(
                f"the {name} model was trained on dataset {facts.dataset_id}, images/ is now {images.id}; "
                "run train_head and finetune again"
            )
    ids = [facts.id for facts in models.values()]
    chosen = settings.evaluate.model_dump(mode="json"), settings.seed, settings.score.quality.model_dump(mode="json")
    report_id = lineage.content_id([images.id, ids, *chosen])
    folder = files.join(warehouse, "reports", report_id)
    known = manifests.read(manifests.ReportManifest, warehouse)
    if known and known.id == report_id:
        return Summary(f"nothing new, the report stands at {folder}/report.html")

    session.set_arrow_batch_rows(context.spark, settings.evaluate.batch_size)
    meter = session.Meter(context.spark)  # an image counts for each model that judges it
    if settings.evaluate.tta == 1:
        predictions = judge_head(context, images, features, head, meter)
    else:  # of mirror images no features are stored
        predictions = judge_network(context, images, head, HEAD, meter)
    if finetuned:
        predictions = predictions.unionByName(judge_network(context, images, finetuned, FINETUNED, meter))
    deciding = list(models)[-1]  # the one that register takes
    if settings.evaluate.shortcuts:
        painted = judge_network(context, images, models[deciding], deciding, meter, PAINTED, shortcuts.without_lesion)
        predictions = predictions.unionByName(painted.where("split = 'test'"))
    session.describe_jobs(context.spark, "evaluate: predict validation and test")
    judged = pd.DataFrame(predictions.toPandas())
    how_fast = report_throughput(context, meter)
    painted_over = judged[judged["model"] == PAINTED].sort_values("sha256")
    calibrations, table = calibrated(judged[judged["model"] != PAINTED], settings.evaluate.calibration)
    assessment.write_predictions(folder, table)

    test = table[(table["model"] == deciding) & (table["split"] == "test")].sort_values("sha256")
    told = assessment.told_of_test(context, images, test)
    patients = assessment.patients_of(told)
    measured = [measure(name, table[table["model"] == name], calibrations[name], settings, patients) for name in models]
    threshold = measured[-1]["operating_point"].threshold
    train = read_images(context, images).where("split = 'train'")
    spec = network.Spec.model_validate({**models[deciding].spec, "tta": settings.evaluate.tta})
    found = report_facts.Deciding(
        name=deciding,
        about=about(spec, deciding, models),
        subgroups=assessment.by_subgroup(context, images, test, told, threshold),
        subgroup_minimum=settings.evaluate.subgroup_minimum,
        shortcuts=assessment.without_the_lesion(context, images, train, test, painted_over)
        if settings.evaluate.shortcuts
        else None,
        mistakes=assessment.mistakes(
            context,
            images,
            network.Spec.model_validate(models[deciding].spec),
            manifests.load_model(warehouse, models[deciding]),
            test,
            threshold,
        ),
    )
    for file, content in assessment.in_isics_format(images, test, told).items():
        files.write_bytes(files.join(folder, "isic", file), content)
    gains = [gained(table, settings)] if finetuned else []
    champion = against_champion(context, images, test, deciding)
    shown = gather_facts(context, images, models, measured, gains, champion, found)
    assessment.publish(context, folder, shown)
    logged = {key: value for model in measured for key, value in as_metrics(model).items()}
    if finetuned:
        logged["test_auroc_gain"] = gains[0]["auroc"]
        logged["test_auroc_gain_low"], logged["test_auroc_gain_high"] = gains[0]["interval"]
    if found["shortcuts"]:
        logged["test_auroc_without_lesion"] = found["shortcuts"]["painted"].value
        logged["test_auroc_of_colours"] = found["shortcuts"]["colours"].value
    for gap in subgroups.largest_gaps(found["subgroups"]):
        logged[f"test_{gap.figure}_gap_of_subgroups"] = gap.value
    context.tracker.log_metrics(logged)
    points = {m["name"]: manifests.OperatingPointEntry(**vars(m["operating_point"])) for m in measured}
    manifest = manifests.ReportManifest(
        id=report_id,
        path=report_id,
        made_from=images.id,
        models={name: facts.id for name, facts in models.items()},
        operating_points=points,
        calibrations={name: manifests.CalibrationEntry(**vars(found)) for name, found in calibrations.items()},
        tta=settings.evaluate.tta,
        metrics={key: value for key, value in logged.items() if value == value},
        subgroups=[subgroup.as_record() for subgroup in found["subgroups"]],
        licences=shown["dataset"]["licences"],
        run_id=context.run_id,
    )
    manifests.publish(manifest, warehouse)
    summary = "; ".join(
        f"{m['name']} test AUC {m['auroc']:.4f} [{m['auroc_low']:.4f}-{m['auroc_high']:.4f}]" for m in measured
    )
    return Summary(f"{len(test)} test images, {summary}; report {folder}/report.html{how_fast}")


def judge_head(
    context: StageContext,
    images: ImagesManifest,
    features: FeaturesManifest,
    model: HeadManifest,
    meter: session.Meter,
) -> DataFrame:
    """Predictions of the head on the stored bottleneck features."""
    threads = session.task_threads(context.spark)
    spec = network.Spec.model_validate(model.spec)
    cut = backbones.backbone(spec.backbone).cuts[-1]
    tensors = session.broadcast(context.spark, manifests.load_model(context.warehouse, model))

    def load() -> inference.Predict:
        network.use_threads(threads)
        return network.predictor(network.tail(network.build(spec, tensors.value), cut))

    def prepare(content: bytes) -> np.ndarray:
        return np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32)

    batch = context.settings.evaluate.batch_size
    udf = inference.column_udf(
        f"head {model.id}",
        load,
        prepare,
        prediction.probabilities,
        prediction.PROBABILITY,
        batch_size=batch,
        meter=meter,
    )
    stored = context.spark.read.parquet(features.url(context.warehouse)).where("view = 0")
    judged = read_images(context, images).where(JUDGED)
    rows = judged.select("sha256", "split", "group", "label").join(stored.select("sha256", cut), "sha256", "inner")
    return predictions(rows.select("*", udf(cut).alias("found")), HEAD)


def judge_network(
    context: StageContext,
    images: ImagesManifest,
    model: ModelManifest,
    name: str,
    meter: session.Meter,
    label: str = "",
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> DataFrame:
    """Predictions of a whole network on the stored pixels, over as many views of them as the settings say.

    `change` is done to the pixels before; the rows are then told apart by `label`.
    """
    spec = network.Spec.model_validate({**model.spec, "tta": context.settings.evaluate.tta})
    rows = read_images(context, images).where(JUDGED)
    tensors = manifests.load_model(context.warehouse, model)
    batch = context.settings.evaluate.batch_size
    found = prediction.judged(rows, spec, tensors, f"network {model.id} tta {spec.tta}", batch, change, meter)
    return predictions(found, label or name)


def predictions(rows: DataFrame, model: str) -> DataFrame:
    """Rows of `schemas.PREDICTIONS`, but for what calibration adds."""
    named = rows.withColumn("model", f.lit(model)).withColumn("raw_probability", f.col("found.raw_probability"))
    return named.select(*(f.col(name) for name in schemas.PREDICTIONS.names if name != "probability"))


def calibrated(
    raw: pd.DataFrame, method: config.CalibrationMethod
) -> tuple[dict[str, calibration.Calibration], pd.DataFrame]:
    """Each model's calibration, from its validation images alone, and the rows with calibrated probabilities."""
    found, parts = {}, []
    for name, rows in raw.sort_values(["model", "sha256"]).groupby("model"):
        fitted = rows[rows["split"] == "validation"]
        found[str(name)] = calibration.fit(fitted["label"], fitted["raw_probability"], method)
        parts.append(rows.assign(probability=found[str(name)].apply(rows["raw_probability"])))
    return found, pd.concat(parts)[schemas.PREDICTIONS.names]


def measure(
    name: str,
    table: pd.DataFrame,
    fitted: calibration.Calibration,
    settings: config.Settings,
    patients: list[str | None],
) -> report_facts.ModelFacts:
    """The figures of one model: calibration and operating point from validation, everything else on test.

    `patients` are those of the test images by `sha256`.
    """
    validation, test = (
        tuple(side[column].to_numpy() for column in ("label", "raw_probability", "group"))
        for side in (table[table["split"] == split].sort_values("sha256") for split in ("validation", "test"))
    )
    chosen = settings.evaluate
    name_of_point, rule = operating_points.by_name(chosen.operating_point)
    probabilities = fitted.apply(validation[1])
    point = operating_points.choose(validation[0], probabilities, rule, name_of_point)
    point = operating_points.with_room(point, probabilities)
    return report_facts.model_facts(
        name, fitted, point, validation[:2], test, chosen.resamples, settings.seed, chosen.prevalences, patients
    )


def gained(table: pd.DataFrame, settings: config.Settings) -> report_facts.Gain:
    """What fine-tuning adds to the head alone on the test split."""
    test = table[table["split"] == "test"].sort_values("sha256")
    head, finetuned = (test[test["model"] == name] for name in (HEAD, FINETUNED))
    return difference(settings, FINETUNED, finetuned, HEAD, head)


def against_champion(
    context: StageContext, images: ImagesManifest, test: pd.DataFrame, name: str
) -> report_facts.Gain | str:
    """The deciding model beside the champion, on the same test images; else why there is none to stand beside."""
    register = context.settings.register_
    reference = f"{register.name}@{register.alias}"
    standing = context.tracker.find_version(reference)
    if standing is None:
        return f"No model has been {register.alias} before."
    known = known_predictions(context, standing)
    if known is None or list(known["sha256"]) != list(test["sha256"]):
        try:
            known = test.assign(probability=assessment.judged_by(context, images, reference, test))
        except DataError as error:
            return f"Not compared with the {register.alias}, version {standing.version}: {error}."
    return difference(context.settings, name, test, f"{register.alias}, version {standing.version}", known)


def known_predictions(context: StageContext, standing: Any) -> pd.DataFrame | None:
    """A registered version's rows of the test images it was evaluated on, where this warehouse has them."""
    report_id = standing.tags.get("report_id")
    if not report_id:
        return None
    folder = files.join(context.warehouse, "reports", report_id)
    return assessment.read_predictions(folder, str(standing.tags.get("model")), "test")


def difference(
    settings: config.Settings, of: str, rows: pd.DataFrame, over: str, others: pd.DataFrame
) -> report_facts.Gain:
    """AUROC of one model's rows less that of others', of the same images in the same order."""
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    both = others["probability"].to_numpy(), rows["probability"].to_numpy()
    bounds = bootstrap.auroc_difference(labels, *both, groups, settings.evaluate.resamples, settings.seed)
    before, after = (binary.auroc(labels, probabilities) for probabilities in both)
    return {"of": of, "over": over, "auroc": after - before, "interval": bounds}


def as_metrics(model: report_facts.ModelFacts) -> dict[str, float]:
    """Flat names for MLflow: `test_auroc_finetuned`, ..."""
    suffix = {HEAD: "head", FINETUNED: "finetuned"}[model["name"]]
    values = {
        "test_auroc": model["auroc"],
        "test_auroc_low": model["auroc_low"],
        "test_auroc_high": model["auroc_high"],
        **{f"test_{key}": figure.value for key, figure in model["figures"].items()},
        "threshold": model["operating_point"].threshold,
    }
    return {f"{key}_{suffix}": value for key, value in values.items()}


def about(spec: network.Spec, name: str, models: Mapping[str, ModelManifest]) -> str:
    """What the deciding model is, and how it was trained."""
    trained = f"The head was trained first (epoch {models[HEAD].best['head']} was kept)"
    if name == FINETUNED:
        best = models[FINETUNED].best
        order = dict.fromkeys(str(epoch["phase"]) for epoch in models[FINETUNED].training)
        phases = ", ".join(f"{phase} (epoch {best[phase]})" for phase in order)
        trained += f", then more of the network by phases: {phases}; epoch 0 is the start"
    return f"{assessment.about(name, spec, models[HEAD].weights_origin)} {trained}."


def gather_facts(
    context: StageContext,
    images: ImagesManifest,
    models: Mapping[str, ModelManifest],
    measured: list[report_facts.ModelFacts],
    gains: list[report_facts.Gain],
    champion: report_facts.Gain | str,
    deciding: report_facts.Deciding,
) -> report_facts.Facts:
    head = models[HEAD]
    epochs: list[report_facts.Epoch] = []
    best: dict[str, int] = {}
    for model in models.values():
        epochs += [{key: epoch[key] for key in report_facts.Epoch.__required_keys__} for epoch in model.training]  # type: ignore[misc]
        best |= model.best
    limits = [
        "A high AUROC on archive images shows that the pipeline works, not that it diagnoses: borders, colours and "
        "rulers alone often give the label away.",
        "Images without patient or lesion ids can only be grouped when they look the same, so the test split may hold "
        "lesions that training has seen.",
        "The operating point was chosen on the validation split; another population needs its own.",
    ]
    return {
        "title": f"Melanoma classification, dataset {images.id}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": context.run_id,
        "dataset": assessment.dataset_facts(context, images),
        "settings": config.notable_settings(context.settings),
        "lineage": {
            "dataset": images.id,
            "backbone": f"{head.spec['backbone']}, {head.weights_origin} weights {head.weights_id}",
            "features": head.features_id,
            **{f"model {name}": facts.id for name, facts in models.items()},
            "package": __version__,
            "commit": lineage.commit(),
        },
        "models": measured,
        "gains": gains if isinstance(champion, str) else [*gains, champion],
        "champion": champion if isinstance(champion, str) else "",
        "deciding": deciding,
        "training": epochs,
        "best": best,
        "limits": limits,
        "weights_are_random": head.weights_origin == "random",
    }


def either(context: StageContext) -> Summary:
    """The job `evaluate`: of the warehouse's own test split, or of another archive when one is named."""
    images = manifests.read(ImagesManifest, context.warehouse)
    archive = context.settings.archive
    if archive and images and images.archive not in ("", archive_id(archive)):
        return external.run(context)
    return run(context)
