"""Base and head joined into one network, and cut apart again.

A network is a `Spec` and a list of tensors; it is built by this code from those two, so no file that holds a model can
bring code along. Importing this module does not import TensorFlow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from melanoma_spark import config
from melanoma_spark.errors import ClusterError
from melanoma_spark.models import backbones

Predict = Callable[[np.ndarray], list[np.ndarray]]


class Spec(BaseModel):
    """What a network looks like, and how it judges. Two networks of the same spec hold tensors of the same shapes.

    `tta` is the number of `symmetries` of an image over which `classifier` takes the mean. Training has no
    part in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    image_size: int
    hidden: int
    dropout: float
    tta: config.Symmetries = 1


HEAD_LAYERS = ("head_average", "head_dense", "head_dropout", "probability")


def build_head(features: Any, spec: Spec) -> Any:
    """Bottleneck features (n, h, w, c) -> probability of malignancy (n, 1), float32."""
    from keras import layers

    average, dense, dropout, probability = HEAD_LAYERS
    x = layers.GlobalAveragePooling2D(name=average)(features)
    x = layers.Dense(spec.hidden, activation="relu", name=dense)(x)
    x = layers.Dropout(spec.dropout, name=dropout)(x)
    return layers.Dense(1, activation="sigmoid", dtype="float32", name=probability)(x)


def build(spec: Spec, weights: Sequence[np.ndarray] | None = None) -> Any:
    """The whole network: uint8 RGB (n, size, size, 3) -> probability (n, 1)."""
    import keras

    base = backbones.build_base(spec.backbone, spec.image_size)
    network = keras.Model(base.input, build_head(base.output, spec), name="network")
    if weights is not None:
        backbones.set_weights(network, weights, "weights of the network")
    return network


def tail(network: Any, cut: str | None) -> Any:
    """The part of the network behind a cut, sharing its layers; all of it where `cut` is None."""
    import keras

    if cut is None:
        return network
    start = network.get_layer(cut).output
    # named by the cut, because this is the column of the features that the tail reads
    return keras.Model(start, network.output, name=f"behind_{cut}")


def symmetries(images: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The first `count` of the eight symmetries of the square, of images (n, size, size, 3): views of their memory.

    The image itself; left to right; top to bottom, and both, which is a half turn; and the same four transposed, which
    has both quarter turns among them. The first 1, 2, 4 or 8 are each a group: no orientation is favoured.
    """
    pair = (images, images.swapaxes(1, 2))
    flips = (np.s_[:], np.s_[:, :, ::-1], np.s_[:, ::-1], np.s_[:, ::-1, ::-1])
    return itertools.islice((kind[flip] for kind in pair for flip in flips), count)


def judge(spec: Spec, weights: Sequence[np.ndarray]) -> Any:
    """The whole network with what it decides by: images -> [probability (n, 1), averaged features (n, c)]."""
    import keras

    whole = build(spec, weights)
    return keras.Model(whole.input, [whole.output, whole.get_layer(HEAD_LAYERS[0]).output], name="judge")


def classifier(spec: Spec, weights: Sequence[np.ndarray]) -> Predict:
    """What a network says of images, by TensorFlow; see `over_views`."""
    return over_views(predictor(judge(spec, weights)), spec.tta)


def over_views(forward: Predict, count: int) -> Predict:
    """uint8 RGB (n, size, size, 3) -> [probability (n, 1), its spread (n, 1), features (n, c)], all float32.

    All that judges images asks here: evaluation, scoring, the served model. `forward` is that of a `judge`. The
    probability is the arithmetic mean of those of `count` symmetries (test-time augmentation; so do Perez et al. 2018
    with augmented copies and Ha et al. 2020 with these eight). Not the mean of logits, which have no bound: one view
    that is sure to saturation would decide for all. The spread is their standard deviation, NaN of one view; the
    features are of the image as it is. Views go through the network one after the other, in the memory of one.
    """

    def predict(images: np.ndarray) -> list[np.ndarray]:
        found = [forward(np.ascontiguousarray(view)) for view in symmetries(images, count)]
        probabilities = np.stack([of_view[0] for of_view in found])
        spread = probabilities.std(axis=0) if count > 1 else np.full_like(probabilities[0], np.nan)
        return [probabilities.mean(axis=0), spread, found[0][1]]

    return predict


def input_dtype(model: Any) -> str:
    """Of the arrays that a model is fed with: numpy has no bfloat16, Keras casts."""
    return "float32" if model.input.dtype == "bfloat16" else str(model.input.dtype)


def predictor(model: Any) -> Predict:
    """A compiled forward pass for batches of any length: one trace, no training-time parts; a list of outputs."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None, *model.input.shape[1:]], input_dtype(model))]

    @tf.function(input_signature=signature, jit_compile=False)
    def outputs(batch: Any) -> Any:
        found = model(batch, training=False)
        return [tf.cast(tensor, tf.float32) for tensor in (found if isinstance(found, list | tuple) else [found])]

    def predict(batch: np.ndarray) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in outputs(batch)]

    return predict


def use_gpus(addresses: Sequence[str]) -> None:
    """Let TensorFlow see only these GPUs, which Spark gave this process by number; where it gave none, as before.

    Raises `ClusterError` when TensorFlow sees no such GPU.
    """
    if not addresses:
        return
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if max(map(int, addresses)) >= len(gpus):
        raise ClusterError(
            f"Spark gave this process GPU {', '.join(addresses)}, but TensorFlow sees {len(gpus)}; install it for GPUs "
            "(GPU=1 make install), or take spark.executor.resource.gpu.* out of the settings of Spark"
        )
    tf.config.set_visible_devices([gpus[int(address)] for address in addresses], "GPU")


def use_threads(threads: int) -> None:
    """Give TensorFlow this many threads in this process; only the first call in a process has an effect."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow has already run something here: a reused worker, set when it started
        return
