"""One batch of `score`: finds the new files of an archive, has their rows computed, and commits them to `scores/`.

`jobs/score.py` has the text for users.
"""

import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import lineage, logs, schemas
from melanoma_spark.archives import layouts, matching, tasks
from melanoma_spark.archives.listing import describe_links, list_archive, settled_files
from melanoma_spark.errors import ClusterError, ExitStatus
from melanoma_spark.images import color
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.models import bundle, model_registry
from melanoma_spark.monitoring import drift
from melanoma_spark.runner.context import StageContext, Summary, archive_id
from melanoma_spark.scoring import columns, compute, ledger, status, worklist
from melanoma_spark.spark import session

ROWS_PER_PARTITION = 100_000  # of a join
FEW_UNREADABLE = 10  # so few unreadable files do not mean that a part of the archive is away

OpenRun = Callable[[StageContext], AbstractContextManager[StageContext]]


@dataclass(frozen=True)
class Run:
    """What a run starts with."""

    context: StageContext
    model: str
    version: str
    scorer: bundle.Scorer
    waiting: str  # URL of the folder with rows that are not committed yet
    listing: DataFrame  # `schemas.LISTING` with `source_key`, files that still land included
    settled: DataFrame  # those that do not land any more
    images: DataFrame  # those of `settled` that are images
    image_count: int
    links: str  # those that lead out of the archive, for the summary
    ledger: DataFrame  # `schemas.LEDGER`
    leftover: DataFrame  # rows of `columns.schema()` that a killed run has computed
    leftover_count: int

    @cached_property
    def tables(self) -> worklist.TableMetadata:
        """What the archive's tables have on its images."""
        return worklist.table_metadata(self.context, self.settled, self.listing)

    @property
    def model_name(self) -> str:
        """The model with its version, for log lines."""
        return f"{self.model} version {self.version}"


@dataclass(frozen=True)
class NewFiles:
    """The files of an archive that have not been scored."""

    rows: DataFrame  # of the listing, with `source_key`: a row for each new content, and for each unreadable file
    copies: DataFrame  # `schemas.LEDGER`: files whose content is, or will be, scored under another name
    row_count: int
    copy_count: int
    known_count: int  # files that have been scored
    unreadable_count: int  # of these, those that still cannot be read


def score_landed(context: StageContext, open_run: OpenRun) -> Summary:
    """Score what has landed since the last batch; release the memory that Spark holds for it."""
    with session.release_on_exit(context.spark):
        return score_batch(context, open_run)


def score_batch(context: StageContext, open_run: OpenRun = nullcontext) -> Summary:
    """Score the new files of the archive as one batch.

    Args:
        context: The job's context.
        open_run: Opens the MLflow run of the batch; entered only if there are new files.

    Returns:
        The batch's counts, with exit status 6 where a person should look at it.
    """
    spark, warehouse, settings = context.spark, context.warehouse, context.settings
    registered, artifacts = model_registry.download_model(context.tracker, settings.score.model)
    model, version = str(registered.name), str(registered.version)
    scorer = replace(bundle.unpack(artifacts), damaged=settings.ingest.damaged)
    session.describe_jobs(spark, "score: list the archive, look up what was scored before")
    ledger.repair_and_compact(spark, warehouse, lease_check(context))
    scored = read_ledger(context, model, version)
    sections = settings.privacy.model_dump(mode="json"), settings.score.quality.model_dump()
    work_id = lineage.content_id([model, version, scorer.model_id, *sections, scorer.damaged])
    waiting = ledger.waiting_folder(warehouse, archive_id(str(settings.archive)), work_id)
    # not persisted: Spark would then give these rows for later ones
    leftover = ledger.read_waiting(spark, waiting, scored, context.run_id)
    settle = settings.score.follow.settle if settings.score.action == "follow" else 0
    listing = ledger.with_source_key(list_archive(spark, settings)).persist()
    settled = settled_files(listing, settle)
    images = settled.where("role = 'image'")
    listed = (listing, settled, images, images.count(), describe_links(images))
    run = Run(context, model, version, scorer, waiting, *listed, scored, leftover, leftover.count())
    partitions = session.slots(spark) + (run.image_count + run.leftover_count) // ROWS_PER_PARTITION
    try:
        with session.shuffle_partitions(spark, partitions):
            return score_and_commit(run, open_run)
    finally:
        listing.unpersist()


def lease_check(context: StageContext) -> ledger.Check:
    """Return a function that raises if the warehouse is away or another job has taken the lease."""
    return context.lease.check if context.lease else lambda: None


