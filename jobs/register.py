"""register: the evaluated network -> a self-contained model in MLflow's registry, under an alias.

Image bytes in, probability and decision out; preprocessing, weights and operating point are inside.

example: ./spark-submit.sh register warehouse=/data/warehouse register.alias=champion
"""

from __future__ import annotations

import pandas as pd

from jobs.job import Job, main
from melanoma_spark import lineage, network, serving, store
from melanoma_spark.errors import DataError
from melanoma_spark.operating_points import OperatingPoint


def run(job: Job) -> str:
    settings, warehouse = job.settings.register_, job.warehouse
    evaluated = store.need(warehouse, "reports", "evaluate")
    name = "fine-tuned" if "fine-tuned" in evaluated["models"] else "head alone"
    place = {"fine-tuned": "models/finetuned", "head alone": "models/head"}[name]
    model = store.need(warehouse, place, "finetune")
    if model["id"] != evaluated["models"][name]:
        raise DataError(f"{place} is not the model of the last report; run `./spark-submit.sh evaluate` first")
    standing = job.tracker.version(f"{settings.name}@{settings.alias}")
    if standing is not None and standing.tags.get("report_id") == evaluated["id"]:
        return f"nothing new, {settings.name} version {standing.version} is {settings.alias} already"

    scorer = serving.Scorer(
        # by as many views as the operating point was chosen for
        spec=network.Spec.model_validate({**model["spec"], "tta": evaluated.get("tta", 1)}),
        tensors=store.load_model(warehouse, place, model),
        operating_point=OperatingPoint(**evaluated["operating_points"][name]),
        min_side=job.settings.ingest.min_side,
        max_pixels=job.settings.ingest.max_pixels,
        facts={
            key: model[key]
            for key in ("id", "tensors_id", "weights_id", "weights_origin", "dataset_id", "features_id", "run_id")
        },
    )
    suffix = {"fine-tuned": "finetuned", "head alone": "head"}[name]
    figures = {
        key: f"{evaluated['metrics'][f'{key}_{suffix}']:.4f}"
        for key in ("test_auroc", "test_auroc_low", "test_auroc_high", "test_sensitivity", "test_specificity")
        if f"{key}_{suffix}" in evaluated["metrics"]
    }
    tags = {
        **figures,
        "model": name,
        "report_id": evaluated["id"],
        "tta": str(scorer.spec.tta),
        "dataset_id": model["dataset_id"],
        "weights_id": model["weights_id"],
        "weights_origin": model["weights_origin"],
        "commit": lineage.commit(),
    }
    version, uri = job.tracker.register(settings.name, settings.alias, serving.pack(scorer), example(job, scorer), tags)
    return f"{settings.name} version {version} is {settings.alias} now ({name}, {uri})"


def example(job: Job, scorer: serving.Scorer) -> pd.DataFrame:
    """One drawn lesion, not a patient's: an input example must be free to show."""
    from melanoma_spark import drawing

    return pd.DataFrame({"image": [drawing.lesion_jpeg(seed=1, size=scorer.spec.image_size)]})


if __name__ == "__main__":
    main("register", __doc__, run)
