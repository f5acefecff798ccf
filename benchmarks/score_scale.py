"""Measures the time of score for each image and the memory of its driver, over a batch of many images.

The images are those of ingest_scale.py: PNGs of 16 x 16 random pixels in tars with a table of patients. The network is
VGG16 at 32 px with random weights, so small that the work besides the network shows. It is a whole score, from listing
to worklist, on Spark's `local-cluster`, whose two executors are separate processes, so that the driver's memory can be
measured alone: its heap after a garbage collection, and its resident Python, every few seconds. A second score with
nothing new follows.

    .venv/bin/python benchmarks/score_scale.py                          (about 15 minutes on 2 cores)
    .venv/bin/python benchmarks/score_scale.py 2000 --plot score-memory.png
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ingest_scale import COLLECT_EVERY, SIDE, fill, seconds_by_description
from pyspark.sql import SparkSession
from score import register_random_model
from side_by_side import start_spark

from melanoma_spark import config, tracking
from melanoma_spark.background import periodic
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import batch
from melanoma_spark.storage import files

SIZE = 32  # pixels, of the network
Sample = tuple[float, float, float]  # seconds, heap in MB, Python in MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=100_000, help="[100000]")
    parser.add_argument("--plot", type=Path, help="write a plot of the driver's memory to this PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), options.images, options.plot)


def run(folder: Path, images: int, plot: Path | None) -> None:
    fill(folder / "archive", images)
    values = {"archive": str(folder / "archive"), "warehouse": str(folder / "warehouse"), "image_size": SIZE}
    small = {"ingest": {"min_side": SIDE}, "mlflow": {"system_metrics": False}}
    settings = config.parse({**values, **small, "score": {"batch_size": 64}})
    # In a separate process, whose memory for making and exporting a network is free afterwards.
    register = multiprocessing.get_context("spawn").Process(target=register_random_model, args=(folder, SIZE))
    register.start()
    register.join()
    spark = start_spark(master="local-cluster[2,1,1024]")
    warehouse = files.url_of(settings.warehouse)
    context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
    samples: list[Sample] = []
    with context.tracker.run("score", {}), sampling(spark, samples):
        started = time.monotonic()
        summary = batch.score_batch(context)
        seconds = time.monotonic() - started
    print(summary)
    parts = seconds_by_description(spark)
    print("    " + ", ".join(f"{text} {spent:.1f} s" for text, spent in parts.items()))
    started = time.monotonic()
    with context.tracker.run("score", {}):
        print(batch.score_batch(context))
    print(f"    nothing new: {time.monotonic() - started:.1f} s")
    spark.stop()
    heap, python = (max(sample[column] for sample in samples) for column in (1, 2))
    print(
        f"{images} images: {seconds:.0f} s, {images / seconds:.1f} images/s; driver: heap {heap:.0f} MB, Python ",
        end="",
    )
    print(f"{python:.0f} MB at most")
    middle = len(samples) // 2
    for column, name in ((1, "heap"), (2, "Python")):
        early, late = (max(sample[column] for sample in half) for half in (samples[:middle], samples[middle:]))
        print(f"    {name}: first half {early:.0f} MB, second half {late:.0f} MB")
    if plot:
        draw(samples, images, plot)


@contextmanager
def sampling(spark: SparkSession, samples: list[Sample]) -> Iterator[None]:
    """Record the driver's memory every few seconds."""
    assert spark._jvm
    java, process, started = spark._jvm.java.lang, psutil.Process(), time.monotonic()

    def watch() -> None:
        java.System.gc()
        runtime = java.Runtime.getRuntime()
        heap = (runtime.totalMemory() - runtime.freeMemory()) / 1024**2
        samples.append((time.monotonic() - started, heap, process.memory_info().rss / 1024**2))

    watch()
    try:
        with periodic(COLLECT_EVERY, watch):
            yield
    finally:
        watch()


def draw(samples: list[Sample], images: int, target: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    seconds, heap, python = zip(*samples, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 3), dpi=100)
    axes.plot(seconds, heap, label="heap of the driver's JVM, after a garbage collection")
    axes.plot(seconds, python, label="the driver's Python, resident")
    axes.set(xlabel="seconds", ylabel="MB", ylim=(0, None), title=f"score of {images:,} images: the driver's memory")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main()