def read_ledger(context: StageContext, model: str, version: str) -> DataFrame:
    """Return the rows of the ledger that count as scored: of any version, or with `score.anew` of this one."""
    rows = ledger.read(context.spark, context.warehouse, model, version if context.settings.score.anew else None)
    lease_check(context)()  # a warehouse that is away for a moment looks as if nothing had been scored
    return rows


def score_and_commit(run: Run, open_run: OpenRun) -> Summary:
    """Compute the rows of new files, and commit them with those that a killed run has left."""
    new = find_new_files(run)
    total = run.leftover_count + new.row_count
    if not total + new.copy_count:
        ledger.remove_waiting(run.waiting)
        unreadable = f", of which {new.unreadable_count} still cannot be read" if new.unreadable_count else ""
        return Summary(
            f"{run.image_count} images listed, all scored before by {run.model_name}{unreadable}; nothing to do"
            f"{run.links}"
        )
    batch_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    with open_run(run.context) as context:
        run = replace(run, context=context)
        logs.add_context(batch_id=batch_id)
        if count := run.leftover_count:
            logs.info(f"resuming a killed run: {count} rows are computed already", "resumed", left=count)
        pace = ""
        if new.row_count:
            rows = new.rows.join(run.tables.rows.select("path", "patient_id"), "path", "left")
            pace = compute.compute_rows(context, run.scorer, run.model, run.version, rows, new.row_count, run.waiting)
        return commit(run, new, batch_id, total, pace)


def commit(run: Run, new: NewFiles, batch_id: str, total: int, pace: str) -> Summary:
    """Commit all computed rows as a batch of `scores/`, with its worklist and its drift."""
    context, warehouse = run.context, run.context.warehouse
    spark = context.spark
    session.describe_jobs(spark, f"score: stage {total} rows of batch {batch_id}")
    staged = ledger.stage(
        ledger.read_waiting(spark, run.waiting, run.ledger, context.run_id), warehouse, batch_id, total
    )
    rows = spark.read.schema(columns.schema()).parquet(staged)
    refuse_unreadable(rows, total, context.settings.score.most_unreadable)
    statuses, profiles = Counter[str](), Counter[str]()
    for row in rows.groupBy("status", "profile").count().collect():
        statuses[row.status] += row["count"]
        if row.profile:
            profiles[row.profile] += row["count"]
    counts = {
        "listed": run.image_count,
        **{name: statuses[name] for name in ("scored", "abstained", "rejected")},
        "copies": new.copy_count,
        "scored_before": new.known_count,
        "left_by_a_killed_run": run.leftover_count,
    }
    facts = {
        "batch_id": batch_id,
        "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": run.model,
        "model_version": run.version,
        "archive_id": archive_id(str(context.settings.archive)),
        "run_id": context.run_id,
        "counts": counts,
        "rows": total,
    }
    logs.add_context(counts=counts)
    compared = drift.rows_for_drift(context, rows, run.scorer).persist()
    metadata = paths_of(run, compared).join(run.tables.rows, "path", "left")
    drifted = drift.compare_batch(context, compared, metadata, run.scorer.reference)
    compared.unpersist()
    unmatched, set_aside = unmatched_rows(run, rows), run.tables.set_aside
    notes = matching.summarize_unmatched(unmatched)
    if notes.examples:
        worklist.write_unmatched(context, batch_id, unmatched)
    tables = {**notes.as_record(), "set_aside": set_aside, "unused": run.tables.unused}
    facts |= {"verdict": drifted.verdict, "drift": drifted.as_record(), "tables": tables}
    system = run.settled.where(f.col("reason") == layouts.SYSTEM).count()
    facts |= {"skipped_for": {layouts.SYSTEM: system}} if system else {}
    facts |= {"profiles": dict(profiles)} if profiles else {}
    context.tracker.log_metrics(counts)
    context.tracker.set_tags({"batch_id": batch_id, "model_version": run.version, "verdict": drifted.verdict})
    index = ledger.entries(rows).unionByName(new.copies)
    page = worklist.write(context, rows, run.images, run.scorer, facts, counts, drifted)
    session.describe_jobs(spark, f"score: commit batch {batch_id}")
    ledger.refuse_twice(rows, total, read_ledger(context, run.model, run.version))
    target = ledger.commit(warehouse, staged, index, facts, lease_check(context))
    ledger.remove_waiting(run.waiting)
    drift.log_batch(context, drifted, facts, spark.read.schema(columns.schema()).parquet(target))
    counted = " + ".join(status.describe_counts(counts, always=("scored", "rejected", "copies")))
    number = f"{len(set_aside)} table{'s' if len(set_aside) > 1 else ''}"
    aside = f"; {number} set aside ({', '.join(set_aside)})" if set_aside else ""
    skipped = f"; {system} files of the system skipped" if system else ""
    summary = (
        f"{run.image_count} images listed = {counted} + {new.known_count} scored before, by {run.model_name}; "
        f"{drifted.verdict}{notes}{run.links}{aside}{skipped}{color.describe_broken(profiles)}; {target}; {page}{pace}"
    )
    return Summary(summary, ExitStatus.ATTENTION if drifted.beyond or set_aside else 0)


