"""Base and head joined, cut apart, and the compiled forward pass."""

import numpy as np
import pytest

from melanoma_spark import backbones, network
from melanoma_spark.errors import ConfigError

SPEC = network.Spec(backbone="vgg16", image_size=32, hidden=8, dropout=0.5)


@pytest.fixture(scope="module")
def joined():
    model = network.build(SPEC)
    base = backbones.random_weights("vgg16", seed=0)
    model.set_weights([*base, *model.get_weights()[len(base) :]])
    return model


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("cut", ["block3_pool", "block4_pool", "block5_pool"])
def test_the_part_before_a_cut_and_the_part_behind_it_give_what_the_whole_gives(joined, pixels, cut):
    front = backbones.features(joined, [cut])
    behind = network.tail(joined, cut)
    halfway = front.predict_on_batch(pixels)
    halfway = halfway[0] if isinstance(halfway, list) else halfway
    np.testing.assert_allclose(behind.predict_on_batch(halfway), joined.predict_on_batch(pixels), atol=1e-6)


def test_the_part_behind_a_cut_shares_its_layers_with_the_whole_and_leaves_the_rest_alone(joined, pixels):
    behind = network.tail(joined, "block4_pool")
    before = joined.get_weights()
    behind.set_weights([tensor + 0.01 for tensor in behind.get_weights()])
    after = joined.get_weights()
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False] * 20 + [True] * 10, "three convolutions of block 5 and two dense layers"
    joined.set_weights(before)


def test_no_cut_means_the_whole_network(joined):
    assert network.tail(joined, None) is joined


def test_the_head_comes_last_so_that_base_and_head_tensors_simply_follow_each_other(joined):
    import keras

    features = keras.Input((1, 1, 512))
    head = keras.Model(features, network.build_head(features, SPEC))
    tensors = [*backbones.random_weights("vgg16", seed=0), *head.get_weights()]
    rebuilt = network.build(SPEC, tensors)
    assert all(np.array_equal(a, b) for a, b in zip(rebuilt.get_weights(), tensors, strict=True))


def test_a_head_on_averaged_features_gives_what_the_network_gives_on_pixels(joined, pixels):
    """train_head averages once and trains on vectors; the network averages itself."""
    import keras

    features = keras.Input((1, 1, 512))
    head = keras.Model(features, network.build_head(features, SPEC))
    head.set_weights(joined.get_weights()[26:])
    bottleneck = backbones.features(joined, ["block5_pool"]).predict_on_batch(pixels)
    bottleneck = bottleneck[0] if isinstance(bottleneck, list) else bottleneck
    averaged = bottleneck.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(head.predict_on_batch(averaged), joined.predict_on_batch(pixels), atol=1e-6)


def test_the_predictor_takes_batches_of_any_length_with_one_trace_and_no_dropout(joined, pixels):
    predict = network.predictor(joined)
    whole = predict(pixels)[0]
    np.testing.assert_allclose(whole, joined.predict_on_batch(pixels), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([predict(pixels[:2])[0], predict(pixels[2:])[0]]), whole, atol=1e-6)
    assert ((whole > 0) & (whole < 1)).all()


def test_tensors_of_another_network_are_refused(joined):
    with pytest.raises(ConfigError, match="weights of the network do not fit"):
        network.build(SPEC.model_copy(update={"hidden": 16}), joined.get_weights())
