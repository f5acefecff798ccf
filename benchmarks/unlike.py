"""Measures how well distances in feature space separate other images from lesions (docs/decisions/drift.md).

VGG16 with ImageNet weights at 224 px on the real lesions of ../shared: 500 to fit, 400 for the unit, 200 to compare.
Also the same without scaling features to length 1, and the distance to the tenth nearest neighbor (Sun et al., 2022).

    .venv/bin/python benchmarks/unlike.py      # about two minutes on two idle cores
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from melanoma_spark import config
from melanoma_spark.images import decoding, hashes
from melanoma_spark.models import backbones, network, training_reference, weights

SHARED = Path(__file__).parents[2] / "shared"
SIZE, BATCH = 224, 16
TRAIN, UNIT, ALL = 500, 900, 1100  # where the parts of the lesions end
Distances = Callable[[NDArray[Any]], NDArray[Any]]


def load_images() -> dict[str, list[NDArray[Any]]]:
    """Return images by kind, uint8 (SIZE, SIZE, 3) each."""
    contents = [path.read_bytes() for path in (SHARED / "data/lesions").glob("*/*.jpg")]
    files = {hashes.sha256(content): content for content in contents}
    others = [path.read_bytes() for path in sorted((SHARED / "data/isic_ids").glob("*.jpg"))]
    lesions = [decoding.decode(files[name], SIZE) for name in sorted(files)[:ALL]]
    rng = np.random.default_rng(0)
    last = lesions[-24:]
    return {
        "lesions": lesions,
        "with ISIC ids": [decoding.decode(content, SIZE) for content in others],
        "noise": [rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(16)],
        "gradients": [draw_gradient(rng) for _ in range(16)],
        "text": [draw_text(rng) for _ in range(16)],
        "a temple and a flower": [crop(rng, picture) for picture in load_sample_images().images for _ in range(12)],
        "red and blue exchanged": [image[..., ::-1] for image in last],
        "blurred": [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(6))) for image in last],
        "a quarter as bright": [(image * 0.25).astype(np.uint8) for image in last],
    }


def draw_gradient(rng: np.random.Generator) -> NDArray[Any]:
    ends, part = rng.integers(0, 256, (2, 3)), np.linspace(0, 1, SIZE)[:, None, None]
    image = np.broadcast_to(ends[0] * (1 - part) + ends[1] * part, (SIZE, SIZE, 3)).astype(np.uint8)
    return image if rng.random() < 0.5 else image.swapaxes(0, 1)


def draw_text(rng: np.random.Generator) -> NDArray[Any]:
    page = Image.new("RGB", (SIZE, SIZE), tuple(rng.integers(200, 256, 3).tolist()))
    for top in range(4, SIZE - 4, 14):
        ImageDraw.Draw(page).text((6, top), "".join(map(chr, rng.integers(97, 123, 34))), fill=(20, 20, 20))
    return np.asarray(page)


def crop(rng: np.random.Generator, picture: NDArray[Any]) -> NDArray[Any]:
    top, left = rng.integers(0, picture.shape[0] - SIZE), rng.integers(0, picture.shape[1] - SIZE)
    return picture[top : top + SIZE, left : left + SIZE]


def features(images: dict[str, list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the averaged features of images by kind."""
    import keras

    file = SHARED / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    base = backbones.build_base("vgg16", SIZE, weights.resolve(config.Backbone(weights=str(file)), 0).tensors)
    averaged = keras.layers.GlobalAveragePooling2D()(base.output)
    predict = network.predictor(keras.Model(base.input, averaged))
    results = {}
    for name, pixels in images.items():
        parts = [predict(np.stack(pixels[at : at + BATCH]))[0] for at in range(0, len(pixels), BATCH)]
        results[name] = np.concatenate(parts)
        print(f"  features of {len(pixels)} images: {name}", flush=True)
    return results


def as_registered(train: NDArray[Any], unit: NDArray[Any]) -> Distances:
    return training_reference.fit(train, unit).distances


def without_scaling(train: NDArray[Any], unit: NDArray[Any]) -> Distances:
    """Fit on unscaled features: one more coordinate, far out, makes the lengths of all nearly equal."""
    far = 1e4 * float(np.linalg.norm(train, axis=1).max())

    def extended(rows: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([rows, np.full((len(rows), 1), far)], axis=1)

    distances = training_reference.fit(extended(train), extended(unit)).distances
    return lambda rows: distances(extended(rows))


def tenth_neighbor(train: NDArray[Any], unit: NDArray[Any]) -> Distances:
    near = NearestNeighbors(n_neighbors=10).fit(training_reference.directions(train))

    def tenth(rows: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(near.kneighbors(training_reference.directions(rows))[0][:, -1])

    unit_distance = float(np.quantile(tenth(unit), training_reference.WITHIN))
    return lambda rows: tenth(rows) / unit_distance


def main() -> None:
    if not SHARED.is_dir():
        sys.exit(f"no real lesions at {SHARED}")
    results = features(load_images())
    lesions = results.pop("lesions")
    parts = lesions[:TRAIN], lesions[TRAIN:UNIT]
    print("AUROC against the 200 lesions, share farther than 1, median")
    for fit in (as_registered, without_scaling, tenth_neighbor):
        distances = fit(*parts)
        near = distances(lesions[UNIT:])
        print(f"{fit.__name__}: lesions {np.mean(near > 1):.3f}, {np.median(near):.2f}")
        for name, rows in results.items():
            others = distances(rows)
            auroc = roc_auc_score([0] * len(near) + [1] * len(others), np.concatenate([near, others]))
            print(f"  {name}: {auroc:.3f}, {np.mean(others > 1):.2f}, {np.median(others):.2f}")


if __name__ == "__main__":
    main()
