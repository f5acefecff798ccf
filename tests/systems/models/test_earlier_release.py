"""A warehouse and a model that commit 8495524 made, before modules moved into packages: both are read as they are.

The archive has 30 drawn lesions. VGG16's weights are 8,191 random numbers over and over, which compress well. The
plots are left out.
"""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, command
from test_serving import predict_elsewhere

from melanoma_spark.images import synthetic
from melanoma_spark.runner.cli import invoke

MADE_AT = "/tmp/oldwh"
HERE = """
import sys
import melanoma_spark.models.network, melanoma_spark.storage.files  # as a job of this release that loads the model
import mlflow
import pandas as pd
found = mlflow.pyfunc.load_model(sys.argv[1]).predict(pd.read_parquet(sys.argv[2]))
found.to_parquet(sys.argv[3])
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of `archive` and `warehouse`, whose addresses are corrected as docs/backup.md says."""
    with tarfile.open(REPO / "tests/systems/models/8495524.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    script = re.search(r"<<'END'\n(.*?)END\n", (REPO / "docs/backup.md").read_text(), re.DOTALL)
    assert script is not None
    addresses = [f"file://{folder}/warehouse/" for folder in (MADE_AT, tmp_path)]
    subprocess.run([sys.executable, "-c", script[1], tmp_path / "warehouse/mlflow.db", *addresses], check=True)
    return tmp_path


def scores_of(earlier: Path) -> pd.DataFrame:
    return pd.read_parquet(earlier / "warehouse/scores").sort_values("sha256", ignore_index=True)


def test_score_continues_without_scoring_anything_twice(spark, earlier):
    before = scores_of(earlier)
    assert (before["status"] == "scored").sum() > 20
    for name, seed in (("new", 1000), ("renamed", None)):
        content = synthetic.lesion_jpeg(seed, size=40) if seed else next(earlier.glob("archive/*/*.jpg")).read_bytes()
        (earlier / f"archive/{name}.jpg").write_bytes(content)
    words = [f"{name}={earlier}/{name}" for name in ("archive", "warehouse")]
    done = invoke(command("score"), [*words, "score.engine=tensorflow", "score.worklist.pictures=0"], spark)
    assert done.exit_status == 0, done.log
    assert " = 1 scored + " in done.summary
    after = scores_of(earlier)
    new = after[~after["sha256"].isin(before["sha256"])]
    assert len(new[new["status"] == "scored"]) == 1
    assert not after[after["sha256"].notna()].duplicated(["sha256", "model_version"]).any()
    assert set(before.columns) <= set(after.columns)
    for job in ("evaluate", "register"):
        done = invoke(command(job), [*words[1:], *settings(earlier)], spark)
        assert done.exit_status == 0, done.log
        assert "nothing new" in done.summary, done.log


def settings(earlier: Path) -> list[str]:
    """Those with which the warehouse was made."""
    return json.loads((earlier / "settings.json").read_text())


@pytest.mark.parametrize("where", ["in a process of its own", "in a process of this release"])
def test_the_model_loads(earlier, where):
    (model,) = {path.parent for path in earlier.glob("warehouse/mlartifacts/**/MLmodel")}
    scores = scores_of(earlier)
    scores = scores[scores["status"] == "scored"].head(8)
    files = {path.name: path for path in earlier.glob("archive/**/*") if path.is_file()}
    table = pd.DataFrame({"image": [files[Path(uri).name].read_bytes() for uri in scores["source_uri"]]})
    if where == "in a process of its own":
        result, printed = predict_elsewhere(model, table, earlier)
        assert str(model) in printed, "the model did not run the code that was registered with it"
    else:
        table.to_parquet(earlier / "table.parquet")
        places = [str(model), str(earlier / "table.parquet"), str(earlier / "found.parquet")]
        done = subprocess.run([sys.executable, "-c", HERE, *places], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        result = pd.read_parquet(earlier / "found.parquet")
    np.testing.assert_allclose(result["raw_probability"], scores["raw_probability"].astype(float), atol=1e-5)
    assert result["raw_probability"].nunique() > 4
