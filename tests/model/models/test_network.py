"""Base and head joined, cut apart, and the compiled forward pass."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from melanoma_spark.errors import ClusterError, ConfigError
from melanoma_spark.models import backbones, network
from melanoma_spark.training import loop, sharding

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


@pytest.mark.parametrize("name", ["vgg16", "xception"])  # the last with connections around its blocks
def test_the_parts_before_and_after_a_cut_compute_the_complete_network(name):
    size = backbones.backbone(name).smallest
    complete = network.build(SPEC.model_copy(update={"backbone": name, "image_size": size}))
    base = backbones.random_weights(name, seed=0)
    complete.set_weights([*base, *complete.get_weights()[len(base) :]])
    pixels = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    expected = complete.predict_on_batch(pixels)
    for cut in backbones.backbone(name).cuts:
        (halfway,) = network.predictor(backbones.features(complete, [cut]))(pixels)
        np.testing.assert_allclose(network.tail(complete, cut).predict_on_batch(halfway), expected, atol=1e-5)


def test_batch_normalisation_keeps_its_statistics_while_its_block_is_trained():
    """A rank sees a part of a batch: statistics of its own would make the network depend on the number of ranks."""
    import keras

    size = backbones.backbone("xception").smallest
    keras.utils.set_random_seed(1)
    complete = network.build(SPEC.model_copy(update={"backbone": "xception", "image_size": size, "dropout": 0.0}))
    base = backbones.random_weights(
        "xception", seed=0
    )  # at Keras's own start outputs may be 0 or 1, without a gradient
    complete.set_weights([*base, *complete.get_weights()[len(base) :]])
    complete.compile(optimizer=keras.optimizers.SGD(0.1), loss="binary_crossentropy")
    normal = [layer for layer in complete.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.get_weights() for layer in normal]
    kernels = [variable.numpy() for variable in complete.trainable_variables]
    pixels = np.random.default_rng(1).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    complete.train_on_batch(pixels, np.asarray([0, 1, 1, 0], np.float32))
    assert len(normal) > 30
    for layer, tensors in zip(normal, before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), tensors, strict=True))
    trained = zip(complete.trainable_variables, kernels, strict=True)
    assert all(not np.array_equal(variable.numpy(), kernel) for variable, kernel in trained if kernel.ndim > 2)


def test_the_part_after_a_cut_shares_its_layers_with_the_network(joined, pixels):
    assert network.tail(joined, None) is joined
    behind = network.tail(joined, "block4_pool")
    before = joined.get_weights()
    behind.set_weights([tensor + 0.01 for tensor in behind.get_weights()])
    after = joined.get_weights()
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False] * 20 + [True] * 10, "three convolutions of block 5 and two dense layers"
    joined.set_weights(before)


def test_head_follows_the_base_and_averages_its_features(joined, pixels):
    import keras

    features = keras.Input((1, 1, 512))
    head = keras.Model(features, network.build_head(features, SPEC))
    tensors = [*backbones.random_weights("vgg16", seed=0), *head.get_weights()]
    with pytest.raises(ConfigError, match="weights of the network do not fit"):
        network.build(SPEC.model_copy(update={"hidden": 16}), tensors)
    rebuilt = network.build(SPEC, tensors)
    assert all(np.array_equal(a, b) for a, b in zip(rebuilt.get_weights(), tensors, strict=True))
    # train_head averages once and trains on vectors; the network averages itself.
    head.set_weights(joined.get_weights()[26:])
    bottleneck = backbones.features(joined, ["block5_pool"]).predict_on_batch(pixels)
    bottleneck = bottleneck[0] if isinstance(bottleneck, list) else bottleneck
    averaged = bottleneck.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(head.predict_on_batch(averaged), joined.predict_on_batch(pixels), atol=1e-6)


def test_the_predictor_takes_batches_of_any_length_with_one_trace_and_no_dropout(joined, pixels):
    predict = network.predictor(joined)
    complete = predict(pixels)[0]
    np.testing.assert_allclose(complete, joined.predict_on_batch(pixels), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([predict(pixels[:2])[0], predict(pixels[2:])[0]]), complete, atol=1e-6)
    assert ((complete > 0) & (complete < 1)).all()


def turned(images: np.ndarray) -> list[np.ndarray]:
    """The eight symmetries by numpy's own turns: four quarters, and four of the mirror image."""
    mirror = np.flip(images, axis=2)
    return [np.rot90(kind, quarters, axes=(1, 2)) for kind in (images, mirror) for quarters in range(4)]


def test_the_symmetries_are_the_eight_of_the_square_and_their_parts_are_groups(pixels):
    result = [view.tobytes() for view in network.symmetries(pixels, 8)]
    assert set(result) == {view.tobytes() for view in turned(pixels)}
    assert len(set(result)) == 8
    assert result[0] == pixels.tobytes()
    assert result[1] == np.flip(pixels, axis=2).tobytes()
    assert result[3] == np.rot90(pixels, 2, axes=(1, 2)).tobytes()
    for count in (1, 2, 4, 8):
        part = [view.tobytes() for view in network.symmetries(pixels, count)]
        assert part == result[:count]
        again = itertools.chain(*(network.symmetries(view, count) for view in network.symmetries(pixels, count)))
        assert {view.tobytes() for view in again} == set(part), "a symmetry of a symmetry is one of them"


