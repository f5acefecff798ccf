"""Compares featurize, by two engines, with the bare TensorFlow loop: same network, batch, threads and run.

The job: stored PNG -> decoded pixels -> VGG16 at two cuts -> Parquet through Petastorm, with Spark workers that have
loaded the model. The bare loop: the same forward pass over pixels in memory, with as many processes and threads as the
job has. They take turns, because the speed of a machine drifts.

    make bench                                          (first of the two; about 6 minutes on 2 cores)
    .venv/bin/python benchmarks/featurize.py --images 64 --rounds 1
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from side_by_side import Processes, Turns, start_spark

from melanoma_spark import config, schemas, tracking
from melanoma_spark.dataset import ingest
from melanoma_spark.images import synthetic
from melanoma_spark.models import backbones, weights
from melanoma_spark.runner.context import StageContext
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.petastorm import petastorm_metadata
from melanoma_spark.training import featurize

ENGINES = ("ncnn", "tensorflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images a round [512]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of job and bare loop [3]")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels [224]")
    parser.add_argument("--slots", type=int, default=2, help="Spark tasks at once, one core each [2]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    settings = config.parse(
        {
            "archive": str(folder / "archive"),
            "warehouse": str(folder / "warehouse"),
            "image_size": options.size,
            "backbone": {"allow_random": True},  # speed does not depend on the weights' values
        }
    )
    # a quarter more images, because a few are copies or broken and are removed; and enough for three splits
    synthetic.draw_archive(folder / "archive", images=max(options.images * 5 // 4, 240), size=options.size)
    spark = start_spark(options.slots)
    warehouse = files.url_of(settings.warehouse)
    context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
    with context.tracker.run("benchmark", {}):
        ingest.ingest(context)
    made_of = manifests.require(manifests.ImagesManifest, warehouse)
    stored = spark.read.parquet(made_of.url(warehouse))
    stored = stored.select("sha256", "split", f.lit(0).alias("view"), "image")
    todo = stored.orderBy("sha256").limit(options.images).persist()
    rows = todo.count()
    base = weights.resolve(settings.backbone, settings.seed)
    cuts = backbones.cuts_read(settings)
    shapes = backbones.cut_shapes(settings.backbone.name, options.size, cuts)
    schema = schemas.features_schema(shapes, settings.featurize.dtype)

    def job_seconds(name: str, table: DataFrame, count: int, engine: str) -> float:
        target = files.join(warehouse, "bench", f"{name}-{engine}")
        featurize_settings = settings.featurize.model_copy(update={"engine": engine})
        job_context = replace(context, settings=settings.model_copy(update={"featurize": featurize_settings}))
        started = time.monotonic()
        with petastorm_metadata(spark, target, schema, settings.ingest.row_group_mb):
            featurize.compute(job_context, table, count, base, options.size, cuts, target)
        return time.monotonic() - started

    pixels = schemas.images_schema(options.size).fields["image"]
    decoded = np.stack([pixels.codec.decode(pixels, row.image) for row in todo.limit(32).collect()])
    threads = session.task_threads(spark)
    print(f"{rows} images of {options.size} px, batches of {settings.featurize.batch_size}, {base.origin} weights")
    print(f"Spark: {options.slots} tasks of {threads} thread; bare loop: {options.slots} processes of {threads} thread")
    turns = Turns(("ncnn", "bare_loop", 1.15), ("tensorflow", "bare_loop", 0.90))
    with Processes(options.slots, bare_loop, threads, decoded, base.tensors, settings) as bare:
        bare.seconds([settings.featurize.batch_size] * options.slots)
        for turn in range(1, options.rounds + 1):
            speeds = {"bare_loop": rows / bare.seconds([rows // options.slots] * options.slots)}
            for engine in ENGINES:  # a worker keeps one model, so a small job loads it first
                job_seconds(f"warm-up-{turn}", todo.limit(32 * options.slots), 32 * options.slots, engine)
                speeds[engine] = rows / job_seconds(f"turn-{turn}", todo, rows, engine)
            turns.add(**speeds)
    turns.summary()
    spark.stop()


def bare_loop(
    threads: int, pixels: NDArray[Any], tensors: tuple[NDArray[Any], ...], settings: config.Settings
) -> Callable[[int], None]:
    """Return a function that runs only the forward pass over decoded pixels."""
    from melanoma_spark.models import network

    network.use_threads(threads)
    base = backbones.build_base(settings.backbone.name, settings.image_size, tensors)
    predict = network.predictor(backbones.features(base, backbones.cuts_read(settings)))
    batch = settings.featurize.batch_size
    predict(pixels[:batch])

    def do(images: int) -> None:
        done = 0
        while done < images:
            done += len(predict(pixels[: min(batch, images - done)])[0])

    return do


if __name__ == "__main__":
    main()
