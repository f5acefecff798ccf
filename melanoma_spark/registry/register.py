"""The evaluated network -> a self-contained model in MLflow's registry: challenger, and champion if it may.

What users are told of it is in `jobs/register.py`, the text of --help.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pyspark.sql import functions as f

from melanoma_spark import lineage, logs
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import assessment
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.monitoring import drift
from melanoma_spark.registry import alias_history, gate
from melanoma_spark.runner.context import StageContext, Summary, read_images
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest, ModelManifest, ReportManifest

CHALLENGER = "challenger"
ACTIONS = ("rollback", "history")
KINDS: dict[str, type[ModelManifest]] = {
    "fine-tuned": manifests.FinetunedManifest,
    "head alone": manifests.HeadManifest,
}
SUFFIXES = {"fine-tuned": "finetuned", "head alone": "head"}


def register(context: StageContext) -> Summary:
    settings = context.settings.register_
    reconcile(context)
    if settings.action == "history":
        found = alias_history.moves(context.warehouse, settings.name, settings.alias)
        logs.result(alias_history.told(found))
        return Summary(f"{len(found)} moves of {settings.name}@{settings.alias}")
    if settings.action == "rollback":
        return rollback(context)
    return promote(context)


def reconcile(context: StageContext) -> None:
    """The alias is what its moves say: one that a killed job wrote is made now; one by other hands is written down."""
    settings, warehouse = context.settings.register_, context.warehouse
    standing = context.tracker.find_version(f"{settings.name}@{settings.alias}")
    found = alias_history.moves(warehouse, settings.name, settings.alias)
    now = str(standing.version) if standing else None
    last = found[-1] if found else {"from": None, "to": None}
    if now == last["to"]:
        return
    if now == last["from"]:
        context.tracker.set_alias(settings.name, settings.alias, str(last["to"]))
    elif now:
        why = "the alias was moved without `register`, in MLflow's UI or by another warehouse"
        alias_history.append(warehouse, settings.name, settings.alias, alias_history.OUTSIDE, last["to"], now, why, {})


def rollback(context: StageContext) -> Summary:
    settings = context.settings.register_
    found = alias_history.moves(context.warehouse, settings.name, settings.alias)
    target = alias_history.previous(found, settings.name, settings.alias)
    if context.tracker.find_version(f"{settings.name}/{target}") is None:
        raise DataError(f"{settings.name} version {target} is not in the registry any more; register another one")
    move(context, alias_history.ROLLBACK, found[-1]["to"], target, "asked for by `register rollback`", {})
    return Summary(
        f"{settings.name} version {target} is {settings.alias} again, version {found[-1]['to']} is not any more"
    )


def move(
    context: StageContext, action: str, before: str | None, after: str, why: str, evidence: dict[str, Any]
) -> None:
    """Written first: a job that is killed between the two is completed by the next one."""
    settings = context.settings.register_
    evidence = evidence | {"run_id": context.run_id}
    alias_history.append(context.warehouse, settings.name, settings.alias, action, before, after, why, evidence)
    context.tracker.set_alias(settings.name, settings.alias, after)


def promote(context: StageContext) -> Summary:
    settings, warehouse = context.settings.register_, context.warehouse
    evaluated = manifests.require(ReportManifest, warehouse)
    name = "fine-tuned" if "fine-tuned" in evaluated.models else "head alone"
    model = manifests.require(KINDS[name], warehouse)
    if model.id != evaluated.models[name]:
        raise DataError(f"{model.place} is not the model of the last report; run `melanoma-spark evaluate` first")
    standing = context.tracker.find_version(f"{settings.name}@{settings.alias}")
    if standing is not None and standing.tags.get("report_id") == evaluated.id:
        return Summary(f"nothing new, {settings.name} version {standing.version} is {settings.alias} already")

    waiting = context.tracker.find_version(f"{settings.name}@{CHALLENGER}")
    if waiting is not None and waiting.tags.get("report_id") == evaluated.id:
        version = str(waiting.version)  # judged again: rules or champion may be others now
    else:
        version = registered(context, evaluated, name, model)
        context.tracker.set_alias(settings.name, CHALLENGER, version)
    found = judged(context, evaluated, name, standing)
    told = "; ".join(f"{verdict.rule}: {verdict.found}" for verdict in found if not verdict.holds)
    record = [vars(verdict) for verdict in found]
    context.tracker.tag_version(settings.name, version, {"gate": f"refused: {told}" if told else "passed"})
    verdict = files.join(warehouse, "registry", settings.name, alias_history.VERDICTS, f"{version}.json")
    files.write_json(verdict, {"rules": record})
    if told:
        kept = f"version {standing.version} stays {settings.alias}" if standing else f"there is no {settings.alias}"
        return Summary(f"{settings.name} version {version} is {CHALLENGER} only, {kept}; refused by {told}")
    before = str(standing.version) if standing else None
    evidence = {"report_id": evaluated.id, "rules": record}
    move(context, alias_history.PROMOTE, before, version, "all rules of register.gate hold", evidence)
    return Summary(f"{settings.name} version {version} is {settings.alias} now ({name}), {len(found)} rules hold")


def registered(context: StageContext, evaluated: ReportManifest, name: str, model: ModelManifest) -> str:
    """The new version."""
    settings = context.settings
    # by as many views as the operating point was chosen for
    spec = network.Spec.model_validate({**model.spec, "tta": evaluated.tta})
    tensors = manifests.load_model(context.warehouse, model)
    images = the_images(context, evaluated)
    raw = predictions(context, evaluated, name, "validation")["raw_probability"].to_numpy()
    scorer = bundle.Scorer(
        spec=spec,
        tensors=tensors,
        calibration=Calibration(**vars(evaluated.calibrations[name])) if evaluated.calibrations else Calibration(),
        operating_point=OperatingPoint(**vars(evaluated.operating_points[name])),
        min_side=settings.ingest.min_side,
        max_pixels=settings.ingest.max_pixels,
        damaged=settings.ingest.damaged,
        facts={
            key: getattr(model, key)
            for key in ("id", "tensors_id", "weights_id", "weights_origin", "dataset_id", "features_id", "run_id")
        },
        reference=drift.build_reference(context, images, f"network {model.id}", spec, tensors, raw=raw),
    )
    figures = {
        key: f"{evaluated.metrics[f'{key}_{SUFFIXES[name]}']:.4f}"
        for key in ("test_auroc", "test_auroc_low", "test_auroc_high", "test_sensitivity", "test_specificity")
        if f"{key}_{SUFFIXES[name]}" in evaluated.metrics
    }
    tags = {
        **figures,
        "model": name,
        "report_id": evaluated.id,
        "report_run_id": evaluated.run_id,
        "tta": str(scorer.spec.tta),
        "dataset_id": model.dataset_id,
        "weights_id": model.weights_id,
        "weights_origin": model.weights_origin,
        "commit": lineage.commit(),
    }
    if evaluated.licences:
        tags["licences"] = "; ".join(evaluated.licences)
    run_id = evaluated.run_id
    auroc, low, high = (figures.get(f"test_auroc{end}", "undefined") for end in ("", "_low", "_high"))
    description = (
        f"{name}, {scorer.spec.backbone} at {scorer.spec.image_size} px: test AUROC {auroc} [{low}-{high}] on dataset "
        f"{model.dataset_id}. "
        f"[Report]({context.tracker.artifact_link(run_id, 'report.html')}) and "
        f"[model card]({context.tracker.artifact_link(run_id, 'model_card.md')}): artifacts of run {run_id}. "
        "Research software; not a diagnosis, not a medical device."
    )
    return str(
        model_registry.register_model(
            settings.register_.name, bundle.pack(scorer), example(context, scorer), tags, description
        )
    )


def the_images(context: StageContext, evaluated: ReportManifest) -> ImagesManifest:
    """The manifest of the images that were evaluated. Raises `DataError` where images/ holds others by now."""
    images = manifests.require(ImagesManifest, context.warehouse)
    if images.id != evaluated.made_from:
        raise DataError("images/ has changed since the last report; run `melanoma-spark evaluate` first")
    return images


def predictions(context: StageContext, evaluated: ReportManifest, name: str, split: str) -> pd.DataFrame:
    """The report's rows of a model and split."""
    rows = assessment.read_predictions(files.join(context.warehouse, "reports", evaluated.path), name, split)
    if rows is None:
        raise DataError("the predictions of the last report are gone; run `melanoma-spark evaluate` again")
    return rows


