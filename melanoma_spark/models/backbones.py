"""The convolutional bases, each one entry: how it is built, how pixels are prepared, where it can be cut.

An installed package adds one by an entry point of the group `melanoma_spark.backbones`: its name, and the place of its
`Backbone`. It has to be installed for the driver and for every worker.

Importing this module does not import TensorFlow; building a base does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config
from melanoma_spark.errors import ConfigError

CONSTANT = {"gamma": 0.7, "moving_variance": 1}  # of random weights: under 1, so that sums of blocks do not grow
GROUP = "melanoma_spark.backbones"  # of entry points
LAST_BLOCK = "last_block"  # as a cut: the one before the last of any backbone


@dataclass(frozen=True)
class Backbone:
    """One convolutional base. `module` has the `function` that builds it and `preprocess_input`, as Keras's have.

    `cuts` are the layers at which it can be cut, from the input to the end: all that comes later goes through their
    output. The last one gives the bottleneck features. `last_convolution` is the last layer that knows of places.
    `smallest` is the smallest side in pixels that Keras documents; `pixel_spread` about the standard deviation of
    prepared pixels. `imagenet_file` is the name Keras caches the published ImageNet weights under, `imagenet_md5` the
    sum that Keras checks, `imagenet_id` the content id of their tensors, where it is known. `named` gives layers that
    Keras numbers names that stay: kind of layer, and its place among those -> name. `winograd` is true of a chain of
    plain layers, which the engine ncnn computes.
    """

    module: str
    function: str
    cuts: tuple[str, ...]
    last_convolution: str
    smallest: int
    pixel_spread: float
    imagenet_file: str
    imagenet_md5: str
    imagenet_id: str | None = None
    named: Mapping[tuple[str, int], str] = field(default_factory=dict)
    winograd: bool = False


BACKBONES = {
    "vgg16": Backbone(
        module="keras.applications.vgg16",
        function="VGG16",
        cuts=("block1_pool", "block2_pool", "block3_pool", "block4_pool", "block5_pool"),
        last_convolution="block5_conv3",
        smallest=32,
        pixel_spread=64,
        imagenet_file="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="6d6bbae143d832006294945121d1f1fc",
        imagenet_id="99b32de5670d4dc2",
        winograd=True,
    ),
    "resnet50": Backbone(
        module="keras.applications.resnet50",
        function="ResNet50",
        cuts=("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
        last_convolution="conv5_block3_out",
        smallest=32,
        pixel_spread=64,
        imagenet_file="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="4d473c1dd8becc155b73f8504c6f6626",
    ),
    "inception_v3": Backbone(
        module="keras.applications.inception_v3",
        function="InceptionV3",
        cuts=("mixed2", "mixed7", "mixed10"),
        last_convolution="mixed10",
        smallest=75,
        pixel_spread=0.5,
        imagenet_file="inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "xception": Backbone(
        module="keras.applications.xception",
        function="Xception",
        cuts=("block4_out", "block12_out", "block14_sepconv2_act"),
        last_convolution="block14_sepconv2_act",
        smallest=71,
        pixel_spread=0.5,
        imagenet_file="xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
        imagenet_md5="b0042744bf5b25fce3cb969f33bebb97",
        named={("Add", place): f"block{place + 2}_out" for place in range(12)},  # of blocks 2 to 13
    ),
}


def backbone(name: str) -> Backbone:
    """The entry of a backbone. Raises `ConfigError` where it is unknown, or its package cannot be imported."""
    if name not in BACKBONES:
        added = {point.name: point for point in entry_points(group=GROUP)}
        if name not in added:
            known = ", ".join(sorted([*BACKBONES, *added]))
            raise ConfigError(f"setting backbone.name: unknown backbone {name!r}; known: {known}")
        try:
            BACKBONES[name] = added[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"setting backbone.name: {name!r} is {added[name].value} of an installed package, which cannot be "
                f"imported: {error}; repair or reinstall that package, or take another backbone"
            ) from None
    return BACKBONES[name]


def cut_of(name: str, cut: str) -> str:
    """The layer that a cut of the settings names. Raises `ConfigError` with those at which the backbone can be cut."""
    cuts = backbone(name).cuts
    if cut == LAST_BLOCK:
        return cuts[-2]
    if cut not in cuts:
        raise ConfigError(f"{name} has no cut {cut!r}; it can be cut at: {', '.join(cuts)}, or {LAST_BLOCK}")
    return cut


def cuts_read(settings: config.Settings) -> tuple[str, ...]:
    """The cuts that training reads: the bottleneck for the head, then those of the phases of fine-tuning."""
    name = settings.backbone.name
    phases = [cut_of(name, phase.cut) for phase in settings.finetune.phases if phase.cut]
    return tuple(dict.fromkeys([backbone(name).cuts[-1], *phases]))


def check(settings: config.Settings) -> None:
    """Raise `ConfigError` where a phase names an unknown cut, or images are too small for the backbone."""
    cuts_read(settings)
    smallest = backbone(settings.backbone.name).smallest
    if settings.image_size < smallest:
        raise ConfigError(
            f"image_size={settings.image_size} is too small for {settings.backbone.name}; it takes {smallest} and more"
        )


def build_base(name: str, image_size: int, weights: Sequence[NDArray[np.float32]] | None = None) -> Any:
    """The base as a flat functional Keras model: uint8 RGB (n, size, size, 3) -> its last cut's float32 features.

    Preprocessing is part of the model. Without `weights` the layers keep Keras's random start. Batch normalization
    keeps the statistics of its weights, also while its block is trained: a batch of lesions is small, and each rank
    sees another one. Raises `ConfigError` when the weights do not have the base's shapes.
    """
    import keras

    spec = backbone(name)
    application = import_module(spec.module)
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    prepared = application.preprocess_input(keras.ops.cast(pixels, "float32"))
    base = getattr(application, spec.function)(include_top=False, weights=None, input_tensor=prepared)
    kinds: Counter[str] = Counter()
    for layer in base.layers:
        kind = type(layer).__name__
        layer.name = spec.named.get((kind, kinds[kind]), layer.name)
        kinds[kind] += 1
        if kind == "BatchNormalization":
            layer.trainable = False  # which is, for this layer, to run in inference mode
    model = keras.Model(pixels, base.output, name=name)
    if weights is not None:
        set_weights(model, weights, f"weights of {name}")
    return model


@contextmanager
def precision(name: str) -> Iterator[None]:
    """What is built in here computes in `float32`, or in `bfloat16` with weights kept in float32 (Keras: mixed).

    bfloat16 has float32's range and 8 bits of its precision: no loss scaling, about three digits. It is fast where the
    processor multiplies it (AVX512_BF16, AMX; GPUs since Ampere) and slow elsewhere.
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if name == "bfloat16" else name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def features(base: Any, cuts: Sequence[str]) -> Any:
    """A model of the base's pixels -> the output of each cut, in one pass."""
    import keras

    return keras.Model(base.input, [base.get_layer(cut).output for cut in cuts])


