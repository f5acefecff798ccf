"""The convolutional bases, each one entry: how it is built, how pixels are prepared, where it can be cut.

Importing this module does not import TensorFlow; building a base does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from melanoma_spark.errors import ConfigError

PIXEL_SCALE = 64.0  # about the standard deviation of prepared pixels; He's rule assumes inputs of unit variance


@dataclass(frozen=True)
class Backbone:
    """One convolutional base of `keras.applications`.

    `cuts` are the layers at which it can be cut, from the input to the end; the last one gives the bottleneck features.
    `imagenet_id` is the content id of the published ImageNet weights, `imagenet_file` the name Keras caches them under.
    """

    module: str
    function: str
    cuts: tuple[str, ...]
    imagenet_id: str
    imagenet_file: str


BACKBONES = {
    "vgg16": Backbone(
        module="vgg16",
        function="VGG16",
        cuts=("block1_pool", "block2_pool", "block3_pool", "block4_pool", "block5_pool"),
        imagenet_id="99b32de5670d4dc2",
        imagenet_file="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
}


def backbone(name: str) -> Backbone:
    """Raises `ConfigError` with the known names."""
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


def check_cut(name: str, cut: str) -> None:
    """Raises `ConfigError` with the layers at which the backbone can be cut."""
    if cut not in backbone(name).cuts:
        raise ConfigError(f"{name} has no cut {cut!r}; it can be cut at: {', '.join(backbone(name).cuts)}")


def build_base(name: str, image_size: int, weights: Sequence[np.ndarray] | None = None) -> Any:
    """The base as a flat functional Keras model: uint8 RGB (n, size, size, 3) -> its last cut's float32 features.

    Preprocessing is part of the model. Without `weights` the layers keep Keras's random start. Raises `ConfigError`
    when the weights do not have the base's shapes.
    """
    import keras

    spec = backbone(name)
    application = getattr(keras.applications, spec.module)
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    prepared = application.preprocess_input(keras.ops.cast(pixels, "float32"))
    base = getattr(application, spec.function)(include_top=False, weights=None, input_tensor=prepared)
    model = keras.Model(pixels, base.output, name=name)
    if weights is not None:
        set_weights(model, weights, f"weights of {name}")
    return model


def features(base: Any, cuts: Sequence[str]) -> Any:
    """A model of the base's pixels -> the output of each cut, in one pass."""
    import keras

    return keras.Model(base.input, [base.get_layer(cut).output for cut in cuts])


def cut_shapes(name: str, image_size: int, cuts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape (h, w, channels) of each cut's output for one image."""
    base = build_base(name, image_size)
    return {cut: tuple(base.get_layer(cut).output.shape[1:]) for cut in cuts}


def random_weights(name: str, seed: int) -> list[np.ndarray]:
    """Random weights after He et al. 2015, the same for the same seed: for the demo and the tests only."""
    base = build_base(name, 64)
    draw = np.random.default_rng(seed)
    tensors = [
        (draw.standard_normal(tensor.shape) * np.sqrt(2 / np.prod(tensor.shape[:-1]))).astype(np.float32)
        if tensor.ndim > 1
        else np.zeros(tensor.shape, np.float32)
        for tensor in base.get_weights()
    ]
    tensors[0] /= PIXEL_SCALE
    return tensors


def set_weights(model: Any, weights: Sequence[np.ndarray], what: str) -> None:
    """Raises `ConfigError` naming the first tensor that does not fit."""
    own = [tuple(w.shape) for w in model.weights]
    given = [tuple(w.shape) for w in weights]
    if own != given:
        place = next((i for i, (a, b) in enumerate(zip(own, given, strict=False)) if a != b), min(len(own), len(given)))
        raise ConfigError(
            f"{what} do not fit {model.name}: it has {len(own)} tensors, {len(given)} were given; the first "
            f"difference is tensor {place}: expected {own[place : place + 1]}, found {given[place : place + 1]}"
        )
    model.set_weights(list(weights))
