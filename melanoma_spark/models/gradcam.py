"""Grad-CAM: the regions of an image that a decision rests on (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.models import backbones, network

Heatmaps = Callable[[NDArray[np.uint8], Sequence[bool]], NDArray[np.float32]]


def heatmaps(spec: network.Spec, weights: Sequence[NDArray[np.float32]]) -> Heatmaps:
    """Make a function that computes heat maps of images and their decisions, `positive` or not.

    1 marks the strongest evidence in an image: for the target where `positive`, against it otherwise. All are 0 where
    there is none. The gradient is that of the logit, because that of a saturated probability is 0.

    Returns:
        uint8 RGB (n, size, size, 3) -> (n, h, w) float32 in [0, 1], of the size of the last convolution's maps.
    """
    import keras
    import tensorflow as tf

    model = network.build(spec, weights)
    convolution = model.get_layer(backbones.backbone(spec.backbone).last_convolution).output
    last = model.get_layer(network.HEAD_LAYERS[-1])
    inner = keras.Model(model.input, [convolution, last.input])

    pixels = tf.TensorSpec([1, *model.input.shape[1:]], network.input_dtype(model))

    def heat_of(image: Any, sign: Any) -> Any:
        with tf.GradientTape() as tape:
            maps, hidden = inner(image, training=False)
            tape.watch(maps)
            logit = sign * (tf.cast(hidden, tf.float32) @ last.kernel + last.bias)
        gradient = tf.cast(tape.gradient(logit, maps), tf.float32)
        strength = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(strength * tf.cast(maps, tf.float32), axis=-1))[0]

    compiled = tf.function(heat_of, input_signature=[pixels, tf.TensorSpec([])])

    def compute(images: NDArray[np.uint8], positive: Sequence[bool]) -> NDArray[np.float32]:
        heats = []
        for image, is_positive in zip(images, positive, strict=True):
            heat = compiled(image[None], 1.0 if is_positive else -1.0).numpy()
            heats.append(heat / heat.max() if heat.max() > 0 else heat)
        return np.asarray(np.stack(heats), np.float32)

    return compute
