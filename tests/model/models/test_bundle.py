"""What a worker of score unpickles brings neither MLflow nor TensorFlow along, whose imports take it seconds."""

import io
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import icc
import numpy as np
from broken import LESION, PIXELS, dicom, encoded
from PIL import Image

from melanoma_spark import lineage
from melanoma_spark.errors import ImageError
from melanoma_spark.images import decoding, hashes
from melanoma_spark.models import bundle, network, training_reference
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint


def test_a_worker_of_score_imports_neither_mlflow_nor_tensorflow(tmp_path):
    spec = network.Spec(backbone="vgg16", image_size=32, hidden=4, dropout=0.5)
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    scorer = bundle.Scorer(spec, [np.zeros(3, np.float32)], Calibration(), point, 1, 10_000, {"id": "x"})
    (tmp_path / "scorer").write_bytes(pickle.dumps(replace(scorer, tensors=[])))
    code = f"""
import pickle, sys
with open({str(tmp_path / "scorer")!r}, "rb") as file:
    scorer = pickle.load(file)
from melanoma_spark.models import engines
from melanoma_spark.images import quality
from melanoma_spark.spark import inference
from melanoma_spark.storage import parquet
assert scorer.model_id == "x tta 1"
print(*sorted(name for name in sys.modules if name in ("tensorflow", "keras", "mlflow")))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == []


def test_images_none_of_which_can_be_decoded_are_rows_with_reasons():
    """A model that is served is handed such a table as any other; with a reference it looks for their features."""
    spec = network.Spec(backbone="vgg16", image_size=32, hidden=4, dropout=0.5)
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    space = training_reference.FeatureSpace(np.zeros(2), np.eye(1, 2), np.ones(1), 1.0, 1.0)
    known = training_reference.Reference(space, {}, {}, {})
    scorer = bundle.Scorer(spec, [], Calibration(), point, 1, 10_000, {"id": "x"}, known)
    rows = scorer.finish([], [ImageError("corrupt", "cut short"), ImageError("corrupt", "no image")])
    assert list(rows["status"]) == ["rejected", "rejected"]
    assert rows[["probability", "raw_probability", "spread", "distance"]].isna().all(axis=None)
    assert list(rows["detail"]) == ["cut short", "no image"]


def test_a_model_keeps_the_version_of_pixels_that_it_was_trained_on():
    spec = network.Spec(backbone="vgg16", image_size=96, hidden=4, dropout=0.5)
    point = OperatingPoint("screening", 0.5, "sensitivity>=0.90")
    tensors = [np.ones(3, np.float32)]
    facts = {"id": "x", "tensors_id": lineage.tensors_id(tensors)}
    new = bundle.Scorer(spec, tensors, Calibration(), point, 1, 10_000, facts, pixels_version=decoding.PIXELS_VERSION)
    packed = bundle.pack(new)
    assert bundle.unpack(packed).pixels_version == decoding.PIXELS_VERSION

    # As release 0.2 packed it
    description = json.loads(packed["model.json"])
    del description["pixels_version"]
    packed["model.json"] = json.dumps(description).encode()
    sums = {name: hashes.sha256(content) for name, content in packed.items() if name in bundle.CONTENTS}
    old = bundle.unpack(packed | {bundle.MANIFEST: json.dumps(sums).encode()})
    assert old.pixels_version == decoding.UNMANAGED

    profile = icc.of_primaries(icc.P3)
    pages = io.BytesIO()
    Image.fromarray(PIXELS[::-1]).resize((48, 48)).save(
        pages, "TIFF", save_all=True, append_images=[LESION.copy()], compression="tiff_lzw"
    )
    first = np.asarray(Image.fromarray(PIXELS[::-1]).resize((48, 48)).resize((96, 96), Image.Resampling.BILINEAR))
    for content, before, now in (
        (encoded(LESION, icc_profile=profile), PIXELS, icc.p3_to_srgb(PIXELS)),
        (dicom(ICCProfile=profile), PIXELS, icc.p3_to_srgb(PIXELS)),
        (pages.getvalue(), first, PIXELS),
    ):
        assert np.array_equal(old.prepare(content), before)
        assert np.array_equal(old.prepare_sized(content)["pixels"], before)
        assert np.abs(new.prepare(content).astype(int) - now).max() <= 1
        assert np.abs(before.astype(int) - now).max() > 5, "the versions differ"
