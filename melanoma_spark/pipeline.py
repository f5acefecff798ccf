"""All stages in one submission: each in its own MLflow run, nested in that of the pipeline."""

from melanoma_spark import lineage, logs
from melanoma_spark.dataset import ingest
from melanoma_spark.evaluation import evaluate
from melanoma_spark.models import weights
from melanoma_spark.registry import register
from melanoma_spark.runner.context import StageContext, Summary, read_input
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.scoring import score
from melanoma_spark.spark import executors
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest, ReportManifest
from melanoma_spark.training import featurize, finetune, horovod, train_head

STAGES = {
    "ingest": ingest.ingest,
    "featurize": featurize.featurize,
    "train_head": train_head.train_head,
    "finetune": finetune.finetune,
    "evaluate": evaluate.evaluate_test_split,
    "register": register.register,
    "score": score.score,
}


def pipeline(context: StageContext) -> Summary:
    """Run all stages, then log the results that people look for first."""
    # Problems that would stop featurize and finetune after hours of ingest.
    weights.locate(context.settings.backbone)
    executors.check_ready(context.spark, horovod.choose_ranks(context.settings))
    summaries = [run_stage(context, name, stage, {"stage": name}) for name, stage in STAGES.items()]
    return Summary(log_results(context), max(summary.exit_status for summary in summaries))


def log_results(context: StageContext) -> str:
    """Log the main figures and where the results are. Returns the summary."""
    read_input(context, ImagesManifest)
    report = manifests.require(ReportManifest, context.warehouse)
    context.tracker.log_metrics(report.metrics)
    folder = report.url(context.warehouse)
    logs.result("")
    for name, suffix in (("head alone", "head"), ("fine-tuned", "finetuned")):
        keys = [f"test_auroc{part}_{suffix}" for part in ("", "_low", "_high")]
        if all(key in report.metrics for key in keys):
            figures = (report.metrics[key] for key in keys)
            logs.result("test AUC, {}: {:.4f} (95 % interval {:.4f} to {:.4f})".format(name.ljust(10), *figures))
    logs.result(f"report: {folder}/report.html")
    logs.result(f"scores: {files.join(context.warehouse, 'scores')}")
    command = f"mlflow ui --backend-store-uri {context.tracker.uri}"
    if (lineage.checkout() / "Makefile").exists():
        command = f"make ui WAREHOUSE={context.warehouse.removeprefix('file://')}   (tracking at {context.tracker.uri})"
    logs.result(f"MLflow: {context.settings.mlflow.tracking_uri or command}")
    logs.result("Research software: not a diagnosis, not a medical device.")
    return f"{len(STAGES)} stages"
