"""What there is to tell of a dataset: counts by executors, and a few small pictures, for its data card."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, containers, images, layouts, schemas, splits

CONTACTS = 40  # thumbnails of a class
SHOWN = 6  # thumbnails of a reject reason
SETS = 10  # largest sets of duplicates, of which five are shown
MEMBERS = 8
KINDS = 200  # values of a field that are counted one by one
SIDE = 96  # pixels of a thumbnail
NAMES = {"malignant": ("benign", "malignant"), "melanoma": ("not melanoma", "melanoma")}
REASONS = {**images.REASONS, **containers.REASONS}


def unmatched(decisions: DataFrame, records: DataFrame, layout: layouts.Layout) -> dict[str, Any]:
    """Rows of tables without an image, and images without a row: counts, and examples that name nobody."""
    if not layout.tables:
        return {"rows_without_image": None, "images_without_row": None}
    ids = decisions.select(f.lower("image_id").alias("id")).distinct()
    rows = records.join(ids, "id", "left_anti")
    alone = decisions.where("not in_table")
    shas = [row.sha256[:8] for row in alone.where("sha256 is not null").orderBy("sha256").limit(5).collect()]
    return {
        "rows_without_image": {"count": rows.count(), "examples": []},
        "images_without_row": {"count": alone.count(), "examples": shas},
    }


def card(
    decisions: DataFrame,
    rejects: DataFrame,
    decoded: DataFrame,
    facts: dict[str, Any],
    missing: dict[str, Any],
    settings: config.Settings,
) -> Any:
    """The `datacard.CardFacts` of a dataset whose manifest says `facts`."""
    kept = decisions.where("reason is null").persist()
    found = {
        split: (facts["counts"][f"{split}_0"], facts["counts"][f"{split}_1"])
        for split in (splits.TRAIN, splits.VALIDATION, splits.TEST)
    }
    limits = settings.ingest
    asked = {splits.TEST: limits.test_fraction, splits.VALIDATION: limits.validation_fraction}
    asked[splits.TRAIN] = 1 - sum(asked.values())
    contacts = [contact_rows(kept, label) for label in (0, 1)]
    examples = {
        reason: rejects.where(f.col("reason") == reason).orderBy("sha256").limit(SHOWN).collect()
        for reason in facts["reasons"]
    }
    sets = duplicate_sets(decisions)
    shas = {row.sha256 for rows in (*contacts, *examples.values()) for row in rows if row.sha256}
    shas |= {sha for _, _, members in sets["largest"][:5] for sha in members}
    pictures = thumbnails(decoded, shas, settings.image_size)

    def thumbnail(sha: str | None) -> dict[str, Any]:
        return {"sha256": sha, "image": pictures.get(sha or "")}

    lengths = kept.agg(f.percentile_approx("length", [0.5, 0.95]).alias("q"), f.max("length").alias("m")).collect()[0]
    words = decisions.where("word is not null").groupBy("word", "diagnosis", "label", "reason").count()
    ids = kept.agg(f.count("patient_id").alias("patient"), f.count("lesion_id").alias("lesion")).collect()[0]
    negative, positive = NAMES[settings.target]
    result = {
        "dataset_id": facts["id"],
        "grew_from": facts["grew_from"],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "image_size": settings.image_size,
        "target": settings.target,
        "labels": (negative, positive),
        **{key: facts[key] for key in ("layout", "listed", "accepted", "rejected", "skipped")},
        "splits": {
            split: {
                "images": pair,
                "groups": group_kinds(kept, split),
                "asked": None if settings.split == "from_layout" else asked[split],
            }
            for split, pair in found.items()
        },
        "with_patient": ids.patient,
        "with_lesion": ids.lesion,
        "distributions": {
            name: distribution(kept, name) for name in ("source", "age", "sex", "site", "skin_type", "image_type")
        },
        "sizes": sizes(kept),
        "file_bytes": {"median": float(lengths.q[0]), "p95": float(lengths.q[1]), "max": float(lengths.m)},
        "rejects": {
            reason: {
                "count": count,
                "meaning": REASONS.get(reason, reason),
                "thumbnails": [thumbnail(row.sha256) for row in examples[reason]],
            }
            for reason, count in facts["reasons"].items()
        },
        "duplicates": {
            **{key: value for key, value in sets.items() if key != "largest"},
            "largest": [
                {"kind": kind, "count": count, "members": [thumbnail(sha) for sha in members]}
                for kind, count, members in sets["largest"]
            ],
        },
        "contacts": tuple([{**thumbnail(row.sha256), "split": row.split} for row in rows] for rows in contacts),
        **missing,
        "label_words": [
            {
                "word": row.word,
                "diagnosis": row.diagnosis or "not known",
                "target": (negative, positive)[row.label] if row.label is not None else row.reason or "",
                "count": row["count"],
            }
            for row in words.orderBy(f.desc("count"), "word").limit(KINDS).collect()
        ],
        "settings": {
            key: value
            for key, value in config.flat(settings).items()
            if key.startswith(("ingest.", "privacy.")) or key in ("image_size", "seed", "target", "split", "layout")
        },
        "licences": [
            f"{row['count']} images are under {row.licence}."
            for row in kept.where("licence is not null")
            .groupBy("licence")
            .count()
            .orderBy("licence")
            .limit(20)
            .collect()
        ],
    }
    kept.unpersist()
    return result


def contact_rows(kept: DataFrame, label: int) -> list[Any]:
    """The same few images of a class each time: those of the smallest hashes."""
    return kept.where(f.col("label") == label).select("sha256", "split").orderBy("sha256").limit(CONTACTS).collect()


def group_kinds(kept: DataFrame, split: str) -> dict[str, int]:
    """How many groups of a split are held together by patient, by lesion, or are an image or its copies alone."""
    kind = f.substring_index("group", ":", 1)
    named = f.when(kind.isin("patient", "lesion"), kind).otherwise("image")
    rows = kept.where(f.col("split") == split).select("group", named.alias("kind")).distinct().groupBy("kind").count()
    return {row.kind: row["count"] for row in rows.collect()}


def distribution(kept: DataFrame, name: str) -> dict[Any, tuple[int, int]] | None:
    """Value -> images of both classes; rare values beyond the first `KINDS` together, None where no row states it."""
    rows = kept.groupBy(name, "label").count()
    top = kept.where(f.col(name).isNotNull()).groupBy(name).count().orderBy(f.desc("count"), name).limit(KINDS)
    values = {row[name] for row in top.collect()}
    if not values:
        return None
    if name == "age":
        values = {value for value in values if _number(value) is not None}
    other = f.when(f.col(name).isin(*values), f.col(name)).when(
        f.col(name).isNotNull() & f.lit(name != "age"), f.lit("other")
    )
    counted: dict[Any, list[int]] = {}
    for row in rows.withColumn("value", other).groupBy("value", "label").agg(f.sum("count").alias("n")).collect():
        key = _number(row.value) if name == "age" else row.value
        counted.setdefault(key, [0, 0])[row.label] += row.n
    return {key: (pair[0], pair[1]) for key, pair in counted.items()}


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sizes(kept: DataFrame) -> dict[tuple[int, int], int]:
    """(width, height) -> images; the many rare ones are counted at the nearest hundred pixels."""
    rows = kept.groupBy("width", "height").count().orderBy(f.desc("count"), "width", "height").limit(5000).collect()
    counted: Counter[tuple[int, int]] = Counter()
    for row in rows:
        counted[row.width, row.height] += row["count"]
    total = kept.count()
    return dict(counted) if sum(counted.values()) == total else {}


def duplicate_sets(decisions: DataFrame) -> dict[str, Any]:
    """Files that are one picture, by their loosest likeness. Counts, and the largest sets' first hashes."""
    readable = decisions.where("perceptual_hash is not null")
    looks = readable.groupBy("perceptual_hash").agg(
        f.count(f.lit(1)).alias("n"),
        f.countDistinct("sha256").alias("shas"),
        f.countDistinct("pixel_sha256").alias("pixels"),
        f.countDistinct("label").alias("labels"),
        f.max(f.when(f.col("reason") == "conflicting_labels", 1).otherwise(0)).alias("conflict"),
        f.slice(f.array_sort(f.collect_set("sha256")), 1, MEMBERS).alias("members"),
    )
    sets = looks.where("n > 1").persist()
    kind = f.when(f.col("pixels") > 1, "same look").when(f.col("shas") > 1, "same pixels").otherwise("same bytes")
    kinds = {row.kind: row["count"] for row in sets.groupBy(kind.alias("kind")).count().collect()}
    by_size = {row.n: row["count"] for row in sets.groupBy("n").count().orderBy(f.desc("n")).limit(1000).collect()}
    conflicting = sets.where("labels > 1 or conflict = 1").count()
    rows = sets.withColumn("kind", kind).orderBy(f.desc("n"), "perceptual_hash").limit(SETS).collect()
    sets.unpersist()
    return {
        "same_bytes": kinds.get("same bytes", 0),
        "same_pixels": kinds.get("same pixels", 0),
        "same_look": kinds.get("same look", 0),
        "sizes": by_size,
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
    return {
        row.sha256: images.thumbnail(np.asarray(field.codec.decode(field, bytearray(row.image))), SIDE) for row in found
    }
