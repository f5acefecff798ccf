"""Select the images of a dataset: those that are kept, with label, group and split, and the reasons of the others.

All of it runs on Spark's executors; the driver sees counts and examples, never the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f

from melanoma_spark import config, schemas
from melanoma_spark.archives import diagnoses, layouts
from melanoma_spark.archives.plan import StoredName
from melanoma_spark.archives.records import REGISTERED, folders_of
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.dataset import groups, splits
from melanoma_spark.errors import DataError

MOST_VERSIONS = 5  # images of one id; more are a name that is used again, such as `left` in each patient's folder
# Images of one name are of different lesions if they differ in one of these.
NUMBER = re.compile(r"\s*\d{1,3}(\.0*)?\s*")
DIFFERING = ("patient_id", "lesion_id", "label", "shipped", "age", "sex", "site", "skin_type")


def find_candidates(
    files: DataFrame, metadata: DataFrame, layout: layouts.Layout, settings: config.Settings, name: StoredName
) -> DataFrame:
    """Each readable file as a row of `schemas.CANDIDATES`: its label, ids and keys, or why it cannot be used.

    Where labels come from tables, an image without a row is `no_label`, and one whose row may belong to another image
    is `ambiguous_metadata`.

    Args:
        files: The columns of `schemas.DECODED` without the image, and the listing's `path` and `image_id`.
        metadata: `matching.MatchedTables.images`.
        layout: Of the archive.
        settings: Of the job.
        name: An id -> the text that is stored for it.
    """
    labels_in_tables = any(table.has_labels for table in layout.tables)
    words = (*settings.ingest.labels.positive, *settings.ingest.labels.negative)

    def decide_rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            rows = []
            for row in batch.itertuples():
                folder = layouts.label_from_folders(row.path, layout, words)
                rows.append(_candidate(row, folder, labels_in_tables, settings, name))
            yield pd.DataFrame(rows, columns=schemas.CANDIDATES.names, dtype=object)

    # One stage of Python: with two in a task, Spark keeps two workers a slot, and a later model is loaded by both.
    return files.join(metadata, "path", "left").mapInPandas(decide_rows, schemas.CANDIDATES)  # type: ignore[arg-type]


def _candidate(
    row: Any, folder: tuple[str | None, str | None], labels_in_tables: bool, settings: config.Settings, name: StoredName
) -> tuple[Any, ...]:
    words, indeterminate = settings.ingest.labels, {"positive": 1, "negative": 0}.get(settings.ingest.indeterminate)
    folder_label, folder_split = folder
    labels = tuple(row.labels) if row.labels is not None else ()
    all_contradictions = () if row.contradictions is None else row.contradictions
    contradictions = [field for field in schemas.STATED if field in all_contradictions]
    in_table = bool(row.in_table) and not pd.isna(row.in_table)
    if not labels and folder_label:
        labels = (folder_label,)
    answer = diagnoses.target_of(labels, settings.target, words.positive, words.negative)
    label, reason, detail = answer.target, row.reason, row.detail
    if reason is None:
        if labels_in_tables and not labels and row.ambiguous_label is True:
            label, reason, detail = None, "ambiguous_metadata", row.ambiguity
        elif labels_in_tables and not in_table:
            label, reason, detail = None, diagnoses.NO_LABEL, "no row in the archive's tables"
        elif contradictions:
            label, reason, detail = None, "contradictory_rows", f"two rows give it another {', '.join(contradictions)}"
        elif answer.contradiction:
            label, reason, detail = None, "conflicting_labels", answer.contradiction
        elif answer.reason == diagnoses.INDETERMINATE and indeterminate is not None:
            label = indeterminate
        elif answer.reason:
            reason, detail = answer.reason, f"label {answer.word!r}" if answer.word else "no label"
    patient, lesion, image = name(row.patient_id), name(row.lesion_id), row.image_id.lower()
    pairs = [name(pair) for pair in row.pairs] if row.pairs is not None else []
    keys = [f"pixels:{row.pixel_sha256}", f"looks:{row.perceptual_hash}"]
    keys += [f"patient:{one}" for one in dict.fromkeys((patient, row.dicom_patient)) if one]
    keys += [f"lesion:{lesion}"] if lesion else []
    keys += [f"pair:{pair}" for pair in pairs]
    keys += [f"study:{row.dicom_study}"] if row.dicom_study else []
    names = [name("/".join((*folder, image))) for folder in ((), folders_of(row.path)[-1:])]
    if REGISTERED.fullmatch(image):
        keys, names = [*keys, f"image:{names[0]}"], []
    usable = reason is None
    return (
        row.source_uri, row.length, row.modified, row.sha256, row.pixel_sha256, row.perceptual_hash, row.width,
        row.height, name(row.image_id), label if usable else None, answer.word, answer.diagnosis,
        row.split or folder_split, keys if usable else [], names if usable else [], patient or row.dicom_patient,
        lesion, *(_text(getattr(row, column)) for column in ATTRIBUTES), in_table, _text(row.flags), _text(row.profile),
        reason, detail,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    if pd.isna(value):
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)


def unite_by_name(rows: DataFrame) -> DataFrame:
    """`first` and `key` of images that have one name in `names` and may be one image, at two sizes or qualities.

    A name is not used if images that have it differ in `DIFFERING`, or if more than `MOST_VERSIONS` images have it:
    docs/decisions/images-of-one-name.md.
    """
    named = rows.select("first", "pixel_sha256", *DIFFERING, f.explode("names").alias("key"))
    differ = reduce(or_, (f.coalesce(f.min(column) != f.max(column), f.lit(False)) for column in DIFFERING))
    images = f.size(f.collect_set("pixel_sha256"))
    counted = named.groupBy("key").agg(images.alias("images"), differ.alias("differ"))
    shared = counted.where(f.col("images").between(2, MOST_VERSIONS) & ~f.col("differ"))
    return named.join(shared, "key").select("first", f.concat(f.lit("name:"), "key").alias("key"))


def assign_groups(rows: DataFrame) -> DataFrame:
    """The usable rows of `find_candidates` with the name of their `group`, a connected component of their keys."""

    def connect(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        edges = [batch[["first", "other"]].to_numpy(np.int64) for batch in batches]
        if edges:
            ends = np.concatenate(edges)
            del edges
            keys, component = groups.components(ends[:, 0], ends[:, 1])
            for at in range(0, len(keys), 100_000):
                part = slice(at, at + 100_000)
                yield pd.DataFrame({"first": keys[part], "component": component[part]})

    usable = rows.where("reason is null")
    # Numbers stand for keys: two that collide would join two groups, which is unlikely and does no harm.
    numbered = usable.withColumn("first", f.xxhash64(f.element_at("keys", 1)))
    keys = numbered.select("first", f.explode("keys").alias("key")).unionByName(unite_by_name(numbered))
    pairs = keys.select("first", f.xxhash64("key").alias("other"))
    # One task holds two numbers a key, which is little: the pixels of as many images fill a thousand times more.
    components = pairs.coalesce(1).mapInPandas(connect, "first long, component int")  # type: ignore[arg-type]
    placed = numbered.join(components, "first").drop("first")
    kind = f.substring_index("key", ":", 1)
    rank = f.coalesce(*(f.when(kind == name, f.lit(place)) for place, name in enumerate(groups.KINDS)))
    named = (
        placed.select("component", f.explode("keys").alias("key"))
        .groupBy("component")
        .agg(f.min(f.struct(rank.alias("rank"), "key")).alias("best"))
        .select("component", f.col("best.key").alias("group"))
    )
    return placed.join(named, "component").drop("component", "names")


def decide(rows: DataFrame, settings: config.Settings, grouped: DataFrame | None = None) -> DataFrame:
    """`find_candidates` with `group` and `split` of the images that are kept, and a reason for every other one.

    Of files with the same pixels the one with the smallest SHA-256 is kept; if their labels differ none is. With
    `split=from_layout` a group stands where the archive put it; without a shipped validation split, that is cut from
    training by hash. `split=test` makes all of them test images. `grouped` is what `assign_groups` and
    `twins.join_twins` made of the rows; by default twins are left alone.

    Raises:
        DataError: Listing the groups that the archive has on two sides. With `ingest.split_overlap=repair` the images
            outside of the test (or else validation) split are left out instead.
    """
    limits, seed = settings.ingest, settings.seed
    shipped = settings.split == "from_layout"
    usable = assign_groups(rows) if grouped is None else grouped
    if shipped:
        validation = rows.where("reason is null and shipped = 'validation'").head(1) != []
        usable = _apply_shipped_split(usable, validation, settings)
    pixels = Window.partitionBy("pixel_sha256")
    first = pixels.orderBy(f.col("reason").isNotNull(), "sha256", "source_uri")
    same = (
        usable.withColumn("labels", f.size(f.collect_set("label").over(pixels)))
        .withColumn("copies", f.count(f.lit(1)).over(pixels))
        .withColumn("place", f.row_number().over(first))
        .withColumn("kept", f.first("sha256").over(first))
    )
    conflict, duplicate = f.col("labels") > 1, f.col("place") > 1
    reason = (
        f.when(f.col("reason").isNotNull(), f.col("reason"))
        .when(conflict, f.lit("conflicting_labels"))
        .when(duplicate, f.lit("duplicate"))
    )
    detail = (
        f.when(f.col("reason").isNotNull(), f.col("detail"))
        .when(conflict, f.concat(f.col("copies").cast("string"), f.lit(" images of these pixels, both labels")))
        .when(duplicate, f.concat(f.lit("same pixels as "), f.col("kept")))
    )

    def hash_groups(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            sides = [
                splits.split_of(group, seed, 0.0 if shipped else limits.test_fraction, limits.validation_fraction)
                for group in batch["group"]
            ]
            yield batch.assign(hashed=sides)

    new = same.withColumns({"detail": detail, "reason": reason}).drop("labels", "copies", "place", "kept")
    hashed = new.mapInPandas(hash_groups, schemas.add(new.schema, "hashed"))  # type: ignore[arg-type]
    split: Column = f.col("hashed") if settings.split != "test" else f.lit("test")
    if shipped:
        carved = f.coalesce(f.col("shipped"), f.lit("train"))
        cut = (carved == "train") & ~f.col("validation_is_shipped")
        split = f.when(cut, f.col("hashed")).otherwise(carved)
    kept = hashed.withColumn("split", f.when(f.col("reason").isNull(), split)).select(*schemas.DECISIONS.names)
    rest = rows.where("reason is not null").drop("keys", "names", "shipped")
    return kept.unionByName(rest, allowMissingColumns=True)


def _apply_shipped_split(usable: DataFrame, validation: bool, settings: config.Settings) -> DataFrame:
    group = Window.partitionBy("group")
    sides = usable.withColumn("sides", f.array_sort(f.collect_set("shipped").over(group)))
    overlaps = sides.where(f.size("sides") > 1)
    if settings.ingest.split_overlap == "error":
        bad = overlaps.select("group", "sides").distinct()
        first = bad.orderBy("group").limit(5).collect()
        if first:
            shown = ", ".join(f"{row.group} ({' and '.join(row.sides)})" for row in first)
            raise DataError(
                f"split=from_layout: {bad.count()} groups stand on two sides of the shipped split: {shown}; repair it "
                "with ingest.split_overlap=repair, or use split=hash"
            )
    best = f.coalesce(
        *(f.when(f.array_contains("sides", name), f.lit(name)) for name in ("test", "validation", "train"))
    )
    wrong = f.col("shipped") != best
    return (
        sides.withColumns(
            {
                "reason": f.when(wrong, f.lit("split_overlap")),
                "detail": f.when(wrong, f.concat(f.lit("its group stands in the shipped split "), best)),
            }
        )
        .withColumn("shipped", f.coalesce("shipped", best))
        .withColumn("validation_is_shipped", f.lit(validation))
        .drop("sides")
    )


def check(
    counts: Mapping[str, int],
    reasons: Mapping[str, int],
    unknown: Mapping[str, int],
    target: str,
    needed: Sequence[str] = splits.SPLITS,
    notes: str = "",
    answers: Mapping[str, int] | None = None,
) -> None:
    """Raise `DataError` unless each of the `needed` splits has images of both labels, and 0 and 1 mean no and yes.

    Args:
        counts: Images by split and label, such as `train_0`.
        reasons: Rejected files by reason.
        unknown: Words of labels whose meaning is not known, with the number of their files, the most frequent first.
        target: What label 1 means.
        needed: Splits that need images.
        notes: What the tables leave unclear, for the message.
        answers: Labels that are a bare 0 or 1, with the number of their files.
    """
    if answers and any(NUMBER.fullmatch(word) for word in unknown):
        numbers = {**answers, **{word: count for word, count in unknown.items() if NUMBER.fullmatch(word)}}
        shown = ", ".join(f"{word!r} {count}" for word, count in sorted(numbers.items()))
        raise DataError(
            f"labels are numbers of classes: {shown}; which of them are positive is not known. Name those of both "
            "classes: ingest.labels.positive=[WORD,...] ingest.labels.negative=[WORD,...]; others are left out"
        )
    rejected = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
    words = "ingest.labels.positive=[WORD,...] or ingest.labels.negative=[WORD,...]"
    if unknown:
        shown = ", ".join(f"{word!r} {count}" for word, count in unknown.items())
        rejected += f"; unknown label words: {shown}; give them a meaning with {words}"
    rejected += notes
    total = {label: sum(counts[f"{split}_{label}"] for split in splits.SPLITS) for label in (0, 1)}
    if not total[0] and not total[1]:
        raise DataError(f"no usable image in the archive; rejected: {rejected}")
    if not total[0] or not total[1]:
        present = 1 if total[1] else 0
        other = "malignant" if target == "melanoma" else "melanoma"
        raise DataError(
            f"one class only: all {total[present]} usable images carry the "
            f"{'positive' if present else 'negative'} label; rejected: {rejected}; if label words are read wrongly, "
            f"name them with {words}; target={other} divides the images differently"
        )
    for split in needed:
        if not counts[f"{split}_0"] or not counts[f"{split}_1"]:
            raise DataError(
                f"the {split} split has {counts[f'{split}_0']} negative and {counts[f'{split}_1']} positive images of "
                f"{total[0] + total[1]}: too few groups to split; add images, change seed=N, or raise "
                "ingest.test_fraction=SHARE and ingest.validation_fraction=SHARE"
            )
