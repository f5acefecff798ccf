"""The convolutional bases: preprocessing inside, cuts, weights that fit."""

import importlib

import numpy as np
import pytest

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.models import backbones

PHASE = config.Phase(name="a", cut="block4_pool")
SIZE = 80  # the smallest that Inception v3 takes is 75


@pytest.fixture(scope="module", params=backbones.BACKBONES)
def base(request):
    return backbones.build_base(request.param, SIZE, backbones.random_weights(request.param, seed=0))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def test_base_prepares_pixels_as_keras_and_random_weights_follow_the_seed(base, pixels):
    spec = backbones.backbone(base.name)
    module = importlib.import_module(spec.module)
    plain = getattr(module, spec.function)(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    plain.set_weights(base.get_weights())
    prepared = module.preprocess_input(pixels.astype(np.float32).copy())
    np.testing.assert_allclose(base.predict_on_batch(pixels), plain.predict_on_batch(prepared), rtol=1e-3, atol=1e-4)

    again, other = backbones.random_weights(base.name, seed=0), backbones.random_weights(base.name, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), again, strict=True))
    assert not np.array_equal(again[0], other[0])
    spread = float(base.predict_on_batch(pixels).std())
    assert 0.01 < spread < 100


def test_cuts_are_layers_with_stable_names_and_the_expected_shapes(base, pixels):
    cuts = backbones.backbone(base.name).cuts
    outputs = backbones.features(base, cuts).predict_on_batch(pixels)
    shapes = backbones.cut_shapes(base.name, SIZE, cuts)
    assert [output.shape[1:] for output in outputs] == [shapes[cut] for cut in cuts]
    sides = [shape[0] for shape in shapes.values()]
    assert sides == sorted(sides, reverse=True)
    np.testing.assert_allclose(outputs[-1], base.predict_on_batch(pixels), rtol=1e-5, atol=1e-6)
    # Its channels are those of the bottleneck, for each place.
    shape = base.get_layer(backbones.backbone(base.name).last_convolution).output.shape
    assert len(shape) == 4
    assert shape[-1] == base.output.shape[-1]
    again = backbones.build_base(base.name, SIZE)
    assert all(again.get_layer(cut) for cut in backbones.backbone(base.name).cuts)


def test_weights_of_other_shapes_are_refused_with_the_first_that_differs():
    tensors = backbones.random_weights("vgg16", seed=0)
    tensors[2] = tensors[2][..., :5]
    with pytest.raises(
        ConfigError,
        match=r"26 tensors, 26 were given; .*tensor 2 \(block1_conv2/kernel\): expected .*64\)\], found .*5\)\]",
    ):
        backbones.build_base("vgg16", SIZE, tensors)
    with pytest.raises(ConfigError, match="it has 26 tensors, 3 were given"):
        backbones.build_base("vgg16", SIZE, tensors[:2] + tensors[3:4])


def test_cuts_of_the_settings_must_be_layers_of_a_known_backbone():
    with pytest.raises(ConfigError, match=r"unknown backbone 'vgg19'; known: .*vgg16"):
        backbones.backbone("vgg19")
    with pytest.raises(ConfigError, match=r"vgg16 has no cut 'fc1'; .*block4_pool, block5_pool, or last_block"):
        backbones.cut_of("vgg16", "fc1")

    phases = [{"name": "a", "cut": "last_block"}, {"name": "b", "cut": "conv3_block4_out"}, {"name": "c"}]
    settings = config.parse({"backbone": {"name": "resnet50"}, "finetune": {"phases": phases}})
    assert backbones.cuts_read(settings) == ("conv5_block3_out", "conv4_block6_out", "conv3_block4_out")
    assert backbones.cuts_read(config.parse({})) == ("block5_pool", "block4_pool")
    with pytest.raises(ConfigError, match="resnet50 has no cut 'block4_pool'"):
        backbones.check(settings.model_copy(update={"finetune": config.Finetune(phases=[PHASE])}))


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 75), ("xception", 71)])
def test_images_too_small_for_a_backbone_are_refused_before_anything_runs(name, size):
    backbones.check(config.parse({"backbone": {"name": name}, "image_size": size}))
    with pytest.raises(ConfigError, match=f"image_size={size - 1} is too small for {name}; it takes {size} and more"):
        backbones.check(config.parse({"backbone": {"name": name}, "image_size": size - 1}))
