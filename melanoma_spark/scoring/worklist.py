"""worklist: what a person looks at of a batch -> `batches/<batch>/`: worklist.html with its pictures, worklist.csv.

Part of score, before the batch is committed; it tells of the batch that is staged, and changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import config, logs, schemas
from melanoma_spark.archives import layouts, matching, plan, table_files, tasks
from melanoma_spark.archives.tables import NO_IDS
from melanoma_spark.errors import ConfigError, DataError, ImageError
from melanoma_spark.models import bundle, gradcam, network
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import of_kind
from melanoma_spark.runner.context import StageContext
from melanoma_spark.scoring import ledger, worklist_page
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files

PICTURES = t.StructType(
    [*schemas.SOURCE, t.StructField("image", t.BinaryType()), t.StructField("heat", t.BinaryType())]
)
FORMULA = r"^[=+\-@\t\r]"  # what a spreadsheet would run, from names that others gave


@dataclass(frozen=True)
class TableMetadata:
    """What the tables of an archive say of its images.

    `rows` has `path`, `patient_id` and drift's categories as text. `unmatched` is that of `matching.MatchedTables`.
    `set_aside` and `unused` are tables that cannot be read, or name no images: the stored name of their path -> why.
    """

    rows: DataFrame
    unmatched: DataFrame
    set_aside: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


def table_metadata(context: StageContext, listed: DataFrame, unsettled: DataFrame) -> TableMetadata:
    """What the tables of a listing say of its images. An archive for scoring needs no tables, and no labels in them.

    A table that cannot be read is set aside: it costs what it says, not the scores of a night. `unsettled` has the
    files that still land, too: a row may be about one of them, and not about another of its name.
    """
    spark, settings = context.spark, context.settings
    set_aside = table_files.unreadable_tables(listed)
    heads, tables = table_files.read_table_heads(listed, settings, set_aside)
    words = settings.ingest.labels
    unused: dict[str, str] = {}
    layout = layouts.Layout("plain", "no tables")
    try:
        own = (*words.positive, *words.negative)
        known = table_files.count_images_by_folder(listed) if heads else {}
        columns = settings.ingest.columns
        layout = layouts.recognize_layout(heads, known, settings.layout, columns, own, needs_labels=False)
        for path, why in layout.ignored:
            (unused if why.startswith(NO_IDS) else set_aside)[path] = why
    except (ConfigError, DataError) as error:
        set_aside["all tables"] = str(error)
    matched = matching.match_no_rows(spark)
    if layout.tables:
        rows = table_files.read_records(spark, layout, tables, settings, set_aside)
        images = table_files.images_for_matching(unsettled, settings)
        there, name = table_files.table_paths(unsettled), plan.stored_name(settings)
        matched = matching.match_rows(images, rows, there, name, lambda _, table: session.checkpointed(table))
    stated = (f.col(name).cast("string") for name in ("path", "patient_id", *of_kind("category")))
    found = [nameless(settings, tables) for tables in (set_aside, unused)]
    for path, why in found[0].items():
        logs.warning(f"set aside: {path} {why}", "table_set_aside", table=path)
    for path, why in found[1].items():
        logs.info(f"not used: {path} {why}", "table_not_used", table=path)
    return TableMetadata(matched.images.select(*stated), matched.unmatched, *found)


def write_unmatched(context: StageContext, batch_id: str, unmatched: DataFrame) -> None:
    """`unmatched.csv` of a batch: the rows of tables that fit several of its images, and images whose rows disagree."""
    url = files.join(context.warehouse, "batches", batch_id, "unmatched.csv")
    as_csv(unmatched, schemas.UNMATCHED.names, ["reason", "image_id"], url)


def notes_of(tables: Mapping[str, Any]) -> list[str]:
    """What batch.json says of the tables, line by line for the page."""
    lines = [f"{path} was set aside: {why}" for path, why in tables["set_aside"].items()]
    notes = matching.Notes(**{field.name: tables[field.name] for field in fields(matching.Notes)})
    return lines + notes.lines()


def nameless(settings: config.Settings, tables: Mapping[str, str]) -> dict[str, str]:
    """Path -> why of tables, as both may be told: reasons may name columns and files."""
    if settings.privacy.source_names == "keep":
        return {matching.printable(path): matching.printable(why) for path, why in sorted(tables.items())}
    name = plan.stored_name(settings)
    return {name(path): "cannot be used" for path in sorted(tables)}


def write(
    context: StageContext,
    rows: DataFrame,
    listing: DataFrame,
    scorer: bundle.Scorer,
    told: Mapping[str, Any],
    counts: Mapping[str, int],
    drifted: statistics.Drift,
) -> str:
    """The worklist of a staged batch, of which `told` is batch.json; returns the page's URL."""
    chosen = context.settings.score.worklist
    folder = files.join(context.warehouse, "batches", told["batch_id"])
    session.describe_jobs(context.spark, f"score: worklist of {told['rows']} rows")
    ordered = ranked(rows).persist()
    as_csv(ordered, worklist_page.COLUMNS, ["rank"], files.join(folder, "worklist.csv"))
    first = [row.asDict() for row in ordered.where(f.col("rank") <= chosen.rows).orderBy("rank").collect()]
    seen = [row for row in first if row["status"] != "rejected"][: chosen.pictures]
    shown = pictures(context, listing, scorer, {row["sha256"] for row in seen}, rows, folder)
    session.describe_jobs(context.spark, "score: counts of the worklist's page")
    point = scorer.operating_point
    judged = ordered.where("status = 'scored'")
    figures = judged.agg(
        f.mean("probability").alias("mean"),
        f.sum((f.col("decision") == "positive").cast("int")).alias("positive"),
    ).collect()[0]
    flags = ordered.where("flags is not null").select(f.explode(f.split("flags", ",")).alias("flag"))
    facts: worklist_page.Facts = {
        "batch_id": told["batch_id"],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": f"{told['model']} version {told['model_version']}",
        "target": context.settings.target,
        "operating_point": f"{point.name}, {point.rule}",
        "threshold": point.threshold,
        "counts": {**counts, "positive": int(figures.positive or 0)},
        "reasons": counted(ordered.where("reason is not null"), "reason"),
        "flags": counted(flags, "flag"),
        "patients": ordered.where("patient_id is not null").select("patient_id").distinct().count(),
        "rows": [worklist_page.row(row, row["rank"], shown) for row in first],
        "left_out": max(0, int(told["rows"]) - len(first)),
        "expected": 100 * (float("nan") if figures["mean"] is None else figures["mean"]),
        "drift": drifted,
        "notes": notes_of(told["tables"]),
    }
    ordered.unpersist()
    url = files.join(folder, "worklist.html")
    files.write_bytes(url, worklist_page.render(facts).encode())
    return url


