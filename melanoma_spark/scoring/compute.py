"""Computes rows of `scores/` on executors: decodes images, runs the network, and measures their quality."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, lineage, logs
from melanoma_spark.archives import tasks
from melanoma_spark.errors import ClusterError, ImageError
from melanoma_spark.images import color, hashes, quality
from melanoma_spark.models import bundle, engines, network, prediction
from melanoma_spark.runner.context import StageContext, report_throughput
from melanoma_spark.scoring import columns
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files
from melanoma_spark.storage.parquet import ROWS_WRITTEN, parquet_writer

LOST_SHARE = 0.05  # of a batch may be computed twice after a kill
MOST_IN_MEMORY = 512  # rows that a task keeps before it writes a file


def compute_rows(
    context: StageContext, scorer: bundle.Scorer, model: str, version: str, sources: DataFrame, count: int, target: str
) -> str:
    """Compute a row of `columns.schema()` for each file, as Parquet files in `target`; a killed run keeps them.

    Args:
        context: The job's context.
        scorer: The model.
        model: Its name in the registry.
        version: Its version.
        sources: `count` rows of `schemas.LISTING` with `patient_id`.
        count: The number of files.
        target: The URL of the folder.

    Returns:
        The pace, for the summary.

    Raises:
        ClusterError: Fewer rows were computed.
    """
    spark, settings = context.spark, context.settings
    session.describe_jobs(spark, f"score: compute {count} rows with {model} version {version}")
    # The closures below travel to the executors with each stage, so they must be small: without the weights, which the
    # engine has, and without the features of training. These travel once, as broadcasts, which `session` releases.
    # PySpark broadcasts a large closure itself, and keeps that until the driver ends.
    light = session.broadcast(spark, replace(scorer, tensors=[]))
    image_size, size, threads = scorer.spec.image_size, settings.score.batch_size, session.task_threads(spark)
    engine = engines.engine_for(settings.score.engine, scorer.spec.backbone, gpus=session.task_gpus(spark))
    if engine == "tensorflow":
        load = prediction.network_loader(scorer.spec, session.broadcast(spark, scorer.tensors), threads)
    else:
        content = session.broadcast(spark, exported_network(context, scorer, model, version, engine))
        load = prediction.exported_loader(engine, content, threads, scorer.spec.tta)
    limits = settings.score.quality

    def load_with_quality() -> inference.Predict:
        forward = load()

        def predict(images: NDArray[Any]) -> list[NDArray[Any]]:
            damaged = images["damaged"].astype(np.float32)  # a rejected image has NaN
            profile = images["profile"].astype(np.float32)
            return [*forward(images["pixels"]), quality.measures(images["pixels"]), images["side"], damaged, profile]

        return predict

    def finish(outputs: list[NDArray[Any]], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        unknown = np.full((len(errors), len(quality.MEASURES)), np.nan, np.float32), *np.full((3, len(errors)), np.nan)
        measured, side, damaged, profile = outputs[3:] or unknown
        rows = add_quality(light.value.finish(outputs[:3], errors), measured, side, damaged, image_size, limits)
        return rows.assign(profile=[color.STATES[state] for state in np.nan_to_num(profile).astype(int)])

    def prepare(content: bytes) -> NDArray[Any]:
        return light.value.prepare_sized(content)

    meter = session.Meter(spark)
    model_id = f"{engine} {scorer.model_id}"
    predict = inference.batch_function(model_id, load_with_quality, prepare, finish, batch_size=size, meter=meter)
    facts = {
        "dataset_id": scorer.facts.get("dataset_id"),
        "model_name": model,
        "model_version": version,
        "run_id": context.run_id,
        "scored_at": datetime.now(UTC),
    }
    share = math.floor(LOST_SHARE * count / session.slots(spark))
    most = min(MOST_IN_MEMORY, max(size, share // size * size))  # whole batches: a file ends with one
    write, wanted = parquet_writer(target, columns.schema(), most), columns.COLUMNS

    def write_scores(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return write(columns.to_scores(frame.assign(**facts), wanted) for frame in frames)

    written = tasks.compute_files(
        sources, count, settings, predict, batch_size=size, write=write_scores, result=ROWS_WRITTEN
    )
    with session.progress(spark, "parts scored"):
        total = written.agg(f.sum("rows")).collect()[0][0]
    if total != count:
        raise ClusterError(f"{total} rows were computed of {count} images; run score again")
    return report_throughput(context, meter)


def add_quality(
    rows: pd.DataFrame,
    measured: NDArray[Any],
    side: NDArray[Any],
    damaged: NDArray[Any],
    image_size: int,
    limits: config.Quality,
) -> pd.DataFrame:
    """Add quality measures and flags to rows; a flag may let the model abstain, never decide.

    Args:
        rows: Columns `bundle.OUTPUTS`.
        measured: (n, 5), see `quality.measures`. NaN, like `side` and `damaged`, where an image could not be decoded.
        side: (n,), the shorter side of each file in pixels.
        damaged: (n,), 1 where the file is damaged and was accepted.
        image_size: The side of the network's input in pixels.
        limits: The limits of the measures.
    """
    flags = quality.flags(measured, limits, side / image_size, rows["distance"].to_numpy(), damaged == 1)
    rows = rows.assign(flags=[",".join(names) or None for names in flags], side=side)
    rows[list(quality.MEASURES)] = measured
    if limits.action == "abstain":
        flagged = rows["flags"].notna().to_numpy()
        rows.loc[flagged, ["status", "decision"]] = ["abstained", ""]
        rows.loc[flagged, "probability"] = np.nan  # raw_probability stays, for those who look into it
        rows.loc[flagged, "reason"] = "quality"
        rows.loc[flagged, "detail"] = [quality.describe_flags(names) for names in flags if names]
    return rows


def exported_network(context: StageContext, scorer: bundle.Scorer, model: str, version: str, engine: str) -> bytes:
    """Return the network exported for an engine; made at its first use, and kept in the warehouse.

    A tag of the model version holds its SHA-256.
    """
    spec = scorer.spec.model_copy(update={"tta": 1})
    name = lineage.content_id([scorer.facts["tensors_id"], spec.model_dump(), engines.ENGINES[engine].format])
    url = files.join(context.warehouse, "models", "exported", f"{name}.{engine}")
    tag = engines.TAG.format(engine=engine)
    if files.exists(url):
        content = files.read_bytes(url)
        registered = context.tracker.find_version(f"{model}/{version}")
        if registered and registered.tags.get(tag) == hashes.sha256(content):
            return content
    logs.info(f"exporting the network for {engine}, once")
    content = engines.export(network.scoring_model(spec, scorer.tensors), engine)
    files.write_bytes(url, content)
    context.tracker.tag_version(model, version, {tag: hashes.sha256(content)})
    return content
