"""The facts of a dataset for its data card: counts by executors, and a few small pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import containers, layouts
from melanoma_spark.attributes import ATTRIBUTES, UNKNOWN, Attribute
from melanoma_spark.dataset import card_facts as card
from melanoma_spark.dataset import datacard, splits
from melanoma_spark.dataset.card_facts import CardFacts, Duplicates, LabelWord, Pair, Thumbnail, Unmatched
from melanoma_spark.images import decoding, reasons
from melanoma_spark.storage.manifests import ImagesManifest

# Field -> values that are counted one by one.
KINDS = {**dict.fromkeys(ATTRIBUTES, 200), "licence": 20, "size": 5000}
WORDS = 200  # rows of the label mapping
NAMES = {"malignant": ("benign", "malignant"), "melanoma": ("not melanoma", "melanoma")}
REASONS = {**reasons.REASONS, **containers.REASONS}


def count_unmatched(rows: DataFrame, decisions: DataFrame, layout: layouts.Layout) -> dict[str, Unmatched | None]:
    """Count where rows of tables and images do not meet, with examples that name nobody.

    `rows` are of `schemas.UNMATCHED`. All counts are None where there are no tables.
    """
    if not layout.tables:
        return dict.fromkeys(card.UNMATCHED)
    counts = {row.reason: row["count"] for row in rows.groupBy("reason").count().collect()}
    absent = rows.where(f.col("reason") == schemas.ABSENT)
    public = absent.where(f.col("image_id").rlike(r"^isic_\d+$")).orderBy("image_id").limit(card.EXAMPLES).collect()
    without_row = decisions.where("not in_table")
    shas = without_row.where("sha256 is not null").orderBy("sha256").limit(card.EXAMPLES).collect()

    def unmatched(*names: str) -> Unmatched:
        return {"count": sum(counts.get(name, 0) for name in names), "examples": []}

    return {
        "rows_without_image": {
            **unmatched(schemas.ABSENT, schemas.OTHER_FOLDER),
            "examples": [row.image_id.upper() for row in public],
        },
        "images_without_row": {"count": without_row.count(), "examples": [row.sha256[:8] for row in shas]},
        "ambiguous_rows": unmatched(schemas.AMBIGUOUS),
        "contradictory_images": unmatched(schemas.CONTRADICTORY),
    }


def describe_formats(rejects: DataFrame, most: int = 5) -> str:
    """The names of the formats that are not read, with the number of files of each, for the summary."""
    unread = rejects.where(f.col("reason") == reasons.UNSUPPORTED_FORMAT)
    name = f.substring_index("detail", ":", 1).alias("name")
    rows = unread.groupBy(name).count().orderBy(f.desc("count"), "name").collect()
    return ", ".join(f"{row.name} {row['count']}" for row in rows[:most]) + (", ..." if len(rows) > most else "")


def card_facts(
    decisions: DataFrame,
    rejects: DataFrame,
    decoded: DataFrame,
    manifest: ImagesManifest,
    *,
    unmatched: Mapping[str, Unmatched | None],
    groups: Mapping[str, Mapping[str, int]],
    pairs: pd.DataFrame,
    settings: config.Settings,
) -> CardFacts:
    """Gather the facts of the data card of a dataset; `groups` is of `count_groups`, `pairs` of `twins.Twins`.

    A query takes tenths of a second however few its rows are, so each counts all that it can.
    """
    kept = decisions.where("reason is null")
    limits = settings.ingest
    asked = {splits.TEST: limits.test_fraction, splits.VALIDATION: limits.validation_fraction}
    asked[splits.TRAIN] = 1 - sum(asked.values())
    contacts = first_rows(kept, "label", card.CONTACTS, "split")
    examples = first_rows(rejects.where("sha256 is not null"), "reason", card.REJECTS_SHOWN)
    sets = duplicate_sets(decisions)
    shas = {row.sha256 for rows in (*contacts.values(), *examples.values()) for row in rows}
    shas |= {str(member["sha256"]) for files in sets["largest"][: card.SETS_SHOWN] for member in files["members"]}
    # The pairs that ids and hashes do not tell
    alike = pairs[pairs["outcome"] != "one group"].head(card.TWINS) if len(pairs) else pairs
    shas |= {sha for row in alike.itertuples() for sha in (row.first_sha256, row.second_sha256)}
    pictures = thumbnails(decoded, shas, settings.image_size)

    def thumbnail(sha: str | None) -> Thumbnail:
        return {"sha256": sha, "image": pictures.get(sha or "")}

    for files in sets["largest"]:
        files["members"] = [thumbnail(member["sha256"]) for member in files["members"]]
    counts = count_values(kept)
    known = kept.agg(
        f.count("patient_id").alias("patient"),
        f.count("lesion_id").alias("lesion"),
        f.percentile_approx("length", [0.5, 0.95]).alias("lengths"),
        f.max("length").alias("longest"),
    ).collect()[0]
    return {
        "dataset_id": manifest.id,
        "grew_from": manifest.grew_from,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "image_size": settings.image_size,
        "target": settings.target,
        "labels": NAMES[settings.target],
        "layout": manifest.layout,
        "listed": manifest.listed,
        "accepted": manifest.accepted,
        "rejected": manifest.rejected,
        "skipped": manifest.skipped,
        "splits": {
            split: {
                "images": (manifest.counts[f"{split}_0"], manifest.counts[f"{split}_1"]),
                "groups": groups[split],
                "asked": asked[split] if settings.split == "hash" else None,
            }
            for split in splits.SPLITS
        },
        "with_patient": known.patient,
        "with_lesion": known.lesion,
        "distributions": {name: distribution(row, counts[name]) for name, row in datacard.SHOWN.items()},
        "sizes": image_sizes(counts["size"]),
        "file_bytes": {"median": float(known.lengths[0]), "p95": float(known.lengths[1]), "max": float(known.longest)},
        "rejects": {
            reason: {
                "count": count,
                "meaning": REASONS.get(reason, reason),
                "thumbnails": [thumbnail(row.sha256) for row in examples.get(reason, [])],
            }
            for reason, count in manifest.reasons.items()
        },
        "duplicates": sets,
        "twins": {  # type: ignore[typeddict-item]  # the manifest has the other keys
            **manifest.twins,
            "shown": [
                {
                    "correlation": row.correlation,
                    "outcome": row.outcome,
                    "members": [thumbnail(row.first_sha256), thumbnail(row.second_sha256)],
                }
                for row in alike.itertuples()
            ],
        }
        if manifest.twins
        else None,
        "contacts": (
            [{**thumbnail(row.sha256), "split": row.split} for row in contacts.get(0, [])],
            [{**thumbnail(row.sha256), "split": row.split} for row in contacts.get(1, [])],
        ),
        "unmatched": unmatched,
        "label_words": label_words(decisions, NAMES[settings.target]),
        "settings": {
            key: value
            for key, value in config.flatten(settings).items()
            if key.startswith(("ingest.", "privacy.")) or key in ("image_size", "seed", "target", "split", "layout")
        },
        "licences": [
            f"{sum(pair)} images are under {value}."
            for value, pair in sorted(counts["licence"].items(), key=lambda item: str(item[0]))
            if value is not None
        ],
    }


def label_words(decisions: DataFrame, labels: tuple[str, str]) -> list[LabelWord]:
    """The words of the archive's labels with their meaning, the most frequent ones first."""
    words = decisions.where("word is not null").groupBy("word", "diagnosis", "label", "reason").count()
    return [
        {
            "word": row.word,
            "diagnosis": row.diagnosis or "not known",
            "target": labels[row.label] if row.label is not None else row.reason or "",
            "count": row["count"],
        }
        for row in words.orderBy(f.desc("count"), "word").limit(WORDS).collect()
    ]


