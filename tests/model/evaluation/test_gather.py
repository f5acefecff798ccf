"""How a report describes a model and its licenses; what it measures is tested with the jobs that use it."""

from types import SimpleNamespace

import pytest

from melanoma_spark.evaluation import gather
from melanoma_spark.models import network


@pytest.mark.parametrize(
    ("named", "layout", "licenses"),
    [
        (["CC-0", "CC BY 4.0"], "isic_2019: labels from a table", ["CC-0", "CC BY 4.0"]),
        ([], "isic_2019: labels from a table", ["CC BY-NC 4.0 (of isic_2019 as published; the archive names none)"]),
        ([], "folders: labels from the names of folders", []),
        ([], "", []),
    ],
)
def test_licenses_are_those_of_the_archive_else_of_its_layout(monkeypatch, named, layout, licenses):
    monkeypatch.setattr(gather, "top_values", lambda context, images, column: named)
    assert gather.find_licenses(None, SimpleNamespace(layout=layout)) == licenses


def test_a_model_is_described_with_its_weights_and_its_views():
    spec = network.Spec(backbone="vgg16", image_size=224, hidden=64, dropout=0.5, tta=8)
    text = gather.describe_model("fine-tuned", spec, "imagenet")
    assert text.startswith(
        "Fine-tuned: the convolutional base of vgg16 (imagenet weights) and a head of 64 units on it"
    )
    assert text.endswith("Its probability is the mean over 8 mirror images and turns.")
    assert "mirror" not in gather.describe_model("fine-tuned", spec.model_copy(update={"tta": 1}), "imagenet")