def cut_shapes(name: str, image_size: int, cuts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape (h, w, channels) of each cut's output for one image."""
    base = build_base(name, image_size)
    return {cut: tuple(base.get_layer(cut).output.shape[1:]) for cut in cuts}


def random_weights(name: str, seed: int) -> list[NDArray[np.float32]]:
    """Random weights after He et al. 2015, the same for the same seed: for the demo and the tests only."""
    base = build_base(name, max(64, backbone(name).smallest))
    draw = np.random.default_rng(seed)
    tensors = []
    for variable in base.weights:
        *places, last = variable.shape
        if places and last == 1:  # depthwise (h, w, channels, 1): each channel alone, and no rectifier behind it
            scale = np.sqrt(1 / np.prod(places[:2]))
        elif places:
            scale = np.sqrt(2 / np.prod(places))
        else:
            tensors.append(np.full(variable.shape, CONSTANT.get(variable.name, 0), np.float32))
            continue
        tensors.append((draw.standard_normal(variable.shape) * scale).astype(np.float32))
    tensors[0] /= backbone(name).pixel_spread  # He's rule assumes inputs of unit variance
    return tensors


def set_weights(model: Any, weights: Sequence[NDArray[np.float32]], what: str) -> None:
    """Set the weights of a model. Raises `ConfigError` naming the first tensor that does not fit, and its layer."""
    expected = [tuple(w.shape) for w in model.weights]
    given = [tuple(w.shape) for w in weights]
    if expected != given:
        differing = (i for i, (a, b) in enumerate(zip(expected, given, strict=False)) if a != b)
        place = next(differing, min(len(expected), len(given)))
        at = slice(place, place + 1)
        layer = f" ({model.weights[place].path})" if place < len(expected) else ""
        raise ConfigError(
            f"{what} do not fit {model.name}: it has {len(expected)} tensors, {len(given)} were given; the first "
            f"difference is tensor {place}{layer}: expected {expected[at]}, found {given[at]}"
        )
    model.set_weights(list(weights))
