"""A network for another engine than TensorFlow: the same outputs, from workers that start sooner.

`ncnn` computes VGG16 by Winograd's convolutions (`ncnn`), `onnxruntime` every backbone, as ONNX. TensorFlow is the
reference: what is exported is held against it before it is used. See docs/decisions/engine.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.models import backbones, ncnn, network

TOLERANCE = 1e-4  # of probabilities; of other outputs relative to their largest
OPSET = 17  # of 2022: what ONNX Runtime has known since 1.12
FORMATS = {"ncnn": 1, "onnxruntime": OPSET}  # engine -> what a kept export is of
TAG = "{engine}_sha256"  # of a registered version: what its kept export is
CHECKED = 4  # images that both engines judge


def engine_for(chosen: str, backbone: str, precision: str = "float32", gpus: bool = False) -> str:
    """What `auto` is for this backbone: `tensorflow` where there are GPUs or precision is bfloat16, else the fastest.

    Raises `ConfigError` where the chosen engine cannot do it.
    """
    if chosen == "auto":
        if gpus or precision != "float32":
            return "tensorflow"
        return "ncnn" if backbones.backbone(backbone).winograd else "onnxruntime"
    if chosen != "tensorflow" and precision != "float32":
        raise ConfigError(
            f"engine={chosen} computes in float32 alone; take engine=tensorflow for precision={precision}"
        )
    if chosen == "ncnn" and not backbones.backbone(backbone).winograd:
        known = ", ".join(name for name, spec in backbones.BACKBONES.items() if spec.winograd)
        raise ConfigError(f"engine=ncnn computes {known} alone; take engine=onnxruntime for {backbone}")
    return chosen


def export(model: Any, engine: str) -> bytes:
    """A Keras model with one input of images, for an engine; outputs keep their order. Raises as `check`."""
    content = ncnn.export(model) if engine == "ncnn" else _onnx(model)
    check(content, model, engine)
    return content


def _onnx(model: Any) -> bytes:
    import logging

    import onnx
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    # Set to anything, tf2onnx does not copy the graph for each pass over it: Xception took 6.3 GB, and takes 4.3.
    os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "false")
    signature = [tf.TensorSpec([None, *model.input.shape[1:]], network.input_dtype(model), name="images")]

    @tf.function(input_signature=signature)
    def outputs(images: Any) -> Any:
        found = model(images, training=False)
        parts = found if isinstance(found, list | tuple) else [found]
        return {f"output_{place:02d}": tf.cast(part, tf.float32) for place, part in enumerate(parts)}

    with _quiet():
        found, _ = tf2onnx.convert.from_function(outputs, input_signature=signature, opset=OPSET)
    # Constants that Keras holds as tensors, such as ImageNet's mean, come out as further inputs: they are put back.
    captured = outputs.get_concrete_function().graph.captures
    held = {inner.name: outer for outer, inner in captured if outer.dtype != tf.resource}
    used = {name for node in found.graph.node for name in node.input}
    for extra in list(found.graph.input)[1:]:
        if extra.name in used:
            found.graph.initializer.append(onnx.numpy_helper.from_array(held[extra.name].numpy(), extra.name))
        found.graph.input.remove(extra)
    return bytes(found.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what TensorFlow's optimiser of graphs prints from C++, whatever the level of its logs."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check(content: bytes, model: Any, engine: str) -> None:
    """Raises `DataError` unless the engine says of some images what the Keras model says."""
    pixels = np.random.default_rng(0).integers(0, 256, (CHECKED, *model.input.shape[1:]), dtype=np.uint8)
    pixels[1:] = pixels[1:] // np.array([2, 8, 64], np.uint8)[:, None, None, None]
    for place, (one, other) in enumerate(
        zip(network.predictor(model)(pixels), predictor(content, 1, engine)(pixels), strict=True)
    ):
        off = float(np.abs(one - other).max() / max(1.0, float(np.abs(one).max())))
        if not off <= TOLERANCE:
            raise DataError(
                f"{engine}'s output {place} is {off:.2g} off TensorFlow's, {TOLERANCE:g} is allowed; "
                "use engine=tensorflow"
            )


def predictor(content: bytes, threads: int, engine: str) -> network.Predict:
    """What `network.predictor` gives, of a network that was exported for an engine."""
    if engine == "ncnn":
        return ncnn.predictor(content, threads)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that waits for work by spinning takes it from the one that decodes the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(images: np.ndarray) -> list[np.ndarray]:
        return list(session.run(None, {name: images}))

    return predict
