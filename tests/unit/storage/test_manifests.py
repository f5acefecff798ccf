"""Manifests: written complete or not at all, read from earlier releases, and checked against each other."""

import json

import numpy as np
import pytest

from melanoma_spark.errors import DataError
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, HeadManifest, ImagesManifest

COUNTS = {"listed": 3, "accepted": 2, "rejected": 1, "skipped": 0, "counts": {"train_0": 1, "train_1": 1}}
IMAGES = ImagesManifest(id="i1", path="p1", made_from="m", target="melanoma", image_size=64, **COUNTS)
FEATURES = FeaturesManifest(
    id="f1", path="f1", made_from="i1", weights="w1", backbone="vgg16", cuts=["block5_pool"], image_size=64
)
HEAD = HeadManifest(
    id="h1",
    path="h1",
    made_from="m",
    spec={"backbone": "vgg16", "dropout": 0.0, "hidden": 4, "image_size": 64},
    tensors_id="t",
    weights_id="w1",
    weights_origin="random",
    dataset_id="i1",
    features_id="f1",
    validation_auroc=0.5,
    training=[{"epoch": 0, "loss": float("nan"), "phase": "head"}],
    best={"head": 0},
    run_id="r",
)


@pytest.fixture
def warehouse(tmp_path):
    return files.url_of(str(tmp_path))


def test_manifests_are_required_published_and_replaced(warehouse, tmp_path):
    assert manifests.read(ImagesManifest, warehouse) is None
    with pytest.raises(DataError, match=r"images is not there yet; run `melanoma-spark ingest` first"):
        manifests.require(ImagesManifest, warehouse)

    for number in (1, 2):
        published = manifests.publish(IMAGES.model_copy(update={"id": f"i{number}", "path": f"p{number}"}), warehouse)
    result = manifests.require(ImagesManifest, warehouse)
    assert result == published
    assert (result.id, result.path, result.format) == ("i2", "p2", 1)
    assert result.version
    assert result.made_at
    assert result.url(warehouse) == f"file://{tmp_path}/images/p2"
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["manifest.json"]
    text = json.loads((tmp_path / "images/manifest.json").read_text())
    assert list(text) == sorted(text)
    assert "damaged" not in text, "what is not set is not written"


def written(tmp_path, **changes):
    values = {**json.loads(IMAGES.model_dump_json(exclude_unset=True)), **changes}
    (tmp_path / "images").mkdir()
    (tmp_path / "images/manifest.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_manifests_without_format_and_with_unknown_keys_are_read(warehouse, tmp_path):
    written(tmp_path, note="by hand")
    result = manifests.require(ImagesManifest, warehouse)
    assert (result.format, result.damaged, result.archive) == (1, 0, "")
    manifests.publish(result, warehouse)
    assert json.loads((tmp_path / "images/manifest.json").read_text())["note"] == "by hand"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "2"}, "has format 2, this release reads formats up to 1; update melanoma-spark"),
        ({"target": None, "listed": "many"}, "lacks listed, target, or they are damaged; .* run `ingest` again"),
    ],
)
def test_a_newer_or_a_damaged_manifest_is_refused(warehouse, tmp_path, changes, words):
    written(tmp_path, **changes)
    with pytest.raises(DataError, match=words):
        manifests.read(ImagesManifest, warehouse)


def test_a_model_is_kept_as_it_was(warehouse):
    tensors = [np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), np.zeros((), np.int64)]
    published = manifests.save_model(warehouse, HEAD, tensors)
    result = manifests.require(HeadManifest, warehouse)
    assert repr(result) == repr(published)  # by text: it holds a NaN
    assert isinstance(result.spec["hidden"], int)
    for before, after in zip(tensors, manifests.load_model(warehouse, result), strict=True):
        np.testing.assert_array_equal(before, after, strict=True)


@pytest.mark.parametrize(
    ("images", "features", "spec", "words"),
    [
        ({"image_size": 32}, {}, {}, "features/ are of images of 64 px, images/ holds 32 px; .* featurize"),
        ({}, {"weights": "w2"}, {}, "models/head .* with weights w1, features/ has w2; .* train_head"),
        ({}, {"backbone": "resnet50"}, {}, "with backbone vgg16, features/ has resnet50"),
        ({}, {}, {"image_size": 32}, "with image_size 32, features/"),
    ],
)
def test_parts_of_other_runs_do_not_fit(images, features, spec, words):
    manifests.check_fit(IMAGES, FEATURES, HEAD)
    head = HEAD.model_copy(update={"spec": {**HEAD.spec, **spec}})
    with pytest.raises(DataError, match=words):
        manifests.check_fit(IMAGES.model_copy(update=images), FEATURES.model_copy(update=features), head)
