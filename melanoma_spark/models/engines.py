"""Engines that compute a network instead of TensorFlow: the same outputs, from workers that start sooner.

A new engine is an entry in `ENGINES`, and its name in `config.Engine`. TensorFlow is the reference: an export is
compared with it before it is used. See docs/decisions/engine.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.models import backbones, ncnn, network, onnxruntime

if TYPE_CHECKING:
    import keras

TOLERANCE = 1e-4  # of probabilities; of other outputs relative to their largest
TAG = "{engine}_sha256"  # of a registered version: the hash of its kept export
CHECKED = 4  # images that both engines predict


@dataclass(frozen=True)
class Engine:
    """How an engine gets a network, and computes it."""

    format: int  # of its exports: kept ones of another format are made again
    supports: Callable[[backbones.Backbone], bool]
    export: Callable[[keras.Model], bytes]
    predictor: Callable[[bytes, int], network.Predict]  # of an export, with so many threads


ENGINES = {  # the fastest first
    "ncnn": Engine(1, lambda backbone: backbone.winograd, ncnn.export, ncnn.predictor),
    "onnxruntime": Engine(onnxruntime.OPSET, lambda backbone: True, onnxruntime.export, onnxruntime.predictor),
}


def engine_for(setting: str, backbone: str, precision: str = "float32", gpus: bool = False) -> str:
    """The engine for a backbone: of `auto` TensorFlow where there are GPUs or precision is bfloat16, else the fastest.

    Raises `ConfigError` where the engine of the settings cannot compute it.
    """
    spec = backbones.backbone(backbone)
    able = [name for name, engine in ENGINES.items() if engine.supports(spec)]
    if setting == "auto":
        return "tensorflow" if gpus or precision != "float32" else able[0]
    if setting != "tensorflow" and precision != "float32":
        raise ConfigError(
            f"engine={setting} computes in float32 alone; take engine=tensorflow for precision={precision}"
        )
    if setting not in ("tensorflow", *able):
        supported = ", ".join(name for name, known in backbones.BACKBONES.items() if ENGINES[setting].supports(known))
        raise ConfigError(f"engine={setting} computes {supported} alone; take engine={able[0]} for {backbone}")
    return setting


def export(model: keras.Model, engine: str) -> bytes:
    """Export a Keras model with one input of images; outputs keep their order. Raises as `check`."""
    content = ENGINES[engine].export(model)
    check(content, model, engine)
    return content


def check(content: bytes, model: keras.Model, engine: str) -> None:
    """Raise `DataError` unless the engine's outputs for some images are those of the Keras model."""
    pixels = np.random.default_rng(0).integers(0, 256, (CHECKED, *model.input.shape[1:]), dtype=np.uint8)
    pixels[1:] = pixels[1:] // np.array([2, 8, 64], np.uint8)[:, None, None, None]
    outputs = zip(network.predictor(model)(pixels), predictor(content, 1, engine)(pixels), strict=True)
    for place, (expected, output) in enumerate(outputs):
        difference = float(np.abs(expected - output).max() / max(1.0, float(np.abs(expected).max())))
        if not difference <= TOLERANCE:
            raise DataError(
                f"{engine}'s output {place} is {difference:.2g} off TensorFlow's, {TOLERANCE:g} is allowed; "
                "use engine=tensorflow"
            )


def predictor(content: bytes, threads: int, engine: str) -> network.Predict:
    """The forward pass of a network exported for an engine, as `network.predictor` gives it."""
    return ENGINES[engine].predictor(content, threads)
