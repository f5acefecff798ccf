"""Writes the worklist of a batch, for people, to `batches/<batch>/`: worklist.html with its pictures, worklist.csv.

`score` writes it from the staged rows before it commits the batch; it does not change them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import config, logs, plotting, schemas
from melanoma_spark.archives import layouts, matching, plan, table_files, tasks
from melanoma_spark.archives.tables import NO_IDS
from melanoma_spark.errors import ConfigError, DataError, ImageError
from melanoma_spark.models import bundle, gradcam, network
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import of_kind
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import columns, ledger, worklist_page
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files

PICTURES = t.StructType(
    [*schemas.SOURCE, t.StructField("image", t.BinaryType()), t.StructField("heat", t.BinaryType())]
)
FORMULA = r"^[=+\-@\t\r]"  # a spreadsheet would run such a name, and others gave it


@dataclass(frozen=True)
class TableMetadata:
    """What the tables of an archive have on its images.

    Attributes:
        rows: `path`, `patient_id` and drift's categories, as text.
        unmatched: As `matching.MatchedTables` has it.
        set_aside: Tables that cannot be read: the path, as far as privacy allows -> the reason.
        unused: Tables that name no images, in the same form.
    """

    rows: DataFrame
    unmatched: DataFrame
    set_aside: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


def table_metadata(context: StageContext, settled: DataFrame, listing: DataFrame) -> TableMetadata:
    """Read the tables of an archive. An archive for scoring needs no tables, and no labels in them.

    A table that cannot be read is set aside: the batch lacks its metadata, and is scored.

    Args:
        context: The job's context.
        settled: The files that do not land any more, rows of `schemas.LISTING`.
        listing: All files: a row of a table may be about one that still lands, and not about another of its name.
    """
    spark, settings = context.spark, context.settings
    set_aside = table_files.unreadable_tables(settled)
    heads, tables = table_files.read_table_heads(settled, settings, set_aside)
    words = settings.ingest.labels
    unused: dict[str, str] = {}
    layout = layouts.Layout("plain", "no tables")
    try:
        label_words = (*words.positive, *words.negative)
        folders = table_files.count_images_by_folder(settled) if heads else {}
        layout = layouts.recognize_layout(
            heads, folders, settings.layout, settings.ingest.columns, label_words, needs_labels=False
        )
        for path, why in layout.ignored:
            (unused if why.startswith(NO_IDS) else set_aside)[path] = why
    except (ConfigError, DataError) as error:
        set_aside["all tables"] = str(error)
    matched = matching.match_no_rows(spark)
    if layout.tables:
        rows = table_files.read_records(spark, layout, tables, settings, set_aside)
        images = table_files.images_for_matching(listing, settings)
        there, name = table_files.table_paths(listing), plan.stored_name(settings)
        matched = matching.match_rows(images, rows, there, name, lambda _, table: session.checkpointed(table))
    texts = (f.col(name).cast("string") for name in ("path", "patient_id", *of_kind("category")))
    set_aside, unused = (without_names(settings, found) for found in (set_aside, unused))
    for path, why in set_aside.items():
        logs.warning(f"set aside: {path} {why}", "table_set_aside", table=path)
    for path, why in unused.items():
        logs.info(f"not used: {path} {why}", "table_not_used", table=path)
    return TableMetadata(matched.images.select(*texts), matched.unmatched, set_aside, unused)


def write_unmatched(context: StageContext, batch_id: str, unmatched: DataFrame) -> None:
    """Write `unmatched.csv`: the rows of tables that fit several images of a batch, and images whose rows disagree."""
    url = files.join(context.warehouse, "batches", batch_id, "unmatched.csv")
    write_csv(unmatched, schemas.UNMATCHED.names, ["reason", "image_id"], url)


def describe_tables(tables: Mapping[str, Any]) -> list[str]:
    """Describe the section `tables` of batch.json, line by line for the page."""
    lines = [f"{path} was set aside: {why}" for path, why in tables["set_aside"].items()]
    notes = matching.Notes(**{field.name: tables[field.name] for field in fields(matching.Notes)})
    return lines + notes.lines()


def without_names(settings: config.Settings, tables: Mapping[str, str]) -> dict[str, str]:
    """Return path -> reason of tables; with `privacy.source_names=hash` without names, which reasons may contain."""
    if settings.privacy.source_names == "keep":
        return {matching.printable(path): matching.printable(why) for path, why in sorted(tables.items())}
    name = plan.stored_name(settings)
    return {name(path): "cannot be used" for path in sorted(tables)}


def write(
    context: StageContext,
    rows: DataFrame,
    listing: DataFrame,
    scorer: bundle.Scorer,
    facts: Mapping[str, Any],
    counts: Mapping[str, int],
    drifted: statistics.Drift,
) -> str:
    """Write the worklist of a staged batch whose batch.json has these facts; return the page's URL."""
    limits = context.settings.score.worklist
    folder = files.join(context.warehouse, "batches", facts["batch_id"])
    session.describe_jobs(context.spark, f"score: worklist of {facts['rows']} rows")
    ordered = rank(rows).persist()
    write_csv(ordered, columns.of_worklist(), ["rank"], files.join(folder, "worklist.csv"))
    first = [row.asDict() for row in ordered.where(f.col("rank") <= limits.rows).orderBy("rank").collect()]
    with_picture = [row for row in first if row["status"] != "rejected"][: limits.pictures]
    names = draw_pictures(context, listing, scorer, {row["sha256"] for row in with_picture}, rows, folder)
    session.describe_jobs(context.spark, "score: counts of the worklist's page")
    point = scorer.operating_point
    scored, positive = ordered.where("status = 'scored'"), f.count_if(f.col("decision") == "positive")
    figures = scored.agg(f.mean("probability").alias("mean"), positive.alias("positive")).collect()[0]
    flags = ordered.where("flags is not null").select(f.explode(f.split("flags", ",")).alias("flag"))
    page: worklist_page.Facts = {
        "batch_id": facts["batch_id"],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": f"{facts['model']} version {facts['model_version']}",
        "target": context.settings.target,
        "operating_point": f"{point.name}, {point.rule}",
        "threshold": point.threshold,
        "counts": {**counts, "positive": figures.positive},
        "reasons": count_by(ordered.where("reason is not null"), "reason"),
        "flags": count_by(flags, "flag"),
        "patients": ordered.where("patient_id is not null").select("patient_id").distinct().count(),
        "rows": first,
        "pictures": names,
        "left_out": max(0, int(facts["rows"]) - len(first)),
        "expected": 100 * (float("nan") if figures["mean"] is None else figures["mean"]),
        "drift": drifted,
        "notes": describe_tables(facts["tables"]),
    }
    ordered.unpersist()
    url = files.join(folder, "worklist.html")
    files.write_bytes(url, worklist_page.render(page).encode())
    return url


