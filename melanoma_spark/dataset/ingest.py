"""Ingest an archive of images: `images/`, a Petastorm dataset of decoded pixels with label, group and split."""

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, lineage, schemas, words
from melanoma_spark.archives import diagnoses, layouts, listing, matching
from melanoma_spark.attributes import ATTRIBUTES, FIRST_ATTRIBUTES
from melanoma_spark.dataset import card_pictures, datacard, selection, splits, summary, twins
from melanoma_spark.dataset.archive import SAME_FILE, Archive, Roles, Store, decoded_folder, read_archive
from melanoma_spark.dataset.card_facts import CardFacts
from melanoma_spark.errors import DataError
from melanoma_spark.images import color, quality
from melanoma_spark.images.reasons import UNSUPPORTED_FORMAT
from melanoma_spark.runner.context import StageContext, Summary, archive_id
from melanoma_spark.spark import session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import ImagesManifest
from melanoma_spark.storage.parquet import table_id
from melanoma_spark.storage.petastorm import petastorm_metadata

MOST_WORDS = 20  # of labels, in a message
ROWS_PER_PARTITION = 10_000  # of tables with a small row for each image


def ingest(context: StageContext) -> Summary:
    """Build `images/` from the archive, or report that it is up to date."""
    remove_unfinished(context.warehouse)
    scratch = files.join(context.warehouse, f"_ingest-{uuid.uuid4().hex[:8]}")
    try:
        return build_dataset(context, scratch)
    finally:
        files.remove(scratch)


def remove_unfinished(warehouse: str) -> None:
    """Remove the unfinished files of a killed ingest. The lease excludes that another one is running."""
    decoded = files.join(warehouse, "decoded")
    unfinished = [files.join(warehouse, name) for name in files.list_names(warehouse, "_ingest-*")]
    for recipe in files.list_names(decoded, "*"):
        folder = files.join(decoded, recipe)
        unfinished += [files.join(folder, name) for name in files.list_names(folder, "_part-*")]
    for url in unfinished:
        files.remove(url)


def build_dataset(context: StageContext, scratch: str) -> Summary:
    """Run the stage, with its intermediate tables, all of them small rows, under `scratch`."""
    spark, settings = context.spark, context.settings

    def store(name: str, rows: DataFrame) -> DataFrame:
        rows.write.parquet(files.join(scratch, name))
        return spark.read.parquet(files.join(scratch, name))

    with session.interpreted(spark, rows=0):  # how many there are is not known yet
        session.describe_jobs(spark, "ingest: list the archive")
        listed = store("listed", listing.list_archive(spark, settings))
        roles = {(row.role, row.reason): row["count"] for row in listed.groupBy("role", "reason").count().collect()}
    total = sum(roles.values())
    if not total:
        raise DataError(f"archive {settings.archive} holds no files; expected images, or zip or tar files of them")
    with session.interpreted(spark, total):
        return update_dataset(context, listed, roles, store)


