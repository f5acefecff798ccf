"""Grad-CAM: the maps are those of the definition, by another way, and point where the evidence is."""

import numpy as np
import pytest

from melanoma_spark.models import backbones, gradcam, network


def built(name, size=80):
    import keras

    keras.utils.set_random_seed(0)
    spec = network.Spec(backbone=name, image_size=size, hidden=6, dropout=0.5)
    return spec, [np.asarray(value) for value in network.build(spec).get_weights()]


@pytest.mark.parametrize("name", ["vgg16", "xception"])
def test_every_backbone_has_maps_between_0_and_1(name):
    spec, tensors = built(name)
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    result = gradcam.heatmaps(spec, tensors)(images, [True, False])
    assert result.shape[0] == 2
    assert result.ndim == 3
    assert result.dtype == np.float32
    assert ((result >= 0) & (result <= 1)).all()
    assert all(heat.max() in (0, 1) for heat in result)
    assert result.max() == 1


def test_the_map_is_that_of_small_changes_of_each_channel():
    """The weight of a channel is how much the logit rises when all of the channel does: found by adding to it."""
    import keras

    spec, tensors = built("vgg16", 64)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    complete = network.build(spec, tensors)
    last = backbones.backbone("vgg16").last_convolution
    maps = np.asarray(keras.Model(complete.input, complete.get_layer(last).output)(image)).astype(np.float64)
    behind = keras.Model(complete.get_layer(last).output, complete.get_layer("head_dropout").output)
    kernel, bias = (np.asarray(value, np.float64) for value in complete.get_layer("probability").get_weights())

    def logit(values):
        return (np.asarray(behind(values.astype(np.float32))).astype(np.float64) @ kernel + bias)[:, 0]

    step = 1e-3 * maps.max()
    channels = maps.shape[-1]
    moved = np.repeat(maps, channels, axis=0)
    moved[np.arange(channels), :, :, np.arange(channels)] += step
    strength = (logit(moved) - logit(maps)) / step / maps[0, ..., 0].size
    for positive in (True, False):
        heat = np.maximum(0, (maps[0] * strength).sum(axis=-1) * (1 if positive else -1))
        expected = heat / heat.max() if heat.max() > 0 else heat
        result = gradcam.heatmaps(spec, tensors)(image, [positive])[0]
        np.testing.assert_allclose(result, expected, atol=0.05)


def test_a_saturated_network_still_has_a_map():
    spec, tensors = built("vgg16", 64)
    tensors[-1] = np.array([60.0], np.float32)  # the probability is 1, its gradient 0
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert gradcam.heatmaps(spec, tensors)(image, [True]).max() == 1 or (
        gradcam.heatmaps(spec, tensors)(image, [False]).max() == 1
    )
