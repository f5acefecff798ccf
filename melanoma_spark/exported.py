"""A network as ONNX, for inference without TensorFlow: the same outputs, from workers that start sooner.

TensorFlow is the reference: what is exported is held against it before it is used. See docs/decisions/engine.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from melanoma_spark import network
from melanoma_spark.errors import DataError

TOLERANCE = 1e-4  # of probabilities; of other outputs relative to their largest
OPSET = 17  # of 2022: what ONNX Runtime has known since 1.12
CHECKED = 4  # images that both engines judge


def export(model: Any) -> bytes:
    """A Keras model with one input of images as ONNX; outputs keep their order. Raises as `check`."""
    import logging

    import onnx
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
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
    content = bytes(found.SerializeToString())
    check(content, model)
    return content


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


def check(content: bytes, model: Any) -> None:
    """Raises `DataError` unless ONNX Runtime says of some images what the Keras model says."""
    pixels = np.random.default_rng(0).integers(0, 256, (CHECKED, *model.input.shape[1:]), dtype=np.uint8)
    pixels[1:] = pixels[1:] // np.array([2, 8, 64], np.uint8)[:, None, None, None]
    for place, (one, other) in enumerate(
        zip(network.predictor(model)(pixels), predictor(content, threads=1)(pixels), strict=True)
    ):
        off = float(np.abs(one - other).max() / max(1.0, float(np.abs(one).max())))
        if not off <= TOLERANCE:
            raise DataError(
                f"ONNX Runtime's output {place} is {off:.2g} off TensorFlow's, {TOLERANCE:g} is allowed; "
                "use engine=tensorflow"
            )


def predictor(content: bytes, threads: int) -> network.Predict:
    """What `network.predictor` gives, of an exported network."""
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
