"""Twins in Spark: found among decoded images, and joined to groups as `ingest.twins` says."""

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from scipy.ndimage import gaussian_filter

from melanoma_spark import config, schemas
from melanoma_spark.dataset import groups, twins

GROUPED = "pixel_sha256 string, sha256 string, group string, shipped string"


def squares(count):
    noise = np.random.default_rng(0).normal(size=(count, 32, 32))
    return (128 + 300 * gaussian_filter(noise, (0, 3, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tables(spark):
    """Images 0 to 39, and 40 to 44: images 0 to 4 turned and darker. Image 1 and its twin have patients."""
    some = squares(40)
    pictures = [*some, *(np.rot90(square) * 0.7 for square in some[:5])]
    names = [f"{place:02d}" for place in range(45)]
    image = {"image": None, "reason": None}
    decoded = [
        tuple(
            {**image, "pixel_sha256": name, "thumbnail": bytes(picture.astype(np.uint8))}.get(field)
            for field in schemas.DECODED.names
        )
        for name, picture in zip(names, pictures, strict=True)
    ]
    patients = {"01": "patient:1", "41": "patient:2", "42": "patient:3"}
    sides = {"43": "test"}
    grouped = [(name, f"sha {name}", patients.get(name, f"looks:{name}"), sides.get(name, "train")) for name in names]
    decoded.append(decoded[0])  # two files of the same pixels
    both = (spark.createDataFrame(decoded, schemas.DECODED), spark.createDataFrame(grouped, GROUPED))
    return [table.persist() for table in both]


def joined(tables, **words):
    """Name -> group now, and what was found."""
    decoded, grouped = tables
    settings = config.parse({"archive": "a", "warehouse": "w", **words})
    rows, result = twins.join_twins(grouped, decoded, 45, settings, lambda name, table: table)
    return {row.pixel_sha256: row.group for row in rows.collect()}, result


def test_twins_get_one_group_and_patients_keep_theirs(tables):
    now, result = joined(tables)
    before = {row.pixel_sha256: row.group for row in tables[1].collect()}
    moved = {name: group for name, group in now.items() if group != before[name]}
    assert moved == {"40": "looks:00", "02": "patient:3", "43": "looks:03", "44": "looks:04"}
    outcomes = {"different ids": 1, "joined": 4}
    record = {"mode": "group", "least_correlation": 0.97, "pairs": 5, "groups_joined": 4, "outcomes": outcomes}
    assert result.record == record
    assert str(result) == "; 5 pairs of twins (correlation 0.970 or more) joined 4 groups to others"
    pair = result.pairs.set_index("first_sha256").loc["sha 02"]
    assert (pair["second_sha256"], pair["outcome"]) == ("sha 42", "joined")
    assert pair["correlation"] > 0.99


def test_a_shipped_split_and_modes(tables):
    now, result = joined(tables, split="from_layout")
    assert now["43"] == "looks:43"
    assert result.record["outcomes"] == {"different ids": 1, "joined": 3, "two sides of the shipped split": 1}
    now, result = joined(tables, ingest={"twins": "report"})
    assert now == {row.pixel_sha256: row.group for row in tables[1].collect()}
    assert result.record["outcomes"] == {"different ids": 1, "shown only": 4}
    now, result = joined(tables, ingest={"twins": "off"})
    assert (result.record, len(result.pairs), str(result)) == ({}, 0, "")


def test_flat_images_have_no_twins(spark):
    flat = spark.createDataFrame([("a", bytes(1024)), ("b", bytes(1024))], "pixel_sha256 string, thumbnail binary")
    assert twins.find_twins(flat, 2).collect() == []


def test_many_images_are_searched_by_several_tasks_with_the_same_result(tables, monkeypatch):
    few = twins.find_twins(tables[0], 45).toPandas()
    monkeypatch.setattr(twins, "FEW", 0)
    many = twins.find_twins(tables[0], 45).toPandas()
    assert len(few) == 5
    assert_frame_equal(*(pairs.sort_values("first", ignore_index=True) for pairs in (few, many)))


def test_an_image_has_as_many_twins_as_a_group_takes(spark, monkeypatch):
    monkeypatch.setattr(groups, "MOST_TWINS", 2)
    picture = squares(1)[0]
    rows = [
        (name, bytes((picture * dark).astype(np.uint8))) for name, dark in zip("abcd", (1, 0.9, 0.5, 0.8), strict=True)
    ]
    pairs = twins.find_twins(spark.createDataFrame(rows, "pixel_sha256 string, thumbnail binary"), 4).collect()
    assert sorted(row[:2] for row in pairs) == [("a", "b"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
