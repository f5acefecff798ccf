"""Weights files: read without Keras, refused when they are something else, and known by their content."""

import hashlib
import io
from dataclasses import replace

import h5py
import numpy as np
import pytest

from melanoma_spark import config, lineage
from melanoma_spark.errors import ConfigError
from melanoma_spark.models import backbones, weights

KERNEL = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
LAYERS = {"pool": {}, "conv_b": {"kernel": KERNEL, "bias": np.zeros(3, np.float32)}, "conv_a": {"kernel": KERNEL + 1}}
FILE_NAME = backbones.backbone("vgg16").imagenet_file


def hdf5(write):
    """The content of an HDF5 file that a function fills."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as archive:
        write(archive)
    return buffer.getvalue()


def keras_file(layers, below=None, encode=str.encode):
    """Weights as Keras's legacy HDF5 writer lays them out: names of layers and of their weights as attributes."""

    def write(archive):
        root = archive.create_group(below) if below else archive
        root.attrs["layer_names"] = [encode(name) for name in layers]
        for name, tensors in layers.items():
            layer = root.create_group(name)
            layer.attrs["weight_names"] = [encode(f"{name}/{weight}:0") for weight in tensors]
            for weight, tensor in tensors.items():
                layer.create_dataset(f"{name}/{weight}:0", data=tensor)

    return hdf5(write)


def one_weight(data):
    """A function that fills a file with one layer of one weight, which holds any data."""

    def write(archive):
        archive.attrs["layer_names"] = [b"layer"]
        layer = archive.create_group("layer")
        layer.attrs["weight_names"] = [b"weight"]
        if isinstance(data, h5py.ExternalLink):
            layer["weight"] = data
        else:
            layer.create_dataset("weight", data=data)

    return write


