"""score's images/s over the bare TensorFlow loop's, by either engine: same network, batch, threads and run.

The job: JPEG files -> listed, hashed, decoded, judged, measured -> committed rows with their worklist, without
pictures, in a Spark whose workers have loaded the model. The ceiling: TensorFlow's forward pass over pixels that lie in
memory, in as many processes with as many threads each as the job has workers. They take turns.

    .venv/bin/python benchmarks/score.py                (about 8 minutes on 2 cores)
    .venv/bin/python benchmarks/score.py --images 64 --rounds 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from side_by_side import Processes, Turns, start_spark

from jobs import score
from jobs.job import Job
from melanoma_spark import config, drawing, files, images, lineage, network, serving, session, tracking
from melanoma_spark.calibration import Calibration
from melanoma_spark.operating_points import OperatingPoint

ENGINES = ("onnxruntime", "tensorflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images a round [512]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the jobs and the bare loop [3]")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels [224]")
    parser.add_argument("--slots", type=int, default=2, help="Spark tasks at once, one core each [2]")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        run(Path(folder), chosen)


def run(folder: Path, chosen: argparse.Namespace) -> None:
    archive = folder / "archive"
    archive.mkdir()
    for seed in range(chosen.images):
        (archive / f"{seed:05d}.jpg").write_bytes(drawing.lesion_jpeg(seed, size=chosen.size))
    values = {"archive": str(archive), "warehouse": str(folder / "warehouse"), "image_size": chosen.size}
    settings = config.parse({**values, "score": {"worklist": {"pictures": 0}}, "mlflow": {"system_metrics": False}})
    spark = start_spark(chosen.slots)
    warehouse = files.url_of(settings.warehouse)
    job = Job(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
    scorer = registered(job, chosen.size)

    def job_seconds(engine: str, count: int) -> float:
        """Of a whole job over images that it has never seen."""
        for name in ("scores", "ledger", "batches"):
            files.remove(files.join(warehouse, name))
        own = settings.model_copy(update={"score": settings.score.model_copy(update={"engine": engine})})
        with job.tracker.run("score", {}):
            started = time.monotonic()
            told = score.batch(Job(spark, own, warehouse, job.tracker))
            seconds = time.monotonic() - started
        assert f"= {count} scored + 0 rejected" in told, told
        return seconds

    pixels = np.stack([images.decode(path.read_bytes(), chosen.size) for path in sorted(archive.iterdir())[:32]])
    threads, batch = session.task_threads(spark), settings.score.batch_size
    print(f"{chosen.images} JPEG files of {chosen.size} px, batches of {batch}, random weights")
    print(f"Spark: {chosen.slots} tasks of {threads} thread; bare loop: {chosen.slots} processes of {threads} thread")
    turns = Turns(("onnxruntime", "bare_loop", 1.15), ("tensorflow", "bare_loop", 0.95))
    with Processes(chosen.slots, bare_loop, threads, pixels, scorer, batch) as bare:
        bare.seconds([batch] * chosen.slots)
        for turn in range(chosen.rounds + 1):  # the first loads the model
            found = {engine: chosen.images / job_seconds(engine, chosen.images) for engine in ENGINES}
            found["bare_loop"] = chosen.images / bare.seconds([chosen.images // chosen.slots] * chosen.slots)
            if turn:
                turns.add(**found)
    turns.summary()
    spark.stop()


def registered(job: Job, size: int) -> serving.Scorer:
    """A network with random weights, as a registered model: speed does not depend on their values."""
    spec = network.Spec(backbone="vgg16", image_size=size, hidden=256, dropout=0.5)
    tensors = network.build(spec).get_weights()
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    facts = {"id": "bench", "tensors_id": lineage.tensors_id(tensors), "dataset_id": "none"}
    scorer = serving.Scorer(spec, tensors, Calibration(), point, 1, 10**8, facts)
    with job.tracker.run("register", {}):
        example = None
        version = job.tracker.register("melanoma", serving.pack(scorer), example, {}, "of a benchmark")
    job.tracker.point("melanoma", "champion", version)
    return scorer


def bare_loop(threads: int, pixels: np.ndarray, scorer: serving.Scorer, batch: int) -> Callable[[int], None]:
    """Nothing but the forward pass over decoded pixels."""
    network.use_threads(threads)
    predict = network.predictor(network.build(scorer.spec, scorer.tensors))
    predict(pixels[:batch])

    def do(count: int) -> None:
        done = 0
        while done < count:
            done += len(predict(pixels[: min(batch, count - done)])[0])

    return do


if __name__ == "__main__":
    main()