def update_dataset(context: StageContext, listed: DataFrame, roles: Roles, store: Store) -> Summary:
    """Write the dataset of a listing, unless it stands in `images/` already."""
    settings, warehouse = context.settings, context.warehouse
    recipe = dataset_settings(settings)
    made_from = lineage.content_id([table_id(listed, ("path", "length", "modified", "reason")), *recipe])
    archive, before = archive_id(str(settings.archive)), manifests.read(ImagesManifest, warehouse)
    if before and before.made_from == made_from:
        if before.archive != archive:  # the same files at another place
            manifests.publish(before.model_copy(update={"archive": archive}), warehouse)
        return Summary(f"{before.listed} files listed, nothing new, {before.accepted} images stand in images/")
    read = read_archive(context, listed, roles, made_from, store)
    with session.shuffle_partitions(context.spark, 1 + read.images // ROWS_PER_PARTITION):
        return write_dataset(context, read, before, store)


def write_dataset(context: StageContext, read: Archive, before: ImagesManifest | None, store: Store) -> Summary:
    """Select the images of an archive, and write `images/` and `rejects/`, the manifest and the data card."""
    spark, settings, warehouse = context.spark, context.settings, context.warehouse
    session.describe_jobs(spark, "ingest: groups, duplicates and splits")
    with keep_rejects(context, read.made_from, find_rejects(read.candidates, read.unreadable)):
        grouped = selection.assign_groups(read.candidates)
        usable = read.candidates.where("reason is null")
        thumbnails = read.decoded.select("pixel_sha256", "thumbnail").join(usable, "pixel_sha256", "left_semi")
        grouped, found = twins.join_twins(grouped, thumbnails, read.images, settings, store)
        decisions = store("decisions", selection.decide(read.candidates, settings, grouped))
    kept, rejects = decisions.where("reason is null"), find_rejects(decisions, read.unreadable)

    counts, reasons, damaged, profiles = count_decisions(decisions, read.roles)
    unknown, answers = count_words(decisions, settings)
    accepted, rejected = sum(counts.values()), sum(reasons.values())
    total = sum(read.roles.values())
    skipped = total - read.images
    system = read.roles.get(("other", layouts.SYSTEM), 0)
    if accepted + rejected + skipped != total:
        raise DataError(
            f"{total} files were listed, but {accepted} accepted + {rejected} rejected + {skipped} skipped: the "
            "archive changed meanwhile; run ingest again"
        )
    notes = matching.summarize_unmatched(read.unmatched)
    needed = ("test",) if settings.split == "test" else splits.SPLITS
    with keep_rejects(context, read.made_from, rejects, read.unmatched):
        selection.check(counts, reasons, unknown, settings.target, needed, str(notes), answers)
        unmatched = summary.count_unmatched(read.unmatched, decisions, read.layout)
        sides = {kind: side["count"] for kind, side in unmatched.items() if side}
        if settings.ingest.unmatched == "error" and any(sides.values()):
            shown = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sides.items())
            raise DataError(
                f"ingest.unmatched=error: {shown}; complete the archive, or accept it with ingest.unmatched=report"
            )

    without_image = sides.get("rows_without_image", 0)
    groups = summary.count_groups(kept)
    kept_id = table_id(kept, ("sha256", "label", "group", "split"))
    dataset_id = lineage.content_id([kept_id, settings.image_size, settings.ingest.pixels_version])
    manifest = ImagesManifest(
        id=dataset_id,
        path=f"{dataset_id}-{read.made_from}",
        made_from=read.made_from,
        archive=archive_id(str(settings.archive)),
        decoded=decoded_folder(settings),
        grew_from=before.id if before else None,
        layout=read.layout.summary,
        target=settings.target,
        image_size=settings.image_size,
        pixels_version=settings.ingest.pixels_version,
        listed=total,
        read=read.new,
        accepted=accepted,
        rejected=rejected,
        skipped=skipped,
        rows_without_image=without_image,
        rows_unclear=notes.as_record(),
        counts=counts,
        groups={split: sum(kinds.values()) for split, kinds in groups.items()},
        reasons=reasons,
        twins=found.record,
    )
    # These keys are for archives that have some
    if damaged:
        manifest = manifest.model_copy(update={"damaged": damaged})
    if system:
        manifest = manifest.model_copy(update={"skipped_for": {layouts.SYSTEM: system}})
    if profiles:
        manifest = manifest.model_copy(update={"profiles": profiles, "profiles_to": color.TARGET})

    write_images(context, read.decoded, kept, accepted, manifest.path)
    write_rejects(warehouse, manifest.path, rejects, read.unmatched)
    session.describe_jobs(spark, "ingest: data card")
    facts = summary.card_facts(
        *(decisions, rejects, read.decoded, manifest),
        unmatched=unmatched,
        groups=groups,
        pairs=found.pairs,
        settings=settings,
    )
    page = datacard.render(facts).encode()
    files.write_bytes(files.join(warehouse, "images", manifest.path, datacard.FILE), page)
    manifests.publish(manifest, warehouse)
    log_dataset(context, manifest, facts, page, read.layout)
    links = listing.describe_links(read.listed) if reasons.get("link") else ""
    by_reason = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    formats = f"; not read: {summary.describe_formats(rejects)}" if UNSUPPORTED_FORMAT in reasons else ""
    return Summary(
        f"{total} files listed = {accepted} accepted{f' ({damaged} of them damaged)' if damaged else ''}"
        f" + {rejected} rejected"
        f"{f' ({by_reason})' if reasons else ''} + {skipped} skipped"
        f"{f' ({layouts.SYSTEM} {system})' if system else ''}"
        f"{formats}{color.describe_broken(profiles)}"
        f"{f'; {without_image} rows of the tables have no image' if without_image else ''}{notes}{found}{links}; "
        f"{read.new} read now; {read.layout.summary}{read.throughput}"
    )


def count_decisions(decisions: DataFrame, roles: Roles) -> tuple[dict[str, int], dict[str, int], int, dict[str, int]]:
    """Count images: by split and label, such as `train_0`; rejected by reason; accepted damaged ones; by ICC profile.

    `decisions` are of `selection.decide`; `roles` adds the images of the listing that cannot be read.
    """
    kept: Counter[str] = Counter()
    reasons = Counter({reason: count for (role, reason), count in roles.items() if role == "image" and reason})
    profiles: Counter[str] = Counter()
    damaged = 0
    flagged = f.coalesce(f.col("flags") == quality.DAMAGED, f.lit(False)).alias("damaged")
    for row in decisions.groupBy("split", "label", "reason", "profile", flagged).count().collect():
        if row.profile:
            profiles[row.profile] += row["count"]
        if row.reason is None:
            kept[f"{row.split}_{row.label}"] += row["count"]
            damaged += row["count"] * row.damaged
        else:
            reasons[row.reason] += row["count"]
    counts = {f"{split}_{label}": kept[f"{split}_{label}"] for split in splits.SPLITS for label in (0, 1)}
    return counts, dict(sorted(reasons.items())), damaged, dict(sorted(profiles.items()))


