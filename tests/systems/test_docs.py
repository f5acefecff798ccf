"""The documentation site."""

import os
import re
import shutil
import subprocess
import sys

from conftest import REPO

BUILD = """
import sys
from sphinx.cmd.build import main
status = main(["-b", "html", "-W", "--keep-going", "-n", "-q", *sys.argv[1:]])
sys.exit(status or "tensorflow" in sys.modules and "TensorFlow was imported")
"""


def test_site_builds_without_a_warning_or_a_broken_link(tmp_path):
    command = [sys.executable, "-c", BUILD, "-d", tmp_path / "doctrees", "docs", tmp_path / "html"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    generated = {
        "settings": "score.follow.settle",
        "command-line": "Usage: melanoma-spark",
        "decisions/index": "accepted",
    }
    for page, text in {**generated, "api/melanoma_spark.errors": "ConfigError"}.items():
        assert text in (tmp_path / f"html/{page}.html").read_text(), page


EXTENDED = """
import io
from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, layouts, tables
from melanoma_spark.errors import LicenseError
from melanoma_spark.evaluation import plots
from melanoma_spark.models import backbones, engines
from melanoma_spark.scoring import columns

text = b"img_id,diagnostic,clin_size_long_diam_mm\\nPAT_1.png,NEV,6.5 mm\\n"
layout = layouts.recognize_layout([tables.TableHead("metadata.csv", text)], {})
assert layout.name == "pad_ufes_20"
(row,) = tables.read_table(io.BytesIO(text), layout.tables[0])
assert (row.image_id, row.labels, row.attributes) == ("PAT_1", ("nevus",), {"diameter": 6.5}), row
assert "diameter" in schemas.images_schema(64).fields
assert containers.detect_format(b"!<arch>\\n") == "ar"
score = {"drift": {"ignore": ["contrast", "diameter"]}, "follow": {"batches": 3}, "engine": "onnx_reference"}
backbones.check(config.parse({"backbone": {"name": "vgg19"}, "score": score}))
assert backbones.cut_shapes("vgg19", 32, ["block4_pool"]) == {"block4_pool": (2, 2, 512)}
assert LicenseError.exit_status == 7
assert columns.schema().names[-1] == "margin"
assert "operating_points.png" in plots.PLOTS

import keras

pixels = keras.Input((8, 8, 3), dtype="uint8")
dense = keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
engines.export(keras.Model(pixels, dense), "onnx_reference")  # which compares it with TensorFlow
"""


def test_changes_of_the_page_work_in_a_copy_of_the_package(tmp_path):
    shutil.copytree(REPO / "melanoma_spark", tmp_path / "melanoma_spark", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in re.findall(r"^```diff\n(.*?)^```", (REPO / "docs/extending.md").read_text(), re.M | re.S):
        subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, check=True)
    command, environment = [sys.executable, "-c", EXTENDED], os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
