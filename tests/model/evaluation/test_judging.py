"""What evaluation tells of a model and its images in words; what it measures is tested with the jobs that use it."""

import pytest

from melanoma_spark.evaluation import assessment
from melanoma_spark.models import network


@pytest.mark.parametrize(
    ("told", "layout", "licences"),
    [
        (["CC-0", "CC BY 4.0"], "isic_2019: labels from a table", ["CC-0", "CC BY 4.0"]),
        ([], "isic_2019: labels from a table", ["CC BY-NC 4.0 (of isic_2019 as published; the archive tells none)"]),
        ([], "folders: labels from the names of folders", []),
        ([], "", []),
    ],
)
def test_licences_are_those_of_the_archive_else_of_its_layout(monkeypatch, told, layout, licences):
    monkeypatch.setattr(assessment, "told_of", lambda job, images, column: told)
    assert assessment.licences(None, {"layout": layout}) == licences


def test_a_model_is_told_with_its_weights_and_its_views():
    spec = network.Spec(backbone="vgg16", image_size=224, hidden=64, dropout=0.5, tta=8)
    told = assessment.about("fine-tuned", spec, "imagenet")
    assert told.startswith(
        "Fine-tuned: the convolutional base of vgg16 (imagenet weights) and a head of 64 units on it"
    )
    assert told.endswith("It judges by the mean over 8 mirror images and turns of an image.")
    assert "mirror" not in assessment.about("fine-tuned", spec.model_copy(update={"tta": 1}), "imagenet")
