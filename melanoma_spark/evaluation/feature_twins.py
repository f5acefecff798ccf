"""Test images that show a lesion of training, by the features of the network: twins that thumbnails do not tell.

Features are averages of the last convolutional block, whitened by principal components of the train and validation
images. On 2,636 real lesions 150 pairs have a cosine of 0.72 or more; by eye about 128 of them are one lesion.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from melanoma_spark.dataset import splits
from melanoma_spark.models import backbones
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import session
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.tensors import pack_tensors
from melanoma_spark.training import reading

LEAST = 0.72  # cosine of twins
COMPONENTS = 128
FEWEST = 10 * COMPONENTS  # images; fewer give no components to rely on
BASIS = "_whitening-"  # in the features' folder: mean (c,) and axes (c, 128)

Floats = NDArray[np.float32]


def can_compare(images: ImagesManifest, features: FeaturesManifest) -> bool:
    """Whether there are at least `FEWEST` train and validation images, with features of the last cut."""
    known = sum(count for key, count in images.counts.items() if not key.startswith(splits.TEST))
    return known >= FEWEST and backbones.backbone(features.backbone).cuts[-1] in features.cuts


def find_leaked(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> list[str]:
    """`sha256` of the test images with a twin in train or validation; none where they cannot be compared.

    The basis is kept with the features.
    """
    if not can_compare(images, features):
        return []
    cut = backbones.backbone(features.backbone).cuts[-1]
    session.describe_jobs(context.spark, "evaluate: test images with a twin in training")
    rows = read_images(context, images).select("split", "sha256", "label").collect()
    labels = {split: {row.sha256: row.label for row in rows if row.split == split} for split in splits.SPLITS}
    averages = reading.averages(context.spark, features.url(context.warehouse), cut, labels)
    train, validation, test = (averages[split][0].values for split in splits.SPLITS)
    others = np.concatenate([train, validation])
    mean, axes = fit_whitening(others)
    files.write_bytes(
        files.join(features.url(context.warehouse), f"{BASIS}{images.id}.npz"), pack_tensors([mean, axes])
    )
    twin = highest_cosines(whiten(test, mean, axes), whiten(others, mean, axes)) >= LEAST
    return [key for key, found in zip(sorted(labels[splits.TEST]), twin, strict=True) if found]


def fit_whitening(values: Floats) -> tuple[Floats, Floats]:
    """The mean (c,) and the scaled principal axes (c, `COMPONENTS`) of values (n, c)."""
    mean = values.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov(values - mean, rowvar=False))
    most = slice(None, -COMPONENTS - 1, -1)
    return mean, np.asarray(axes[:, most] / np.sqrt(np.maximum(spread[most], 1e-12)), np.float32)


def whiten(values: Floats, mean: Floats, axes: Floats) -> Floats:
    """Values (n, c) as whitened vectors of length 1, (n, `COMPONENTS`)."""
    white = (values - mean) @ axes
    return np.asarray(white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12), np.float32)


def highest_cosines(ones: Floats, others: Floats) -> Floats:
    """For each vector of length 1 (n, c) the highest cosine with one of the others (m, c), (n,)."""
    return np.concatenate([(ones[at : at + 1_000] @ others.T).max(axis=1) for at in range(0, len(ones), 1_000)])


def leave_out(table: pd.DataFrame, leaked: Collection[str]) -> pd.DataFrame:
    """The rows of predictions without the leaked test images; all rows where the rest has not both labels."""
    rest = table[~((table["split"] == splits.TEST) & table["sha256"].isin(leaked))]
    return rest if rest.loc[rest["split"] == splits.TEST, "label"].nunique() == 2 else table