def paths_of(run: Run, rows: DataFrame) -> DataFrame:
    """Return `path` of the image of each row."""
    key = ledger.source_key("source_uri", "source_bytes", "source_modified").alias("source_key")
    return run.images.join(rows.select(key), "source_key", "left_semi").select("path")


def unmatched_rows(run: Run, rows: DataFrame) -> DataFrame:
    """Return the rows of `schemas.UNMATCHED` that concern the images of a batch."""
    by_path = run.tables.unmatched.withColumn("path", f.explode("paths"))
    return by_path.join(paths_of(run, rows), "path", "left_semi").select(*schemas.UNMATCHED.names).distinct()


def refuse_unreadable(rows: DataFrame, total: int, most: float) -> None:
    """Raise `ClusterError` if more than a share `most` of the files, and more than a few, cannot be read.

    One of them is a row. Many of them are a part of the archive that is away, or rights that changed.
    """
    unreadable = rows.where(f.col("reason") == UNREADABLE)
    count = unreadable.count()
    if count > max(FEW_UNREADABLE, most * total):
        (first,) = unreadable.select("detail").limit(1).collect()
        raise ClusterError(
            f"{count} of {total} new files were listed and cannot be read ({first.detail}), so nothing is committed; "
            "see that all of the archive is there and may be read, and run score again, what was computed is kept; "
            "score.most_unreadable=1 makes each of them a row"
        )


def find_new_files(run: Run) -> NewFiles:
    """Find the files that have no row in `scores/`, and none that waits, by name and then by content."""
    waiting = ledger.entries(run.leftover)
    done = run.ledger.where("done").unionByName(waiting.where("done"))
    unknown = ledger.without_known(run.images, run.image_count, done).persist()
    count = unknown.count()
    known = run.image_count - count
    if run.leftover_count:
        known -= run.images.join(waiting.where("done").select("source_key"), "source_key", "left_semi").count()
    if not count:
        return NewFiles(unknown, waiting.limit(0), 0, 0, known, 0)
    session.describe_jobs(run.context.spark, f"score: read new files, {count} of them")
    with session.progress(run.context.spark, "parts read"):
        hashes = tasks.hash_files(unknown, count, run.context.settings).persist()
        hashes.count()
    read = unknown.select("source_key", "source_uri").join(hashes, "source_key")
    contents = read.where("sha256 is not null").withColumn("content", f.unhex("sha256"))
    fresh = ledger.without_known(contents, count, ledger.contents(done), "content")
    by_name = f.min_by("source_key", f.struct("source_uri", "source_key")).alias("source_key")
    first = fresh.groupBy("content").agg(by_name)
    copies = contents.join(first, "source_key", "left_anti").select(
        "source_key",
        "source_uri",
        "image_id",
        f.col("content").alias("sha256"),
        f.lit(True).alias("done"),
        f.lit(None).cast("string").alias("batch_id"),
    )
    # an unreadable file, or a link that is not followed, gets one row, and is tried again by every run
    has_row = run.ledger.unionByName(waiting).where("not done").select("source_key").distinct()
    unreadable = read.where("sha256 is null").join(has_row, "source_key", "left_anti")
    nothing = f.lit(None).cast("string")
    chosen = (
        first.select("source_key", nothing.alias("why"), nothing.alias("what"))
        .unionByName(unreadable.select("source_key", f.col("reason").alias("why"), f.col("detail").alias("what")))
        .persist()
    )
    rows = unknown.join(chosen, "source_key").withColumns({"reason": f.col("why"), "detail": f.col("what")})
    row_count, copy_count = chosen.count(), copies.persist().count()
    still_unreadable = count - row_count - copy_count
    return NewFiles(rows, copies, row_count, copy_count, known + still_unreadable, still_unreadable)
