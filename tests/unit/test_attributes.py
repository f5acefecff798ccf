"""Attributes: categories of stored values, and one row that reaches the table, the dataset, subgroups and drift."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.attributes import ATTRIBUTES


@pytest.mark.parametrize(
    ("band", "texts"),
    [
        ("under 30", ("0", "29.9")),
        ("30-39", ("30",)),
        ("40-49", ("45.0", "45-50")),
        ("50-59", ("[45, 55)",)),
        ("70-79", ("79",)),
        ("80 and over", ("80", "85+")),
        ("unknown", ("-3", "old", "", None, "1e9", "nan")),
    ],
)
def test_ages_fall_into_bands(band, texts):
    assert {ATTRIBUTES["age"].category(text) for text in texts} == {band}


@given(st.text(max_size=12))
def test_any_text_has_a_category(text):
    assert ATTRIBUTES["age"].category(text) in (*ATTRIBUTES["age"].categories, "unknown")
    assert ATTRIBUTES["site"].category(text) == (text.strip() or "unknown")


ONE_ROW = """
import io
import numpy as np
from melanoma_spark import attributes

attributes.ATTRIBUTES["diameter"] = attributes.Attribute(
    "diameter", "diameter in mm", ("clin_size_long_diam_mm",), attributes.parse_age, bins=(0, 3, 6, 50)
)

from melanoma_spark import config, schemas
from melanoma_spark.archives import tables
from melanoma_spark.dataset import datacard, ingest, summary
from melanoma_spark.evaluation import report, subgroups
from melanoma_spark.models import training_reference
from melanoma_spark.monitoring import statistics

text = b"image_id,clin_size_long_diam_mm\\na,2.5\\nb,4\\nc,\\n"
rows = list(tables.read_table(io.BytesIO(text), tables.understand(tables.TableHead("t.csv", text), {})))
stored = [dict(zip(schemas.RECORDS.names, row.values(), strict=True))["diameter"] for row in rows]
assert stored == [2.5, 4.0, None]
assert schemas.RECORDS["diameter"].dataType.typeName() == "double"
assert "diameter" in schemas.images_schema(64).fields and "diameter" in schemas.DECISIONS.names
values = {name: [None] * 3 for name in subgroups.COLUMNS} | {"diameter": ["2.5", "4", None]}
groups = subgroups.assign_subgroups(values, np.full(3, 500), 224, [()] * 3)
assert groups["diameter"] == [("under 3",), ("3-5",), ("unknown",)]
assert subgroups.ATTRIBUTES["diameter"] == datacard.SHOWN["diameter"].label == "diameter in mm"
counts = summary.distribution(datacard.SHOWN["diameter"], {"2.5": (1, 0), "4": (0, 1), None: (2, 0)})
assert counts == {"under 3": (1, 0), "3-5": (0, 1), None: (2, 0)}
space = training_reference.fit(np.random.default_rng(0).normal(size=(50, 4)), np.ones((9, 4)))
reference = training_reference.Reference(space, {}, {"diameter": {"under 3": 90, "3-5": 90}}, {})
counts, limits = {"diameter": {"3-5": 100}}, config.Drift()
found = statistics.compare_with_reference(reference, {}, counts, 100, unlike=None, limits=limits)
assert found.verdict == "beyond the limit: diameter in mm"
assert config.parse({"score": {"drift": {"ignore": ["diameter"]}}})
assert ingest.dataset_settings(config.parse({}))[-1] == ["diameter"]  # another ingest adds the column
"""


def test_one_row_adds_an_attribute():
    """Takes 3 s: the tables of other modules are made of the row when they are imported, so in a process of its own."""
    result = subprocess.run([sys.executable, "-c", ONE_ROW], capture_output=True, text=True)
    assert not result.returncode, result.stderr
