"""VGG16 with few channels: its layers' names, its cuts, its preprocessing; 370 kB of weights instead of 59 MB.

For tests whose subject is not VGG16. Its folder is on PYTHONPATH and has the metadata of an installed package, so that
Spark's Python workers and Horovod's ranks find it by its entry point as the driver does.
"""

from dataclasses import replace
from typing import Any

from melanoma_spark.models.backbones import BACKBONES

BLOCKS = ((2, 4), (2, 8), (3, 8), (3, 16), (3, 64))  # convolutions, and channels of each
TINY = replace(BACKBONES["vgg16"], module="tiny_backbone", function="build", imagenet_file="none.h5", imagenet_id=None)


def build(include_top: bool, weights: None, input_tensor: Any) -> Any:
    import keras

    x = input_tensor
    for block, (convolutions, channels) in enumerate(BLOCKS, 1):
        for number in range(1, convolutions + 1):
            name = f"block{block}_conv{number}"
            x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
        x = keras.layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def preprocess_input(pixels: Any) -> Any:
    from keras.applications import vgg16

    return vgg16.preprocess_input(pixels)
