"""Measures the search for twins among many thumbnails: groups, recall, false pairs and how the cost grows.

Thumbnails are those of `lesion_thumbnails`: real ones of ../shared/data/lesions if that exists, else drawn ones, others
recombined from their principal components, and further photographs of some of them: turned, mirrored, zoomed, shifted,
darkened and recoded as JPEG. The number of lesions is known, so false pairs are counted, not judged.

    .venv/bin/python benchmarks/twins.py                       # 12,500 to 100,000 thumbnails, about 10 minutes
    .venv/bin/python benchmarks/twins.py --images 3000 6000
    .venv/bin/python benchmarks/twins.py --ingest 6000         # a whole ingest with and without, in turns
"""

import argparse
import io
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from side_by_side import REPO, Processors, Turns, start_spark

from melanoma_spark import config, tracking
from melanoma_spark.dataset import twins
from melanoma_spark.dataset.ingest import ingest
from melanoma_spark.images import decoding, synthetic
from melanoma_spark.runner.context import StageContext
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.storage import files

SIDE = 64  # pixels of the lesions that thumbnails are made of
PARTS = (0, 3, 12, 40)  # where a recombined lesion's components come from another one; the rest is the last one's
DRAWN = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    parser.add_argument("--slots", type=int, default=2, help="Spark tasks at once [2]")
    parser.add_argument("--ingest", type=int, help="measure a whole first ingest of so many images instead")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each ingest [3]")
    options = parser.parse_args()
    if options.ingest:
        compare_ingests(options.ingest, options.rounds, options.slots)
        return
    thumbnails, lesions = lesion_thumbnails(max(options.images))
    spark = start_spark(options.slots)
    took: list[tuple[int, float]] = []
    for count in [min(options.images) // 4, *options.images]:  # the first one starts Spark's workers
        keys = [f"{place:08d}" for place in range(count)]
        rows = [(key, bytes(thumbnail)) for key, thumbnail in zip(keys, thumbnails, strict=False)]
        table = spark.createDataFrame(rows, "pixel_sha256 string, thumbnail binary").repartition(8).persist()
        table.count()
        started = time.monotonic()
        pairs = twins.find_twins(table, count).collect()
        took.append((count, time.monotonic() - started))
        ends = np.array([(pair["first"], pair["second"]) for pair in pairs], np.int64)
        print(describe(count, took, ends, lesions[:count]), flush=True)
        table.unpersist()
    spark.stop()


def describe(count: int, took: list[tuple[int, float]], ends: NDArray[np.int64], lesions: NDArray[np.int64]) -> str:
    """One line: seconds, how they grew, pairs, false ones, recall of lesions, largest group."""
    right = lesions[ends[:, 0]] == lesions[ends[:, 1]]
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    sizes = np.bincount(lesions)
    several = np.flatnonzero(sizes[lesions] > 1)
    alone = np.bincount(component)[component[several]] == 1
    (before, seconds_before), (_, seconds) = took[-2:] if len(took) > 1 else (took[0], took[0])
    growth = np.log(seconds / seconds_before) / np.log(count / before) if len(took) > 2 else float("nan")
    return (
        f"{count} thumbnails of {len(np.unique(lesions))} lesions, threshold {twins.least_correlation(count):.4f}: "
        f"{seconds:.1f} s, n^{growth:.2f}; {len(ends)} pairs, {int((~right).sum())} of two lesions; "
        f"{1 - alone.mean():.3f} of {len(several)} photographs with another one of their lesion are in a group; "
        f"largest group {np.bincount(component).max()}, most photographs of one lesion {sizes.max()}"
    )


def lesion_thumbnails(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` thumbnails, uint8 (count, 1024), in random order, and the number of each one's lesion, int64 (count,)."""
    pairs = itertools.islice(lesion_photographs(count, seed), count)
    thumbnails, lesions = zip(*((np.asarray(square.reduce(SIDE // 32)).ravel(), n) for square, n in pairs), strict=True)
    order = np.random.default_rng(seed).permutation(count)
    return np.stack(thumbnails)[order], np.array(lesions)[order]


def lesion_photographs(count: int, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """`count` or a few more photographs, gray and `SIDE` pixels, and the number of each one's lesion."""
    rng = np.random.default_rng(seed)
    known = gray_lesions()
    mean = known.mean(axis=0)
    axes = np.linalg.svd((known - mean)[rng.permutation(len(known))[:400]], full_matrices=False)[2][: PARTS[-1]]
    scores = (known - mean) @ axes.T
    rest = known - scores @ axes
    for lesion in range(count):
        if lesion < len(known):
            picture = known[lesion]
        else:
            parents = rng.integers(len(known), size=len(PARTS) - 1)
            mixed = [scores[p, low:high] for p, low, high in zip(parents, PARTS, PARTS[1:], strict=False)]
            picture = rest[parents[-1]] + np.concatenate(mixed) @ axes
        square = Image.fromarray(picture.reshape(SIDE, SIDE).clip(0, 255).astype(np.uint8))
        yield square, lesion
        for _ in range(0 if rng.random() < 0.8 else min(int(rng.geometric(0.3)), 20)):
            yield photograph_again(square, rng), lesion


def compare_ingests(count: int, rounds: int, slots: int) -> None:
    """Print how fast a whole first ingest is with and without twins."""
    spark, turns = start_spark(slots), Turns(("group", "off", 0.95))
    processor: dict[str, list[float]] = {"group": [], "off": []}
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        for place, (square, _) in enumerate(itertools.islice(lesion_photographs(count, 0), count)):
            path = Path(folder, "archive", ("benign", "malignant")[place % 2], f"{place}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            square.resize((224, 224), Image.Resampling.BICUBIC).convert("RGB").save(path, quality=92)

        def speed(mode: str) -> float:
            words = {"archive": f"{folder}/archive", "warehouse": f"{folder}/warehouse", "ingest": {"twins": mode}}
            settings = config.parse(words)
            warehouse = files.url_of(settings.warehouse)
            context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
            processors, started = Processors(), time.monotonic()
            run_stage(context, "ingest", ingest, {"stage": "ingest"})
            seconds = time.monotonic() - started
            processor[mode].append(processors.seconds())
            shutil.rmtree(folder + "/warehouse")
            return count / seconds

        speed("group")  # starts Spark's workers
        processor["group"].clear()
        for _ in range(rounds):
            turns.add(group=speed("group"), off=speed("off"))
    turns.summary()
    ratio = statistics.median(processor["off"]) / statistics.median(processor["group"])
    print(f"processor time without over with twins: {ratio:.3f}")
    spark.stop()


def gray_lesions() -> NDArray[np.float32]:
    """Known lesions, gray: (n, 4096)."""
    paths = sorted((REPO.parent / "shared/data/lesions").glob("*/*.jpg"))
    contents = [path.read_bytes() for path in paths] or [
        synthetic.lesion_jpeg(seed, bool(seed % 2), 128) for seed in range(DRAWN)
    ]
    squares = [Image.fromarray(decoding.decode(content, SIDE)).convert("L") for content in contents]
    return np.stack([np.asarray(square, np.float32).ravel() for square in squares])


def photograph_again(square: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another photograph of a lesion: any orientation, a little zoomed, shifted and turned, other light, recoded."""
    turned = square.transpose(Image.Transpose(rng.integers(7)))
    zoom, angle = rng.normal(1, 0.02), np.deg2rad(rng.normal(0, 1.5))
    cos, sin, middle = zoom * np.cos(angle), zoom * np.sin(angle), SIDE / 2
    x, y = rng.normal(0, 0.5, 2)  # pixels of 64
    frame = (cos, sin, x + middle * (1 - cos - sin), -sin, cos, y + middle * (1 - cos + sin))
    moved = turned.transform(
        turned.size,
        Image.Transform.AFFINE,
        frame,
        Image.Resampling.BICUBIC,
        fillcolor=int(np.median(np.asarray(turned))),
    )
    lit = ImageEnhance.Contrast(ImageEnhance.Brightness(moved).enhance(rng.uniform(0.8, 1.1))).enhance(
        rng.uniform(0.8, 1.2)
    )
    file = io.BytesIO()
    lit.save(file, "JPEG", quality=int(rng.integers(50, 96)))
    return Image.open(file)


if __name__ == "__main__":
    main()