def test_the_classifier_averages_the_probabilities_of_views(joined, pixels):
    weights = joined.get_weights()
    plain = network.classifier(SPEC, weights)
    np.testing.assert_array_equal(plain(pixels)[0], network.predictor(joined)(pixels)[0])
    each = np.stack([plain(np.ascontiguousarray(view))[0] for view in turned(pixels)])
    assert np.ptp(each, axis=0).min() > 1e-4, "the test cannot tell the views apart"
    judge = network.classifier(SPEC.model_copy(update={"tta": 8}), weights)
    result = judge(pixels)[0]
    for view in turned(pixels):  # no orientation is favoured
        np.testing.assert_allclose(judge(np.ascontiguousarray(view))[0], result, atol=1e-6)
    assert (result.shape, result.dtype) == ((5, 1), np.float32)
    np.testing.assert_allclose(result, each.mean(axis=0), atol=1e-6)
    assert np.abs(result - plain(pixels)[0]).max() > 1e-4
    for tta, own in ((2, [0, 4]), (4, [0, 2, 4, 6])):
        some, *_ = network.classifier(SPEC.model_copy(update={"tta": tta}), weights)(pixels)
        np.testing.assert_allclose(some, each[own].mean(axis=0), atol=1e-6)


def test_specs_of_models_made_before_have_one_view():
    old = {key: value for key, value in SPEC.model_dump().items() if key != "tta"}
    assert network.Spec.model_validate(old) == SPEC
    for count in (0, 3, 16, "8"):
        with pytest.raises(ValidationError, match="tta"):
            network.Spec.model_validate({**old, "tta": count})


@pytest.fixture(scope="module")
def lesions_in_memory():
    """24 images, their labels, and a network to train."""
    draw = np.random.default_rng(2)
    labels = np.arange(24) % 2
    return draw.integers(0, 200, (24, 32, 32, 3), dtype=np.uint8) + 50 * labels[:, None, None, None].astype(
        np.uint8
    ), labels


def trained_on(model, inputs, labels, complete=None):
    """The weights after two epochs from the last block on, and the loss of each epoch."""
    images = loop.Images(
        np.zeros(len(labels), int), labels, lambda shared: iter(inputs[shared[shared != sharding.NONE]])
    )
    plan = loop.Plan("test", 1e-5, 2, 2, (1.0, 1.0), 0, 8)
    states = []
    records = loop.train(
        loop.Rank(),
        model,
        plan,
        lambda _: images,
        lambda _: images,
        log=lambda text: None,
        checkpoint=states.append,
    )
    floats = [value for value in states[-1].variables if value.dtype == np.float32]
    return floats, [record.loss for record in records[1:]]


def start(precision="float32"):
    """A network that is the same each time but for its precision."""
    import keras

    keras.utils.set_random_seed(5)
    with backbones.precision(precision):
        model = network.build(SPEC.model_copy(update={"dropout": 0.0}))
    base = backbones.random_weights("vgg16", seed=0)
    model.set_weights([*base, *model.get_weights()[len(base) :]])
    return model


def test_training_from_cached_features_is_training_from_pixels_with_the_base_frozen(lesions_in_memory):
    pixels, labels = lesions_in_memory
    complete = start()
    begun = complete.get_weights()
    (features,) = network.predictor(backbones.features(complete, ["block4_pool"]))(pixels)
    part = network.tail(complete, "block4_pool")
    cached, losses = trained_on(part, features, labels)
    complete.set_weights(begun)
    for layer in complete.layers:
        layer.trainable = layer in part.layers
    frozen, expected = trained_on(complete, pixels, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    moved = [np.abs(a - b).max() for a, b in zip(cached, begun[-len(cached) :], strict=True)]
    assert min(moved) > 1e-6
    for one, other in zip(cached, frozen[-len(cached) :], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-6)
    for one, other in zip(frozen[: -len(cached)], begun[: -len(cached)], strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_computes_about_the_same_and_keeps_its_weights_in_float32(pixels):
    exact, fast = start(), start("bfloat16")
    fast.set_weights(exact.get_weights())
    assert {weight.dtype for weight in fast.get_weights()} == {np.dtype("float32")}
    (one,), (other,) = (network.predictor(model)(pixels) for model in (exact, fast))
    assert one.dtype == other.dtype == np.float32
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05)
    (features,) = network.predictor(backbones.features(fast, ["block5_pool"]))(pixels)
    assert features.dtype == np.float32
    assert start().layers[-1].dtype_policy.name == "float32", "the precision ends with its block"


def test_bfloat16_trains_behind_a_cut_about_as_float32_does(lesions_in_memory):
    pixels, labels = lesions_in_memory
    result = []
    for precision in ("float32", "bfloat16"):
        complete = start(precision)
        (features,) = network.predictor(backbones.features(complete, ["block4_pool"]))(pixels)
        result.append(trained_on(network.tail(complete, "block4_pool"), features.astype(np.float16), labels))
    (weights, losses), (fast_weights, fast_losses) = result
    np.testing.assert_allclose(fast_losses, losses, rtol=0.05)
    assert fast_losses != losses
    assert {weight.dtype for weight in fast_weights} == {weight.dtype for weight in weights} == {np.dtype("float32")}


def test_a_gpu_that_tensorflow_does_not_see_is_an_error_with_a_hint():
    network.use_gpus(())  # none given: nothing to do
    with pytest.raises(
        ClusterError,
        match=r"GPU 97 to this process, but TensorFlow sees \d+; install it for GPUs \(GPU=1 make install\)",
    ):
        network.use_gpus(["97"])