def first_rows(rows: DataFrame, key: str, most: int, *columns: str) -> dict[Any, list[Row]]:
    """Value of `key` -> the same few rows of it each time: those of the smallest hashes."""
    place = f.row_number().over(Window.partitionBy(key).orderBy("sha256"))
    first = rows.select(key, "sha256", *columns).withColumn("place", place).where(f.col("place") <= most)
    by_value: dict[Any, list[Row]] = {}
    for row in sorted(first.collect(), key=lambda row: row.place):
        by_value.setdefault(row[key], []).append(row)
    return by_value


def count_groups(kept: DataFrame) -> dict[str, dict[str, int]]:
    """Split -> its groups by what their images share: a patient, a lesion, or only the image with its copies."""
    kind = f.substring_index("group", ":", 1)
    named = f.when(kind.isin("patient", "lesion"), kind).otherwise("image")
    counts: dict[str, dict[str, int]] = {split: {} for split in splits.SPLITS}
    for row in kept.groupBy("split", named.alias("kind")).agg(f.countDistinct("group").alias("n")).collect():
        counts[row.split][row.kind] = row.n
    return counts


def count_values(kept: DataFrame) -> dict[str, dict[str | None, Pair]]:
    """Field of `KINDS` -> value -> images of both classes; rare ones together as "other", None counts those without."""
    size = f.concat_ws("x", "width", "height").alias("value")
    fields = f.array(
        *(
            f.struct(f.lit(name).alias("field"), size if name == "size" else f.col(name).alias("value"))
            for name in KINDS
        )
    )
    counted = (
        kept.select("label", f.explode(fields).alias("one"))
        .groupBy("one.field", "one.value")
        .agg(f.sum(1 - f.col("label")).alias("negative"), f.sum("label").alias("positive"))
    )
    most = f.create_map(*(f.lit(text) for pair in KINDS.items() for text in pair))[f.col("field")]
    order = (f.col("value").isNull().desc(), f.desc(f.col("negative") + f.col("positive")), "value")
    place = f.row_number().over(Window.partitionBy("field").orderBy(*order))
    shown = f.when((f.col("place") <= most) | f.col("value").isNull(), f.col("value")).otherwise("other")
    rows = counted.withColumn("place", place).groupBy("field", shown.alias("value"))
    counts: dict[str, dict[str | None, Pair]] = {name: {} for name in KINDS}
    for row in rows.agg(*(f.sum(name).alias(name) for name in ("negative", "positive"))).collect():
        counts[row.field][row.value] = (row.negative, row.positive)
    return counts