def count_words(decisions: DataFrame, settings: config.Settings) -> tuple[dict[str, int], dict[str, int]]:
    """Count the most frequent label words whose meaning is unknown, and those that are a bare 0 or 1.

    A 0 or 1 that the user has named is not counted.
    """
    bare = f.col("word").rlike(r"^\s*[01](\.0*)?\s*$")
    unknown = f.coalesce(f.col("reason") == diagnoses.UNKNOWN_LABEL, f.lit(False))
    counted = decisions.where(bare | unknown).groupBy("word", unknown.alias("unknown")).count()
    # 0 and 1 first: many words of other classes must not hide them
    rows = counted.orderBy("unknown", f.desc("count"), "word").limit(2 * MOST_WORDS).collect()
    named = {words.key(word) for word in (*settings.ingest.labels.positive, *settings.ingest.labels.negative)}
    return (
        {row.word: row["count"] for row in [row for row in rows if row.unknown][:MOST_WORDS]},
        {row.word: row["count"] for row in rows if not row.unknown and words.key(row.word) not in named},
    )


def find_rejects(decided: DataFrame, unreadable: DataFrame) -> DataFrame:
    """Rows of `schemas.REJECTS`: those of `decided` with a reason, and files of the listing that cannot be read."""
    rejects = decided.where("reason is not null").select(*schemas.REJECTS.names)
    return rejects.unionByName(unreadable.select("source_uri", "reason", "detail"), allowMissingColumns=True)


@contextlib.contextmanager
def keep_rejects(
    context: StageContext, folder: str, rejects: DataFrame, unmatched: DataFrame | None = None
) -> Iterator[None]:
    """If ingest stops at what an archive holds, write `rejects/` all the same, and name it in the `DataError`."""
    try:
        yield
    except DataError as error:
        url = write_rejects(context.warehouse, folder, rejects, unmatched)
        raise DataError(f"{error}; {url} has the reason of each file") from None


def write_rejects(warehouse: str, folder: str, rejects: DataFrame, unmatched: DataFrame | None) -> str:
    """Write a folder of `rejects/` and of `unmatched/`; return the URL of the first."""
    for place, table in (("rejects", rejects), ("unmatched", unmatched)):
        if table is not None:
            table.coalesce(1).write.mode("overwrite").parquet(files.join(warehouse, place, folder))
    return files.join(warehouse, "rejects", folder)


def log_dataset(
    context: StageContext, manifest: ImagesManifest, facts: CardFacts, page: bytes, layout: layouts.Layout
) -> None:
    """Log the data card, the contact sheets and the counts of a dataset to MLflow."""
    context.tracker.log_artifact("datacard.html", page)
    for label, contacts in zip(facts["labels"], facts["contacts"], strict=True):
        captions = [f"{(contact['sha256'] or '')[:8]}\n{contact['split']}" for contact in contacts]
        sheet = card_pictures.contact_sheet([contact["image"] for contact in contacts], captions, 8)
        context.tracker.log_artifact(f"plots/contact_sheet_{label.replace(' ', '_')}.png", sheet)
    context.tracker.log_metrics({f"images_{key}": value for key, value in manifest.counts.items()})
    context.tracker.log_metrics({key: getattr(manifest, key) for key in ("listed", "accepted", "rejected", "skipped")})
    context.tracker.set_tags({"dataset_id": manifest.id, "layout": layout.name, "target": manifest.target})


def dataset_settings(settings: config.Settings) -> list[Any]:
    """The settings that a dataset depends on."""
    sections = (settings.ingest, settings.privacy)
    plain = (settings.layout, settings.target, settings.split, settings.image_size, settings.seed)
    # A new attribute makes images/ anew, with its column; the first ones are not named, so that older datasets stay.
    added = [name for name in ATTRIBUTES if name not in FIRST_ATTRIBUTES]
    known = [*(section.model_dump(mode="json") for section in sections), *plain, settings.ingest.pixels_version]
    return [*known, added] if added else known


def write_images(context: StageContext, decoded: DataFrame, kept: DataFrame, accepted: int, path: str) -> None:
    """Write `images/<path>` with Petastorm, sorted by split in each file, so that row groups hold one split.

    Raises `DataError` where the number of rows is not `accepted`.
    """
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
