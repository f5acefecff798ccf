"""Compares score with the bare TensorFlow loop and with four peers: images/s and memory.

Each contestant is a command, from JPEG files to probabilities in Parquet, on the same number of cores: `score` by each
of its engines, up to the committed batch; and four peers (benchmarks/peers.py and on_ray.py, for which this script
installs Ray). Each runs twice, over few and over many images. `whole` is images/s of the second run, start included;
`steady` is the additional images divided by the additional seconds. The bare loop is TensorFlow's forward pass over
pixels in memory, one process for each core. It is measured before and after each contestant, because the speed of a
machine drifts. Memory is proportional (PSS), sampled twice a second.

    .venv/bin/python benchmarks/score.py                (about 10 minutes on 2 cores)
    .venv/bin/python benchmarks/score.py --only "score ncnn" --images 128
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import REPO, Memory, Processes

from melanoma_spark import config, lineage, tracking
from melanoma_spark.images import decoding, synthetic
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import compute
from melanoma_spark.storage import files
from melanoma_spark.storage.tensors import pack_tensors

ENGINES = ("ncnn", "onnxruntime", "tensorflow")
PEERS = ("naive pandas UDF", "iterator pandas UDF", "mlflow spark_udf", "Ray Data")
NAMES = (*(f"score {engine}" for engine in ENGINES), *PEERS)
SIZE, BATCH = 224, 16
RAY = "2.60.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320, help="images of the longer run [320]")
    parser.add_argument("--few", type=int, default=64, help="images of the shorter run [64]")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all contestants [1]")
    parser.add_argument("--slots", type=int, default=2, help="cores [2]")
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    sizes = (options.few, options.images)
    for count in sizes:
        (folder / str(count)).mkdir()
        for seed in range(count):
            (folder / str(count) / f"{seed:05d}.jpg").write_bytes(synthetic.lesion_jpeg(seed, size=SIZE))
    scorer = register_random_model(folder)
    ray = install_ray(folder / "ray") if "Ray Data" in options.only else None
    sample = sorted((folder / str(options.few)).iterdir())[:BATCH]
    pixels = np.stack([decoding.decode(path.read_bytes(), SIZE) for path in sample])
    print(f"{options.few} and {options.images} JPEG files of {SIZE} px, VGG16, random weights, {options.slots} cores")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    with Processes(options.slots, bare_loop, pixels, scorer) as bare:
        bare.seconds([BATCH] * options.slots)

        def bare_speed() -> float:
            return float(3 * BATCH * options.slots / bare.seconds([3 * BATCH] * options.slots))

        for _ in range(options.rounds):
            for name in options.only:
                before = bare_speed()
                few, many = (run_contestant(name, folder, count, options.slots, ray) for count in sizes)
                ceiling = (before + bare_speed()) / 2
                steady = (sizes[1] - sizes[0]) / max(many["seconds"] - few["seconds"], 1e-9)
                turn = {
                    "whole": sizes[1] / many["seconds"],
                    "steady": steady,
                    "bare loop": ceiling,
                    "steady over bare": steady / ceiling,
                    "start, s": few["seconds"] - sizes[0] / steady,
                    "largest worker, MB": many["largest"],
                    "all processes, MB": many["all"],
                }
                results[name].append(turn)
                print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in turn.items()), flush=True)
    print(table(results))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians over the rounds as a Markdown table."""
    columns = list(next(iter(results.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for name, turns in results.items():
        medians = [statistics.median(turn[column] for turn in turns) for column in columns]
        cells = [f"{m:.0f}" if "MB" in column else f"{m:.2f}" for m, column in zip(medians, columns, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_contestant(name: str, folder: Path, count: int, slots: int, ray: Path | None) -> dict[str, float]:
    """Run a contestant over `count` images. Returns its seconds and its peak memory in MB."""
    archive, warehouse, target = folder / str(count), folder / "warehouse", folder / "target"
    for path in (target, *(warehouse / made for made in ("scores", "ledger", "batches", "scoring"))):
        shutil.rmtree(path, ignore_errors=True)
    words = [f"archive={archive}", f"warehouse={warehouse}", "score.worklist.pictures=0"]
    submit = [str(REPO / "spark-submit.sh"), "score", "--master", f"local[{slots}]", *words]
    peers = [sys.executable, str(REPO / "benchmarks/peers.py")]
    places = [str(archive), str(target), "--slots", str(slots)]
    weights, tracked = ["--weights", str(folder / "weights.npz")], ["--tracking", f"sqlite:///{warehouse}/mlflow.db"]
    command = {
        **{f"score {engine}": [*submit, f"score.engine={engine}"] for engine in ENGINES},
        "naive pandas UDF": [*peers, "naive", *places, *weights],
        "iterator pandas UDF": [*peers, "iterator", *places, *weights],
        "mlflow spark_udf": [*peers, "mlflow", *places, "--model", "models:/melanoma@champion", *tracked],
        "Ray Data": [str(ray), str(REPO / "benchmarks/on_ray.py"), *places[:2], weights[1], str(slots)],
    }[name]
    with open(folder / "output", "w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | QUIET)
        with Memory(process.pid) as memory:
            status = process.wait()
        seconds = time.monotonic() - started
        output.seek(0)
        assert status == 0, f"{name} ended with {status}: {output.read()[-3000:]}"
    made = warehouse / "scores" if name.startswith("score") else target
    rows = sum(count_rows(path) for path in made.rglob("*.parquet"))
    assert rows == count, f"{name} made {rows} rows of {count} images"
    return {"seconds": seconds, "largest": memory.largest, "all": memory.all}


QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}


def count_rows(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def install_ray(folder: Path) -> Path:
    """Install Ray from PyPI into a new environment, with this project's versions of TensorFlow and others.

    Returns the environment's Python.
    """
    uv = [str(REPO / ".uv/bin/uv"), "--quiet"]
    ours = [f"{name}=={metadata.version(name)}" for name in ("tensorflow-cpu", "keras", "numpy", "pillow")]
    outside = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder)], check=True, env=outside)
    python = folder / "bin/python"
    packages = [f"ray[data]=={RAY}", "pyarrow<20", *ours]  # later versions need another numpy
    subprocess.run([*uv, "pip", "install", "--python", str(python), *packages], check=True, env=outside)
    return python


def register_random_model(folder: Path, size: int = SIZE) -> bundle.Scorer:
    """Register and export a network with random weights as the champion, in `folder/warehouse`.

    `size` is the side of its images in pixels. Speed does not depend on the values of the weights.
    """
    settings = config.parse({"warehouse": str(folder / "warehouse"), "mlflow": {"system_metrics": False}})
    warehouse = files.url_of(settings.warehouse)
    tracker = tracking.Tracker(settings.mlflow, warehouse)
    spec = network.Spec(backbone="vgg16", image_size=size, hidden=256, dropout=0.5)
    tensors = network.build(spec).get_weights()
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    facts = {"id": "bench", "tensors_id": lineage.tensors_id(tensors), "dataset_id": "none"}
    scorer = bundle.Scorer(spec, tensors, Calibration(), point, 1, 10**8, facts)
    (folder / "weights.npz").write_bytes(pack_tensors(tensors))
    with tracker.run("register", {}):
        version = model_registry.register_model("melanoma", bundle.pack(scorer), None, {}, "of a benchmark")
    tracker.set_alias("melanoma", "champion", version)
    context: Any = StageContext(None, settings, warehouse, tracker)
    for engine in ENGINES[:2]:
        compute.exported_network(context, scorer, "melanoma", str(version), engine)
    return scorer


def bare_loop(pixels: NDArray[Any], scorer: bundle.Scorer) -> Callable[[int], None]:
    """Return a function that runs only the forward pass over decoded pixels, on one thread."""
    network.use_threads(1)
    predict = network.predictor(network.build(scorer.spec, scorer.tensors))
    predict(pixels)

    def do(count: int) -> None:
        for _ in range(count // len(pixels)):
            predict(pixels)

    return do


if __name__ == "__main__":
    main()
