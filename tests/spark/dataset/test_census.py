"""What a data card counts, against pandas on the same rows."""

import hashlib
import random
from collections import Counter
from datetime import datetime

import pytest

from melanoma_spark import config, schemas
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.dataset import ingest, splits, summary

KINDS = ("patient", "lesion", "looks", "pixels")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def table(spark):
    """Rows of `schemas.DECISIONS`, all kept, and as dictionaries."""
    chance = random.Random(1)
    rows = []
    for number in range(600):
        row = dict.fromkeys(schemas.DECISIONS.names)
        group = chance.randrange(200)
        row |= {
            "source_uri": f"file:/a/{number}",
            "length": chance.randrange(1000, 9000),
            "modified": datetime(2024, 1, 1),
            "sha256": digest(str(number)),
            "pixel_sha256": digest(str(number)),
            "perceptual_hash": digest(str(number // 2 if number < 8 else number))[:16],
            "width": 64 + number % 3,
            "height": 64,
            "image_id": str(number),
            "label": chance.randrange(2),
            "split": splits.SPLITS[group % 3],
            "group": f"{KINDS[group % 4]}:{group}",
            "age": chance.choice([None, "40", "40.0", "55", "old"]),
            "sex": chance.choice([None, "female", "male"]),
            "site": f"site {chance.randrange(300)}",
            "licence": chance.choice(["CC-0", "CC-BY"]),
            "in_table": True,
        }
        rows.append(row)
    values = [tuple(row[name] for name in schemas.DECISIONS.names) for row in rows]
    frame = spark.createDataFrame(spark.sparkContext.parallelize(values, 3), schemas.DECISIONS).persist()
    yield frame, rows
    frame.unpersist()


def pairs(rows, value):
    result = {}
    for row in rows:
        result.setdefault(value(row), [0, 0])[row["label"]] += 1
    return {key: tuple(pair) for key, pair in result.items()}


def test_values_groups_and_examples_are_counted_as_by_pandas(table):
    frame, rows = table
    result = summary.count_values(frame)
    assert set(result) == set(summary.KINDS)
    for name in ("age", "sex", "licence", "source"):
        assert result[name] == pairs(rows, lambda row, name=name: row[name])
    assert summary.image_sizes(result["size"]) == Counter((row["width"], row["height"]) for row in rows)
    assert summary.image_sizes({"64x64": (1, 2), "other": (3, 4)}) == {}, "not as if these were all"
    source, sex, age = (ATTRIBUTES[name] for name in ("source", "sex", "age"))
    assert summary.distribution(source, result["source"]) is None
    assert summary.distribution(sex, result["sex"]) == pairs(rows, lambda row: row["sex"])
    ages = {None: None, "40": "40-49", "40.0": "40-49", "55": "50-59", "old": None}
    assert summary.distribution(age, result["age"]) == pairs(rows, lambda row: ages[row["age"]])

    result = summary.count_values(frame)["site"]
    counts = Counter(row["site"] for row in rows)
    common = sorted(counts, key=lambda site: (-counts[site], site))[: summary.KINDS["site"]]
    assert len(counts) > summary.KINDS["site"]
    assert result == pairs(rows, lambda row: row["site"] if row["site"] in common else "other")

    expected = {split: Counter() for split in splits.SPLITS}
    for split, group in {(row["split"], row["group"]) for row in rows}:
        kind = group.partition(":")[0]
        expected[split][kind if kind in ("patient", "lesion") else "image"] += 1
    assert summary.count_groups(frame) == expected

    result = summary.first_rows(frame, "label", 7, "split")
    for label in (0, 1):
        hashes = sorted(row["sha256"] for row in rows if row["label"] == label)
        assert [row.sha256 for row in result[label]] == hashes[:7]


def test_files_that_look_alike_are_sets(table):
    frame, rows = table
    result = summary.duplicate_sets(frame)
    labels = [{row["label"] for row in rows[at : at + 2]} for at in range(0, 8, 2)]
    assert (result["same_look"], result["same_pixels"], result["same_bytes"]) == (4, 0, 0)
    assert result["sizes"] == {2: 4}
    assert result["conflicting"] == sum(len(both) == 2 for both in labels)
    members = [sorted(row["sha256"] for row in rows[at : at + 2]) for at in range(0, 8, 2)]
    assert sorted([member["sha256"] for member in one["members"]] for one in result["largest"]) == sorted(members)


def test_formats_that_are_not_read_are_named_with_their_counts(spark):
    details = ["HEIC: convert"] * 3 + ["7z archive: unpack"] + [f"{letter}: x" for letter in "abcdef"]
    rows = [("unsupported_format", detail) for detail in details] + [("corrupt", "HEIC: no")]
    rejects = spark.createDataFrame(rows, "reason string, detail string")
    assert summary.describe_formats(rejects) == "HEIC 3, 7z archive 1, a 1, b 1, c 1, ..."


def test_a_rare_0_is_counted_among_many_words_that_are_unknown(spark):
    rows = [("0", None)] + [(str(number), "unknown_label") for number in range(2, 60) for _ in range(3)]
    unknown, answers = ingest.count_words(spark.createDataFrame(rows, "word string, reason string"), config.parse({}))
    assert (len(unknown), set(unknown.values()), answers) == (20, {3}, {"0": 1})
