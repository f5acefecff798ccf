"""Twins by features: whitening, and test images that are left out."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from melanoma_spark.evaluation import feature_twins
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


@pytest.mark.parametrize("all_pairs", [60, 59])
def test_all_pairs_are_compared_and_those_of_one_group_are_not_shown(all_pairs, monkeypatch):
    """Of more than `ALL_PAIRS` images, only pairs with one of the 20 test images."""
    monkeypatch.setattr(feature_twins, "BLOCK", 7)
    monkeypatch.setattr(feature_twins, "ALL_PAIRS", all_pairs)
    rng = np.random.default_rng(0)
    white = rng.normal(size=(60, 3)).astype(np.float32)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    groups = rng.integers(0, 8, 60)
    found = feature_twins.compare_all(white, 20, pd.DataFrame({"sha256": np.arange(60).astype(str), "group": groups}))
    tests = 60 if all_pairs == 60 else 20
    pairs = [(float(white[a] @ white[b]), a, b) for a in range(tests) for b in range(a + 1, 60)]
    pairs = sorted((pair for pair in pairs if pair[0] >= feature_twins.LEAST), reverse=True)
    apart = [pair for pair in pairs if groups[pair[1]] != groups[pair[2]]]
    assert (found.pairs, found.in_one_group) == (len(pairs), len(pairs) - len(apart))
    assert [pair[1:] for pair in found.shown] == [pair[1:] for pair in apart[:60]]
    assert [pair[0] for pair in found.shown] == pytest.approx([pair[0] for pair in apart[:60]])
    assert found.leaked_hashes == [str(a) for a in range(20) if any(b >= 20 for _, one, b in pairs if one == a)]


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
    (sentence,) = feature_twins.describe_left_out([model], {"head alone": with_twins}, ["a", "b"])
    assert sentence.startswith("2 of 5 test images look like the lesion of a training or validation image")
    assert (
        "head alone AUROC 0.833 (without them 0.500), sensitivity 0.667 (0.500), specificity 0.500 (0.000)" in sentence
    )
    assert feature_twins.describe_left_out([model], {"head alone": with_twins}, []) == []
    (sentence,) = feature_twins.describe_left_out([model], {"head alone": with_twins.iloc[1:4]}, ["a"])
    assert sentence.endswith("They count all the same, because the others have only one label.")


@pytest.mark.parametrize(
    ("train", "cuts", "can"),
    [(1280, ["block5_pool"], True), (1279, ["block5_pool"], False), (1280, ["block4_pool"], False)],
)
def test_few_images_and_other_cuts_are_not_compared(train, cuts, can):
    images = ImagesManifest.model_construct(counts={"train_0": train - 80, "validation_1": 80, "test_0": 5000})
    features = FeaturesManifest.model_construct(backbone="vgg16", cuts=cuts)
    assert feature_twins.can_compare(images, features) == can