def judged(context: StageContext, evaluated: ReportManifest, name: str, standing: Any) -> list[gate.Verdict]:
    """The challenger's predictions are the report's; the champion judges the same test images now."""
    settings = context.settings
    images = the_images(context, evaluated)
    test = predictions(context, evaluated, name, "test")
    champion = None
    if standing is not None and settings.register_.gate.auroc_margin is not None:
        champion = assessment.judged_by(context, images, f"{settings.register_.name}@{settings.register_.alias}", test)
    return gate.verdicts(
        settings.register_.gate,
        test["label"].to_numpy(),
        test["group"].to_numpy(),
        test["probability"].to_numpy(),
        evaluated.operating_points[name].threshold,
        champion,
        evaluated.subgroups,
        overlap(context, images),
        settings.evaluate.resamples,
        settings.seed,
    )


def overlap(context: StageContext, images: ImagesManifest) -> int:
    """Test images that are, or look as, or are of a group of, images of train or validation."""
    rows = read_images(context, images)
    seen = rows.where("split != 'test'")
    test = rows.where("split = 'test'")
    parts = [
        test.join(seen.select(key).distinct(), key, "left_semi").select("sha256")
        for key in ("sha256", "pixel_sha256", "group")
    ]
    return int(parts[0].union(parts[1]).union(parts[2]).agg(f.countDistinct("sha256")).collect()[0][0])


def example(context: StageContext, scorer: bundle.Scorer) -> pd.DataFrame:
    """One drawn lesion, not a patient's: an input example must be free to show."""
    from melanoma_spark.images import synthetic

    return pd.DataFrame({"image": [synthetic.lesion_jpeg(seed=1, size=scorer.spec.image_size)]})