def distribution(attribute: Attribute, counts: Mapping[str | None, Pair]) -> dict[str | None, Pair] | None:
    """Images by category of an attribute, of counts by value; None where no image states it."""
    images: dict[str | None, Pair] = {}
    for value, (negative, positive) in counts.items():
        category = attribute.category(value)
        key = None if category == UNKNOWN else category
        before = images.get(key, (0, 0))
        images[key] = (before[0] + negative, before[1] + positive)
    return images if images.keys() - {None} else None


def image_sizes(counts: Mapping[str | None, Pair]) -> dict[tuple[int, int], int]:
    """(width, height) -> images; empty where there are too many sizes to count each."""
    if "other" in counts:
        return {}
    sizes = {}
    for size, pair in counts.items():
        width, height = str(size).split("x")
        sizes[int(width), int(height)] = sum(pair)
    return sizes


def duplicate_sets(decisions: DataFrame) -> Duplicates:
    """Count the sets of files that are one picture, with the first hashes of the largest sets, without thumbnails."""
    readable = decisions.where("perceptual_hash is not null")
    looks = readable.groupBy("perceptual_hash").agg(
        f.count(f.lit(1)).alias("n"),
        *(f.size(f.collect_set(name)).alias(name) for name in ("sha256", "pixel_sha256", "label")),
        f.max(f.when(f.col("reason") == "conflicting_labels", 1).otherwise(0)).alias("conflict"),
        f.slice(f.array_sort(f.collect_set("sha256")), 1, card.MEMBERS_SHOWN).alias("members"),
    )
    sets = looks.where("n > 1")
    kind = f.when(f.col("pixel_sha256") > 1, "same look").when(f.col("sha256") > 1, "same pixels")
    kind = kind.otherwise("same bytes")
    split = f.expr("label > 1 or conflict = 1").alias("split")
    kinds: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    conflicting = 0
    for row in sets.groupBy(kind.alias("kind"), "n", split).count().collect():
        kinds[row.kind] += row["count"]
        sizes[row.n] += row["count"]
        conflicting += row["count"] * row.split
    rows = sets.withColumn("kind", kind).orderBy(f.desc("n"), "perceptual_hash").limit(card.SETS_LISTED).collect()
    return {
        "same_bytes": kinds["same bytes"],
        "same_pixels": kinds["same pixels"],
        "same_look": kinds["same look"],
        "sizes": dict(sizes),
        "conflicting": conflicting,
        "largest": [
            {"kind": row.kind, "count": row.n, "members": [{"sha256": sha, "image": None} for sha in row.members]}
            for row in rows
        ],
    }


def thumbnails(decoded: DataFrame, shas: set[str], size: int) -> dict[str, bytes]:
    """Hash of a file -> a small JPEG of its stored pixels."""
    field = schemas.images_schema(size).fields["image"]
    if not shas:
        return {}
    rows = decoded.where(f.col("sha256").isin(*sorted(shas)) & f.col("image").isNotNull())
    stored = rows.select("sha256", "image").dropDuplicates(["sha256"]).collect()
    pixels = {row.sha256: np.asarray(field.codec.decode(field, bytearray(row.image))) for row in stored}
    return {sha256: decoding.thumbnail(image, card.THUMBNAIL_SIDE) for sha256, image in pixels.items()}
