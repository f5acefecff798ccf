"""Compares ingest with a bare loop, and the bare loop with Pillow at full size: same files, same run.

The job: list, read, decode, hash and store as PNG in `decoded/`, into a fresh warehouse, with Spark workers that have
started. The bare loop: as many processes as the job has slots; each reads, decodes, hashes and encodes its part of the
same files by the same functions, and stores nothing. Pillow: the same number of processes decode the whole photograph,
resize and encode it. They take turns, because the speed of a machine drifts.

Small images are those of ../shared/data/lesions if that exists, else drawn. Large ones are 4288 x 2848 pixels, enlarged
from ../shared/data/isic_ids or from drawings, with noise that makes the files as large as a camera's.

    make bench                                          (after featurize's; about 7 minutes on 2 cores)
    .venv/bin/python benchmarks/ingest.py --set large --rounds 1
"""

import argparse
import io
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pyspark.sql import SparkSession
from side_by_side import REPO, Processes, Turns, start_spark

from melanoma_spark import config, schemas, tracking
from melanoma_spark.archives import listing
from melanoma_spark.dataset import archive
from melanoma_spark.images import decoding, hashes, synthetic
from melanoma_spark.runner.context import StageContext
from melanoma_spark.spark import session
from melanoma_spark.storage import files

SHARED = REPO.parent / "shared/data"
SIZES = {"small": (224, 224), "large": (4288, 2848)}
IMAGES = {"small": 12_000, "large": 384}  # a turn takes more than 10 s, of which the start of the job is 1 s
DIFFERENT = 48  # large photographs; the others are links to them
PILLOW_SHARE = 4  # Pillow decodes one of so many photographs, which are all alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["small", "large"], action="append", help="which photographs [both]")
    parser.add_argument("--images", type=int, help=f"images for each turn {list(IMAGES.values())}")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each [3]")
    parser.add_argument("--size", type=int, default=224, help="side of the stored images in pixels [224]")
    parser.add_argument("--slots", type=int, default=2, help="Spark tasks at once, one core each [2]")
    options = parser.parse_args()
    spark = start_spark(options.slots)
    for name in options.set or list(SIZES):
        with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
            run(spark, Path(folder), name, options.images or IMAGES[name], options)
    spark.stop()


def run(spark: SparkSession, folder: Path, name: str, count: int, options: argparse.Namespace) -> None:
    paths = fill(folder / "archive", name, count)
    fill(folder / "warm-up", name, count // 8)
    size = sum(os.path.getsize(path) for path in paths) / len(paths)
    width, height = SIZES[name]
    print(f"{name}: {count} images of {width} x {height} px and {size / 1000:.0f} kB, stored at {options.size} px")
    print(f"Spark: {options.slots} tasks; bare loop and Pillow: {options.slots} processes")

    def job_seconds(archive_name: str) -> float:
        """Return the seconds that a first ingest needs to list and read the archive."""
        settings = config.parse(
            {
                "archive": str(folder / archive_name),
                "warehouse": str(folder / "warehouse"),
                "image_size": options.size,
            }
        )
        warehouse = files.url_of(settings.warehouse)
        context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
        started = time.monotonic()
        session.describe_jobs(spark, "ingest: list the archive")
        listing.list_archive(spark, settings).write.parquet(files.join(warehouse, "listed"))
        listed = spark.read.parquet(files.join(warehouse, "listed"))
        decoded, new, _ = archive.decode_new_files(context, listed.where("role = 'image' and reason is null"))
        seconds = time.monotonic() - started
        accepted = decoded.where("reason is null").count()
        if archive_name == "archive" and not accepted == new == count:
            raise SystemExit(f"{accepted} images were read of {new} listed, the archive has {count}")
        shutil.rmtree(folder / "warehouse")
        return seconds

    ratios = [("job", "bare_loop", 0.85)]
    if name == "large":
        ratios.append(("bare_loop", "Pillow_at_full_size", 2.0))
    turns = Turns(*ratios)
    slots = range(options.slots)
    with (
        Processes(options.slots, bare_loop, options.size) as bare,
        Processes(options.slots, pillow, options.size) as full,
    ):
        job_seconds("warm-up")
        for processes in (bare, full):
            processes.seconds([paths[place :: options.slots][:16] for place in slots])
        for _ in range(options.rounds):
            speeds = {
                "job": count / job_seconds("archive"),
                "bare_loop": count / bare.seconds([paths[place :: options.slots] for place in slots]),
            }
            if name == "large":
                some = paths[: -(-count // PILLOW_SHARE)]
                speeds["Pillow_at_full_size"] = len(some) / full.seconds(
                    [some[place :: options.slots] for place in slots]
                )
            turns.add(**speeds)
    turns.summary()


def bare_loop(size: int) -> Callable[[list[Path]], None]:
    """Return a function that does what ingest does with an image, and stores nothing."""
    field = schemas.images_schema(size).fields["image"]

    def do(paths: list[Path]) -> None:
        for path in paths:
            content = path.read_bytes()
            hashes.sha256(content)
            image = decoding.decode_with_hashes(content, size)
            hashes.pixel_hash(image.hash_pixels)
            hashes.perceptual_hash(image.hash_pixels)
            field.codec.encode(field, image.pixels)

    return do


def pillow(size: int) -> Callable[[list[Path]], None]:
    """Return a function that decodes at full size with Pillow, resizes and encodes."""
    field = schemas.images_schema(size).fields["image"]

    def do(paths: list[Path]) -> None:
        for path in paths:
            image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            field.codec.encode(field, np.asarray(image))

    return do


def fill(folder: Path, name: str, count: int) -> list[Path]:
    """An archive of so many photographs, and where they lie. What there is less of is there several times, as links."""
    made: list[Path] = []
    folder.mkdir()
    for place, content in enumerate(itertools.islice(photographs(name), count)):
        made.append(folder / f"{place}.jpg")
        made[-1].write_bytes(content)
    paths = list(made)
    for place in range(len(made), count):
        paths.append(folder / f"{place}.jpg")
        os.link(made[place % len(made)], paths[-1])
    return paths


def photographs(name: str) -> Iterator[bytes]:
    if name == "small":
        real = sorted((SHARED / "lesions").glob("*/*.jpg"))
        if real:
            yield from (path.read_bytes() for path in real)
        else:
            yield from (synthetic.lesion_jpeg(seed, bool(seed % 2), SIZES[name][0]) for seed in range(500))
        return
    width, height = SIZES[name]
    real = sorted((SHARED / "isic_ids").glob("*.jpg"))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 5, (height + DIFFERENT, width, 3)).astype(np.int16)
    for place in range(DIFFERENT):
        small = Image.open(
            real[place % len(real)] if real else io.BytesIO(synthetic.lesion_jpeg(place, bool(place % 2), 450))
        )
        pixels = np.asarray(small.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        noisy = (pixels + noise[place : place + height]).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=92)
        yield buffer.getvalue()


if __name__ == "__main__":
    main()
