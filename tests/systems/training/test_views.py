"""Features of several views of each train image: augmented as the settings say, computed once, kept apart by `view`."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import captured_output, open_line

from melanoma_spark import config, schemas
from melanoma_spark.evaluation import predictions
from melanoma_spark.images import augmentation
from melanoma_spark.models import backbones, network, weights
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, HeadManifest, ImagesManifest
from melanoma_spark.storage.petastorm import without_warnings

CUT = "block5_pool"
AUGMENT = config.Augment(enabled=True, cutout=0.2)


def views(count: int, augment: config.Augment = AUGMENT) -> dict:
    return {"featurize": config.Featurize(views=count), "augment": augment}


@pytest.fixture(scope="module")
def ingested(spark, lesions, shared_mlflow, tmp_path_factory):
    """A line of which ingest alone has run."""
    folder = tmp_path_factory.mktemp("views") / "warehouse"
    line = open_line(spark, lesions, folder, mlflow={"tracking_uri": shared_mlflow}, **{"finetune": FINETUNE})
    with captured_output():
        line.stage("ingest")
    return line


FINETUNE = {"phases": [{"name": "all", "epochs": 1}]}  # of one cut, for speed


@pytest.fixture
def fresh(ingested, new_line):
    """Another line with the same images, and nothing else."""
    line = new_line(finetune=FINETUNE)
    shutil.copytree(ingested.folder / "images", line.folder / "images")
    return line


@pytest.fixture(scope="module")
def stored(ingested):
    return ingested.read("images").toPandas().set_index("sha256").sort_index()


@pytest.fixture(scope="module")
def plain(ingested):
    """The features of one view."""
    with captured_output():
        output = ingested.stage("featurize")
    assert "0 computed before" in output
    return rows(ingested)


def rows(line) -> pd.DataFrame:
    return line.read("features").toPandas().sort_values(["sha256", "view"], ignore_index=True)


def by_petastorm(line) -> list[tuple[str, int]]:
    """The keys of all rows as Petastorm reads them, which needs its metadata; each with its features."""
    from petastorm import make_reader

    url = manifests.require(FeaturesManifest, line.context.warehouse).url(line.context.warehouse)
    with without_warnings(), make_reader(url, num_epochs=1, reader_pool_type="dummy") as reader:
        read = list(reader)
    assert {getattr(row, CUT).dtype for row in read} == {np.dtype(np.float16)}
    return sorted((row.sha256, int(row.view)) for row in read)


def keys(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(table[["sha256", "view"]].itertuples(index=False, name=None))


def array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32)


def times(line) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in line.folder.glob("features/*/*.parquet")}


def same(result: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same keys, and bit for bit the same features."""
    pd.testing.assert_frame_equal(result.reset_index(drop=True), expected.reset_index(drop=True))


def test_one_view_is_that_of_every_image_as_it_is(ingested, plain, stored):
    assert list(plain["sha256"]) == list(stored.index)
    assert plain["view"].dtype == np.int32
    assert set(plain["view"]) == {0}
    facts = ingested.manifest("features")
    assert (facts["views"], facts["augment"]) == (1, None)


def test_each_view_is_the_network_over_the_augmented_image(fresh, plain, stored):
    """Four views at once: their values, their images, their order and their manifest."""
    train = stored.index[stored["split"] == "train"]
    others = len(stored) - len(train)
    output = fresh.stage("featurize", **views(4))
    count = 4 * len(train) + others
    assert (
        f"{count} rows (4 views of each train image, 1 of the others) = {count} computed + 0 computed before" in output
    )
    result = rows(fresh)
    expected = [(sha, view) for sha in stored.index for view in range(4 if sha in train else 1)]
    assert keys(result) == expected
    same_plain = result[result["view"] == 0]
    for one, other in zip(same_plain[CUT], plain[CUT], strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=2e-3, atol=1e-3)

    facts = fresh.manifest("features")
    assert facts["views"] == 4
    assert facts["augment"] == {
        **AUGMENT.model_dump(exclude={"enabled"}),
        "seed": fresh.context.settings.seed,
        "version": augmentation.VERSION,
    }

    base = weights.resolve(fresh.context.settings.backbone, fresh.context.settings.seed)
    predict = network.predictor(backbones.features(backbones.build_base("tiny_vgg16", 64, base.tensors), [CUT]))
    field = schemas.images_schema(64).fields["image"]
    some = result[result["view"] > 0].iloc[::25]
    pixels = [
        augmentation.augment(
            field.codec.decode(field, stored.loc[row.sha256, "image"]),
            AUGMENT,
            augmentation.generator(fresh.context.settings.seed, row.view, row.sha256),
        )
        for row in some.itertuples()
    ]
    (values,) = predict(np.stack(pixels))
    assert len(some) > 5
    for content, value in zip(some[CUT], values, strict=True):
        np.testing.assert_allclose(array(content), value, rtol=2e-3, atol=2e-3 * np.abs(values).max())

    split = stored["split"].to_dict()
    folder = fresh.folder / "features" / facts["path"]
    of_files = [pd.read_parquet(path, columns=["view", "sha256"]) for path in sorted(folder.glob("*.parquet"))]
    for one in of_files:
        order = [(row.view, split[row.sha256], row.sha256) for row in one.itertuples()]
        assert order == sorted(order)
    assert len(of_files) > 1
    assert by_petastorm(fresh) == expected


