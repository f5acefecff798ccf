"""Networks of every backbone for ONNX Runtime, as ONNX."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.models import network

if TYPE_CHECKING:
    import keras

OPSET = 17  # of 2022: ONNX Runtime has it since 1.12


def export(model: keras.Model) -> bytes:
    """Export a Keras model with one input of images; outputs keep their order."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    # With any value, tf2onnx does not copy the graph for each pass over it: Xception took 6.3 GB, and takes 4.3.
    os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "false")
    signature = [tf.TensorSpec([None, *model.input.shape[1:]], network.input_dtype(model), name="images")]

    def named_outputs(images: Any) -> Any:
        result = model(images, training=False)
        tensors = result if isinstance(result, list | tuple) else [result]
        return {f"output_{place:02d}": tf.cast(tensor, tf.float32) for place, tensor in enumerate(tensors)}

    outputs = tf.function(named_outputs, input_signature=signature)
    with _without_stderr():
        exported, _ = tf2onnx.convert.from_function(outputs, input_signature=signature, opset=OPSET)
    # Constants that Keras holds as tensors, such as ImageNet's mean, come out as further inputs: put them back.
    captures = outputs.get_concrete_function().graph.captures
    constants = {inner.name: outer for outer, inner in captures if outer.dtype != tf.resource}
    used = {name for node in exported.graph.node for name in node.input}
    for extra in list(exported.graph.input)[1:]:
        if extra.name in used:
            constant = onnx.numpy_helper.from_array(constants[extra.name].numpy(), extra.name)
            exported.graph.initializer.append(constant)
        exported.graph.input.remove(extra)
    return bytes(exported.SerializeToString())


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Hide what TensorFlow's optimizer of graphs prints from C++, whatever the level of its logs."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def predictor(content: bytes, threads: int) -> network.Predict:
    """The forward pass of an exported network, as `network.predictor` gives it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that waits for work by spinning takes time from the one that decodes the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(images: NDArray[Any]) -> list[NDArray[np.float32]]:
        return list(session.run(None, {name: images}))

    return predict
