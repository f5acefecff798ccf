"""An archive of images -> `images/`, a Petastorm dataset of decoded pixels with label, group and split.

What users are told of it is in `jobs/ingest.py`, the text of --help.
"""

import uuid
from typing import Any, cast

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, lineage, schemas
from melanoma_spark.archives import layouts, listing, matching, plan, table_files, tasks
from melanoma_spark.dataset import card_pictures, datacard, selection, splits, summary
from melanoma_spark.dataset.card_facts import Unmatched
from melanoma_spark.errors import DataError
from melanoma_spark.images import decoding, quality
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.runner.context import StageContext, Summary, archive_id, report_throughput
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest
from melanoma_spark.storage.parquet import ROWS_WRITTEN, parquet_writer, table_id
from melanoma_spark.storage.petastorm import petastorm_metadata

SAME_FILE = ("source_uri", "length", "modified")


def ingest(context: StageContext) -> Summary:
    clear(context.warehouse)
    stage = files.join(context.warehouse, f"_ingest-{uuid.uuid4().hex[:8]}")
    try:
        return staged(context, stage)
    finally:
        files.remove(stage)


def clear(warehouse: str) -> None:
    """Remove what a killed ingest left unfinished. Its lease says that no other one is at work now."""
    decoded = files.join(warehouse, "decoded")
    left = [files.join(warehouse, name) for name in files.list_names(warehouse, "_ingest-*")]
    for recipe in files.list_names(decoded, "*"):
        left += [files.join(decoded, recipe, name) for name in files.list_names(files.join(decoded, recipe), "_part-*")]
    for url in left:
        files.remove(url)


