"""What a rank of fine-tuning reads: in each epoch another view, of features as stored and of pixels as they come."""

import shutil
import sys
from collections.abc import Callable

import numpy as np
import pytest
from conftest import refused

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.images import augmentation
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import finetune, horovod, reading, sharding

AUGMENT = config.Augment(enabled=True)


def rows(images) -> np.ndarray:
    return np.stack(list(images.read(sharding.share(sharding.deal(images.groups, 8, 1), 0, 1))))


@pytest.fixture(scope="module")
def source(line) -> Callable[[str, str], finetune.Source]:
    """A function: dataset, column -> what a phase reads of it."""

    def url_of(name: str) -> str:
        return f"{line.context.warehouse}/{name}/{line.manifest(name)['path']}"

    labels = training_labels(line.context.spark, url_of("images"))

    def of(name: str, column: str) -> finetune.Source:
        url = url_of(name)
        return finetune.Source(url, column, reading.indexes(line.context.spark, url, labels))

    return of


def test_pixels_are_augmented_by_epoch_and_image_on_any_number_of_ranks(line, source):
    pixels = source("images", "image")
    plain, drawn = (
        line.context.settings.model_copy(update={"augment": augment}) for augment in (config.Augment(), AUGMENT)
    )
    index = pixels.indexes["train"][0]
    dealt = sharding.deal(index.groups, 8, 1)
    as_stored, first, again, second = (
        rows(finetune.epoch_images(pixels, 1, chosen, "train", epoch))
        for chosen, epoch in ((plain, 1), (drawn, 1), (drawn, 1), (drawn, 2))
    )
    np.testing.assert_array_equal(first, again)
    for result, epoch in ((first, 1), (second, 2)):
        for image, stored, row in zip(result, as_stored, dealt[dealt != sharding.NONE], strict=True):
            generator = augmentation.generator(drawn.seed, epoch, index.keys[row].decode())
            np.testing.assert_array_equal(image, augmentation.augment(stored, AUGMENT, generator))
    assert not np.array_equal(first, second)
    images = finetune.epoch_images(pixels, 1, drawn, "train", 1)
    of_ranks = [list(images.read(sharding.share(dealt, rank, 3))) for rank in range(3)]
    assert sorted(image.tobytes() for part in of_ranks for image in part) == sorted(image.tobytes() for image in first)


@pytest.mark.parametrize(("name", "column"), [("images", "image"), ("features", "block4_pool")])
def test_validation_is_read_as_it_is(line, source, name, column):
    read = source(name, column)
    drawn = line.context.settings.model_copy(update={"augment": AUGMENT})
    ones, others = (
        rows(finetune.epoch_images(read, 1, chosen, "validation", epoch))
        for chosen, epoch in ((line.context.settings, 1), (drawn, 2))
    )
    np.testing.assert_array_equal(ones, others)


def test_features_are_read_view_after_view(line, source):
    features = source("features", "block4_pool")
    (index,) = features.indexes["train"]
    other = sharding.Index(index.places, index.groups, index.keys, index.labels, view=1)
    features.indexes["train"].append(other)
    result = [finetune.epoch_images(features, 1, line.context.settings, "train", epoch) for epoch in (1, 2, 3)]
    assert [images.groups is index.groups for images in result] == [True, True, True]
    assert len(rows(result[0])) == len(rows(result[2])) == len(index)
    with pytest.raises(Exception, match="gave 0 of"):  # of this line there is no second view
        rows(result[1])


@pytest.fixture
def without_horovod(line, new_line, monkeypatch):
    """A copy of the line before fine-tuning, in a process that cannot import Horovod."""
    other = new_line()
    for name in ("images", "features", "models/head"):
        shutil.copytree(line.folder / name, other.folder / name)
    for name in [name for name in sys.modules if name.startswith("horovod.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "horovod", None)
    return other


def test_without_horovod_one_rank_trains_where_the_settings_name_no_number(monkeypatch):
    assert horovod.choose_ranks(config.parse({})) == 2
    monkeypatch.setitem(sys.modules, "horovod", None)
    assert horovod.choose_ranks(config.parse({})) == 1
    assert horovod.choose_ranks(config.parse({"ranks": 1})) == 1
    with pytest.raises(ConfigError, match="ranks=2, but Horovod is not installed"):
        horovod.choose_ranks(config.parse({"ranks": 2}))


def test_without_horovod_one_rank_trains_and_more_are_refused(without_horovod, line):
    words = ("ranks=2, but Horovod is not installed", "pip install 'melanoma-spark[horovod]'")
    refused(without_horovod, "finetune", *words)

    text = without_horovod.output_of("finetune", ranks=1)
    assert text.startswith("  Horovod is not installed: training with one rank in this process\n")
    result, expected = (one.manifest("models/finetuned") for one in (without_horovod, line))
    assert (result["ranks"], result["made_from"]) == (1, expected["made_from"])
    for one, other in zip(result["training"], expected["training"], strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)