def ranked(rows: DataFrame) -> DataFrame:
    """Rows of scores/ with `rank`: by the highest risk of a patient, what was not judged as the highest of all.

    Within a patient by risk. What could not be read has no patient and comes last, with its reason.
    """
    nobody = f.coalesce(f.col("sha256"), f.col("source_uri"))
    one = f.coalesce(f.col("patient_id"), nobody)
    risk = f.when(f.col("status") == "abstained", 2.0).otherwise(f.coalesce("probability", f.lit(-1.0)))
    top = f.max(risk).over(Window.partitionBy("patient"))
    order: list[Column | str] = [f.desc("top"), "patient", f.desc("risk"), "source_uri"]
    placed = rows.withColumns({"patient": one, "risk": risk}).withColumn("top", top)
    last = (f.col("status") == "rejected").cast("int")
    place = f.row_number().over(Window.orderBy([last, *order])).alias("rank")
    return placed.select(place, *rows.columns)


def as_csv(rows: DataFrame, columns: Sequence[str], order: Sequence[str], url: str) -> None:
    """All rows, in an order, as one CSV file with a header."""
    folder = f"{url}.parts"
    kinds = dict(rows.dtypes)
    written = [safe(name) if kinds[name] == "string" else f.col(name) for name in columns]
    told = rows.orderBy(*order).select(*written).coalesce(1)
    told.write.mode("overwrite").option("header", "true").option("escape", '"').csv(folder)
    (part,) = files.list_names(folder, "part-*.csv")
    files.rename(files.join(folder, part), url)
    files.remove(folder)


def safe(name: str) -> Column:
    """A column of text in which nothing is a formula."""
    column = f.col(name)
    return f.when(column.rlike(FORMULA), f.concat(f.lit("'"), column)).otherwise(column).alias(name)


def pictures(
    context: StageContext, listing: DataFrame, scorer: bundle.Scorer, wanted: set[str], rows: DataFrame, folder: str
) -> dict[str, tuple[str, str]]:
    """SHA-256 -> names of two files beside the page: the crop that the model saw, and the same with Grad-CAM."""
    if not wanted:
        return {}
    own = rows.where(f.col("sha256").isin(*wanted)).withColumn(
        "source_key", ledger.key("source_uri", "source_bytes", "source_modified")
    )
    found = listing.join(f.broadcast(own.select("source_key")), "source_key", "left_semi")
    spec, threads = scorer.spec, session.task_threads(context.spark)
    tensors = session.broadcast(context.spark, scorer.tensors)
    light = replace(bundle.without_tensors(scorer), reference=None)  # small enough for a closure

    def load() -> inference.Predict:
        network.use_threads(threads)
        heat_of = gradcam.heatmaps(spec, tensors.value)

        def drawn(pixels: np.ndarray) -> list[np.ndarray]:
            heats = heat_of(pixels, [True] * len(pixels))
            over = [worklist_page.overlaid(image, heat) for image, heat in zip(pixels, heats, strict=True)]
            return [np.array([worklist_page.picture(image) for image in pixels], object), np.array(over, object)]

        return drawn

    def finish(outputs: list[np.ndarray | None], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        none = np.full(len(errors), None)  # what has changed since has no pictures
        image, heat = outputs if len(outputs) == 2 else (none, none)
        frame = pd.DataFrame({"image": image, "heat": heat}, dtype=object)
        return frame.where(frame.notna(), None)

    size = context.settings.score.batch_size
    draw = inference.batch_function(f"pictures {scorer.facts['id']}", load, light.prepare, finish, batch_size=size)
    session.describe_jobs(context.spark, f"score: draw {len(wanted)} images and their Grad-CAM")
    drawing = tasks.compute_files(found, len(wanted), context.settings, draw, batch_size=size, result=PICTURES)
    shown = {}
    for row in drawing.where("image is not null").collect():
        shown[row.sha256] = (f"pictures/{row.sha256[:16]}.jpg", f"pictures/{row.sha256[:16]}-gradcam.jpg")
        for name, content in zip(shown[row.sha256], (row.image, row.heat), strict=True):
            files.write_bytes(files.join(folder, name), bytes(content))
    return shown


def counted(rows: DataFrame, column: str) -> dict[str, int]:
    return {
        row[column]: row["count"] for row in rows.groupBy(column).count().orderBy(f.desc("count"), column).collect()
    }
