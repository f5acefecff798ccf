"""Twins by features in a warehouse: those of its own dataset, and test images that a champion's training has seen."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from melanoma_spark import config, schemas
from melanoma_spark.dataset import datacard
from melanoma_spark.evaluation import champion_comparison, feature_twins
from melanoma_spark.runner.context import StageContext
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest, publish
from melanoma_spark.storage.tensors import pack_tensors

CUT = "block5_pool"
IMAGES = 120  # 0 to 19 are test images, 20 to 39 validation
OLD = 140  # 120 to 139 were images of an earlier dataset


def split_of(number):
    return "test" if number < 20 else "validation" if number < 40 else "train"


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def warehouse(spark, tmp_path_factory, module_patch):
    """Images 0, 1 and 2 have the look of 50, 3 and 130. The earlier dataset had images 4 and 130 in train."""
    module_patch.setattr(feature_twins, "FEWEST", 100)
    module_patch.setattr(feature_twins, "COMPONENTS", 40)
    url = files.url_of(str(tmp_path_factory.mktemp("warehouse")))
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(OLD, 64)).astype(np.float32)
    for one, other in ((0, 50), (1, 3), (2, 130)):
        looks[one] = looks[other] + 0.05 * rng.normal(size=64)
    features = []
    for number, look in enumerate(looks):
        content = io.BytesIO()
        np.save(content, np.stack([[look + 1, look - 1]]))
        features.append((f"{number:064x}", 0, content.getvalue()))
    field = schemas.images_schema(8).fields["image"]
    picture = bytes(field.codec.encode(field, np.zeros((8, 8, 3), np.uint8)))
    rows = [(f"{n:064x}", f"p{n}", split_of(n), n % 2, f"looks:{n}", picture) for n in range(OLD)]
    old = [(*row[:2], "train" if n in (4, 130) else "test", *row[3:]) for n, row in enumerate(rows)]
    kinds = "sha256 string, pixel_sha256 string, split string, label int, group string, image binary"
    spark.createDataFrame(rows[:IMAGES], kinds).write.parquet(f"{url}/images/new-1")
    spark.createDataFrame(old, kinds).write.parquet(f"{url}/images/old-1")
    spark.createDataFrame(features, f"sha256 string, view int, {CUT} binary").coalesce(1).write.parquet(
        f"{url}/features/f"
    )
    files.write_bytes(f"{url}/images/new-1/{datacard.FILE}", b"<main>\n</main>")
    counts = {"train_0": 80, "validation_0": 20, "test_0": 20}
    numbers = {"listed": IMAGES, "accepted": IMAGES, "rejected": 0, "skipped": 0, "counts": counts}
    images = ImagesManifest(id="new", path="new-1", made_from="x", target="malignant", image_size=8, **numbers)
    kept = {"made_from": "new", "weights": "w", "backbone": "vgg16", "cuts": [CUT], "image_size": 8}
    publish(FeaturesManifest(id="f", path="f", **kept), url)
    logged = {}
    tracker = SimpleNamespace(log_artifact=logged.__setitem__)
    return StageContext(spark, config.Settings(), url, tracker), images, logged


def test_pairs_of_a_dataset_are_found_and_shown_on_its_card(warehouse):
    context, images, logged = warehouse
    features = feature_twins.comparable_features(context, images)
    twins = feature_twins.find_twins(context, images, features)
    assert twins.leaked_hashes == [f"{0:064x}"]
    assert twins.pairs == 2
    feature_twins.show_on_card(context, images, twins)
    page = files.read_bytes(f"{images.url(context.warehouse)}/{datacard.FILE}")
    assert logged == {"datacard.html": page}
    assert page.count(b"<img") == 4
    for words in (b"2 pairs look like one lesion", b"</code> train benign<", b"</code> test malignant<"):
        assert words in page
    assert feature_twins.comparable_features(context, images.model_copy(update={"id": "other"})) is None

    basis = f"{features.url(context.warehouse)}/_whitening-new.npz"
    values = feature_twins.read_averages(context, features, [f"{number:064x}" for number in (2, 0)])
    training = context.spark.read.parquet(images.url(context.warehouse)).where("split != 'test'")
    arguments = context, images, features, values, training
    assert list(feature_twins.find_twins_in_training(*arguments)) == [False, True]
    content = files.read_bytes(basis)
    files.remove(basis)
    assert list(feature_twins.find_twins_in_training(*arguments)) == [False, True]
    assert files.read_bytes(basis) == content, "made again"
    files.write_bytes(basis, pack_tensors([np.zeros(64), np.zeros((64, 40))]))
    assert not feature_twins.find_twins_in_training(*arguments).any(), "the basis that is kept"
    files.write_bytes(basis, content)


def test_test_images_that_the_champion_has_trained_on_do_not_count(warehouse):
    context, images, _ = warehouse
    rows = context.spark.read.parquet(images.url(context.warehouse)).where("split = 'test'")
    test = rows.select("sha256", "split", "label").toPandas().sort_values("sha256")

    def counted(dataset, test=test):
        version = SimpleNamespace(version=3, tags={"dataset_id": dataset})
        return champion_comparison.leave_out_seen(context, images, version, test)

    unseen, note = counted("old")
    assert set(test["sha256"]) - set(unseen["sha256"]) == {f"{2:064x}", f"{4:064x}"}
    assert note == "2 test images are left out of this, because the training of version 3 has seen them or a twin."
    two = test.iloc[[2, 5]]
    assert len(counted("old", two)[0]) == 2, "the other one alone has no AUROC"
    for dataset, sentence in (
        ("new", ""),
        ("gone", "The images that version 3 was trained on are not in this warehouse"),
    ):
        everyone, note = counted(dataset)
        assert len(everyone) == 20
        assert note.startswith(sentence)
        assert bool(note) == bool(sentence)
