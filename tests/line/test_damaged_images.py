"""Damaged images through ingest, score, evaluation and the served model: rejected, or accepted with a flag."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from broken import END, half

from melanoma_spark import lineage
from melanoma_spark.evaluation import gather
from melanoma_spark.images import hashes, synthetic
from melanoma_spark.models import bundle, network, pyfunc
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.storage import manifests


def test_ingest_rejects_what_is_damaged_or_accepts_and_flags_it(new_line, tmp_path):
    archive = tmp_path / "archive"
    for number in range(40):
        folder = archive / ("nevus", "melanoma")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(synthetic.lesion_jpeg(number, malignant=number % 2 == 1, size=64))
    cut = archive / "nevus" / "cut.jpg"
    cut.write_bytes(half(synthetic.lesion_jpeg(99, size=96)) + END)
    line = new_line(archive, ingest={"test_fraction": 0.3, "validation_fraction": 0.3})

    assert "41 files listed = 40 accepted + 1 rejected (damaged 1) + 0 skipped" in line.stage("ingest")
    facts = line.manifest("images")
    assert facts["reasons"] == {"damaged": 1}
    assert "damaged" not in facts
    assert line.read("images").where("flags is not null").count() == 0
    (reject,) = pd.read_parquet(line.folder / "rejects" / facts["path"]).itertuples()
    assert (reject.reason, reject.sha256) == ("damaged", hashes.sha256(cut.read_bytes()))
    assert reject.detail == "libjpeg: Corrupt JPEG data: premature end of data segment"

    accepting = line.context.settings.ingest.model_copy(update={"damaged": "accept"})
    output = line.stage("ingest", ingest=accepting)
    assert "41 files listed = 41 accepted (1 of them damaged) + 0 rejected + 0 skipped" in output
    assert "41 read now" in output
    assert line.manifest("images")["damaged"] == 1
    flagged = line.read("images").where("flags is not null").toPandas()
    assert list(flagged["image_id"]) == ["cut"]
    assert list(flagged["flags"]) == ["damaged"]
    assert line.read("images").count() == 41


def test_evaluation_reads_datasets_from_before_there_were_flags(line, monkeypatch):
    stored = line.read("images")
    test = stored.where("split = 'test'").select("sha256").toPandas()
    images = manifests.require(manifests.ImagesManifest, line.context.warehouse)
    monkeypatch.setattr(gather, "read_images", lambda job, facts: stored.drop("flags"))
    result = gather.describe_test_images(line.context, images, test)
    assert len(result) == len(test)
    assert not any("damaged" in flags for flags in result["flags"])
    from pyspark.sql import functions as f

    monkeypatch.setattr(gather, "read_images", lambda job, facts: stored.withColumn("flags", f.lit("damaged")))
    result = gather.describe_test_images(line.context, images, test)
    assert all(flags[0] == "damaged" for flags in result["flags"])


@pytest.fixture(scope="module")
def scorer():
    """A small and random one."""
    import keras

    spec = network.Spec(backbone="vgg16", image_size=32, hidden=4, dropout=0.5)
    keras.utils.set_random_seed(0)
    tensors = [value.astype(np.float32) for value in network.build(spec).get_weights()]
    facts = {"id": "m1", "tensors_id": lineage.tensors_id(tensors)}
    point = OperatingPoint("screening", 0.25, "sensitivity>=0.9")
    return bundle.Scorer(spec, tensors, Calibration(), point, 16, 10_000, facts)


def test_a_model_keeps_the_setting_and_one_from_before_rejects(scorer):
    assert scorer.damaged == "reject"
    accepting = bundle.pack(replace(scorer, damaged="accept"))
    assert bundle.unpack(accepting).damaged == "accept"
    description = json.loads(accepting["model.json"])
    del description["damaged"]
    accepting["model.json"] = json.dumps(description).encode()
    sums = {name: hashes.sha256(accepting[name]) for name in bundle.CONTENTS}
    assert bundle.unpack(accepting | {bundle.MANIFEST: json.dumps(sums).encode()}).damaged == "reject"


@pytest.mark.parametrize("choice", ["reject", "accept"])
def test_the_served_model_rejects_or_flags(scorer, tmp_path, choice):
    paths = {}
    for name, content in bundle.pack(replace(scorer, damaged=choice)).items():
        (tmp_path / name).write_bytes(content)
        paths[name] = str(tmp_path / name)
    served = pyfunc.LesionScorer()
    served.load_context(SimpleNamespace(artifacts=paths))
    contents = [b"no image", half(synthetic.lesion_jpeg(1, size=96)) + END, synthetic.lesion_jpeg(2, size=48)]
    result = served.predict(None, pd.DataFrame({"image": contents}))
    assert tuple(result.columns) == bundle.OUTPUTS
    assert bundle.OUTPUTS[-1] == "flags"
    if choice == "reject":
        assert list(result["reason"]) == ["not_an_image", "damaged", None]
        assert list(result["flags"]) == [None, None, None]
    else:
        assert list(result["reason"]) == ["not_an_image", None, None]
        assert list(result["flags"]) == [None, "damaged", None]
        assert result["probability"].notna().tolist() == [False, True, True]
    assert any(name.startswith("simplejpeg==") for name in pyfunc.requirements())
    column = pyfunc.signature().outputs.inputs[-1]
    assert (column.name, column.required) == ("flags", False)
