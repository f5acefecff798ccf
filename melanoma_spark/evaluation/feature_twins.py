"""Images that show one lesion by the features of the network: twins that thumbnails do not tell.

Features are averages of the last convolutional block, whitened by principal components of the train and validation
images. On 2,636 real lesions 150 pairs have a cosine of 0.72 or more; by eye about 128 of them are one lesion.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from melanoma_spark.dataset import card_facts, datacard, splits, summary
from melanoma_spark.evaluation.facts import ModelFacts
from melanoma_spark.metrics import binary
from melanoma_spark.models import backbones
from melanoma_spark.runner.context import StageContext, read_images
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.tensors import pack_tensors, unpack_tensors
from melanoma_spark.training import reading

LEAST = 0.72  # cosine of twins
COMPONENTS = 128
FEWEST = 10 * COMPONENTS  # images; fewer give no components to rely on
ALL_PAIRS = 100_000  # images, of which all pairs are compared; of more, those with a test image
BLOCK = 256  # images compared with all others at once
BASIS = "_whitening-"  # in the features' folder: mean (c,) and axes (c, 128)

Floats = NDArray[np.float32]
Pair = tuple[float, int, int]  # cosine, and the numbers of two images


@dataclass(frozen=True)
class Twins:
    """Pairs of images with a cosine of `LEAST` or more. Images are numbers of rows; the test images come first.

    Attributes:
        rows: `sha256`, `split`, `label` and `group` of the images.
        leaked_hashes: `sha256` of the test images with a twin in train or validation.
        pairs: the number of pairs.
        in_one_group: how many of them ids, hashes or thumbnails have in one group.
        shown: the most alike of the others, the first one first.
    """

    rows: pd.DataFrame
    leaked_hashes: list[str]
    pairs: int
    in_one_group: int
    shown: Sequence[Pair]


def can_compare(images: ImagesManifest, features: FeaturesManifest) -> bool:
    """Whether there are at least `FEWEST` train and validation images, with features of the last cut."""
    known = sum(count for key, count in images.counts.items() if not key.startswith(splits.TEST))
    return known >= FEWEST and backbones.backbone(features.backbone).cuts[-1] in features.cuts


def comparable_features(context: StageContext, images: ImagesManifest) -> FeaturesManifest | None:
    """The features of a dataset, if its images can be compared by them."""
    features = manifests.read(FeaturesManifest, context.warehouse)
    fit = features is not None and features.made_from == images.id and can_compare(images, features)
    return features if fit else None


def find_twins(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> Twins | None:
    """Compare the images of a dataset; None where they cannot be compared. The basis is kept with the features."""
    if not can_compare(images, features):
        return None
    session.describe_jobs(context.spark, "evaluate: twins by features")
    rows = pd.DataFrame(read_images(context, images).select("sha256", "split", "label", "group").toPandas())
    rows = rows.assign(training=rows["split"] != splits.TEST).sort_values(["training", "sha256"])
    tests = int((~rows["training"]).sum())
    values = read_averages(context, features, rows["sha256"].tolist())
    basis = keep_basis(context, images, features, values[tests:])
    return compare_all(whiten(values, *basis), tests, rows)


def find_twins_in_training(
    context: StageContext, images: ImagesManifest, features: FeaturesManifest, values: Floats, training: DataFrame
) -> NDArray[np.bool_]:
    """Which images have a twin among the rows of `training`, (n,).

    Args:
        context: The job's context.
        images: The dataset by whose basis features are whitened.
        features: The features, of this dataset and of all rows of `training`.
        values: Averaged features of the images, (n, c), of the same network.
        training: Rows with `sha256`.
    """
    keys = hashes_of(training)
    if not keys:
        return np.zeros(len(values), bool)
    basis = read_basis(context, images, features)
    others = whiten(read_averages(context, features, keys), *basis)
    return highest_cosines(whiten(values, *basis), others) >= LEAST


def read_basis(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> tuple[Floats, Floats]:
    """Mean (c,) and axes (c, `COMPONENTS`) of a dataset: those that are kept, or else computed and kept."""
    url = _basis_url(context, images, features)
    if files.exists(url):
        mean, axes = unpack_tensors(files.read_bytes(url))
        return mean, axes
    training = read_images(context, images).where(f"split != '{splits.TEST}'")
    return keep_basis(context, images, features, read_averages(context, features, hashes_of(training)))


def keep_basis(
    context: StageContext, images: ImagesManifest, features: FeaturesManifest, values: Floats
) -> tuple[Floats, Floats]:
    """Fit the basis to averaged features (n, c) of train and validation, and keep it with the features."""
    basis = fit_whitening(values)
    files.write_bytes(_basis_url(context, images, features), pack_tensors([*basis]))
    return basis


def _basis_url(context: StageContext, images: ImagesManifest, features: FeaturesManifest) -> str:
    return files.join(features.url(context.warehouse), f"{BASIS}{images.id}.npz")


def hashes_of(rows: DataFrame) -> list[str]:
    """`sha256` of rows, sorted."""
    return sorted(row.sha256 for row in rows.select("sha256").collect())


def read_averages(context: StageContext, features: FeaturesManifest, keys: Sequence[str]) -> Floats:
    """The averaged features (n, c) of images by `sha256`. Raises `DataError` where some are missing."""
    cut = backbones.backbone(features.backbone).cuts[-1]
    wanted = {splits.TEST: dict.fromkeys(keys, 0)}
    averages = reading.averages(context.spark, features.url(context.warehouse), cut, wanted)[splits.TEST][0]
    place = {key: number for number, key in enumerate(sorted(wanted[splits.TEST]))}
    return np.asarray(averages.values[[place[key] for key in keys]], np.float32)


def compare_all(white: Floats, tests: int, rows: pd.DataFrame) -> Twins:
    """Compare whitened images (n, `COMPONENTS`), of which the first `tests` are test images, with each other.

    `rows` has the `group` of each.
    """
    groups = rows["group"].factorize()[0]
    leaked = np.zeros(tests, bool)
    count, shown, in_one_group = 0, list[Pair](), 0
    compared = len(white) if len(white) <= ALL_PAIRS else tests
    for start in range(0, compared, BLOCK):
        end = min(start + BLOCK, compared)
        cosines = np.triu(white[start:end] @ white[start:].T, 1)
        ones, others = np.nonzero(cosines >= LEAST)
        values, ones, others = cosines[ones, others], ones + start, others + start
        leaked[ones[(ones < tests) & (others >= tests)]] = True
        apart = groups[ones] != groups[others]
        count += len(ones)
        in_one_group += int((~apart).sum())
        best = np.flatnonzero(apart)[np.argsort(-values[apart], kind="stable")[: card_facts.TWINS]]
        shown += zip(values[best].tolist(), ones[best].tolist(), others[best].tolist(), strict=True)
    shown = sorted(shown, key=lambda pair: -pair[0])[: card_facts.TWINS]
    return Twins(rows, rows["sha256"].iloc[:tests][leaked].tolist(), count, in_one_group, shown)


def show_on_card(context: StageContext, images: ImagesManifest, twins: Twins) -> None:
    """Show the pairs on the data card of the dataset, where it has one, and log it to MLflow."""
    url = files.join(images.url(context.warehouse), datacard.FILE)
    if not files.exists(url):
        return
    members = twins.rows.iloc[sorted({number for _, *pair in twins.shown for number in pair})]
    pictures = summary.thumbnails(read_images(context, images), {*members["sha256"]}, images.image_size)
    names = summary.NAMES[images.target]

    def member(number: int) -> card_facts.Member:
        row = twins.rows.iloc[number]
        sha256 = str(row["sha256"])
        return {"sha256": sha256, "image": pictures.get(sha256), "split": row["split"], "label": names[row["label"]]}

    facts: card_facts.FeatureTwins = {
        "least_cosine": LEAST,
        "pairs": twins.pairs,
        "in_one_group": twins.in_one_group,
        "with_test_only": len(twins.rows) > ALL_PAIRS,
        "shown": [{"cosine": cosine, "members": [member(one), member(other)]} for cosine, one, other in twins.shown],
    }
    page = datacard.show_feature_twins(files.read_bytes(url).decode(), facts).encode()
    files.write_bytes(url, page)
    context.tracker.log_artifact("datacard.html", page)


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


def describe_left_out(
    measured: Sequence[ModelFacts], with_twins: Mapping[str, pd.DataFrame], leaked: Collection[str]
) -> list[str]:
    """One sentence on the test images that have a twin in training, with the figures of all test images.

    Args:
        measured: The models, measured without these images.
        with_twins: The rows of predictions of each, of all images.
        leaked: `sha256` of the images with a twin.
    """
    if not leaked:
        return []
    labels = with_twins[measured[-1].name]["label"].to_numpy()
    seen = (
        f"{len(leaked)} of {len(labels)} test images look like the lesion of a training or validation image (cosine of "
        f"whitened features {LEAST:.2f} or more)"
    )
    counted = measured[-1].test
    if counted.tn + counted.fp + counted.fn + counted.tp == len(labels):
        return [f"{seen}. They count all the same, because the others have only one label."]
    figures = []
    for model in measured:
        rows = with_twins[model.name]
        all_images = binary.confusion_matrix_at(labels, rows["probability"].to_numpy(), model.operating_point.threshold)
        figures.append(
            f"{model.name} AUROC {auroc_of(rows):.3f} (without them {model.auroc.value:.3f}), sensitivity "
            f"{all_images.sensitivity:.3f} ({model.test.sensitivity:.3f}), specificity {all_images.specificity:.3f} "
            f"({model.test.specificity:.3f})"
        )
    return [f"{seen} and are left out of all figures. With them: {'; '.join(figures)}."]


def auroc_of(rows: pd.DataFrame) -> float:
    """AUROC of rows of predictions."""
    return binary.auroc(rows["label"].to_numpy(), rows["probability"].to_numpy())
