"""score beside the bare TensorFlow loop and beside what else scores a folder of images: images/s and memory.

Each contestant is a command of its own, from JPEG files to probabilities in Parquet, on as many cores: `score` by each
of its engines, through spark-submit.sh and to the committed batch; and four peers (benchmarks/peers.py and on_ray.py,
whose environment is made here). Each runs twice, over few and over many images. `whole` is images/s of the second run,
start-up and all; `steady` is the images that it has more over the seconds that it takes more. The bare loop is
TensorFlow's forward pass over pixels that lie in memory, a process a core; it is measured before and after each
contestant, so that a machine whose speed drifts treats all alike. Memory is proportional (PSS), sampled twice a second.

    .venv/bin/python benchmarks/score.py                (about 10 minutes on 2 cores)
    .venv/bin/python benchmarks/score.py --only "score ncnn" --images 128
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from side_by_side import REPO, Memory, Processes

from melanoma_spark import config, lineage, tracking
from melanoma_spark.images import decoding, synthetic
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import score
from melanoma_spark.storage import files

ENGINES = ("ncnn", "onnxruntime", "tensorflow")
PEERS = ("naive pandas UDF", "iterator pandas UDF", "mlflow spark_udf", "Ray Data")
NAMES = (*(f"score {engine}" for engine in ENGINES), *PEERS)
SIZE, BATCH = 224, 16
RAY = "2.60.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320, help="of the longer run [320]")
    parser.add_argument("--few", type=int, default=64, help="of the shorter run [64]")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all contestants [1]")
    parser.add_argument("--slots", type=int, default=2, help="cores [2]")
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), chosen)


def run(folder: Path, chosen: argparse.Namespace) -> None:
    sizes = (chosen.few, chosen.images)
    for count in sizes:
        (folder / str(count)).mkdir()
        for seed in range(count):
            (folder / str(count) / f"{seed:05d}.jpg").write_bytes(synthetic.lesion_jpeg(seed, size=SIZE))
    scorer = registered(folder)
    ray = environment(folder / "ray") if "Ray Data" in chosen.only else None
    sample = sorted((folder / str(chosen.few)).iterdir())[:BATCH]
    pixels = np.stack([decoding.decode(path.read_bytes(), SIZE) for path in sample])
    print(f"{chosen.few} and {chosen.images} JPEG files of {SIZE} px, VGG16, random weights, {chosen.slots} cores")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen.only}
    with Processes(chosen.slots, bare_loop, pixels, scorer) as bare:
        bare.seconds([BATCH] * chosen.slots)

        def bare_speed() -> float:
            return 3 * BATCH * chosen.slots / bare.seconds([3 * BATCH] * chosen.slots)

        for _ in range(chosen.rounds):
            for name in chosen.only:
                before = bare_speed()
                few, many = (timed(name, folder, count, chosen.slots, ray) for count in sizes)
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
                found[name].append(turn)
                print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in turn.items()), flush=True)
    print(table(found))


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians over the rounds, as Markdown."""
    columns = list(next(iter(found.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for name, turns in found.items():
        medians = [statistics.median(turn[column] for turn in turns) for column in columns]
        cells = [f"{m:.0f}" if "MB" in column else f"{m:.2f}" for m, column in zip(medians, columns, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def timed(name: str, folder: Path, count: int, slots: int, ray: Path | None) -> dict[str, float]:
    """A contestant's command over so many images: seconds, and the peaks of `Memory`."""
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
    with open(folder / "said", "w+") as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | QUIET)
        with Memory(process.pid) as memory:
            status = process.wait()
        seconds = time.monotonic() - started
        said.seek(0)
        assert status == 0, f"{name} ended with {status}: {said.read()[-3000:]}"
    made = warehouse / "scores" if name.startswith("score") else target
    rows = sum(rows_of(path) for path in made.rglob("*.parquet"))
    assert rows == count, f"{name} made {rows} rows of {count} images"
    return {"seconds": seconds, "largest": memory.largest, "all": memory.all}


QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}


def rows_of(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def environment(folder: Path) -> Path:
    """Ray from PyPI in an environment of its own, with our versions of what computes; its Python."""
    uv = [str(REPO / ".uv/bin/uv"), "--quiet"]
    ours = [f"{name}=={version(name)}" for name in ("tensorflow-cpu", "keras", "numpy", "pillow")]
    outside = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder)], check=True, env=outside)
    python = folder / "bin/python"
    packages = [f"ray[data]=={RAY}", "pyarrow<20", *ours]  # later ones need another numpy than ours
    subprocess.run([*uv, "pip", "install", "--python", str(python), *packages], check=True, env=outside)
    return python


def registered(folder: Path, size: int = SIZE) -> bundle.Scorer:
    """In `folder/warehouse`, for images of `size` pixels: a network with random weights as the champion, and exported.

    Speed does not depend on their values.
    """
    settings = config.parse({"warehouse": str(folder / "warehouse"), "mlflow": {"system_metrics": False}})
    warehouse = files.url_of(settings.warehouse)
    tracker = tracking.Tracker(settings.mlflow, warehouse)
    spec = network.Spec(backbone="vgg16", image_size=size, hidden=256, dropout=0.5)
    tensors = network.build(spec).get_weights()
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    facts = {"id": "bench", "tensors_id": lineage.tensors_id(tensors), "dataset_id": "none"}
    scorer = bundle.Scorer(spec, tensors, Calibration(), point, 1, 10**8, facts)
    (folder / "weights.npz").write_bytes(files.pack_tensors(tensors))
    with tracker.run("register", {}):
        found = model_registry.register_model("melanoma", bundle.pack(scorer), None, {}, "of a benchmark")
    tracker.point("melanoma", "champion", found)
    context: Any = StageContext(None, settings, warehouse, tracker)
    own: Any = SimpleNamespace(context=context, scorer=scorer, model="melanoma", version=str(found))
    for engine in ENGINES[:2]:
        score.exported_network(own, engine)
    return scorer


def bare_loop(pixels: np.ndarray, scorer: bundle.Scorer) -> Callable[[int], None]:
    """Nothing but the forward pass over decoded pixels, on one thread."""
    network.use_threads(1)
    predict = network.predictor(network.build(scorer.spec, scorer.tensors))
    predict(pixels)

    def do(count: int) -> None:
        for _ in range(count // len(pixels)):
            predict(pixels)

    return do


if __name__ == "__main__":
    main()
