"""Test-time augmentation along the line: chosen where models are evaluated, and carried from there."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma_spark import config
from melanoma_spark.images import decoding, hashes
from melanoma_spark.models import bundle, model_registry, network
from melanoma_spark.storage.manifests import FinetunedManifest, HeadManifest

FOUR = {"evaluate": config.Evaluate(tta=4, resamples=50)}
MODELS = {"head alone": HeadManifest, "fine-tuned": FinetunedManifest}


def probabilities(line) -> pd.DataFrame:
    """What the networks say in the last report, by model and hash."""
    table = pd.read_parquet(line.folder / "reports" / line.manifest("reports")["path"] / "predictions")
    return table.set_index(["model", "sha256"])["raw_probability"].sort_index()


@pytest.fixture
def evaluated(line, copied):
    """The line's models evaluated once more, by four views; nothing is trained for it."""
    output = copied.stage("evaluate", **FOUR)
    assert "test AUC" in output
    for kind in MODELS.values():
        assert copied.manifest(kind.place) == line.manifest(kind.place)
    return copied


def test_models_evaluated_by_four_views_are_registered_and_score_with_them(line, evaluated):
    before, result = probabilities(line), probabilities(evaluated)
    assert list(result.index) == list(before.index)
    # by networks and copies of the images that are made here
    stored = evaluated.read("images").toPandas().set_index("sha256")
    for name, kind in MODELS.items():
        spec = network.Spec.model_validate(evaluated.manifest(kind.place)["spec"])
        assert spec.tta == 1
        model = network.build(spec, evaluated.tensors(kind))
        some = result.loc[name].iloc[::5]
        paths = [Path(uri.removeprefix("file:")) for uri in stored.loc[some.index, "source_uri"]]
        pixels = np.stack([decoding.decode(path.read_bytes(), 64) for path in paths])
        turned = [np.rot90(kind, k, (1, 2)) for kind in (pixels, pixels[:, :, ::-1]) for k in (0, 2)]
        expected = np.mean([model.predict(view, verbose=0)[:, 0] for view in turned], axis=0)
        np.testing.assert_allclose(some, expected, atol=1e-5)
        assert np.abs(some - before.loc[name].loc[some.index]).max() > 1e-3, "one view says the same"

    assert evaluated.manifest("reports")["tta"] == 4
    assert evaluated.manifest("reports")["id"] != line.manifest("reports")["id"]
    assert "nothing new, the report is at" in evaluated.stage("evaluate", **FOUR)

    # what is registered is what was evaluated, whatever the settings say now
    lenient = config.Register(gate=config.Gate(auroc_margin=None))
    assert "melanoma version 2 is champion now" in evaluated.stage("register", register_=lenient)
    assert "nothing new, melanoma version 2" in evaluated.stage("register")
    version, artifacts = model_registry.download_model(evaluated.tracker(), "melanoma@champion")
    assert bundle.unpack(artifacts).spec.tta == 4
    assert version.tags["tta"] == "4"
    scored_rows = result.loc["fine-tuned"].iloc[::5]
    for path in evaluated.archive.rglob("*.*"):
        if hashes.sha256(path.read_bytes()) not in scored_rows.index:
            path.unlink()
    assert f"= {len(scored_rows)} scored" in evaluated.stage("score")
    scores = evaluated.scores()
    scores = scores[(scores["model_version"] == "2") & (scores["status"] == "scored")]
    scores = scores.drop_duplicates("sha256").set_index("sha256")["raw_probability"]
    np.testing.assert_allclose(scores.loc[scored_rows.index], scored_rows, atol=1e-5)


def test_a_report_made_before_there_were_views_registers_a_model_of_one(copied):
    facts = {key: value for key, value in copied.manifest("reports").items() if key not in ("tta", "format")}
    (copied.folder / "reports/manifest.json").write_text(json.dumps({**facts, "id": "old"}))
    assert "is champion now" in copied.stage("register")
    _, artifacts = model_registry.download_model(copied.tracker(), "melanoma@champion")
    assert bundle.unpack(artifacts).spec.tta == 1
