"""What there is to tell of a dataset: counts by executors, and a few small pictures, for its data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, layouts
from melanoma_spark.attributes import ATTRIBUTES, UNKNOWN, Attribute
from melanoma_spark.dataset import datacard, splits
from melanoma_spark.images import decoding, reasons
from melanoma_spark.storage.manifests import ImagesManifest

CONTACTS = 40  # thumbnails of a class
SHOWN = 6  # thumbnails of a reject reason
SETS = 10  # largest sets of duplicates, of which five are shown
MEMBERS = 8
# Values of a field that are counted one by one.
KINDS = {**dict.fromkeys(ATTRIBUTES, 200), "licence": 20, "size": 5000}
WORDS = 200  # rows of the label mapping
EXAMPLES = 5
SIDE = 96  # pixels of a thumbnail
NAMES = {"malignant": ("benign", "malignant"), "melanoma": ("not melanoma", "melanoma")}
REASONS = {**reasons.REASONS, **containers.REASONS}


def unmatched(rows: DataFrame, decisions: DataFrame, layout: layouts.Layout) -> dict[str, Any]:
    """Where rows of tables and images do not meet: counts, and examples that name nobody.

    `rows` are of `schemas.UNMATCHED`. All None where there are no tables.
    """
    if not layout.tables:
        return dict.fromkeys(("rows_without_image", "images_without_row", "ambiguous_rows", "contradictory_images"))
    reasons = {row.reason: row["count"] for row in rows.groupBy("reason").count().collect()}
    absent = rows.where(f.col("reason") == schemas.ABSENT)
    public = absent.where(f.col("image_id").rlike(r"^isic_\d+$")).orderBy("image_id").limit(EXAMPLES).collect()
    alone = decisions.where("not in_table")
    shas = alone.where("sha256 is not null").orderBy("sha256").limit(EXAMPLES).collect()
    return {
        "rows_without_image": {
            "count": reasons.get(schemas.ABSENT, 0) + reasons.get(schemas.OTHER_FOLDER, 0),
            "examples": [row.image_id.upper() for row in public],
        },
        "images_without_row": {"count": alone.count(), "examples": [row.sha256[:8] for row in shas]},
        "ambiguous_rows": {"count": reasons.get(schemas.AMBIGUOUS, 0), "examples": []},
        "contradictory_images": {"count": reasons.get(schemas.CONTRADICTORY, 0), "examples": []},
    }


def card(
    decisions: DataFrame,
    rejects: DataFrame,
    decoded: DataFrame,
    facts: ImagesManifest,
    missing: dict[str, Any],
    groups: dict[str, dict[str, int]],
    settings: config.Settings,
) -> Any:
    """The `datacard.CardFacts` of a dataset whose manifest says `facts`; `groups` is of `group_kinds`.

    A query costs tenths of a second however few its rows are, so that each counts all that it can.
    """
    kept = decisions.where("reason is null")
    found = {
        split: (facts.counts[f"{split}_0"], facts.counts[f"{split}_1"])
        for split in (splits.TRAIN, splits.VALIDATION, splits.TEST)
    }
    limits = settings.ingest
    asked = {splits.TEST: limits.test_fraction, splits.VALIDATION: limits.validation_fraction}
    asked[splits.TRAIN] = 1 - sum(asked.values())
    contacts = first_of(kept, "label", CONTACTS, "split")
    examples = first_of(rejects.where("sha256 is not null"), "reason", SHOWN)
    sets = duplicate_sets(decisions)
    shas = {row.sha256 for rows in (*contacts.values(), *examples.values()) for row in rows}
    shas |= {sha for _, _, members in sets["largest"][:5] for sha in members}
    pictures = thumbnails(decoded, shas, settings.image_size)

    def thumbnail(sha: str | None) -> dict[str, Any]:
        return {"sha256": sha, "image": pictures.get(sha or "")}

    counted = tally(kept)
    known = kept.agg(
        f.count("patient_id").alias("patient"),
        f.count("lesion_id").alias("lesion"),
        f.percentile_approx("length", [0.5, 0.95]).alias("lengths"),
        f.max("length").alias("longest"),
    ).collect()[0]
    words = decisions.where("word is not null").groupBy("word", "diagnosis", "label", "reason").count()
    negative, positive = NAMES[settings.target]
    return {
        "dataset_id": facts.id,
        "grew_from": facts.grew_from,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "image_size": settings.image_size,
        "target": settings.target,
        "labels": (negative, positive),
        **{key: getattr(facts, key) for key in ("layout", "listed", "accepted", "rejected", "skipped")},
        "splits": {
            split: {
                "images": pair,
                "groups": groups[split],
                "asked": asked[split] if settings.split == "hash" else None,
            }
            for split, pair in found.items()
        },
        "with_patient": known.patient,
        "with_lesion": known.lesion,
        "distributions": {name: distribution(attribute, counted[name]) for name, attribute in datacard.SHOWN.items()},
        "sizes": sizes(counted["size"]),
        "file_bytes": {
            "median": float(known.lengths[0]),
            "p95": float(known.lengths[1]),
            "max": float(known.longest),
        },
        "rejects": {
            reason: {
                "count": count,
                "meaning": REASONS.get(reason, reason),
                "thumbnails": [thumbnail(row.sha256) for row in examples.get(reason, [])],
            }
            for reason, count in facts.reasons.items()
        },
        "duplicates": {
            **{key: value for key, value in sets.items() if key != "largest"},
            "largest": [
                {"kind": kind, "count": count, "members": [thumbnail(sha) for sha in members]}
                for kind, count, members in sets["largest"]
            ],
        },
        "contacts": tuple(
            [{**thumbnail(row.sha256), "split": row.split} for row in contacts.get(label, [])] for label in (0, 1)
        ),
        **missing,
        "label_words": [
            {
                "word": row.word,
                "diagnosis": row.diagnosis or "not known",
                "target": (negative, positive)[row.label] if row.label is not None else row.reason or "",
                "count": row["count"],
            }
            for row in words.orderBy(f.desc("count"), "word").limit(WORDS).collect()
        ],
        "settings": {
            key: value
            for key, value in config.flatten(settings).items()
            if key.startswith(("ingest.", "privacy.")) or key in ("image_size", "seed", "target", "split", "layout")
        },
        "licences": [
            f"{neg + pos} images are under {value}."
            for value, (neg, pos) in sorted(counted["licence"].items(), key=lambda item: str(item[0]))
            if value is not None
        ],
    }


def first_of(rows: DataFrame, key: str, most: int, *columns: str) -> dict[Any, list[Any]]:
    """Value of `key` -> the same few rows of it each time: those of the smallest hashes."""
    place = f.row_number().over(Window.partitionBy(key).orderBy("sha256"))
    first = rows.select(key, "sha256", *columns).withColumn("place", place).where(f.col("place") <= most)
    found: dict[Any, list[Any]] = {}
    for row in sorted(first.collect(), key=lambda row: row.place):
        found.setdefault(row[key], []).append(row)
    return found


def group_kinds(kept: DataFrame) -> dict[str, dict[str, int]]:
    """Split -> how many of its groups are held together by patient, by lesion, or are an image or its copies alone."""
    kind = f.substring_index("group", ":", 1)
    named = f.when(kind.isin("patient", "lesion"), kind).otherwise("image")
    found: dict[str, dict[str, int]] = {split: {} for split in splits.SPLITS}
    for row in kept.groupBy("split", named.alias("kind")).agg(f.countDistinct("group").alias("n")).collect():
        found[row.split][row.kind] = row.n
    return found


def tally(kept: DataFrame) -> dict[str, dict[str | None, tuple[int, int]]]:
    """Field of `KINDS` -> value -> images of both classes; rare ones together as "other", None counts those without."""
    size = f.concat_ws("x", "width", "height")
    told = f.array(
        *(
            f.struct(f.lit(name).alias("field"), (size if name == "size" else f.col(name)).alias("value"))
            for name in KINDS
        )
    )
    counted = (
        kept.select("label", f.explode(told).alias("told"))
        .groupBy("told.field", "told.value")
        .agg(f.sum(1 - f.col("label")).alias("negative"), f.sum("label").alias("positive"))
    )
    most = f.create_map(*(f.lit(text) for pair in KINDS.items() for text in pair))[f.col("field")]
    order = (f.col("value").isNull().desc(), f.desc(f.col("negative") + f.col("positive")), "value")
    place = f.row_number().over(Window.partitionBy("field").orderBy(*order))
    shown = f.when((f.col("place") <= most) | f.col("value").isNull(), f.col("value")).otherwise("other")
    rows = counted.withColumn("place", place).groupBy("field", shown.alias("value"))
    found: dict[str, dict[str | None, tuple[int, int]]] = {name: {} for name in KINDS}
    for row in rows.agg(*(f.sum(name).alias(name) for name in ("negative", "positive"))).collect():
        found[row.field][row.value] = (row.negative, row.positive)
    return found


def distribution(
    attribute: Attribute, counted: Mapping[str | None, datacard.Pair]
) -> dict[str | None, datacard.Pair] | None:
    """Images by category of an attribute, of counts by value; None where no image states it."""
    images: dict[str | None, datacard.Pair] = {}
    for value, (negative, positive) in counted.items():
        category = attribute.category(value)
        key = None if category == UNKNOWN else category
        before = images.get(key, (0, 0))
        images[key] = (before[0] + negative, before[1] + positive)
    return images if images.keys() - {None} else None


def sizes(counted: dict[str | None, tuple[int, int]]) -> dict[tuple[int, int], int]:
    """(width, height) -> images; empty where there are too many sizes to count each."""
    if "other" in counted:
        return {}
    found = {}
    for size, (negative, positive) in counted.items():
        width, height = str(size).split("x")
        found[int(width), int(height)] = negative + positive
    return found


def duplicate_sets(decisions: DataFrame) -> dict[str, Any]:
    """Files that are one picture, by their loosest likeness. Counts, and the largest sets' first hashes."""
    readable = decisions.where("perceptual_hash is not null")
    looks = readable.groupBy("perceptual_hash").agg(
        f.count(f.lit(1)).alias("n"),
        *(f.size(f.collect_set(name)).alias(name) for name in ("sha256", "pixel_sha256", "label")),
        f.max(f.when(f.col("reason") == "conflicting_labels", 1).otherwise(0)).alias("conflict"),
        f.slice(f.array_sort(f.collect_set("sha256")), 1, MEMBERS).alias("members"),
    )
    sets = looks.where("n > 1")
    kind = f.when(f.col("pixel_sha256") > 1, "same look").when(f.col("sha256") > 1, "same pixels")
    kind = kind.otherwise("same bytes")
    split = f.expr("label > 1 or conflict = 1").alias("split")
    kinds: Counter[str] = Counter()
    by_size: Counter[int] = Counter()
    conflicting = 0
    for row in sets.groupBy(kind.alias("kind"), "n", split).count().collect():
        kinds[row.kind] += row["count"]
        by_size[row.n] += row["count"]
        conflicting += row["count"] * row.split
    rows = sets.withColumn("kind", kind).orderBy(f.desc("n"), "perceptual_hash").limit(SETS).collect()
    return {
        "same_bytes": kinds["same bytes"],
        "same_pixels": kinds["same pixels"],
        "same_look": kinds["same look"],
        "sizes": dict(by_size),
        "conflicting": conflicting,
        "largest": [(row.kind, row.n, list(row.members)) for row in rows],
    }


def thumbnails(decoded: DataFrame, shas: set[str], size: int) -> dict[str, bytes]:
    """Hash of a file -> a small JPEG of its stored pixels."""
    field = schemas.images_schema(size).fields["image"]
    if not shas:
        return {}
    rows = decoded.where(f.col("sha256").isin(*sorted(shas)) & f.col("image").isNotNull())
    found = rows.select("sha256", "image").dropDuplicates(["sha256"]).collect()
    pixels = {row.sha256: np.asarray(field.codec.decode(field, bytearray(row.image))) for row in found}
    return {sha256: decoding.thumbnail(image, SIDE) for sha256, image in pixels.items()}
