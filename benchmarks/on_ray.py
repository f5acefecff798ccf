"""Scores with Ray Data and a pool of actors that hold the model: for benchmarks/score.py, which installs Ray.

It does not import this package: read_binary_files -> decode -> actors -> Parquet, as Ray's documentation shows it.

    RAY_USAGE_STATS_ENABLED=0 python benchmarks/on_ray.py ARCHIVE TARGET WEIGHTS.npz SLOTS
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import ray
from PIL import Image

SIZE, BATCH = 224, 16


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """Add the pixels of an image file to its row."""
    image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
    return {"path": row["path"], "pixels": np.asarray(image.resize((SIZE, SIZE)))}


class Predictor:
    """An actor that holds the network."""

    def __init__(self, weights: str) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        import keras

        layers, vgg16 = keras.layers, keras.applications.vgg16
        pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
        prepared = vgg16.preprocess_input(keras.ops.cast(pixels, "float32"))
        features = vgg16.VGG16(include_top=False, weights=None, input_tensor=prepared).output
        features = layers.Dense(256, activation="relu")(layers.GlobalAveragePooling2D()(features))
        model = keras.Model(pixels, layers.Dense(1, activation="sigmoid")(features))
        with np.load(weights) as arrays:
            model.set_weights([arrays[name] for name in sorted(arrays.files)])
        self.forward = tf.function(lambda batch: model(batch, training=False))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"path": batch["path"], "probability": self.forward(batch["pixels"]).numpy()[:, 0].astype(float)}


def main() -> None:
    archive, target, weights, slots = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    # One slot more than actors: without it none is left to read and decode, and Ray waits forever.
    ray.init(num_cpus=slots + 1, include_dashboard=False, log_to_driver=False)
    images = ray.data.read_binary_files(archive, include_paths=True).map(decode)
    pool = ray.data.ActorPoolStrategy(size=slots)
    scores = images.map_batches(Predictor, fn_constructor_args=[weights], batch_size=BATCH, num_cpus=1, compute=pool)
    scores.write_parquet(target)
    ray.shutdown()


if __name__ == "__main__":
    main()
