"""Measures the head alone, with block 5, and with the whole network: mean and spread over training seeds.

Each recipe is trained on one split, from the same features, with several `training_seed`s, and evaluated on test images
by one view and by eight (evaluate.tta). Accuracy is at the threshold that is best on validation. The recipes are the
phases of the settings' `finetune`, one more each time.

    .venv/bin/python benchmarks/results.py --conf conf/lesions.yaml --warehouse warehouse/results
    .venv/bin/python benchmarks/results.py --seeds 0 --tta 1 finetune.precision=bfloat16
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd
from pyspark.sql import SparkSession
from side_by_side import start_spark

from melanoma_spark import config, tracking
from melanoma_spark.dataset.ingest import ingest
from melanoma_spark.evaluation import evaluate
from melanoma_spark.evaluation.predictions import FINETUNED
from melanoma_spark.metrics import binary
from melanoma_spark.runner.context import StageContext
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.storage import files, manifests
from melanoma_spark.training.featurize import featurize
from melanoma_spark.training.finetune import finetune
from melanoma_spark.training.train_head import train_head

Figures = dict[tuple[str, int], list[tuple[float, float]]]  # (recipe, views) -> (AUC, accuracy) of each seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", default="conf/lesions.yaml", help="settings file [conf/lesions.yaml]")
    parser.add_argument("--warehouse", default="warehouse/results", help="[warehouse/results]")
    parser.add_argument("--seeds", type=numbers, default="0,1,2", help="training seeds [0,1,2]")
    parser.add_argument("--tta", type=numbers, default="1,8", help="views in evaluation [1,8]")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that win over the file's")
    options = parser.parse_intermixed_args()
    words = [*options.settings, f"warehouse={options.warehouse}"]
    spark = start_spark(2)
    figures: Figures = defaultdict(list)
    for seed in options.seeds:
        settings = config.load(options.conf, [*words, f"training_seed={seed}"])
        phases = settings.finetune.phases
        for count in range(1, len(phases) + 1):
            part = settings.finetune.model_copy(update={"phases": phases[:count]})
            results = train_and_evaluate(spark, settings.model_copy(update={"finetune": part}), options.tta)
            for (model, views), result in results.items():
                if model == FINETUNED:
                    figures[" + ".join(["head", *(phase.name for phase in phases[:count])]), views].append(result)
                elif count == 1:
                    figures["head", views].append(result)
        print(table(figures), flush=True)
    spark.stop()


def numbers(word: str) -> list[int]:
    return [int(part) for part in word.split(",")]


def train_and_evaluate(
    spark: SparkSession, settings: config.Settings, tta: Sequence[int]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Return test AUC and accuracy by (model, views). Results that are in the warehouse are not computed again."""
    warehouse = files.url_of(settings.warehouse)
    tracker = tracking.Tracker(settings.mlflow, warehouse)
    results = {}
    context = StageContext(spark, settings, warehouse, tracker)
    for stage in (ingest, featurize, train_head, finetune):
        run_stage(context, stage.__name__, stage, {"stage": stage.__name__})
    for views in tta:
        evaluation = settings.evaluate.model_copy(update={"tta": views})
        context = StageContext(spark, settings.model_copy(update={"evaluate": evaluation}), warehouse, tracker)
        run_stage(context, "evaluate", evaluate.evaluate_test_split, {"stage": "evaluate"})
        report = manifests.require(manifests.ReportManifest, warehouse)
        rows = pd.read_parquet(files.join(report.url(warehouse), "predictions"))
        for model, predictions in rows.groupby("model"):
            results[str(model), views] = measure(predictions)
    return results


def measure(rows: pd.DataFrame) -> tuple[float, float]:
    """Return test AUC, and test accuracy at the threshold of the best validation accuracy."""
    (y, p), (y_test, p_test) = (
        (side["label"].to_numpy(), side["probability"].to_numpy())
        for side in (rows[rows["split"] == "validation"], rows[rows["split"] == "test"])
    )
    threshold = max(sorted(p), key=lambda at: ((p >= at) == y).mean())
    return binary.auroc(y_test, p_test), float(((p_test >= threshold) == y_test).mean())


def table(figures: Figures) -> str:
    lines = ["| trained | views | seeds | test AUC | test accuracy |", "| --- | --- | --- | --- | --- |"]
    for (recipe, views), results in figures.items():
        aucs, accuracies = zip(*results, strict=True)
        cells = [
            f"{statistics.mean(v):.4f} ± {(statistics.stdev(v) if len(v) > 1 else 0):.4f}" for v in (aucs, accuracies)
        ]
        lines.append(f"| {recipe} | {views} | {len(results)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
