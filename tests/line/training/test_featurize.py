"""featurize by another engine: the same dataset within rounding; an engine that cannot do it is refused before."""

import io
import shutil

import numpy as np
import pytest

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.runner.cli import check


def test_engines_make_the_same_features(line, copied):
    before = line.manifest("features")
    assert before["engine"] == "ncnn"
    shutil.rmtree(copied.folder / "features")
    chosen = copied.context.settings.featurize.model_copy(update={"engine": "tensorflow"})
    assert "+ 0 computed before" in copied.stage("featurize", featurize=chosen)
    after = copied.manifest("features")
    assert (after["id"], after["engine"]) == (before["id"], "tensorflow")
    tables = [one.read("features").toPandas().set_index(["sha256", "view"]).sort_index() for one in (line, copied)]
    assert tables[0].index.equals(tables[1].index)
    for cut in before["cuts"]:
        one, other = (np.stack([np.load(io.BytesIO(row)) for row in table[cut]]).astype(float) for table in tables)
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3 * np.abs(other).max())
    assert " = 0 computed +" in copied.stage("featurize")
    assert copied.manifest("features")["engine"] == "tensorflow", "which computed what is there"


def test_what_an_engine_cannot_compute_is_refused_before_spark_starts():
    words = {"featurize": {"engine": "ncnn", "precision": "bfloat16"}}
    with pytest.raises(ConfigError, match="engine=ncnn computes in float32 alone; take engine=tensorflow"):
        check(config.parse(words), False, False)
    words = {"featurize": {"engine": "ncnn"}, "backbone": {"name": "resnet50"}}
    with pytest.raises(ConfigError, match=r"ncnn computes .*vgg16.* alone; take engine=onnxruntime for resnet50"):
        check(config.parse(words), False, False)
