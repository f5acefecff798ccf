"""VGG16 for ncnn, whose Winograd convolutions take a quarter of the multiplications: faster, and float32 all the same.

F(4x4, 3x3) of Lavin and Gray, CVPR 2016, arXiv 1509.09308. Only a chain of plain layers is told to ncnn: of the
backbones, VGG16. What is exported has three parts with a zero byte between them: the names of the outputs, and ncnn's
two files, of layers and of weights.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from melanoma_spark.errors import ConfigError
from melanoma_spark.models import network

# Of ImageNet's blue, green and red, which keras.applications.vgg16.preprocess_input takes off.
MEAN = np.array([103.939, 116.779, 123.68], np.float32)
ACTIVATIONS = {"linear": 0, "relu": 1, "sigmoid": 4}  # as ncnn numbers them
MAGIC, FLOAT32 = "7767517", b"\0\0\0\0"  # what a file of layers begins with, and what the weights of each layer
# Of ncnn's ways those that compute in 16 bits, and Winograd's tiles of other sizes: 6x6 was no faster here, 2x2 slower.
OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"),
    *("use_winograd63_convolution", "use_winograd23_convolution"),
)


def export(model: Any) -> bytes:
    """A Keras model of uint8 RGB images; its outputs are those of layers. Raises `ConfigError` where it is no VGG16."""
    size, last = model.input.shape[1], "pixels"
    lines, weights, blobs = [f"Input {last} 0 1 {last} 0={size} 1={size} 2=3"], [], {}
    for layer in model.layers:
        if type(layer).__name__ not in ("InputLayer", "Dropout"):
            kind, told = _told(layer)
            lines.append(f"{kind} {layer.name} 1 1 {last} {layer.name} {told}")
            last = layer.name
        if layer.weights:
            kernel, bias = (np.asarray(value, np.float32) for value in layer.get_weights())
            turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T  # channels of the output first
            weights += [FLOAT32, turned.tobytes(), bias.tobytes()]
        blobs[layer.name] = last
    names = [blobs[output._keras_history.operation.name] for output in model.outputs]
    layers = "\n".join([MAGIC, f"{len(lines)} {len(lines)}", *lines, ""])
    return b"\0".join([" ".join(names).encode(), layers.encode(), b"".join(weights)])


def _told(layer: Any) -> tuple[str, str]:
    """A layer of Keras in ncnn's words: its kind, and numbered facts."""
    own, kind = layer.get_config(), type(layer).__name__
    way = tuple(own.get(key) for key in ("kernel_size", "pool_size", "strides", "padding"))
    last = f"9={ACTIVATIONS.get(own.get('activation'))}"
    if kind == "Conv2D" and way == ((3, 3), None, (1, 1), "same") and own["use_bias"]:
        return "Convolution", f"0={own['filters']} 1=3 4=1 5=1 6={math.prod(layer.kernel.shape)} {last}"
    if kind == "MaxPooling2D" and way == (None, (2, 2), (2, 2), "valid"):
        return "Pooling", "0=0 1=2 2=2 5=1"
    if kind == "GlobalAveragePooling2D":
        return "Pooling", "0=1 4=1"
    if kind == "Dense" and own["use_bias"]:
        return "InnerProduct", f"0={own['units']} 1=1 2={math.prod(layer.kernel.shape)} {last}"
    raise ConfigError(f"engine=ncnn does not compute {kind} {layer.name}; use engine=onnxruntime")


def predictor(content: bytes, threads: int) -> network.Predict:
    """What `network.predictor` gives, of an exported network; image by image, so a batch takes no more memory."""
    import ncnn

    names, layers, weights = content.split(b"\0", 2)
    outputs = names.decode().split()
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in OFF:
        setattr(net.opt, name, False)
    with tempfile.TemporaryDirectory() as folder:  # from memory ncnn would use the bytes in place, and not keep them
        places = [Path(folder, name) for name in ("layers", "weights")]
        for place, part in zip(places, (layers, weights), strict=True):
            place.write_bytes(part)
        net.load_param(str(places[0]))
        net.load_model(str(places[1]))
    # What is asked for first must not lie behind what is asked for later: ncnn lets go of what it has passed.
    order = sorted(range(len(outputs)), key=lambda place: layers.index(b" %s 1 1 " % outputs[place].encode()))

    def judged(image: np.ndarray) -> list[np.ndarray]:
        prepared = np.ascontiguousarray((image[..., ::-1].astype(np.float32) - MEAN).transpose(2, 0, 1))
        extractor = net.create_extractor()
        extractor.input("pixels", ncnn.Mat(prepared))
        found: dict[int, np.ndarray] = {}
        for place in order:
            status, values = extractor.extract(outputs[place])
            if status:
                raise MemoryError(f"ncnn cannot compute {outputs[place]}: status {status}")
            found[place] = np.array(values)
        return [np.moveaxis(found[place], 0, -1) for place in range(len(outputs))]

    def predict(images: np.ndarray) -> list[np.ndarray]:
        return [np.stack(values) for values in zip(*map(judged, images), strict=True)]

    return predict