def rank(rows: DataFrame) -> DataFrame:
    """Add `rank` to rows of scores/: patients by their highest risk, the images of a patient by risk.

    Images from which the model abstained have the highest risk. Rejected images come last, with their reason.
    """
    patient = f.coalesce("patient_id", "sha256", "source_uri")
    risk = f.when(f.col("status") == "abstained", 2.0).otherwise(f.coalesce("probability", f.lit(-1.0)))
    top = f.max(risk).over(Window.partitionBy("patient"))
    order: list[Column | str] = [f.desc("top"), "patient", f.desc("risk"), "source_uri"]
    keyed = rows.withColumns({"patient": patient, "risk": risk}).withColumn("top", top)
    last = (f.col("status") == "rejected").cast("int")
    position = f.row_number().over(Window.orderBy([last, *order])).alias("rank")
    return keyed.select(position, *rows.columns)


def write_csv(rows: DataFrame, names: Sequence[str], order: Sequence[str], url: str) -> None:
    """Write columns of all rows, in an order, as one CSV file with a header."""
    folder = f"{url}.parts"
    kinds = dict(rows.dtypes)
    selected = [without_formula(name) if kinds[name] == "string" else f.col(name) for name in names]
    rows.orderBy(*order).select(*selected).coalesce(1).write.mode("overwrite").option("header", "true").option(
        "escape", '"'
    ).csv(folder)
    (part,) = files.list_names(folder, "part-*.csv")
    files.rename(files.join(folder, part), url)
    files.remove(folder)


def without_formula(name: str) -> Column:
    """Return a column of text in which no spreadsheet finds a formula."""
    column = f.col(name)
    return f.when(column.rlike(FORMULA), f.concat(f.lit("'"), column)).otherwise(column).alias(name)


def draw_pictures(
    context: StageContext, listing: DataFrame, scorer: bundle.Scorer, wanted: set[str], rows: DataFrame, folder: str
) -> dict[str, tuple[str, str]]:
    """Draw two pictures of each image: the crop that the model saw, and the same with Grad-CAM.

    Returns:
        SHA-256 -> the names of the two files beside the page.
    """
    if not wanted:
        return {}
    key = ledger.source_key("source_uri", "source_bytes", "source_modified").alias("source_key")
    keys = rows.where(f.col("sha256").isin(*wanted)).select(key)
    sources = listing.join(f.broadcast(keys), "source_key", "left_semi")
    spec, threads = scorer.spec, session.task_threads(context.spark)
    tensors = session.broadcast(context.spark, scorer.tensors)
    light = replace(scorer, tensors=[], reference=None)  # small enough for a closure

    def load() -> inference.Predict:
        network.use_threads(threads)
        heat_of = gradcam.heatmaps(spec, tensors.value)

        def draw(pixels: NDArray[Any]) -> list[NDArray[Any]]:
            heats = heat_of(pixels, [True] * len(pixels))
            over = [plotting.overlay(image, heat) for image, heat in zip(pixels, heats, strict=True)]
            return [np.array([worklist_page.picture(image) for image in images], object) for images in (pixels, over)]

        return draw

    def finish(outputs: list[NDArray[Any]], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        none = np.full(len(errors), None)  # a file that has changed since has no pictures
        image, heat = outputs or (none, none)
        frame = pd.DataFrame({"image": image, "heat": heat}, dtype=object)
        return frame.where(frame.notna(), None)

    size = context.settings.score.batch_size
    compute = inference.batch_function(f"pictures {scorer.facts['id']}", load, light.prepare, finish, batch_size=size)
    session.describe_jobs(context.spark, f"score: draw {len(wanted)} images and their Grad-CAM")
    drawn = tasks.compute_files(sources, len(wanted), context.settings, compute, batch_size=size, result=PICTURES)
    names = {}
    for row in drawn.where("image is not null").collect():
        names[row.sha256] = (f"pictures/{row.sha256[:16]}.jpg", f"pictures/{row.sha256[:16]}-gradcam.jpg")
        for name, content in zip(names[row.sha256], (row.image, row.heat), strict=True):
            files.write_bytes(files.join(folder, name), bytes(content))
    return names


def count_by(rows: DataFrame, column: str) -> dict[str, int]:
    """Return how many rows have each value of a column, the most frequent first."""
    counts = rows.groupBy(column).count().orderBy(f.desc("count"), column)
    return {row[column]: row["count"] for row in counts.collect()}
