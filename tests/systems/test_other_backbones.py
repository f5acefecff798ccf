"""VGG16 and ResNet50 through all stages; Inception v3 and Xception where they differ: features and exported networks.

Training of every backbone is the same code: its cuts and its batch normalization are tested in model/.
"""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import STAGES, captured_output, open_line

from melanoma_spark import config
from melanoma_spark.images import decoding, synthetic
from melanoma_spark.models import backbones, bundle, engines, model_registry, network, weights

SIZE = 80  # the smallest that Inception v3 takes is 75
PHASES = (config.Phase(name="last", cut="last_block", epochs=1), config.Phase(name="all", epochs=1))


@pytest.fixture(scope="module")
def ingested(spark, shared_mlflow, tmp_path_factory):
    """A line of which ingest alone has run; settings name each backbone as a user would."""
    folder = tmp_path_factory.mktemp("others")
    synthetic.draw_archive(folder / "archive", images=60, size=SIZE)
    mlflow = {"tracking_uri": shared_mlflow}
    line = open_line(spark, folder / "archive", folder / "warehouse", image_size=SIZE, mlflow=mlflow)
    line.stage("ingest")
    return line


def settings_for(line, name):
    return {
        "backbone": config.Backbone(name=name, weights="random", allow_random=True),
        "finetune": line.context.settings.finetune.model_copy(update={"phases": PHASES}),
        "register_": config.Register(name=name),
        "score": line.context.settings.score.model_copy(update={"model": f"{name}@champion"}),
    }


def keras_outputs(name, tensors, pixels):
    """Bottleneck features and probabilities by Keras's own network of that name, with the head written out."""
    spec = backbones.backbone(name)
    module = importlib.import_module(spec.module)
    *base, hidden, hidden_bias, last, last_bias = tensors
    plain = getattr(module, spec.function)(include_top=False, weights=None, input_shape=pixels.shape[1:])
    plain.set_weights(base)
    features = plain.predict(module.preprocess_input(pixels.astype(np.float32)), verbose=0)
    logits = np.maximum(features.mean(axis=(1, 2)) @ hidden + hidden_bias, 0) @ last + last_bias
    return features, 1 / (1 + np.exp(-logits[:, 0]))


def decoded(sources, size):
    return np.stack([decoding.decode(Path(uri[5:]).read_bytes(), size) for uri in sources])


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_scores_are_those_of_keras_after_all_stages(ingested, name):
    with captured_output():
        output = {stage: ingested.stage(stage, **settings_for(ingested, name)) for stage in STAGES[1:]}
    cuts = backbones.backbone(name).cuts
    assert f"at {cuts[-1]}, {cuts[-2]} of {name} (random weights" in output["featurize"]
    assert "2 ranks" in output["finetune"]
    assert "test AUC" in output["evaluate"]
    assert set(ingested.manifest("models/finetuned")["best"]) == {phase.name for phase in PHASES}
    version, artifacts = model_registry.download_model(ingested.tracker(), f"{name}@champion")
    scorer = bundle.unpack(artifacts)
    scores = ingested.scores()
    rows = scores[(scores["model_name"] == version.name) & (scores["status"] == "scored")].iloc[::5]
    assert len(rows) > 10
    _, expected = keras_outputs(name, scorer.tensors, decoded(rows["source_uri"], scorer.spec.image_size))
    np.testing.assert_allclose(rows["raw_probability"], expected, atol=1e-4)
    assert len(set(expected)) > 5


@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_features_and_exported_network_are_those_of_keras(ingested, name):
    chosen = settings_for(ingested, name)
    cuts = backbones.backbone(name).cuts
    assert f"at {cuts[-1]}, {cuts[-2]} of {name} (random weights" in ingested.stage("featurize", **chosen)
    rows = ingested.read("images").toPandas().iloc[::8]
    pixels = decoded(rows["source_uri"], SIZE)
    spec = network.Spec(backbone=name, image_size=SIZE, hidden=4, dropout=0.5)
    base = weights.resolve(chosen["backbone"], ingested.context.settings.seed).tensors
    tensors = [*base, *network.build(spec).get_weights()[len(base) :]]
    features, expected = keras_outputs(name, tensors, pixels)
    stored = ingested.read("features").toPandas().set_index("sha256").loc[rows["sha256"], cuts[-1]]
    for content, values in zip(stored, features, strict=True):
        np.testing.assert_allclose(np.load(io.BytesIO(content)), values, rtol=2e-3, atol=2e-3 * np.abs(features).max())
    content = engines.export(network.scoring_model(spec, tensors), "onnxruntime")
    outputs = engines.predictor(content, 1, "onnxruntime")(pixels)
    np.testing.assert_allclose(outputs[0][:, 0], expected, atol=1e-4)
    assert len(set(expected)) > 5
