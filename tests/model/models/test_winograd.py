"""VGG16 by ncnn: the maps of all cuts are TensorFlow's, at any size, and no other network is taken for it."""

import numpy as np
import pytest

from melanoma_spark.errors import ConfigError
from melanoma_spark.models import backbones, ncnn, network


def pixels(size, count=2):
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [32, 100])  # 100: odd sides on the way, of which pooling leaves a row
def test_outputs_of_all_cuts_are_those_of_tensorflow(size):
    cuts = ("block5_pool", "block2_pool", "block4_pool")
    base = backbones.build_base("vgg16", size, backbones.random_weights("vgg16", 0))
    model = backbones.features(base, cuts)
    content = ncnn.export(model)
    images = pixels(size)
    expected = network.predictor(model)(images)
    for threads in (1, 2):
        result = ncnn.predictor(content, threads)(images)
        for one, other in zip(result, expected, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
            assert np.ptp(other) > 0


def test_images_are_computed_alone_and_other_networks_refused():
    spec = network.Spec(backbone="vgg16", image_size=32, hidden=4, dropout=0.5)
    predict = ncnn.predictor(ncnn.export(network.scoring_model(spec, network.build(spec).get_weights())), 1)
    images = pixels(32, 5)
    together = predict(images)
    for place in range(5):
        for one, other in zip(predict(images[place : place + 1]), together, strict=True):
            np.testing.assert_array_equal(one[0], other[place])

    with pytest.raises(ConfigError, match=r"ncnn does not compute \w+ conv1_\w+; use engine=onnxruntime"):
        ncnn.export(backbones.build_base("resnet50", 32))
