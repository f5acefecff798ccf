"""Twins by features: whitening, and test images that are left out."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from melanoma_spark.evaluation import evaluate, feature_twins
from melanoma_spark.metrics import binary
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(1500, 160)) @ rng.normal(size=(160, 160)) + 3).astype(np.float32)


def test_whitening_is_scikit_learn_s(values):
    mean, axes = feature_twins.fit_whitening(values)
    white = feature_twins.whiten(values, mean, axes)
    expected = PCA(feature_twins.COMPONENTS, whiten=True, svd_solver="full").fit_transform(values)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert white[:50] @ white[:50].T == pytest.approx(expected[:50] @ expected[:50].T, abs=2e-3)


def test_a_changed_copy_is_a_twin_and_a_stranger_is_not(values):
    basis = feature_twins.fit_whitening(values)
    others = feature_twins.whiten(values, *basis)
    again = values[:20] + 0.1 * np.random.default_rng(1).normal(size=(20, 160)).astype(np.float32)
    result = feature_twins.highest_cosines(feature_twins.whiten(again, *basis), others)
    strangers = feature_twins.highest_cosines(others[:20], others[20:])
    assert (result >= feature_twins.LEAST).all()
    assert (strangers < feature_twins.LEAST).all()


def test_leaked_test_images_are_left_out_unless_one_class_is_left():
    rows = pd.DataFrame({"sha256": list("abcde"), "split": ["train", "test", "test", "test", "test"]})
    rows = rows.assign(label=[1, 0, 0, 1, 1])
    assert list(feature_twins.leave_out(rows, ["a", "b", "d"])["sha256"]) == ["a", "c", "e"]
    assert list(feature_twins.leave_out(rows, ["d", "e"])["sha256"]) == list("abcde")
    assert list(feature_twins.leave_out(rows, [])["sha256"]) == list("abcde")


def test_the_report_says_how_many_are_left_out_and_the_figures_with_them():
    with_twins = pd.DataFrame({"label": [0, 0, 1, 1, 1], "probability": [0.1, 0.6, 0.4, 0.8, 0.9]})
    counted = binary.confusion_matrix_at([0, 1, 1], [0.6, 0.4, 0.8], 0.5)
    model = SimpleNamespace(
        name="head alone",
        test=counted,
        auroc=SimpleNamespace(value=0.5),
        operating_point=SimpleNamespace(threshold=0.5),
    )
    (sentence,) = evaluate.describe_left_out([model], {"head alone": with_twins})
    assert sentence.startswith("2 of 5 test images look like the lesion of a training or validation image")
    assert (
        "head alone AUROC 0.833 (without them 0.500), sensitivity 0.667 (0.500), specificity 0.500 (0.000)" in sentence
    )
    alone = with_twins.iloc[1:4]
    assert evaluate.describe_left_out([model], {"head alone": alone}) == []


@pytest.mark.parametrize(
    ("train", "cuts", "can"),
    [(1280, ["block5_pool"], True), (1279, ["block5_pool"], False), (1280, ["block4_pool"], False)],
)
def test_few_images_and_other_cuts_are_not_compared(train, cuts, can):
    images = ImagesManifest.model_construct(counts={"train_0": train - 80, "validation_1": 80, "test_0": 5000})
    features = FeaturesManifest.model_construct(backbone="vgg16", cuts=cuts)
    assert feature_twins.can_compare(images, features) == can
