"""Registers the evaluated network as a self-contained model in MLflow, and moves the alias if the rules hold.

`jobs/register.py` holds the text of --help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from melanoma_spark import lineage, logs
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import champion_comparison, predictions
from melanoma_spark.evaluation.predictions import FINETUNED, HEAD, KINDS, metric_suffix
from melanoma_spark.images import synthetic
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.monitoring import drift
from melanoma_spark.registry import alias_history, gate
from melanoma_spark.runner.context import StageContext, Summary, read_images
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest, ModelManifest, ReportManifest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
ACTIONS = ("rollback", "history")


def register(context: StageContext) -> Summary:
    """Run the job: register and promote, or show or undo moves of the alias."""
    settings = context.settings.register_
    reconcile_alias(context)
    if settings.action == "history":
        moves = history_of(context).read()
        logs.result(alias_history.format_moves(moves))
        return Summary(f"{len(moves)} moves of {settings.name}@{settings.alias}")
    if settings.action == "rollback":
        return rollback(context)
    return promote(context)


def history_of(context: StageContext) -> alias_history.History:
    """The history of the alias of the settings."""
    settings = context.settings.register_
    return alias_history.History(context.warehouse, settings.name, settings.alias)


def reconcile_alias(context: StageContext) -> None:
    """Make the alias and its history agree: complete the move of a killed job, record one made without `register`."""
    settings, history = context.settings.register_, history_of(context)
    version = context.tracker.find_version(f"{settings.name}@{settings.alias}")
    moves = history.read()
    now = str(version.version) if version else None
    before, after = (moves[-1]["from"], moves[-1]["to"]) if moves else (None, None)
    if now == after:
        return
    if now == before and after:
        context.tracker.set_alias(settings.name, settings.alias, after)
    elif now:
        why = "the alias was moved without `register`, in MLflow's UI or by another warehouse"
        history.append(alias_history.OUTSIDE, after, now, why)


def rollback(context: StageContext) -> Summary:
    """Move the alias back to the version before."""
    settings = context.settings.register_
    history = history_of(context)
    target = history.previous_version()
    if context.tracker.find_version(f"{settings.name}/{target}") is None:
        raise DataError(f"{settings.name} version {target} is not in the registry any more; register another one")
    current = history.read()[-1]["to"]
    move_alias(context, alias_history.ROLLBACK, current, target, "asked for by `register rollback`", {})
    return Summary(f"{settings.name} version {target} is {settings.alias} again, version {current} is not any more")


def move_alias(
    context: StageContext, action: str, before: str | None, after: str, why: str, evidence: Mapping[str, object]
) -> None:
    """Record the move, then make it: the next job completes the move of a job that is killed in between."""
    settings = context.settings.register_
    history_of(context).append(action, before, after, why, {**evidence, "run_id": context.run_id})
    context.tracker.set_alias(settings.name, settings.alias, after)


def promote(context: StageContext) -> Summary:
    """Register the model of the last report as challenger, and make it champion if the rules hold."""
    settings, warehouse = context.settings.register_, context.warehouse
    report = manifests.require(ReportManifest, warehouse)
    name = FINETUNED if FINETUNED in report.models else HEAD
    model = manifests.require(KINDS[name], warehouse)
    if model.id != report.models[name]:
        raise DataError(f"{model.place} is not the model of the last report; run `melanoma-spark evaluate` first")
    champion = context.tracker.find_version(f"{settings.name}@{settings.alias}")
    if champion is not None and champion.tags.get("report_id") == report.id:
        return Summary(f"nothing new, {settings.name} version {champion.version} is {settings.alias} already")

    images = manifests.require(ImagesManifest, warehouse)
    if images.id != report.made_from:
        raise DataError("images/ has changed since the last report; run `melanoma-spark evaluate` first")
    challenger = context.tracker.find_version(f"{settings.name}@{CHALLENGER}")
    if challenger is not None and challenger.tags.get("report_id") == report.id:
        version = str(challenger.version)  # check again: the rules or the champion may have changed
    else:
        version = register_version(context, images, report, name, model)
        context.tracker.set_alias(settings.name, CHALLENGER, version)
    verdicts = check_gate(context, images, report, name, champion)
    refusals = "; ".join(f"{verdict.rule}: {verdict.found}" for verdict in verdicts if not verdict.holds)
    rules = [vars(verdict) for verdict in verdicts]
    context.tracker.tag_version(settings.name, version, {"gate": f"refused: {refusals}" if refusals else "passed"})
    url = files.join(warehouse, "registry", settings.name, alias_history.VERDICTS, f"{version}.json")
    files.write_json(url, {"rules": rules})
    if refusals:
        kept = f"version {champion.version} stays {settings.alias}" if champion else f"there is no {settings.alias}"
        return Summary(f"{settings.name} version {version} is {CHALLENGER} only, {kept}; refused by {refusals}")
    before, why = str(champion.version) if champion else None, "all rules of register.gate hold"
    move_alias(context, alias_history.PROMOTE, before, version, why, {"report_id": report.id, "rules": rules})
    return Summary(f"{settings.name} version {version} is {settings.alias} now ({name}), {len(verdicts)} rules hold")


def register_version(
    context: StageContext, images: ImagesManifest, report: ReportManifest, name: str, model: ModelManifest
) -> str:
    """Register the model, and return its version."""
    settings = context.settings
    # The operating point was chosen for the report's number of views.
    spec = network.Spec.model_validate({**model.spec, "tta": report.tta})
    tensors = manifests.load_model(context.warehouse, model)
    raw = read_predictions(context, report, name, "validation")["raw_probability"].to_numpy()
    scorer = bundle.Scorer(
        spec=spec,
        tensors=tensors,
        calibration=Calibration(**vars(report.calibrations[name])) if report.calibrations else Calibration(),
        operating_point=OperatingPoint(**vars(report.operating_points[name])),
        min_side=settings.ingest.min_side,
        max_pixels=settings.ingest.max_pixels,
        damaged=settings.ingest.damaged,
        pixels_version=images.pixels_version,
        facts={
            key: getattr(model, key)
            for key in ("id", "tensors_id", "weights_id", "weights_origin", "dataset_id", "features_id", "run_id")
        },
        reference=drift.build_reference(context, images, f"network {model.id}", spec, tensors, raw=raw),
    )
    figures = {
        key: f"{report.metrics[f'{key}_{metric_suffix(name)}']:.4f}"
        for key in ("test_auroc", "test_auroc_low", "test_auroc_high", "test_sensitivity", "test_specificity")
        if f"{key}_{metric_suffix(name)}" in report.metrics
    }
    tags = {
        **figures,
        "model": name,
        "report_id": report.id,
        "report_run_id": report.run_id,
        "tta": str(spec.tta),
        **{key: str(getattr(model, key)) for key in ("dataset_id", "weights_id", "weights_origin")},
        "commit": lineage.commit(),
    }
    if report.licences:
        tags["licences"] = "; ".join(report.licences)
    auroc, low, high = (figures.get(f"test_auroc{end}", "undefined") for end in ("", "_low", "_high"))
    pages = (
        f"[{text}]({context.tracker.artifact_link(report.run_id, file)})"
        for text, file in (("Report", "report.html"), ("model card", "model_card.md"))
    )
    description = (
        f"{name}, {spec.backbone} at {spec.image_size} px: test AUROC {auroc} [{low}-{high}] on dataset "
        f"{model.dataset_id}. {' and '.join(pages)}: artifacts of run {report.run_id}. "
        "Research software; not a diagnosis, not a medical device."
    )
    # A drawn lesion, not a patient's: anybody may see an input example.
    example = pd.DataFrame({"image": [synthetic.lesion_jpeg(seed=1, size=spec.image_size)]})
    return model_registry.register_model(settings.register_.name, bundle.pack(scorer), example, tags, description)


def read_predictions(context: StageContext, report: ReportManifest, name: str, split: str) -> pd.DataFrame:
    """The report's rows of a model and split. Raises `DataError` where they were removed."""
    rows = predictions.read_predictions(files.join(context.warehouse, "reports", report.path), name, split)
    if rows is None:
        raise DataError("the predictions of the last report are gone; run `melanoma-spark evaluate` again")
    return rows


def check_gate(
    context: StageContext, images: ImagesManifest, report: ReportManifest, name: str, version: ModelVersion | None
) -> list[gate.Verdict]:
    """Check the rules: the report has the challenger's predictions, the champion predicts these test images now."""
    register, test = context.settings.register_, read_predictions(context, report, name, "test")
    gain, note = None, ""
    if version is not None and register.gate.auroc_margin is not None:
        gain, note = champion_comparison.compare(context, images, version, name, test)
        if note:
            logs.info(note)
    return gate.check_rules(
        register.gate,
        test["label"].to_numpy(),
        test["probability"].to_numpy(),
        report.operating_points[name].threshold,
        gain=gain,
        note=note,
        subgroup_aurocs={f"{s['attribute']}: {s['value']}": s["auroc"] for s in report.subgroups},
        overlap=count_overlap(context, images),
    )


def count_overlap(context: StageContext, images: ImagesManifest) -> int:
    """Count test images with the bytes, the pixels or the group of an image of train or validation."""
    rows = read_images(context, images)
    return predictions.seen_in_training(rows.where("split = 'test'"), rows.where("split != 'test'"), "group").count()
