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
import pathlib
import numpy as np
import pandas as pd
from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, contents, layouts, listing, tables
from melanoma_spark.dataset import datacard, ingest, summary
from melanoma_spark.errors import LicenseError
from melanoma_spark.evaluation import plots, subgroups
from melanoma_spark.models import backbones, engines, training_reference
from melanoma_spark.monitoring import statistics
from melanoma_spark.scoring import columns

# a layout, and an attribute from its table to subgroups, data card and drift
text = b"img_id,diagnostic,clin_size_long_diam_mm\\nPAT_1.png,NEV,6.5 mm\\n"
layout = layouts.recognize_layout([tables.TableHead("metadata.csv", text)], {})
assert layout.name == "pad_ufes_20"
(row,) = tables.read_table(io.BytesIO(text), layout.tables[0])
assert (row.image_id, row.labels, row.attributes) == ("PAT_1", ("nevus",), {"diameter": 6.5}), row
assert dict(zip(schemas.RECORDS.names, row.values(), strict=True))["diameter"] == 6.5
assert schemas.RECORDS["diameter"].dataType.typeName() == "double"
assert "diameter" in schemas.images_schema(64).fields and "diameter" in schemas.DECISIONS.names
assert ingest.dataset_settings(config.parse({}))[-1] == ["diameter"]  # another ingest adds the column
values = {name: [None] * 3 for name in subgroups.COLUMNS} | {"diameter": ["2.5", "4", None]}
groups = subgroups.assign_subgroups(values, np.full(3, 500), 224, [()] * 3)
assert groups["diameter"] == [("under 3",), ("3-5",), ("unknown",)]
counts = summary.distribution(datacard.SHOWN["diameter"], {"2.5": (1, 0), "4": (0, 1), None: (2, 0)})
assert counts == {"under 3": (1, 0), "3-5": (0, 1), None: (2, 0)}
space = training_reference.fit(np.random.default_rng(0).normal(size=(50, 4)), np.ones((9, 4)))
reference = training_reference.Reference(space, {}, {"diameter": {"under 3": 90, "3-5": 90}}, {})
limits = config.parse({"score": {"drift": {"ignore": ["contrast"]}}}).score.drift
drift = statistics.compare_with_reference(reference, {}, {"diameter": {"3-5": 100}}, 100, unlike=None, limits=limits)
assert drift.verdict == "beyond the limit: diameter"

# a container format
images = {"a.jpg": b"odd", "b.jpg": b"even"}
header = "{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\\n"
packed = b"!<arch>\\n"
for name, content in images.items():
    packed += header.format(name + "/", 0, 0, 0, 644, len(content)).encode() + content + b"\\n" * (len(content) % 2)
pathlib.Path("archive").mkdir()
pathlib.Path("archive/images.ar").write_bytes(packed)
root = f"file:{pathlib.Path('archive').resolve()}"
(file,) = listing.walk_folder(root, "", 10**6)
members = listing.expand_container(root, file._replace(modified=None), containers.Limits())
frame = pd.DataFrame(members, columns=schemas.LISTING.names, dtype=object)
assert {row.member: content for row, content in contents.read_contents(root, [frame], 10**6)} == images
assert containers.detect_format(packed) == containers.detect_format(b"damaged", "x.AR") == "ar"

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
