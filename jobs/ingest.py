"""ingest: an archive of images -> `images/`, a Petastorm dataset of decoded pixels with label, group and split.

Every listed file ends as an image, as a row in `rejects/` with a reason, or among the skipped tables.

example: ./spark-submit.sh ingest archive=/data/lesions warehouse=/data/warehouse
"""

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from jobs.job import Job, main
from melanoma_spark import archive, files, images, layouts, lineage, schemas, selection, session, store
from melanoma_spark.errors import DataError

CHOSEN = ("source_uri", "image_id", "label", "split", "group", "patient_id", "lesion_id")
DECODE_BATCH = 32  # files of an Arrow batch: archives hold photographs of several megabytes


def run(job: Job) -> str:
    spark, settings, warehouse = job.spark, job.settings, job.warehouse
    listing = archive.listing(spark, settings.archive, settings.ingest.max_bytes)
    listed = [(row.path, row.length, row.modified.isoformat()) for row in listing.collect()]
    made_from = lineage.content_id(
        [
            lineage.rows_id(listed),
            settings.ingest.model_dump(mode="json"),
            settings.image_size,
            settings.seed,
            images.PIXELS_VERSION,
        ]
    )
    known = store.manifest(warehouse, "images")
    if known and known["made_from"] == made_from:
        return f"{known['listed']} files listed, nothing new, {known['accepted']} images stand in images/"

    records = archive.metadata(spark, str(settings.archive), listing)
    candidates = listing.where(~f.lower("path").rlike(layouts.TABLE_NAMES))
    session.batch_rows(spark, DECODE_BATCH)
    decoded = archive.decode(spark, str(settings.archive), candidates, settings).persist(StorageLevel.DISK_ONLY)
    names = ["source_uri", "sha256", "pixel_sha256", "perceptual_hash", "reason", "detail"]
    session.describe(spark, f"ingest: decode and hash {len(listed)} files")
    found = [selection.Found(**row.asDict()) for row in decoded.select(*names).collect()]
    skipped = sum(layouts.is_table(path) for path, _, _ in listed)
    if len(found) + skipped != len(listed):
        raise DataError(
            f"{len(listed)} files were listed, {len(found)} read and {skipped} skipped: the archive changed meanwhile; "
            "run ingest again"
        )
    root = archive.qualified(spark, str(settings.archive))
    chosen = selection.select(found, records, root, settings)

    kept = lineage.rows_id((row.sha256, row.label, row.group, row.split) for row in chosen.chosen)
    dataset_id = lineage.content_id([kept, settings.image_size, images.PIXELS_VERSION])
    path = f"{dataset_id}-{made_from}"
    write(job, decoded, chosen, path)
    decoded.unpersist()
    counts = chosen.counts()
    facts = {
        "id": dataset_id,
        "path": path,
        "made_from": made_from,
        "image_size": settings.image_size,
        "listed": len(listed),
        "accepted": len(chosen.chosen),
        "rejected": len(chosen.rejected),
        "skipped": skipped,
        "rows_without_image": chosen.rows_without_image,
        "counts": counts,
        "groups": {s: len({r.group for r in chosen.chosen if r.split == s}) for s in ("train", "validation", "test")},
        "reasons": chosen.reasons(),
    }
    store.publish(warehouse, "images", facts)
    job.tracker.metrics({f"images_{key}": value for key, value in counts.items()})
    job.tracker.metrics({key: facts[key] for key in ("listed", "accepted", "rejected", "skipped")})
    job.tracker.tags({"dataset_id": dataset_id})
    reasons = ", ".join(f"{reason} {count}" for reason, count in chosen.reasons().items())
    absent = f"; {chosen.rows_without_image} rows of metadata.csv have no image" if chosen.rows_without_image else ""
    return (
        f"{len(listed)} files listed = {len(chosen.chosen)} accepted + {len(chosen.rejected)} rejected"
        f"{f' ({reasons})' if reasons else ''} + {skipped} skipped{absent}"
    )


def write(job: Job, decoded: DataFrame, chosen: selection.Selection, path: str) -> None:
    """`images/<path>` through Petastorm, sorted by split and hash so that row groups hold one split, and `rejects/`."""
    spark, settings = job.spark, job.settings
    schema = schemas.images_schema(settings.image_size)
    size = decoded.agg(f.sum(f.length("image"))).collect()[0][0]
    mebibyte = 1024 * 1024
    shards = max(session.slots(spark), -(-size // (settings.ingest.shard_mb * mebibyte)))
    table = spark.createDataFrame(
        [tuple(getattr(row, name) for name in CHOSEN) for row in chosen.chosen],
        "source_uri string, image_id string, label int, split string, `group` string, patient_id string, "
        "lesion_id string",
    )
    rows = (
        decoded.join(f.broadcast(table), "source_uri", "inner")
        .repartitionByRange(int(shards), "split", "sha256")
        .sortWithinPartitions("split", "sha256")
        .select(*schema.fields)
    )
    session.describe(spark, f"ingest: write {len(chosen.chosen)} images")
    target = files.join(job.warehouse, "images", path)
    with store.petastorm(spark, target, schema, settings.ingest.row_group_mb):
        rows.write.mode("overwrite").parquet(target)
    rejects = [(row.source_uri, row.sha256, row.reason, row.detail) for row in chosen.rejected]
    spark.createDataFrame(rejects, schemas.REJECTS).coalesce(1).write.mode("overwrite").parquet(
        files.join(job.warehouse, "rejects", path)
    )


if __name__ == "__main__":
    main("ingest", __doc__, run, needs_archive=True)
