"""Measures fine-tuning: cached features against pixels, reading against the step, two ranks against one process.

1. Block 5 trained from cached features at block4_pool, against the same from pixels through the frozen base: seconds of
   an epoch, and how far the weights differ after two epochs, because features are stored as float16.
2. Reading through Petastorm as the ranks do it, with one thread, against the time of a training step; and against
   tf.data that reads and decodes JPEG files of the same pixels with one thread.
3. Two Horovod ranks of one thread, started by Spark, against one Keras process (`fit`) of two threads with its data in
   memory and the same global batch: block 5 from cached features, and the whole network from pixels. Second epochs, so
   without tracing. Also the share of a step in which ranks exchange gradients, and the seconds until their first step.
   And against two Keras processes of one thread and half a batch, which exchange nothing: two ranks cannot be faster.

VGG16 at 224 px with random weights and batches of 32, as in conf/lesions.yaml. The contestants take turns.

    .venv/bin/python benchmarks/training.py             (about 15 minutes on 2 cores)
    .venv/bin/python benchmarks/training.py --parts 2
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyspark.sql import SparkSession
from side_by_side import Processes, Turns, start_spark

from melanoma_spark import config, tracking
from melanoma_spark.dataset.ingest import ingest
from melanoma_spark.images import synthetic
from melanoma_spark.models import network, weights
from melanoma_spark.runner.context import StageContext
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import horovod, loop, reading, sharding
from melanoma_spark.training.featurize import featurize

CUT, BATCH, AHEAD = "block4_pool", 32, 64 * 1024**2
BACKBONE = config.Backbone(weights="random", allow_random=True)  # speed does not depend on the weights' values
SPEC = network.Spec(backbone="vgg16", image_size=224, hidden=256, dropout=0.0)


@dataclass(frozen=True)
class Rows:
    """The train split as ranks read it: features of a cut, or pixels."""

    url: str
    column: str
    index: sharding.Index

    def images(self, count: int, threads: int = 1) -> loop.Images:
        """Return the first `count` images, read through Petastorm."""
        index = sharding.Index(
            self.index.places, self.index.groups[:count], self.index.keys[:count], self.index.labels[:count]
        )

        def read(shared: NDArray[Any]) -> Iterator[NDArray[Any]]:
            return reading.values(self.url, self.column, index, shared, threads, AHEAD)

        return loop.Images(index.groups, index.labels, read)

    def all(self) -> loop.Images:
        """Return all images in memory, ordered by key, so that features and pixels have the same order."""
        images = self.images(len(self.index))
        values = np.stack(list(images.read(sharding.share(sharding.deal(images.groups, 1), 0, 1))))
        order = np.argsort(self.index.keys)
        return loop.in_memory(values[order], images.labels[order])


def inputs_and_labels(images: loop.Images, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first `count` inputs and labels."""
    rows = np.arange(count, dtype=np.int32)[:, None]
    return np.stack(list(images.read(rows))), images.labels[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="images of an epoch of block 5 [160]")
    parser.add_argument("--whole", type=int, default=48, help="images of an epoch of the whole network [48]")
    parser.add_argument("--rounds", type=int, default=2, help="turns [2]")
    parser.add_argument("--parts", default="123", help="which of the three [123]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="melanoma-bench-") as folder:
        spark = start_spark(2)
        features, pixels = make_rows(spark, Path(folder), options.images)
        if "1" in options.parts:
            compare_features_with_pixels(features, pixels, options.images, options.rounds)
        if "2" in options.parts:
            compare_readers(features, pixels, options.images, Path(folder), options.rounds)
        if "3" in options.parts:
            compare_ranks(spark, "block 5 from cached features", CUT, features, options.images, rounds=options.rounds)
            compare_ranks(spark, "the whole network from pixels", None, pixels, options.whole, rounds=options.rounds)
        spark.stop()


def make_rows(spark: SparkSession, folder: Path, images: int) -> tuple[Rows, Rows]:
    """Ingest and featurize drawn lesions. Returns the train split as features and as pixels."""
    settings = config.parse(
        {
            "archive": str(folder / "archive"),
            "warehouse": str(folder / "warehouse"),
            "ingest": {"test_fraction": 0.1, "validation_fraction": 0.1},
            "backbone": BACKBONE.model_dump(),
        }
    )
    synthetic.draw_archive(folder / "archive", images=max(images * 3 // 2, 150), size=224)
    warehouse = files.url_of(settings.warehouse)
    context = StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse))
    with context.tracker.run("benchmark", {}):
        for stage in (ingest, featurize):
            print(stage(context), flush=True)
    images_url = manifests.require(ImagesManifest, warehouse).url(warehouse)
    train = {"train": training_labels(spark, images_url)["train"]}
    rows = []
    for kind, column in ((FeaturesManifest, CUT), (ImagesManifest, "image")):
        url = manifests.require(kind, warehouse).url(warehouse)
        rows.append(Rows(url, column, reading.indexes(spark, url, train)["train"][0]))
    assert len(rows[0].index) >= images
    return rows[0], rows[1]


def build_tail(cut: str | None, freeze: bool = False) -> Any:
    """Return the network after the cut; with `freeze` the whole network, of which only that part is trained."""
    import keras

    base = weights.resolve(BACKBONE, 0).tensors  # the features were computed with these
    keras.utils.set_random_seed(0)
    whole = network.build(SPEC)
    whole.set_weights([*base, *whole.get_weights()[len(base) :]])
    part = network.tail(whole, cut)
    if not freeze:
        return part
    for layer in whole.layers:
        layer.trainable = layer in part.layers
    return whole


def train_two_epochs(
    rank: loop.Rank, model: Any, images: loop.Images, states: list[loop.State] | None = None
) -> loop.EpochRecord:
    """Return the record of the second epoch of two; the first one traces."""
    plan = loop.Plan("benchmark", 1e-5, 2, 2, (1.0, 1.0), 0, BATCH)
    few = loop.Images(images.groups[:2], images.labels[:2], images.read)  # validation is not timed
    keep = states.append if states is not None else None
    return loop.train(rank, model, plan, lambda _: images, lambda _: few, log=lambda text: None, checkpoint=keep)[-1]


def compare_features_with_pixels(features: Rows, pixels: Rows, count: int, rounds: int) -> None:
    network.use_threads(2)
    turns = Turns(("cached", "pixels", 3.5))
    at_cut, whole = (loop.in_memory(*inputs_and_labels(rows.all(), count)) for rows in (features, pixels))
    for _ in range(rounds):
        cached, frozen = build_tail(CUT), build_tail(CUT, freeze=True)
        start = cached.get_weights()
        of_cached: list[loop.State] = []
        of_frozen: list[loop.State] = []
        turns.add(
            cached=train_two_epochs(loop.Rank(), cached, at_cut, of_cached).images_per_second,
            pixels=train_two_epochs(loop.Rank(), frozen, whole, of_frozen).images_per_second,
        )
        ones, others = (state[-1].variables[-len(cached.variables) :] for state in (of_cached, of_frozen))
        ones = [value for value, variable in zip(ones, cached.variables, strict=True) if variable.dtype == "float32"]
        others = [value for value in others if value.dtype == np.float32]
        apart = np.mean([np.abs(one - other).mean() for one, other in zip(ones, others, strict=True)])
        moved = np.mean([np.abs(one - before).mean() for one, before in zip(ones, start, strict=True)])
        print(f"weights after two epochs differ by {apart / moved:.3f} of their change")
    turns.summary()


def compare_readers(features: Rows, pixels: Rows, count: int, folder: Path, rounds: int) -> None:
    import tensorflow as tf

    jpeg = folder / "jpeg"
    jpeg.mkdir()
    for number, image in enumerate(inputs_and_labels(pixels.all(), count)[0]):
        Image.fromarray(image).save(jpeg / f"{number:05d}.jpg", quality=95)
    step = train_two_epochs(loop.Rank(), build_tail(CUT), features.images(count)).images_per_second
    print(f"a step of block 5: {step:.1f} images/s on two threads")
    turns = Turns(("features", "step", 3.0), ("pixels", "tf_data_of_jpeg", 0.3))

    def read(rows: Rows) -> float:
        started = time.monotonic()
        images = rows.images(count)
        read_count = sum(1 for _ in images.read(sharding.share(sharding.deal(images.groups, BATCH, 1), 0, 1)))
        return read_count / (time.monotonic() - started)

    def decoded(name: Any) -> Any:
        return tf.io.decode_jpeg(tf.io.read_file(name), channels=3)

    for _ in range(rounds):
        started = time.monotonic()
        names = sorted(map(str, jpeg.iterdir()))
        for _batch in tf.data.Dataset.from_tensor_slices(names).map(decoded).batch(BATCH).prefetch(2):
            pass
        plain = len(names) / (time.monotonic() - started)
        turns.add(step=step, features=read(features), pixels=read(pixels), tf_data_of_jpeg=plain)
    turns.summary()


def compare_ranks(spark: SparkSession, what: str, cut: str | None, rows: Rows, count: int, *, rounds: int) -> None:
    print(what)
    turns = Turns(("two_ranks", "one_process", 0.90), ("two_ranks", "two_bare_processes", 0.90))
    shares, starts = [], []
    images = rows.images(count)
    inputs, labels = inputs_and_labels(rows.all(), count)
    half = count // 2
    with (
        Processes(1, keras_process, cut, 2, BATCH, inputs, labels) as alone,
        Processes(2, keras_process, cut, 1, BATCH // 2, inputs[:half], labels[:half]) as pair,
    ):
        alone.seconds([1])
        pair.seconds([1, 1])
        for _ in range(rounds):
            one = count / alone.seconds([1])
            bare = 2 * half / pair.seconds([1, 1])
            began = time.time()
            speed, share, first = horovod.run_on_spark(spark, 2, 180, on_rank, cut, images)[0]
            turns.add(one_process=one, two_bare_processes=bare, two_ranks=speed)
            shares.append(share)
            starts.append(first - began)
    turns.summary()
    print(
        f"ranks exchange gradients in {statistics.median(shares):.1%} of a step, "
        f"and take their first step after {statistics.median(starts):.1f} s"
    )


def on_rank(rank: Any, cut: str | None, images: loop.Images) -> tuple[float, float, float]:
    """Return images/s of a second epoch, the share of a step for gradients, and the time when the first epoch began."""
    network.use_threads(1)
    model = build_tail(cut)
    first = time.time()
    record = train_two_epochs(rank, model, images)
    import horovod.tensorflow as hvd
    import tensorflow as tf

    gradients = [variable.value for variable in model.trainable_variables]
    exchange = tf.function(lambda: hvd.grouped_allreduce(gradients, op=hvd.Average))
    exchange()
    started = time.monotonic()
    for _ in range(3):
        exchange()
    seconds = (time.monotonic() - started) / 3
    steps = -(-len(images.labels) // BATCH)
    return record.images_per_second, seconds / (record.seconds / steps), first


def keras_process(
    cut: str | None, threads: int, batch: int, inputs: NDArray[Any], labels: NDArray[Any]
) -> Callable[[int], None]:
    import keras

    network.use_threads(threads)
    model = build_tail(cut)
    inputs = inputs.astype(model.input.dtype)
    model.compile(keras.optimizers.Adam(1e-5), "binary_crossentropy", jit_compile=False)

    def do(epochs: int) -> None:
        model.fit(inputs, labels.astype(np.float32), batch_size=batch, epochs=epochs, verbose=0)

    return do


if __name__ == "__main__":
    main()
