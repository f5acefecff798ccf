"""Grad-CAM: which places of an image a decision rests on (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.models import backbones, network

Heatmaps = Callable[[NDArray[np.uint8], Sequence[bool]], NDArray[np.float32]]


def heatmaps(spec: network.Spec, weights: Sequence[np.ndarray]) -> Heatmaps:
    """A function of images and of which of them are `positive`, for many calls.

    uint8 RGB (n, size, size, 3) -> (n, h, w) float32 in [0, 1], of the size of the last convolution's maps.

    1 is where the decision of an image rests most: the evidence for the target where `positive`, against it elsewhere.
    All 0 where nothing speaks for it. The gradient is that of the logit, not of the probability, which has none left
    where a network is sure.
    """
    import keras
    import tensorflow as tf

    whole = network.build(spec, weights)
    convolution = whole.get_layer(backbones.backbone(spec.backbone).last_convolution).output
    last = whole.get_layer(network.HEAD_LAYERS[-1])
    inner = keras.Model(whole.input, [convolution, last.input])

    pixels = tf.TensorSpec([1, *whole.input.shape[1:]], network.input_dtype(whole))

    @tf.function(input_signature=[pixels, tf.TensorSpec([])])
    def heat_of(image: Any, sign: Any) -> Any:
        with tf.GradientTape() as tape:
            maps, hidden = inner(image, training=False)
            tape.watch(maps)
            logit = sign * (tf.cast(hidden, tf.float32) @ last.kernel + last.bias)
        gradient = tf.cast(tape.gradient(logit, maps), tf.float32)
        strength = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(strength * tf.cast(maps, tf.float32), axis=-1))[0]

    def found(images: NDArray[np.uint8], positive: Sequence[bool]) -> NDArray[np.float32]:
        heats = []
        for image, of in zip(images, positive, strict=True):
            heat = heat_of(image[None], 1.0 if of else -1.0).numpy()
            heats.append(heat / heat.max() if heat.max() > 0 else heat)
        return np.stack(heats).astype(np.float32)

    return found