def staged(context: StageContext, stage: str) -> Summary:
    """The job, with its intermediate tables, small rows all of them, under `stage`."""
    spark, settings, warehouse = context.spark, context.settings, context.warehouse

    def keep(name: str, rows: DataFrame) -> DataFrame:
        rows.write.parquet(files.join(stage, name))
        return spark.read.parquet(files.join(stage, name))

    session.describe_jobs(spark, "ingest: list the archive")
    listed = keep("listed", listing.list_archive(spark, settings))
    roles = {row.role: row["count"] for row in listed.groupBy("role").count().collect()}
    total = sum(roles.values())
    if not total:
        raise DataError(f"archive {settings.archive} holds no files; expected images, or zip or tar files of them")
    made_from = lineage.content_id([table_id(listed, ("path", "length", "modified", "reason")), *chosen(settings)])
    known = manifests.read(ImagesManifest, warehouse)
    if known and known.made_from == made_from:
        if known.archive != archive_id(str(settings.archive)):  # the same files at another place
            manifests.publish(known.model_copy(update={"archive": archive_id(str(settings.archive))}), warehouse)
        return Summary(f"{known.listed} files listed, nothing new, {known.accepted} images stand in images/")

    heads, tables = table_files.read_table_heads(listed, settings)
    words, folders = settings.ingest.labels, table_files.count_images_by_folder(listed)
    layout = layouts.recognize_layout(
        heads, folders, settings.layout, settings.ingest.columns, (*words.positive, *words.negative)
    )
    candidates = listed.where("role = 'image'")
    decoded, new, how_fast = read(context, candidates.where("reason is null"))
    named = plan.stored_name(settings)
    found = candidates.where("reason is null").select(*SAME_FILE, "path", "image_id")
    found = found.join(decoded.drop("image"), list(SAME_FILE), "inner")
    matched = matching.match_no_rows(spark)
    if layout.tables:
        session.describe_jobs(spark, "ingest: read the tables, and find the images of their rows")
        rows = table_files.read_records(spark, layout, tables, settings)
        there, images_there = table_files.table_paths(listed), table_files.images_for_matching(candidates, settings)
        matched = matching.match_rows(
            images_there, rows, there, named, keep, contents=contents_of(images_there, decoded)
        )
    told = keep("candidates", selection.candidates(found, matched.images, layout, settings, named))
    session.describe_jobs(spark, "ingest: groups, duplicates and splits")
    decisions = keep("decisions", selection.decide(told, settings))
    unread = candidates.where("reason is not null")
    rejects = decisions.where("reason is not null").select(*schemas.REJECTS.names)
    rejects = rejects.unionByName(
        unread.withColumn("sha256", f.lit(None).cast("string")).select(*schemas.REJECTS.names)
    )
    kept = decisions.where("reason is null")

    counted = {(row.split, row.label): row["count"] for row in kept.groupBy("split", "label").count().collect()}
    counts = {f"{split}_{label}": counted.get((split, label), 0) for split in splits.SPLITS for label in (0, 1)}
    reasons = {row.reason: row["count"] for row in rejects.groupBy("reason").count().orderBy("reason").collect()}
    unknown = decisions.where("reason = 'unknown_label'").select("detail").distinct().limit(20).collect()
    accepted, rejected = sum(counts.values()), sum(reasons.values())
    damaged = kept.where(f.col("flags") == quality.DAMAGED).count() if settings.ingest.damaged == "accept" else 0
    skipped = total - roles.get("image", 0)
    if accepted + rejected + skipped != total:
        raise DataError(
            f"{total} files were listed, but {accepted} accepted + {rejected} rejected + {skipped} skipped: the "
            "archive changed meanwhile; run ingest again"
        )
    apart = keep("unmatched", matched.unmatched.select(*schemas.UNMATCHED.names))
    notes = matching.summarize_unmatched(apart)
    among = ("test",) if settings.split == "test" else splits.SPLITS
    selection.check(counts, reasons, [row.detail for row in unknown], among, str(notes))
    unmatched = summary.count_unmatched(apart, decisions, layout)
    sides = {name: side["count"] for name, side in cast(dict[str, Unmatched | None], unmatched).items() if side}
    if settings.ingest.unmatched == "error" and any(sides.values()):
        shown = ", ".join(f"{count} {name}" for name, count in sides.items())
        raise DataError(
            f"ingest.unmatched=error: {shown.replace('_', ' ')}; complete the archive, or take it as it is with "
            "ingest.unmatched=report"
        )

    missing = sides.get("rows_without_image", 0)
    groups = summary.count_groups(kept)
    kept_id = table_id(kept, ("sha256", "label", "group", "split"))
    dataset_id = lineage.content_id([kept_id, settings.image_size, decoding.PIXELS_VERSION])
    path = f"{dataset_id}-{made_from}"
    write(context, decoded, kept, accepted, path)
    for name, table in (("rejects", rejects), ("unmatched", apart)):
        table.coalesce(1).write.mode("overwrite").parquet(files.join(warehouse, name, path))
    manifest = ImagesManifest(
        id=dataset_id,
        path=path,
        made_from=made_from,
        archive=archive_id(str(settings.archive)),
        decoded=decoded_as(settings),
        grew_from=known.id if known else None,
        layout=layout.summary,
        target=settings.target,
        image_size=settings.image_size,
        listed=total,
        read=new,
        accepted=accepted,
        damaged=damaged,
        rejected=rejected,
        skipped=skipped,
        rows_without_image=missing,
        rows_unclear=notes.as_record(),
        counts=counts,
        groups={split: sum(kinds.values()) for split, kinds in groups.items()},
        reasons=reasons,
    )
    session.describe_jobs(spark, "ingest: data card")
    card = summary.card_facts(decisions, rejects, decoded, manifest, unmatched, groups, settings)
    page = datacard.render(card)
    files.write_bytes(files.join(warehouse, "images", path, "_datacard.html"), page.encode())
    manifests.publish(manifest, warehouse)
    context.tracker.log_artifact("datacard.html", page.encode())
    for name, contacts in zip(card["labels"], card["contacts"], strict=True):
        sheet = card_pictures.contact_sheet(
            [contact["image"] for contact in contacts],
            [f"{(contact['sha256'] or '')[:8]}\n{contact['split']}" for contact in contacts],
            8,
        )
        context.tracker.log_artifact(f"plots/contact_sheet_{name.replace(' ', '_')}.png", sheet)
    context.tracker.log_metrics({f"images_{key}": value for key, value in counts.items()})
    context.tracker.log_metrics({key: getattr(manifest, key) for key in ("listed", "accepted", "rejected", "skipped")})
    context.tracker.set_tags({"dataset_id": dataset_id, "layout": layout.name, "target": settings.target})
    reasons_told = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return Summary(
        f"{total} files listed = {accepted} accepted{f' ({damaged} of them damaged)' if damaged else ''}"
        f" + {rejected} rejected"
        f"{f' ({reasons_told})' if reasons else ''} + {skipped} skipped"
        f"{f'; {missing} rows of the tables have no image' if missing else ''}{notes}; {new} read now; "
        f"{layout.summary}{how_fast}"
    )