def test_more_views_compute_the_new_ones_alone_and_fewer_none(fresh, plain, stored):
    train = int((stored["split"] == "train").sum())
    one_id = fresh.stage("featurize") and fresh.manifest("features")["id"]
    first = rows(fresh)
    assert f" = {train} computed + {len(stored)} computed before" in fresh.stage("featurize", **views(2))
    two_id = fresh.manifest("features")["id"]
    assert two_id != one_id
    second = rows(fresh)
    same(second[second["view"] == 0], first)
    before = times(fresh)
    output = fresh.stage("featurize", **views(4))
    assert f" = {2 * train} computed + {train + len(stored)} computed before" in output
    assert before.items() <= times(fresh).items()
    assert (fresh.manifest("features")["id"], fresh.manifest("features")["views"]) == (two_id, 4)
    fourth = rows(fresh)
    assert len(fourth) == 3 * train + len(stored)
    same(fourth[fourth["view"] < 2], second)

    before = times(fresh)
    for count in (2, 3):
        assert " = 0 computed + " in fresh.stage("featurize", **views(count))
        assert (fresh.manifest("features")["id"], fresh.manifest("features")["views"]) == (two_id, count)
    assert f"{len(stored)} images = 0 computed + " in fresh.stage("featurize")
    assert fresh.manifest("features")["id"] == one_id
    assert times(fresh) == before


def test_one_view_after_several_is_reused(fresh, plain):
    """Without having been computed by itself before."""
    fresh.stage("featurize", **views(2))
    several = rows(fresh)
    assert f"{len(plain)} images = 0 computed + {len(plain)} computed before" in fresh.stage("featurize")
    same(rows(fresh), several[several["view"] == 0])
    assert by_petastorm(fresh) == keys(plain)


def test_settings_of_augmentation_are_part_of_augmented_features_alone(ingested, plain, fresh, stored):
    other = config.Augment(enabled=True, zoom=0.4)
    before = ingested.manifest("features")["id"]
    for augment in (AUGMENT, other):
        assert " = 0 computed" in ingested.stage("featurize", augment=augment)
        assert ingested.manifest("features")["id"] == before
    train = int((stored["split"] == "train").sum())
    fresh.stage("featurize", **views(2))
    before = fresh.manifest("features")["id"]
    first = rows(fresh)
    assert f" = {train} computed + {len(stored)} computed before" in fresh.stage("featurize", **views(2, other))
    assert fresh.manifest("features")["id"] != before
    second = rows(fresh)
    same(second[second["view"] == 0], first[first["view"] == 0])
    changed = [one != another for one, another in zip(second[CUT], first[CUT], strict=True)]
    assert changed == list(second["view"] == 1)


def test_the_head_is_evaluated_on_images_without_augmentation(line, copied):
    """An image of the test split may have been one of the train split before, and have several views."""
    kinds = (ImagesManifest, FeaturesManifest, HeadManifest)
    images, features, head = (manifests.require(kind, copied.context.warehouse) for kind in kinds)
    meter = session.Meter(copied.context.spark)
    expected = predictions.predict_head(copied.context, images, features, head, meter).toPandas()
    table = copied.read("features")
    more = table.unionByName(table.selectExpr("sha256", "cast(1 as int) as view", *features.cuts))
    more.write.parquet(files.join(copied.context.warehouse, "features", "more"))
    other = features.model_copy(update={"path": "more"})
    result = predictions.predict_head(copied.context, images, other, head, meter).toPandas()
    assert len(result) == len(expected) > 40
    same(result.sort_values("sha256"), expected.sort_values("sha256"))
