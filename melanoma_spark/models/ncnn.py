"""VGG16 for ncnn, whose Winograd convolutions take a quarter of the multiplications, in float32.

F(4x4, 3x3) of Lavin and Gray, CVPR 2016, arXiv 1509.09308. Only a chain of plain layers can be exported: of the
backbones, VGG16. An export has three parts with a zero byte between them: the names of the outputs, and ncnn's two
files, of layers and of weights.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import ConfigError
from melanoma_spark.models import network

if TYPE_CHECKING:
    import keras

# Of ImageNet's blue, green and red, which keras.applications.vgg16.preprocess_input subtracts.
MEAN = np.array([103.939, 116.779, 123.68], np.float32)
ACTIVATIONS = {"linear": 0, "relu": 1, "sigmoid": 4}  # as ncnn numbers them
MAGIC, FLOAT32 = "7767517", b"\0\0\0\0"  # the first bytes of a file of layers, and of the weights of each layer
# Options of ncnn for 16 bits, and for Winograd's tiles of other sizes: 6x6 was no faster here, 2x2 slower.
OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"),
    *("use_winograd63_convolution", "use_winograd23_convolution"),
)


def export(model: keras.Model) -> bytes:
    """Export a Keras model of uint8 RGB images whose outputs are those of layers.

    Raises `ConfigError` for a layer that VGG16 does not have.
    """
    size, last = model.input.shape[1], "pixels"
    lines, weights, blobs = [f"Input {last} 0 1 {last} 0={size} 1={size} 2=3"], [], {}
    for layer in model.layers:
        if type(layer).__name__ not in ("InputLayer", "Dropout"):
            kind, parameters = _ncnn_layer(layer)
            lines.append(f"{kind} {layer.name} 1 1 {last} {layer.name} {parameters}")
            last = layer.name
        if layer.weights:
            kernel, bias = (np.asarray(value, np.float32) for value in layer.get_weights())
            transposed = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T  # channels of the output first
            weights += [FLOAT32, transposed.tobytes(), bias.tobytes()]
        blobs[layer.name] = last
    names = [blobs[output._keras_history.operation.name] for output in model.outputs]
    layers = "\n".join([MAGIC, f"{len(lines)} {len(lines)}", *lines, ""])
    return b"\0".join([" ".join(names).encode(), layers.encode(), b"".join(weights)])


def _ncnn_layer(layer: keras.Layer) -> tuple[str, str]:
    """A layer of Keras in ncnn's format: its kind, and its numbered parameters."""
    config, kind = layer.get_config(), type(layer).__name__
    geometry = tuple(config.get(key) for key in ("kernel_size", "pool_size", "strides", "padding"))
    activation = f"9={ACTIVATIONS.get(config.get('activation'))}"
    if kind == "Conv2D" and geometry == ((3, 3), None, (1, 1), "same") and config["use_bias"]:
        return "Convolution", f"0={config['filters']} 1=3 4=1 5=1 6={math.prod(layer.kernel.shape)} {activation}"
    if kind == "MaxPooling2D" and geometry == (None, (2, 2), (2, 2), "valid"):
        return "Pooling", "0=0 1=2 2=2 5=1"
    if kind == "GlobalAveragePooling2D":
        return "Pooling", "0=1 4=1"
    if kind == "Dense" and config["use_bias"]:
        return "InnerProduct", f"0={config['units']} 1=1 2={math.prod(layer.kernel.shape)} {activation}"
    raise ConfigError(f"engine=ncnn does not compute {kind} {layer.name}; use engine=onnxruntime")


def predictor(content: bytes, threads: int) -> network.Predict:
    """The forward pass of an exported network, as `network.predictor` gives it.

    It computes image by image, so a batch takes no more memory.
    """
    import ncnn

    names, layers, weights = content.split(b"\0", 2)
    outputs = names.decode().split()
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in OFF:
        setattr(net.opt, name, False)
    with tempfile.TemporaryDirectory() as folder:  # ncnn would use bytes in memory in place, without keeping them
        places = [Path(folder, name) for name in ("layers", "weights")]
        for place, part in zip(places, (layers, weights), strict=True):
            place.write_bytes(part)
        net.load_param(str(places[0]))
        net.load_model(str(places[1]))
    # Extract outputs in the order of their layers: ncnn frees what it has passed.
    order = sorted(range(len(outputs)), key=lambda place: layers.index(b" %s 1 1 " % outputs[place].encode()))

    def predict_one(image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        prepared = np.ascontiguousarray((image[..., ::-1].astype(np.float32) - MEAN).transpose(2, 0, 1))
        extractor = net.create_extractor()
        extractor.input("pixels", ncnn.Mat(prepared))
        outputs_of: dict[int, NDArray[np.float32]] = {}
        for place in order:
            status, values = extractor.extract(outputs[place])
            if status:
                raise MemoryError(f"ncnn cannot compute {outputs[place]}: status {status}")
            outputs_of[place] = np.array(values)
        return [np.moveaxis(outputs_of[place], 0, -1) for place in range(len(outputs))]

    def predict(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [np.stack(values) for values in zip(*map(predict_one, images), strict=True)]

    return predict