def as_found(tensors):
    return [(tensor.dtype, tensor.shape, tensor.tobytes()) for tensor in tensors]


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without any weights; returns the folder of Keras's cache."""
    monkeypatch.delenv(weights.FILE_VARIABLE, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(lineage, "checkout", lambda: tmp_path / "checkout")
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras" / "models"


@pytest.mark.parametrize("below", [None, "model_weights"])
@pytest.mark.parametrize("encode", [str.encode, str])
def test_tensors_come_in_the_order_of_the_layers_and_their_weights(below, encode):
    double = {name: {key: one.astype(np.float64) for key, one in own.items()} for name, own in LAYERS.items()}
    for layers in (LAYERS, double):
        result = weights.read_hdf5(keras_file(layers, below, encode), "x.h5")
        assert as_found(result) == as_found([KERNEL, np.zeros(3, np.float32), KERNEL + 1])


WHOLE = keras_file(LAYERS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no weights",
        b"<html>404</html>",
        *(WHOLE[: len(WHOLE) * part // 10] for part in (1, 3, 5, 7, 9)),
        hdf5(lambda archive: None),
        hdf5(lambda archive: archive.attrs.update({"layer_names": 3})),
        hdf5(lambda archive: archive.attrs.update({"layer_names": [b"missing"]})),
        hdf5(lambda archive: archive.attrs.update({"layer_names": [b"\xff\xfe"]})),
        hdf5(lambda archive: archive.create_dataset("model_weights", data=np.zeros(3))),
        hdf5(lambda archive: archive.create_group("layers/conv/vars")),
        hdf5(one_weight([b"text"])),
        hdf5(one_weight(h5py.ExternalLink("/etc/hostname", "/"))),
    ],
)
def test_anything_else_is_refused_in_one_line_that_names_it(content):
    with pytest.raises(ConfigError) as error:
        weights.read_hdf5(content, "backbone.h5")
    assert str(error.value).startswith("backbone.h5 is not a Keras HDF5 weights file: ")
    assert len(str(error.value).splitlines()) == 1


def test_weights_are_taken_from_a_path_or_a_url_and_known_by_their_content(tmp_path):
    path = tmp_path / "own.h5"
    path.write_bytes(WHOLE)
    for name in (str(path), f"file://{path}"):
        result = weights.resolve(config.Backbone(weights=name), seed=0)
        assert result.origin == name
        assert result.content_id == lineage.tensors_id([KERNEL, np.zeros(3, np.float32), KERNEL + 1])
        assert result.content_id == lineage.tensors_id(result.tensors)


def test_weights_and_backbones_that_cannot_be_read_are_errors(tmp_path, monkeypatch):
    (tmp_path / "notes.h5").write_text("no weights")
    with pytest.raises(ConfigError, match=r"notes\.h5 is not a Keras HDF5 weights file"):
        weights.resolve(config.Backbone(weights=str(tmp_path / "notes.h5")), seed=0)
    with pytest.raises(
        ConfigError, match=r"setting backbone\.name: unknown backbone 'vgg11'; known: .*resnet50, tiny_vgg16, vgg16"
    ):
        weights.find_imagenet("vgg11")
    with pytest.raises(ConfigError, match=r"backbone\.weights: cannot read .*/none\.h5: No such file.*or `imagenet`"):
        weights.resolve(config.Backbone(weights=str(tmp_path / "none.h5")), seed=0)

    facts = tmp_path / "broken-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[{backbones.GROUP}]\nbroken = not_there:BROKEN\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'broken' is not_there:BROKEN of .* imported: No module named 'not_there';"):
        weights.find_imagenet("broken")


def test_variable_that_names_no_file_is_an_error_even_where_other_weights_are_at_hand(nowhere, monkeypatch, tmp_path):
    (nowhere / FILE_NAME).write_bytes(WHOLE)
    for value in (tmp_path / "none.h5", tmp_path):
        monkeypatch.setenv(weights.FILE_VARIABLE, str(value))
        with pytest.raises(ConfigError) as error:
            weights.find_imagenet("vgg16")
        assert str(error.value) == f"MELANOMA_WEIGHTS names {value}, which is no file; correct or unset it"


def test_weights_are_searched_by_variable_cache_and_project_folder(nowhere, monkeypatch, tmp_path):
    beside = tmp_path / "shared" / "weights" / FILE_NAME
    assert weights.find_imagenet("vgg16") is None
    beside.parent.mkdir(parents=True)
    beside.write_bytes(WHOLE)
    assert weights.find_imagenet("vgg16") == beside
    (nowhere / FILE_NAME).write_bytes(WHOLE)
    assert weights.find_imagenet("vgg16") == nowhere / FILE_NAME
    (tmp_path / "named.h5").write_bytes(WHOLE)
    monkeypatch.setenv(weights.FILE_VARIABLE, str(tmp_path / "named.h5"))
    assert weights.find_imagenet("vgg16") == tmp_path / "named.h5"


def test_files_that_are_not_the_published_weights_are_refused(nowhere, monkeypatch, tmp_path):
    (nowhere / FILE_NAME).write_bytes(WHOLE)
    expected = backbones.backbone("vgg16").imagenet_id
    with pytest.raises(ConfigError) as error:
        weights.resolve(config.Backbone(), seed=0)
    assert "does not hold the published ImageNet weights of vgg16" in str(error.value)
    assert f"expected {expected}" in str(error.value)
    assert f"backbone.weights={nowhere / FILE_NAME}" in str(error.value)

    spec = backbones.backbone("vgg16")
    path = tmp_path / spec.imagenet_file
    path.write_bytes(keras_file({"a": {"kernel:0": np.ones((2, 2))}}))
    monkeypatch.setattr(weights, "find_imagenet", lambda name: path)
    for md5, taken in ((hashlib.md5(path.read_bytes()).hexdigest(), True), (spec.imagenet_md5, False)):
        monkeypatch.setitem(backbones.BACKBONES, "vgg16", replace(spec, imagenet_id=None, imagenet_md5=md5))
        if taken:
            assert weights.resolve(config.Backbone(), 0).origin == "imagenet"
        else:
            with pytest.raises(ConfigError, match="does not hold the published ImageNet weights of vgg16"):
                weights.resolve(config.Backbone(), 0)


def test_messages_about_changed_and_random_weights(tmp_path, capsys):
    (tmp_path / "own.h5").write_bytes(WHOLE)
    settings = config.Backbone(weights=str(tmp_path / "own.h5"))
    own = weights.resolve(settings, 0).content_id
    assert weights.resolve_again(settings, 0, own).content_id == own
    with pytest.raises(ConfigError) as error:
        weights.resolve_again(settings, 0, "def")
    assert str(error.value) == (
        f"features/ was made with weights def, the settings name {settings.weights} weights {own}; "
        "run `melanoma-spark featurize` with these settings first"
    )

    weights.announce(weights.Weights((), "imagenet", "abc"))
    assert capsys.readouterr().out == ""
    weights.announce(weights.Weights((), weights.RANDOM, "abc"))
    assert capsys.readouterr().out.startswith("  warning: random weights are used, for this demo only")


def test_imagenet_weights_at_hand_are_the_published_ones():
    path = weights.find_imagenet("vgg16")
    if path is None:
        pytest.skip(f"no {FILE_NAME} at hand: set MELANOMA_WEIGHTS to a copy of it")
    result = weights.resolve(config.Backbone(), seed=0)
    assert result.content_id == backbones.backbone("vgg16").imagenet_id == "99b32de5670d4dc2"
    assert len(result.tensors) == 26
    assert result.tensors[0].shape == (3, 3, 3, 64)
    assert sum(tensor.size for tensor in result.tensors) == 14_714_688


def test_weights_are_located_without_reading_them(tmp_path, monkeypatch):
    named = tmp_path / "mine.h5"
    mine = config.Backbone(weights=str(named))
    with pytest.raises(ConfigError, match=r"backbone\.weights: .*mine\.h5 does not exist; name a readable file"):
        weights.locate(mine)
    named.write_bytes(b"no weights")
    assert weights.locate(mine) == str(named)
    monkeypatch.setenv(weights.FILE_VARIABLE, str(named))
    assert weights.locate(config.Backbone()) == str(named)
    monkeypatch.setattr(weights, "find_imagenet", lambda name: None)
    assert weights.locate(config.Backbone()) == "", "Keras would download them"
    assert weights.locate(config.Backbone(allow_random=True)) == weights.RANDOM
    assert weights.locate(config.Backbone(allow_random=True, weights="random")) == weights.RANDOM
