"""evaluate: the head alone and the fine-tuned network side by side on the test split -> `reports/`.

A Spark pass over validation and test. The operating point is chosen on validation and applied unchanged to test.
evaluate.tta=8 judges the same networks by the mean over eight mirror images and turns of each image, without training.

example: ./spark-submit.sh evaluate warehouse=/data/warehouse evaluate.operating_point='sensitivity>=0.95'
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from jobs.job import Job, main
from melanoma_spark import (
    __version__,
    backbones,
    bootstrap,
    config,
    files,
    inference,
    lineage,
    metrics,
    network,
    operating_points,
    report,
    schemas,
    session,
    store,
)
from melanoma_spark.errors import DataError

POINT_NAMES = {"sensitivity": "screening", "specificity": "specific", "balanced": "balanced"}
HEAD, FINETUNED = "head alone", "fine-tuned"
PLACES = {HEAD: "models/head", FINETUNED: "models/finetuned"}
JUDGED = "split in ('validation', 'test')"
RESULT = t.StructType([t.StructField("probability", t.DoubleType())])


def run(job: Job) -> str:
    settings, warehouse = job.settings, job.warehouse
    images = store.need(warehouse, "images", "ingest")
    features = store.need(warehouse, "features", "featurize")
    models = {HEAD: store.need(warehouse, PLACES[HEAD], "train_head")}
    store.check_fit(images, features, models[HEAD])
    finetuned = store.manifest(warehouse, PLACES[FINETUNED])
    if finetuned:
        models[FINETUNED] = finetuned
    for name, facts in models.items():
        if facts["dataset_id"] != images["id"]:
            raise DataError(
                f"the {name} model was trained on dataset {facts['dataset_id']}, images/ is now {images['id']}; "
                "run train_head and finetune again"
            )
    ids = [facts["id"] for facts in models.values()]
    report_id = lineage.content_id([images["id"], ids, settings.evaluate.model_dump(mode="json"), settings.seed])
    folder = files.join(warehouse, "reports", report_id)
    known = store.manifest(warehouse, "reports")
    if known and known["id"] == report_id:
        return f"nothing new, the report stands at {folder}/report.html"

    session.batch_rows(job.spark, settings.evaluate.batch_size)
    if settings.evaluate.tta == 1:
        predictions = judge_head(job, images, features, models[HEAD])
    else:  # of mirror images no features are stored
        predictions = judge_network(job, images, models[HEAD], HEAD)
    if finetuned:
        predictions = predictions.unionByName(judge_network(job, images, finetuned, FINETUNED))
    session.describe(job.spark, "evaluate: predict validation and test")
    predictions.write.mode("overwrite").parquet(files.join(folder, "predictions"))
    table = job.spark.read.parquet(files.join(folder, "predictions")).toPandas()

    measured = [measure(name, table[table["model"] == name], settings) for name in models]
    gain = gained(table, settings) if finetuned else None
    shown = report_facts(job, images, models, measured, gain)
    html = report.render(shown).encode()
    files.write_bytes(files.join(folder, "report.html"), html)
    job.tracker.artifact("report.html", html)
    for name, png in report.plots(shown).items():
        job.tracker.artifact(f"plots/{name}", png)
    figures = {key: value for model in measured for key, value in as_metrics(model).items()}
    if gain:
        figures["test_auroc_gain"] = gain["auroc"]
        figures["test_auroc_gain_low"], figures["test_auroc_gain_high"] = gain["interval"]
    job.tracker.metrics(figures)
    points = {m["name"]: vars(m["operating_point"]) for m in measured}
    store.publish(
        warehouse,
        "reports",
        {
            "id": report_id,
            "path": report_id,
            "made_from": images["id"],
            "models": {name: facts["id"] for name, facts in models.items()},
            "operating_points": points,
            "tta": settings.evaluate.tta,
            "metrics": {key: value for key, value in figures.items() if value == value},
            "run_id": job.run_id,
        },
    )
    told = "; ".join(
        f"{m['name']} test AUC {m['auroc']:.4f} [{m['auroc_low']:.4f}-{m['auroc_high']:.4f}]" for m in measured
    )
    return f"{(table['split'] == 'test').sum() // len(models)} test images, {told}; report {folder}/report.html"


def judge_head(job: Job, images: dict[str, Any], features: dict[str, Any], model: dict[str, Any]) -> DataFrame:
    """Predictions of the head on the stored bottleneck features."""
    threads = session.task_threads(job.spark)
    spec = network.Spec.model_validate(model["spec"])
    cut = backbones.backbone(spec.backbone).cuts[-1]
    tensors = job.spark.sparkContext.broadcast(store.load_model(job.warehouse, PLACES[HEAD], model))

    def load() -> inference.Predict:
        network.use_threads(threads)
        return network.predictor(network.tail(network.build(spec, tensors.value), cut))

    def prepare(content: bytes) -> np.ndarray:
        return np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32)

    udf = inference.over_column(f"head {model['id']}", load, prepare, finish, RESULT, job.settings.evaluate.batch_size)
    stored = job.spark.read.parquet(store.data_url(job.warehouse, "features", features)).where("view = 0")
    judged = job.spark.read.parquet(store.data_url(job.warehouse, "images", images)).where(JUDGED)
    rows = judged.select("sha256", "split", "group", "label").join(stored.select("sha256", cut), "sha256", "inner")
    return predictions(rows.select("*", udf(cut).alias("found")), HEAD)


def judge_network(job: Job, images: dict[str, Any], model: dict[str, Any], name: str) -> DataFrame:
    """Predictions of a whole network on the stored pixels, over as many views of them as the settings say."""
    spec = network.Spec.model_validate({**model["spec"], "tta": job.settings.evaluate.tta})
    tensors = job.spark.sparkContext.broadcast(store.load_model(job.warehouse, PLACES[name], model))
    pixels = schemas.images_schema(spec.image_size).fields["image"]
    udf = inference.over_column(
        f"network {model['id']} tta {spec.tta}",
        inference.network_loader(spec, tensors, session.task_threads(job.spark)),
        lambda content: np.asarray(pixels.codec.decode(pixels, content)),
        finish,
        RESULT,
        job.settings.evaluate.batch_size,
    )
    rows = job.spark.read.parquet(store.data_url(job.warehouse, "images", images)).where(JUDGED)
    count = rows.count()
    spread = rows.repartitionByRange(session.partitions_for(job.spark, count), "split", "sha256")
    return predictions(spread.select("*", udf("image").alias("found")), name)


def finish(outputs: list[np.ndarray | None], errors: Sequence[Any]) -> pd.DataFrame:
    assert outputs[0] is not None, "stored pixels always decode"
    return pd.DataFrame({"probability": outputs[0].reshape(-1).astype(np.float64)})


def predictions(rows: DataFrame, model: str) -> DataFrame:
    """Rows of `schemas.PREDICTIONS`."""
    named = rows.withColumn("model", f.lit(model)).withColumn("probability", f.col("found.probability"))
    return named.select(*(f.col(name) for name in schemas.PREDICTIONS.names))


def measure(name: str, table: pd.DataFrame, settings: config.Settings) -> report.ModelFacts:
    """The figures of one model: its operating point from validation, everything else on test."""
    table = table.sort_values("sha256")
    sides = {split: table[table["split"] == split] for split in ("validation", "test")}
    validation, test = (
        (side["label"].to_numpy(), side["probability"].to_numpy()) for side in (sides["validation"], sides["test"])
    )
    chosen = settings.evaluate
    rule = chosen.operating_point
    point = operating_points.choose(*validation, rule, POINT_NAMES[operating_points.parse_rule(rule)[0]])
    groups = sides["test"]["group"].to_numpy()
    drawn = chosen.resamples, settings.seed
    return report.model_facts(name, point, validation, (*test, groups), *drawn, chosen.prevalences)


def gained(table: pd.DataFrame, settings: config.Settings) -> report.Gain:
    """What fine-tuning adds to the head alone on the test split."""
    test = table[table["split"] == "test"].sort_values("sha256")
    head, finetuned = (test[test["model"] == name] for name in (HEAD, FINETUNED))
    labels, groups = head["label"].to_numpy(), head["group"].to_numpy()
    both = head["probability"].to_numpy(), finetuned["probability"].to_numpy()
    bounds = bootstrap.auroc_difference(labels, *both, groups, settings.evaluate.resamples, settings.seed)
    before, after = (metrics.auroc(labels, probabilities) for probabilities in both)
    return {"of": FINETUNED, "over": HEAD, "auroc": after - before, "interval": bounds}


def as_metrics(model: report.ModelFacts) -> dict[str, float]:
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


def report_facts(
    job: Job,
    images: dict[str, Any],
    models: dict[str, dict[str, Any]],
    measured: list[report.ModelFacts],
    gain: report.Gain | None,
) -> report.Facts:
    counts = {
        split: {"negative": images["counts"][f"{split}_0"], "positive": images["counts"][f"{split}_1"]}
        for split in ("train", "validation", "test")
    }
    head = models[HEAD]
    epochs: list[report.Epoch] = []
    best: dict[str, int] = {}
    for model in models.values():
        epochs += [{key: epoch[key] for key in report.Epoch.__required_keys__} for epoch in model["training"]]  # type: ignore[misc]
        best |= model["best"]
    limits = [
        "A high AUROC on archive images shows that the pipeline works, not that it diagnoses: borders, colours and "
        "rulers alone often give the label away.",
        "Images without patient or lesion ids can only be grouped when they look the same, so the test split may hold "
        "lesions that training has seen.",
        "The operating point was chosen on the validation split; another population needs its own.",
    ]
    return {
        "title": f"Melanoma classification, dataset {images['id']}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": job.run_id,
        "dataset": {
            "id": images["id"],
            "labels": ("negative", "positive"),
            "counts": counts,
            "groups": images["groups"],
            "rejects": images["reasons"],
        },
        "settings": {k: v for k, v in config.flat(job.settings).items() if k not in ("archive", "warehouse")},
        "lineage": {
            "dataset": images["id"],
            "backbone": f"{head['spec']['backbone']}, {head['weights_origin']} weights {head['weights_id']}",
            "features": head["features_id"],
            **{f"model {name}": facts["id"] for name, facts in models.items()},
            "package": __version__,
            "commit": lineage.commit(),
        },
        "models": measured,
        "gain": gain,
        "training": epochs,
        "best": best,
        "limits": limits,
        "weights_are_random": head["weights_origin"] == "random",
    }


if __name__ == "__main__":
    main("evaluate", __doc__, run)
