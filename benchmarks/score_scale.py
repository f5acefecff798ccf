"""score's cost an image and its driver's memory over a batch of many images: 100,000 unless told otherwise.

The images are those of ingest_scale.py, PNGs of 16 x 16 random pixels in tars with a table of patients; the network is
VGG16 at 32 px with random weights: small, so that what is done for each image beside the network shows. A whole score,
from listing to worklist, in Spark's `local-cluster`, whose two executors are processes of their own, so that the
driver's memory can be told. Its heap is what a garbage collection has left, its Python what is resident, every few
seconds. A second score with nothing new ends it.

    .venv/bin/python benchmarks/score_scale.py                          (about 15 minutes on 2 cores)
    .venv/bin/python benchmarks/score_scale.py 2000 --plot score-memory.png
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from ingest_scale import COLLECT_EVERY, SIDE, by_description, fill
from score import registered
from side_by_side import start_spark

from melanoma_spark import config, tracking
from melanoma_spark.background import every
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import score
from melanoma_spark.storage import files

SIZE = 32  # pixels, of the network
Sample = tuple[float, float, float]  # seconds, heap in MB, Python in MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=100_000, help="[100000]")
    parser.add_argument("--plot", type=Path, help="where a plot of the driver's memory goes, a PNG")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), chosen.images, chosen.plot)


def run(folder: Path, images: int, plot: Path | None) -> None:
    fill(folder / "archive", images)
    values = {"archive": str(folder / "archive"), "warehouse": str(folder / "warehouse"), "image_size": SIZE}
    small = {"ingest": {"min_side": SIDE}, "mlflow": {"system_metrics": False}}
    settings = config.parse({**values, **small, "score": {"batch_size": 64}})
    # In a process of its own, which takes the memory of making and exporting a network with it.
    aside = multiprocessing.get_context("spawn").Process(target=registered, args=(folder, SIZE))
    aside.start()
    aside.join()
    spark = start_spark(master="local-cluster[2,1,1024]")
    warehouse = files.url_of(settings.warehouse)
    context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
    samples: list[Sample] = []
    with context.tracker.run("score", {}), sampling(spark, samples):
        started = time.monotonic()
        told = score.batch(context)
        seconds = time.monotonic() - started
    print(told)
    parts = by_description(spark)
    print("    " + ", ".join(f"{text} {spent:.1f} s" for text, spent in parts.items()))
    started = time.monotonic()
    with context.tracker.run("score", {}):
        print(score.batch(context))
    print(f"    nothing new: {time.monotonic() - started:.1f} s")
    spark.stop()
    heap, python = (max(sample[column] for sample in samples) for column in (1, 2))
    print(
        f"{images} images: {seconds:.0f} s, {images / seconds:.1f} images/s; driver: heap {heap:.0f} MB, Python ",
        end="",
    )
    print(f"{python:.0f} MB at the most")
    middle = len(samples) // 2
    for column, name in ((1, "heap"), (2, "Python")):
        early, late = (max(sample[column] for sample in half) for half in (samples[:middle], samples[middle:]))
        print(f"    {name}: first half {early:.0f} MB, second half {late:.0f} MB")
    if plot:
        draw(samples, images, plot)


@contextmanager
def sampling(spark, samples: list[Sample]):
    """The driver's memory, every few seconds."""
    java, own, started = spark._jvm.java.lang, psutil.Process(), time.monotonic()

    def watch() -> None:
        java.System.gc()
        runtime = java.Runtime.getRuntime()
        heap = (runtime.totalMemory() - runtime.freeMemory()) / 1024**2
        samples.append((time.monotonic() - started, heap, own.memory_info().rss / 1024**2))

    watch()
    try:
        with every(COLLECT_EVERY, watch):
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
