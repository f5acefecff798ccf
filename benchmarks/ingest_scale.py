"""Measures the time of ingest for each image and the memory of its driver, at 10,000, 100,000 and more images.

The images are PNGs of 16 x 16 random pixels, 10,000 in each tar, with a table of labels and patients. They are so small
that the bookkeeping is measured, from the listing to the data card. Each size is a whole ingest in a new driver, on
Spark's `local-cluster`, whose two executors are separate processes, so that the driver's memory can be measured alone.

Time is wall time and, because that drifts on a shared machine, processor time of all processes together. The driver's
heap is measured after garbage collections every few seconds; the largest counts.

    .venv/bin/python benchmarks/ingest_scale.py        (about 8 minutes on 2 cores)
    .venv/bin/python benchmarks/ingest_scale.py 10000 100000 1000000
"""

import argparse
import io
import json
import random
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from side_by_side import Processors, start_spark

from melanoma_spark import config, tracking
from melanoma_spark.background import periodic
from melanoma_spark.dataset import ingest
from melanoma_spark.runner.context import StageContext
from melanoma_spark.storage import files

SIDE = 16  # pixels
A_TAR = 10_000
COLLECT_EVERY = 5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 100_000], help="images [10000 100000]")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # one size, in this process
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only)))
        return
    before = None
    for size in options.sizes:
        command = [sys.executable, __file__, "--only", str(size)]
        result = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        print(
            f"{size} images: {result['seconds']:.1f} s, {result['seconds'] / size * 1000:.3f} ms an image; processors "
            f"{result['cpu']:.1f} s, {result['cpu'] / size * 1000:.3f} ms an image; driver: "
            f"heap {result['heap']:.0f} MB, Python {result['python']:.0f} MB"
        )
        print("    " + ", ".join(f"{text} {seconds:.1f} s" for text, seconds in result["parts"].items()), flush=True)
        if before:
            more = size - before["size"]
            for name, what in (("seconds", "wall"), ("cpu", "processor")):
                marginal = (result[name] - before[name]) / more * 1000
                ratio = result[name] / size / (before[name] / before["size"])
                print(
                    f"    {what}: {marginal:.3f} ms for each further image; an image costs {ratio:.3f} of one at "
                    f"{before['size']} images (target: <= 1.10)"
                )
            grown = result["heap"] - before["heap"] + result["python"] - before["python"]
            print(f"    driver: {grown:.0f} MB more for {more} images more", flush=True)
        before = {**result, "size": size}


def measure(size: int) -> dict[str, Any]:
    """Run a whole ingest of `size` images. Returns seconds, memory in MB, and the seconds of each part."""
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as name:
        folder = Path(name)
        fill(folder / "archive", size)
        settings = config.parse(
            {
                "archive": str(folder / "archive"),
                "warehouse": str(folder / "warehouse"),
                "image_size": 32,
                "ingest": {"min_side": SIDE},
            }
        )
        spark = start_spark(master="local-cluster[2,1,1024]")
        warehouse = files.url_of(settings.warehouse)
        context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
        heaps: list[float] = []
        processors = Processors()
        with context.tracker.run("benchmark", {}), collecting(spark, heaps, processors):
            started = time.monotonic()
            summary = ingest.ingest(context).text
            seconds = time.monotonic() - started
        cpu = processors.seconds()
        print(summary, file=sys.stderr)
        parts = seconds_by_description(spark)
        parts["between Spark's jobs"] = seconds - sum(parts.values())
        spark.stop()
    python = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu": cpu, "heap": max(heaps), "python": python, "parts": parts}


@contextmanager
def collecting(spark: SparkSession, heaps: list[float], processors: Processors) -> Iterator[None]:
    """Record the driver's heap in MB after garbage collections, and the time of processes before they end."""
    assert spark._jvm
    java = spark._jvm.java.lang

    def watch() -> None:
        processors.seconds()
        java.System.gc()
        runtime = java.Runtime.getRuntime()
        heaps.append((runtime.totalMemory() - runtime.freeMemory()) / 1024**2)

    try:
        with periodic(COLLECT_EVERY, watch):
            yield
    finally:
        watch()


def seconds_by_description(spark: SparkSession) -> dict[str, float]:
    """Return the seconds of Spark's jobs by their description."""
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    spent: Counter[str] = Counter()
    for place in range(jobs.size()):
        job = jobs.apply(place)
        text = job.description().get() if job.description().isDefined() else "other"
        spent[text] += (job.completionTime().get().getTime() - job.submissionTime().get().getTime()) / 1000
    return dict(spent)


def fill(folder: Path, size: int) -> None:
    """Write tars of PNGs, and a table with a label for each and a patient for one to three of them."""
    rng = random.Random(0)
    folder.mkdir()
    with (folder / "metadata.csv").open("w") as table:
        table.write("image_id,label,patient_id\n")
        patient = left = 0
        for start in range(0, size, A_TAR):
            with (folder / f"part-{start // A_TAR:04}.tar").open("wb") as tar:
                for place in range(start, min(start + A_TAR, size)):
                    if not left:
                        patient, left = patient + 1, rng.randint(1, 3)
                    left -= 1
                    content = png(rng.randbytes(3 * SIDE * SIDE))
                    member = tarfile.TarInfo(f"image_{place:07}.png")
                    member.size = len(content)
                    tar.write(member.tobuf() + content + bytes(-len(content) % 512))
                    table.write(f"image_{place:07},{rng.choice(('benign', 'malignant'))},patient_{patient:07}\n")
                tar.write(bytes(1024))


def png(pixels: bytes) -> bytes:
    """Return a PNG of SIDE x SIDE RGB pixels."""
    lines = io.BytesIO()
    for start in range(0, len(pixels), 3 * SIDE):
        lines.write(b"\0" + pixels[start : start + 3 * SIDE])
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.getvalue(), 0)), (b"IEND", b""))
    encoded = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


if __name__ == "__main__":
    main()
