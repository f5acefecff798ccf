"""The convolutional bases: preprocessing inside, cuts, weights that fit."""

import numpy as np
import pytest

from melanoma_spark import backbones
from melanoma_spark.errors import ConfigError

SIZE = 32


@pytest.fixture(scope="module")
def base():
    return backbones.build_base("vgg16", SIZE, backbones.random_weights("vgg16", seed=0))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_base_prepares_pixels_as_keras_does_for_this_network(base, pixels):
    import keras

    plain = keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    plain.set_weights(base.get_weights())
    prepared = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32).copy())
    np.testing.assert_allclose(base.predict_on_batch(pixels), plain.predict_on_batch(prepared), rtol=1e-4, atol=1e-5)


def test_each_cut_gives_what_the_layer_of_that_name_gives_and_the_last_cut_the_bottleneck(base, pixels):
    cuts = backbones.backbone("vgg16").cuts
    outputs = backbones.features(base, cuts).predict_on_batch(pixels)
    shapes = backbones.cut_shapes("vgg16", SIZE, cuts)
    assert [output.shape[1:] for output in outputs] == [shapes[cut] for cut in cuts]
    assert shapes["block4_pool"] == (2, 2, 512)
    np.testing.assert_allclose(outputs[-1], base.predict_on_batch(pixels), rtol=1e-5, atol=1e-6)


def test_random_weights_are_the_same_for_the_same_seed_and_keep_activations_in_a_sane_range(base, pixels):
    again, other = backbones.random_weights("vgg16", seed=0), backbones.random_weights("vgg16", seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), again, strict=True))
    assert not np.array_equal(again[0], other[0])
    spread = float(base.predict_on_batch(pixels).std())
    assert 0.01 < spread < 100


def test_weights_of_other_shapes_are_refused_with_the_first_that_differs():
    tensors = backbones.random_weights("vgg16", seed=0)
    tensors[2] = tensors[2][..., :5]
    with pytest.raises(ConfigError, match=r"26 tensors, 26 were given; .*tensor 2: expected .*64\)\], found .*5\)\]"):
        backbones.build_base("vgg16", SIZE, tensors)
    with pytest.raises(ConfigError, match="it has 26 tensors, 3 were given"):
        backbones.build_base("vgg16", SIZE, tensors[:2] + tensors[3:4])


def test_unknown_backbones_and_cuts_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown backbone 'vgg19'; known: .*vgg16"):
        backbones.backbone("vgg19")
    with pytest.raises(ConfigError, match=r"vgg16 has no cut 'fc1'; .*block4_pool, block5_pool"):
        backbones.check_cut("vgg16", "fc1")
