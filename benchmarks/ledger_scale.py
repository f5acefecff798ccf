"""Measures a whole score that finds nothing new, or ten new images, by the size of the ledger.

The ledgers have 100,000, 1,000,000 and 10,000,000 rows in 3,650 batches, ten years of nights. Each batch has an index,
as older versions of score left it; the first run merges them. Then `melanoma-spark score` runs, start of Spark
included, on archives of 1,000 and of 100,000 images that are all scored, and with ten new images.

    .venv/bin/python benchmarks/ledger_scale.py                  (about 15 minutes on 2 cores, 4 GB of disk)
    .venv/bin/python benchmarks/ledger_scale.py 10000000 --nights 20
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml
from ingest_scale import SIDE, fill
from score import register_random_model
from side_by_side import REPO, start_spark

from melanoma_spark import config, schemas, tracking
from melanoma_spark.archives import listing
from melanoma_spark.images import synthetic
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import ledger, status
from melanoma_spark.storage import files

SIZE = 32  # pixels, of the network
ARCHIVES = {"small": 1_000, "large": 100_000}  # images
NEW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", nargs="*", type=int, default=[100_000, 1_000_000, 10_000_000], help="rows of the ledger"
    )
    parser.add_argument("--nights", type=int, default=3_650, help="batches [3650]")
    parser.add_argument("--only-generate", type=Path, help=argparse.SUPPRESS)  # in a separate process
    options = parser.parse_args()
    if options.only_generate:
        generate(options.only_generate, options.rows[0], options.nights)
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as name:
            folder = Path(name)
            same = ["--nights", str(options.nights), "--only-generate", name]
            subprocess.run([sys.executable, __file__, str(rows), *same], check=True, stdout=subprocess.DEVNULL)
            print(f"{rows} rows of {options.nights} batches:", flush=True)
            measure(folder)


def measure(folder: Path) -> None:
    time_score("the first run, which merges them", folder, "small")
    time_score("nothing new in 1,000 images", folder, "small")
    time_score("nothing new in 100,000 images", folder, "large")
    for seed in range(NEW):
        (folder / f"small/new-{seed}.jpg").write_bytes(synthetic.lesion_jpeg(seed, size=SIDE * 4))
    time_score(f"{NEW} new images beside 1,000", folder, "small")


def time_score(what: str, folder: Path, which: str) -> None:
    """Run score on one of the archives and print its seconds."""
    command = [str(REPO / "spark-submit.sh"), "score", "--conf", str(folder / f"{which}.yaml"), "--master", "local[2]"]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - started
    job = re.search(r"; ([\d.]+) s$", done.stdout.strip())
    print(f"    {what}: {seconds:.1f} s, of which the job {job[1] if job else '?'} s", flush=True)


def generate(folder: Path, rows: int, nights: int) -> None:
    """Write a warehouse with a model and a ledger, and archives whose images are all in the ledger."""
    for name, images in ARCHIVES.items():
        fill(folder / name, images)
        values = {"archive": str(folder / name), "warehouse": str(folder / "warehouse"), "image_size": SIZE}
        small = {"ingest": {"min_side": SIDE}, "score": {"worklist": {"pictures": 0}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**values, **small}))
    spark = start_spark()
    for name in ARCHIVES:
        settings = config.load(str(folder / f"{name}.yaml"), [])
        warehouse = files.url_of(settings.warehouse)
        context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
        if name == "small":
            register_random_model(folder, SIZE)
            model = context.tracker.find_version("melanoma@champion")
            assert model is not None
            model_name, version = model.name, str(model.version)
        listed = ledger.with_source_key(listing.list_archive(spark, settings)).where("role = 'image'")
        index = listed.selectExpr(
            "source_key", "source_uri", "image_id", "unhex(sha2(source_uri, 256)) sha256", "true done", "'x' batch_id"
        )
        place = files.join(warehouse, "ledger", model_name, version, f"{status.PREFIX}19990101-{name}")
        index.coalesce(1).write.parquet(place)
        files.make_folder(files.join(warehouse, "scores", f"{status.PREFIX}19990101-{name}"))
    spark.stop()
    top = folder / "warehouse"
    rng = np.random.default_rng(0)
    for night in range(nights):
        batch = f"{datetime(2016, 1, 1, 2, tzinfo=UTC) + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:06x}"
        count = rows * (night + 1) // nights - rows * night // nights
        table = draw_index(rng, night, count)
        for parent in (top / "ledger" / model_name / version, top / "scores"):
            (parent / f"{status.PREFIX}{batch}").mkdir(parents=True)
        target = top / "ledger" / model_name / version / f"{status.PREFIX}{batch}" / "part-00000.parquet"
        pyarrow.parquet.write_table(table, target)
        one = pa.table({name: pa.nulls(1) for name in ("image_id", "sha256")})  # a file, because score lists scores/
        pyarrow.parquet.write_table(one, top / "scores" / f"{status.PREFIX}{batch}" / "part-00000.parquet")


def draw_index(rng: np.random.Generator, night: int, count: int) -> pa.Table:
    """Return rows of `schemas.LEDGER` for files that do not exist."""

    def noise(length: int) -> pa.Array:
        content = pa.py_buffer(rng.bytes(length * count))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(length), count, [None, content]).cast(pa.binary())

    names = pa.array([f"night-{night:04d}-image-{place:07d}" for place in range(count)])
    uris = pa.array([f"file:/data/archive/{name}.jpg" for name in names.to_pylist()])
    done, batch = pa.array(np.ones(count, bool)), pa.nulls(count, pa.string())
    return pa.table([noise(16), uris, names, noise(32), done, batch], names=schemas.LEDGER.names)


if __name__ == "__main__":
    main()