def contents_of(listed: DataFrame, decoded: DataFrame) -> DataFrame:
    """`path` and `content` of the files of a listing that could be decoded: equal of those with the same pixels."""
    pixels = decoded.where("pixel_sha256 is not null").select(*SAME_FILE, f.col("pixel_sha256").alias("content"))
    return listed.select(*SAME_FILE, "path").join(pixels, list(SAME_FILE)).select("path", "content")


def chosen(settings: config.Settings) -> list[Any]:
    """The settings that a dataset depends on."""
    sections = (settings.ingest, settings.privacy)
    plain = (settings.layout, settings.target, settings.split, settings.image_size, settings.seed)
    return [*(section.model_dump(mode="json") for section in sections), *plain, decoding.PIXELS_VERSION]


def decoded_as(settings: config.Settings) -> str:
    """The folder of `decoded/`: what the rows depend on that were read of files."""
    limits = settings.ingest
    recipe = [settings.image_size, decoding.PIXELS_VERSION, limits.min_side, limits.max_pixels, limits.max_bytes]
    return lineage.content_id([*recipe, limits.allow_recognisable, limits.damaged, settings.privacy.source_names])


def read(context: StageContext, readable: DataFrame) -> tuple[DataFrame, int, str]:
    """`decoded/`, with a row for each of these files; how many of them were read now, and how fast.

    It is kept for later runs: rows are of content and never of labels. Each finished task's file stays when the job is
    killed, and the next one reads what is missing.
    """
    spark, settings = context.spark, context.settings
    url = files.join(context.warehouse, "decoded", decoded_as(settings))
    todo = readable
    if files.list_names(url, "*.parquet"):
        done = spark.read.schema(schemas.DECODED).parquet(url).where(f"reason is null or reason != '{UNREADABLE}'")
        keys = done.select(*(f.col(name).alias(f"done_{name}") for name in SAME_FILE))
        same = [readable[name].eqNullSafe(keys[f"done_{name}"]) for name in SAME_FILE]
        todo = readable.join(keys, same, "left_anti")
    todo = todo.persist()
    new, told = todo.count(), ""
    if new:
        session.describe_jobs(spark, f"ingest: decode and hash {new} files")
        meter = session.Meter(spark)
        parts = tasks.decode_files(
            todo, new, settings, parquet_writer(url, schemas.DECODED), result=ROWS_WRITTEN, meter=meter
        )
        parts.agg(f.sum("rows")).collect()
        told = report_throughput(context, meter)
    todo.unpersist()
    if not files.list_names(url, "*.parquet"):
        return spark.createDataFrame([], schemas.DECODED), new, told
    table = spark.read.schema(schemas.DECODED).parquet(url)
    return table, new, told


def write(context: StageContext, decoded: DataFrame, kept: DataFrame, accepted: int, path: str) -> None:
    """`images/<path>` through Petastorm: sorted by split in each file, so that row groups hold one split."""
    spark, settings = context.spark, context.settings
    schema = schemas.images_schema(settings.image_size)
    # By what is stored, never by the slots of this cluster: training reads in the order of files, and the same archive
    # must train the same network anywhere. A PNG takes about half of its pixels' bytes.
    shards = -(-accepted * settings.image_size**2 * 3 // (2 * settings.ingest.shard_mb * 1024 * 1024))
    pixels = decoded.where("image is not null").select(
        *(f.col(name).alias(f"of_{name}") for name in SAME_FILE), "sha256", "image"
    )

    def same(name: str) -> Column:  # not eqNullSafe, which Spark takes for a join key and cuts the files by
        one, other = f.col(name), f.col(f"of_{name}")
        return f.coalesce(one == other, one.isNull() & other.isNull())

    rows = (
        pixels.repartition(shards, "sha256")
        .join(kept.repartition(shards, "sha256").hint("merge"), "sha256")
        .where(same("source_uri") & same("length") & same("modified"))
        .sortWithinPartitions("split", "sha256")
        .select(*schema.fields)
    )
    session.describe_jobs(spark, f"ingest: write {accepted} images")
    target = files.join(context.warehouse, "images", path)
    with (
        session.shuffle_partitions(spark, shards),
        petastorm_metadata(spark, target, schema, settings.ingest.row_group_mb),
    ):
        rows.write.mode("overwrite").parquet(target)
    written = spark.read.parquet(target).count()
    if written != accepted:
        files.remove(target)
        raise DataError(
            f"{written} images were written where {accepted} are kept: another ingest ran on this warehouse, or files "
            f"of decoded/ are missing; run ingest again, or remove {files.join(context.warehouse, 'decoded')} first"
        )
