"""ResNet50, Inception v3 and Xception through the whole line, at a size that two cores can do."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import STAGES, captured_output, open_line

from melanoma_spark import config
from melanoma_spark.images import decoding, synthetic
from melanoma_spark.models import backbones, bundle, model_registry

SIZE = 80  # the smallest that Inception v3 takes is 75
LAST = config.Phase(name="last", cut="last_block", epochs=1)
ALL = config.Phase(name="all", epochs=1)


@pytest.fixture(scope="module")
def pixels_only(spark, shared_mlflow, tmp_path_factory):
    """A line of which ingest alone has run; settings name each backbone as a user would."""
    synthetic.draw_archive(archive := tmp_path_factory.mktemp("others") / "archive", images=60, size=SIZE)
    line = open_line(
        spark,
        archive,
        tmp_path_factory.mktemp("others") / "warehouse",
        image_size=SIZE,
        mlflow={"tracking_uri": shared_mlflow},
    )
    line.stage("ingest")
    return line


@pytest.mark.parametrize(
    ("name", "phases"), [("resnet50", (LAST, ALL)), ("inception_v3", (LAST,)), ("xception", (ALL,))]
)
def test_a_backbone_is_chosen_by_its_name(pixels_only, name, phases):
    line = pixels_only
    chosen = {
        "backbone": config.Backbone(name=name, weights="random", allow_random=True),
        "finetune": line.context.settings.finetune.model_copy(update={"phases": phases}),
        "register_": config.Register(name=name),
        "score": line.context.settings.score.model_copy(update={"model": f"{name}@champion"}),
    }
    with captured_output():
        output = {stage: line.stage(stage, **chosen) for stage in STAGES[1:]}
    spec = backbones.backbone(name)
    cuts = f"{spec.cuts[-1]}, {spec.cuts[-2]}" if LAST in phases else spec.cuts[-1]
    assert f"at {cuts} of {name} (random weights" in output["featurize"]
    assert "2 ranks" in output["finetune"]
    assert "test AUC" in output["evaluate"]
    assert set(line.manifest("models/finetuned")["best"]) == {phase.name for phase in phases}

    # what the job scored, by Keras's own network of that name with the head written out
    version, artifacts = model_registry.download_model(line.tracker(), f"{name}@champion")
    scorer = bundle.unpack(artifacts)
    module = importlib.import_module(spec.module)
    plain = getattr(module, spec.function)(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    *base, hidden, hidden_bias, last, last_bias = scorer.tensors
    plain.set_weights(base)
    scores = line.scores()
    rows = scores[(scores["model_name"] == version.name) & (scores["status"] == "scored")].iloc[::5]
    pixels = np.stack([decoding.decode(Path(uri[5:]).read_bytes(), SIZE) for uri in rows["source_uri"]])
    pooled = plain.predict(module.preprocess_input(pixels.astype(np.float32)), verbose=0).mean(axis=(1, 2))
    expected = 1 / (1 + np.exp(-(np.maximum(pooled @ hidden + hidden_bias, 0) @ last + last_bias)[:, 0]))
    assert len(rows) > 10
    np.testing.assert_allclose(rows["raw_probability"], expected, atol=1e-4)
    assert pd.Series(expected).nunique() > 5
