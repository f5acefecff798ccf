"""Builds a network from base and head, cuts it, and runs it.

A network is a `Spec` and a list of tensors. This code builds it from the two, so a file that holds a model cannot bring
code along. Importing this module does not import TensorFlow.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from melanoma_spark import config
from melanoma_spark.errors import ClusterError
from melanoma_spark.models import backbones

Predict = Callable[[NDArray[Any]], list[NDArray[np.float32]]]


class Spec(BaseModel):
    """The architecture of a network, and its views of an image. Networks of one spec have tensors of the same shapes.

    `tta` is the number of `symmetries` of an image over which `classifier` takes the mean. Training does not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    image_size: int
    hidden: int
    dropout: float
    tta: config.Symmetries = 1


HEAD_LAYERS = ("head_average", "head_dense", "head_dropout", "probability")


def build_head(features: Any, spec: Spec) -> Any:
    """Build the head: bottleneck features (n, h, w, c) -> probability of the target (n, 1), float32."""
    from keras import layers

    average, dense, dropout, probability = HEAD_LAYERS
    x = layers.GlobalAveragePooling2D(name=average)(features)
    x = layers.Dense(spec.hidden, activation="relu", name=dense)(x)
    x = layers.Dropout(spec.dropout, name=dropout)(x)
    return layers.Dense(1, activation="sigmoid", dtype="float32", name=probability)(x)


def build(spec: Spec, weights: Sequence[NDArray[np.float32]] | None = None) -> Any:
    """Build the network of base and head: uint8 RGB (n, size, size, 3) -> probability (n, 1)."""
    import keras

    base = backbones.build_base(spec.backbone, spec.image_size)
    network = keras.Model(base.input, build_head(base.output, spec), name="network")
    if weights is not None:
        backbones.set_weights(network, weights, "weights of the network")
    return network


def tail(network: Any, cut: str | None) -> Any:
    """The part of the network after a cut, sharing its layers; all of it where `cut` is None."""
    import keras

    if cut is None:
        return network
    start = network.get_layer(cut).output
    # The name has the cut, because this is the column of the features that the tail reads.
    return keras.Model(start, network.output, name=f"behind_{cut}")


def symmetries(images: NDArray[np.uint8], count: int) -> Iterator[NDArray[np.uint8]]:
    """The first `count` of the eight symmetries of the square, of images (n, size, size, 3): views of their memory.

    The image itself, mirrored left to right, top to bottom, and both (a half turn), then the same four transposed,
    which include both quarter turns. The first 1, 2, 4 or 8 are each a group: no orientation is favored.
    """
    pair = (images, images.swapaxes(1, 2))
    flips = (np.s_[:], np.s_[:, :, ::-1], np.s_[:, ::-1], np.s_[:, ::-1, ::-1])
    return itertools.islice((kind[flip] for kind in pair for flip in flips), count)


def scoring_model(spec: Spec, weights: Sequence[NDArray[np.float32]]) -> Any:
    """Build the network with its features as an output: images -> [probability (n, 1), averaged features (n, c)]."""
    import keras

    network = build(spec, weights)
    return keras.Model(network.input, [network.output, network.get_layer(HEAD_LAYERS[0]).output], name="scoring")


def classifier(spec: Spec, weights: Sequence[NDArray[np.float32]]) -> Predict:
    """The forward pass of a network over its views of an image, by TensorFlow; see `average_over_views`."""
    return average_over_views(predictor(scoring_model(spec, weights)), spec.tta)


def average_over_views(forward: Predict, count: int) -> Predict:
    """Average the forward pass of a `scoring_model` over views of an image.

    Evaluation, scoring and the served model all use this. The probability is the arithmetic mean over `count`
    symmetries: test-time augmentation, as Perez et al. 2018 with augmented copies and Ha et al. 2020 with these eight.
    It is not the mean of logits, which have no bound: one saturated view would decide for all. Views go through the
    network one after the other, in the memory of one.

    Returns:
        uint8 RGB (n, size, size, 3) -> [probability (n, 1), spread (n, 1), features (n, c)], all float32. The spread is
        the standard deviation over views, NaN of one view. The features are of the image as it is.
    """

    def predict(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        outputs = [forward(np.ascontiguousarray(view)) for view in symmetries(images, count)]
        probabilities = np.stack([of_view[0] for of_view in outputs])
        spread = probabilities.std(axis=0) if count > 1 else np.full_like(probabilities[0], np.nan)
        return [probabilities.mean(axis=0), spread, outputs[0][1]]

    return predict


def input_dtype(model: Any) -> str:
    """The dtype of arrays for a model: numpy has no bfloat16, and Keras casts float32."""
    return "float32" if model.input.dtype == "bfloat16" else str(model.input.dtype)


def predictor(model: Any) -> Predict:
    """Compile a forward pass for batches of any length: one trace, in inference mode; a list of outputs."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None, *model.input.shape[1:]], input_dtype(model))]

    def outputs(batch: Any) -> Any:
        result = model(batch, training=False)
        return [tf.cast(tensor, tf.float32) for tensor in (result if isinstance(result, list | tuple) else [result])]

    compiled = tf.function(outputs, input_signature=signature, jit_compile=False)

    def predict(batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        return [tensor.numpy() for tensor in compiled(batch)]

    return predict


def use_gpus(addresses: Sequence[str]) -> None:
    """Let TensorFlow see only these GPUs, which Spark assigned to this process by number; without any, change nothing.

    Raises `ClusterError` where TensorFlow sees no such GPU.
    """
    if not addresses:
        return
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if max(map(int, addresses)) >= len(gpus):
        raise ClusterError(
            f"Spark assigned GPU {', '.join(addresses)} to this process, but TensorFlow sees {len(gpus)}; install it "
            "for GPUs (GPU=1 make install), or remove spark.executor.resource.gpu.* from Spark's settings"
        )
    tf.config.set_visible_devices([gpus[int(address)] for address in addresses], "GPU")


def use_threads(threads: int) -> None:
    """Give TensorFlow this many threads in this process; only the first call in a process has an effect."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # a reused worker, in which TensorFlow runs already, with the threads set at its start
        return
