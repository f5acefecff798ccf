"""Grad-CAM: which places of an image a decision rests on (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import backbones, network


def heatmaps(
    spec: network.Spec, weights: Sequence[np.ndarray], images: NDArray[np.uint8], positive: Sequence[bool]
) -> NDArray[np.float32]:
    """uint8 RGB (n, size, size, 3) -> (n, h, w) float32 in [0, 1], of the size of the last convolution's maps.

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
    sign = np.where(np.asarray(positive), 1.0, -1.0).astype(np.float32)
    found = []
    for image, of in zip(images, sign, strict=True):
        with tf.GradientTape() as tape:
            maps, hidden = inner(image[None], training=False)
            logit = of * (tf.cast(hidden, tf.float32) @ last.kernel + last.bias)
        gradient = tf.cast(tape.gradient(logit, maps), tf.float32)
        strength = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(strength * tf.cast(maps, tf.float32), axis=-1))[0].numpy()
        found.append(heat / heat.max() if heat.max() > 0 else heat)
    return np.stack(found).astype(np.float32)
