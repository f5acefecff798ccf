"""An exported network gives the outputs of TensorFlow, or is refused."""

import subprocess
import sys

import numpy as np
import pytest

from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.models import engines, network

ENGINES = ("ncnn", "onnxruntime")


@pytest.fixture(scope="module")
def small():
    """VGG16; systems/test_other_backbones.py exports the others."""
    spec = network.Spec(backbone="vgg16", image_size=32, hidden=8, dropout=0.5)
    weights = network.build(spec).get_weights()
    return spec, weights, {engine: engines.export(network.scoring_model(spec, weights), engine) for engine in ENGINES}


def pixels(size, count=5):
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
def test_exported_networks_give_tensorflows_outputs_or_are_refused(small, engine):
    spec, weights, contents = small
    for count in (1, 5):
        ours = network.average_over_views(engines.predictor(contents[engine], 1, engine), 4)(pixels(32, count))
        theirs = network.classifier(spec.model_copy(update={"tta": 4}), weights)(pixels(32, count))
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert ours[1].min() > 0

    changed = [*weights[:-1], weights[-1] + 0.01]
    with pytest.raises(DataError, match=rf"{engine}'s output 0 is 0\.00\d+ off TensorFlow's, 0\.0001 is allowed"):
        engines.check(contents[engine], network.scoring_model(spec, changed), engine)
    engines.check(contents[engine], network.scoring_model(spec, weights), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_runs_without_tensorflow(small, tmp_path, engine):
    (tmp_path / "network").write_bytes(small[2][engine])
    code = f"""
import sys, pathlib, numpy
from melanoma_spark.models import engines, network
content = pathlib.Path({str(tmp_path / "network")!r}).read_bytes()
forward = engines.predictor(content, 1, {engine!r})
found = network.average_over_views(forward, 1)(numpy.zeros((2, 32, 32, 3), numpy.uint8))
assert found[0].shape == (2, 1) and numpy.isnan(found[1]).all()
print(*sorted(name for name in sys.modules if name in ("tensorflow", "keras", "mlflow", "onnx", "tf2onnx")))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == []


def test_auto_is_the_fastest_that_can_and_what_cannot_is_refused():
    assert engines.engine_for("auto", "vgg16") == "ncnn"
    assert engines.engine_for("auto", "xception") == "onnxruntime"
    assert engines.engine_for("auto", "vgg16", precision="bfloat16") == "tensorflow"
    assert engines.engine_for("auto", "vgg16", gpus=True) == "tensorflow"
    assert engines.engine_for("onnxruntime", "vgg16", gpus=True) == "onnxruntime"
    with pytest.raises(ConfigError, match="engine=ncnn computes vgg16 alone; take engine=onnxruntime for resnet50"):
        engines.engine_for("ncnn", "resnet50")
    with pytest.raises(ConfigError, match="take engine=tensorflow for precision=bfloat16"):
        engines.engine_for("onnxruntime", "vgg16", precision="bfloat16")
