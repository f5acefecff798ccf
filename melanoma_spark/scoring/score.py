"""What is new in an archive through the model behind an alias -> `scores/`, one row for every image.

What users are told of it is in `jobs/score.py`, the text of --help.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config, lineage, logs, schemas
from melanoma_spark.archives import matching, tasks
from melanoma_spark.archives.listing import list_archive, settled_files
from melanoma_spark.errors import ClusterError, ExitStatus, ImageError
from melanoma_spark.images import hashes, quality
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.models import bundle, engines, model_registry, network, prediction
from melanoma_spark.monitoring import drift
from melanoma_spark.runner.context import StageContext, Summary, archive_id, report_throughput
from melanoma_spark.runner.stage import Stage, run_stage, run_untracked
from melanoma_spark.scoring import batches, follow, ledger, status, worklist
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files
from melanoma_spark.storage.parquet import ROWS_WRITTEN, parquet_writer

LOST = 0.05  # of a batch may be computed twice after a kill
ROWS_A_PARTITION = 100_000  # of a join
MOST_WAITING = 512  # rows that a task keeps to itself
FEW = 10  # files of a batch that cannot be read are no sign that the archive is away


Opened = Callable[[StageContext], AbstractContextManager[StageContext]]


@dataclass(frozen=True)
class Run:
    """What there is when a run begins."""

    context: StageContext
    model: str
    version: str
    scorer: bundle.Scorer
    place: str  # where its rows wait until all are there
    unsettled: DataFrame  # the listing, with `source_key`
    everything: DataFrame  # what of it has settled
    listing: DataFrame  # of images
    listed: int
    done: DataFrame  # `schemas.LEDGER`
    before: DataFrame  # `schemas.SCORED`: rows that a killed run has left
    kept: int

    @cached_property
    def tables(self) -> worklist.TableMetadata:
        """What the archive's tables say of its images."""
        return worklist.table_metadata(self.context, self.everything, self.unsettled)

    @property
    def name(self) -> str:
        return f"{self.model} version {self.version}"


@dataclass(frozen=True)
class New:
    """What an archive holds that was not there before."""

    rows: DataFrame  # of the listing, with `source_key`: a row for each content, and for each file that is not read
    copies: DataFrame  # `schemas.LEDGER`: files whose content was, or will be, scored under another name
    computed: int
    copied: int
    known: int  # files that were there before
    unreadable: int  # of these, those that still cannot be read


def score(context: StageContext) -> Summary:
    return status.report_status(context) if context.settings.score.action == "status" else batch(context)


def batch(context: StageContext, opened: Opened = nullcontext) -> Summary:
    """What is new, as a batch. `opened` is entered with the job where there is anything new, and may open its run."""
    spark, warehouse, settings = context.spark, context.warehouse, context.settings
    found, artifacts = model_registry.download_model(context.tracker, settings.score.model)
    model, version = str(found.name), str(found.version)
    scorer = replace(bundle.unpack(artifacts), damaged=settings.ingest.damaged)
    session.describe_jobs(spark, "score: list the archive, look up what was scored before")
    ledger.tidy(spark, warehouse, check_of(context))
    done = known(context, model, version)
    sections = settings.privacy.model_dump(mode="json"), settings.score.quality.model_dump()
    work = lineage.content_id([model, version, scorer.model_id, *sections, scorer.damaged])
    place = ledger.unfinished(warehouse, archive_id(str(settings.archive)), work)
    # not persisted: Spark would then give these rows for later ones
    before = ledger.waiting(spark, place, done, context.run_id)
    settle = settings.score.follow.settle if settings.score.action == "follow" else 0
    unsettled = ledger.keyed(list_archive(spark, settings)).persist()
    everything = settled_files(unsettled, settle)
    listing = everything.where("role = 'image'")
    listings = (unsettled, everything, listing, listing.count())
    own = Run(context, model, version, scorer, place, *listings, done, before, before.count())
    try:
        with session.shuffle_partitions(spark, session.slots(spark) + (own.listed + own.kept) // ROWS_A_PARTITION):
            return whole(own, opened)
    finally:
        unsettled.unpersist()


def check_of(context: StageContext) -> ledger.Check:
    """Raises where the warehouse is away, or another job has taken it."""
    return context.lease.check if context.lease else lambda: None


def known(context: StageContext, model: str, version: str) -> DataFrame:
    """What of the ledger counts as scored."""
    found = ledger.known(context.spark, context.warehouse, model, version if context.settings.score.anew else None)
    check_of(context)()  # a warehouse that is away for a moment looks as if it had never scored anything
    return found


def whole(own: Run, opened: Opened) -> Summary:
    """Computes what is new, and commits it with what waits."""
    new = news(own)
    total = own.kept + new.computed
    if not total + new.copied:
        ledger.remove(own.place)
        left = f", of which {new.unreadable} still cannot be read" if new.unreadable else ""
        return Summary(f"{own.listed} images listed, all scored before by {own.name}{left}; nothing to do")
    batch_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    with opened(own.context) as context:
        own = replace(own, context=context)
        logs.add_context(batch_id=batch_id)
        if own.kept:
            logs.info(f"a killed run has left {own.kept} rows, which are not computed again", "resumed", left=own.kept)
        how_fast = compute(own, new) if new.computed else ""
        return committed(own, new, batch_id, total, how_fast)


def committed(own: Run, new: New, batch_id: str, total: int, how_fast: str) -> Summary:
    """Makes all rows that wait a batch of `scores/`."""
    context, warehouse = own.context, own.context.warehouse
    session.describe_jobs(context.spark, f"score: stage {total} rows of batch {batch_id}")
    rows = ledger.waiting(context.spark, own.place, own.done, context.run_id)
    staged = ledger.stage(rows, warehouse, batch_id, total)
    written = context.spark.read.schema(schemas.SCORED).parquet(staged)
    refuse_lost(written, total, context.settings.score.most_unreadable)
    statuses = {row.status: row["count"] for row in written.groupBy("status").count().collect()}
    counts = {
        "listed": own.listed,
        "scored": statuses.get("scored", 0),
        "abstained": statuses.get("abstained", 0),
        "rejected": statuses.get("rejected", 0),
        "copies": new.copied,
        "scored_before": new.known,
        "left_by_a_killed_run": own.kept,
    }
    facts = {
        "batch_id": batch_id,
        "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": own.model,
        "model_version": own.version,
        "archive_id": archive_id(str(context.settings.archive)),
        "run_id": context.run_id,
        "counts": counts,
        "rows": total,
    }
    logs.add_context(counts=counts)
    telling = drift.rows_for_drift(context, written, own.scorer).persist()
    drifted = drift.compare_batch(context, telling, metadata(own, telling), own.scorer.reference)
    telling.unpersist()
    unmatched, set_aside = unclear(own, written), own.tables.set_aside
    notes = matching.summarize_unmatched(unmatched)
    if notes.examples:
        worklist.write_unmatched(context, batch_id, unmatched)
    tables = {**notes.as_record(), "set_aside": set_aside, "unused": own.tables.unused}
    facts |= {"verdict": drifted.verdict, "drift": drifted.as_record(), "tables": tables}
    context.tracker.log_metrics(counts)
    context.tracker.set_tags({"batch_id": batch_id, "model_version": own.version, "verdict": drifted.verdict})
    index = ledger.entries(written).unionByName(new.copies)
    page = worklist.write(context, written, own.listing, own.scorer, facts, counts, drifted)
    session.describe_jobs(context.spark, f"score: commit batch {batch_id}")
    ledger.refuse_twice(written, total, known(context, own.model, own.version))
    target = ledger.commit(warehouse, batch_id, staged, index, own.model, own.version, facts, check_of(context))
    ledger.remove(own.place)
    drift.log_batch(context, drifted, facts, context.spark.read.schema(schemas.SCORED).parquet(target))
    told = " + ".join(batches.counted(counts, always=("scored", "rejected", "copies")))
    number = f"{len(set_aside)} table{'s' if len(set_aside) > 1 else ''}"
    aside = f"; {number} set aside ({', '.join(set_aside)})" if set_aside else ""
    summary = (
        f"{own.listed} images listed = {told} + {new.known} scored before, by {own.name}; {drifted.verdict}{notes}"
        f"{aside}; {target}; {page}{how_fast}"
    )
    return Summary(summary, ExitStatus.ATTENTION if drifted.beyond or set_aside else 0)


def metadata(own: Run, rows: DataFrame) -> DataFrame:
    """What the archive's tables say of the image of each row."""
    return paths_of(own, rows).join(own.tables.rows, "path", "left")


def paths_of(own: Run, rows: DataFrame) -> DataFrame:
    """`path` of the image of each row."""
    key = ledger.key("source_uri", "source_bytes", "source_modified").alias("source_key")
    return own.listing.join(rows.select(key), "source_key", "left_semi").select("path")


def unclear(own: Run, rows: DataFrame) -> DataFrame:
    """Rows of `schemas.UNMATCHED` that concern the images of a batch."""
    each = own.tables.unmatched.withColumn("path", f.explode("paths"))
    return each.join(paths_of(own, rows), "path", "left_semi").select(*schemas.UNMATCHED.names).distinct()


def refuse_lost(rows: DataFrame, total: int, most: float) -> None:
    """Raises `ClusterError` where more files than a share, and more than a few, were listed and could not be read.

    One of them is a row. Many of them are a part of the archive that is away, or rights that changed.
    """
    lost = rows.where(f.col("reason") == UNREADABLE)
    count = lost.count()
    if count > max(FEW, most * total):
        (first,) = lost.select("detail").limit(1).collect()
        raise ClusterError(
            f"{count} of {total} new files were listed and cannot be read ({first.detail}), so nothing is committed; "
            "see that all of the archive is there and may be read, and run score again, what was computed is kept; "
            "score.most_unreadable=1 makes each of them a row"
        )


def news(own: Run) -> New:
    """What of a listing has neither a row in `scores/` nor one that waits, by name and then by content."""
    waits = ledger.entries(own.before)
    settled = own.done.where("done").unionByName(waits.where("done"))
    todo = ledger.unknown(own.listing, own.listed, settled).persist()
    count = todo.count()
    known = own.listed - count
    if own.kept:
        known -= own.listing.join(waits.where("done").select("source_key"), "source_key", "left_semi").count()
    if not count:
        return New(todo, waits.limit(0), 0, 0, known, 0)
    session.describe_jobs(own.context.spark, f"score: read new files, {count} of them")
    with session.progress(own.context.spark, "parts read"):
        read = tasks.hash_files(todo, count, own.context.settings).persist()
        read.count()
    told = todo.select("source_key", "source_uri").join(read, "source_key")
    contents = told.where("sha256 is not null").withColumn("content", f.unhex("sha256"))
    fresh = ledger.unknown(contents, count, ledger.contents(settled), "content")
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
    # what cannot be read is told once, and tried again by every run
    told_before = own.done.unionByName(waits).where("not done").select("source_key").distinct()
    lost = told.where("sha256 is null").join(told_before, "source_key", "left_anti")
    nothing = f.lit(None).cast("string")
    chosen = (
        first.select("source_key", nothing.alias("why"), nothing.alias("what"))
        .unionByName(lost.select("source_key", f.col("reason").alias("why"), f.col("detail").alias("what")))
        .persist()
    )
    rows = todo.join(chosen, "source_key").withColumns({"reason": f.col("why"), "detail": f.col("what")})
    computed, copied = chosen.count(), copies.persist().count()
    unreadable = count - computed - copied
    return New(rows, copies, computed, copied, known + unreadable, unreadable)


def compute(own: Run, new: New) -> str:
    """Rows of `schemas.SCORED` for all that is new, as files in the run's place: what was finished is not lost.

    Tells how fast.
    """
    spark, settings, scorer = own.context.spark, own.context.settings, own.scorer
    session.describe_jobs(spark, f"score: compute {new.computed} rows with {own.name}")
    # The closures below travel to the executors with each stage, so that nothing large may be in them: not the weights,
    # which the engine has by itself, and not what the features of training looked like. These go once, as broadcasts,
    # which `session` takes back; what PySpark makes one of by itself, because it is large, stays until the driver ends.
    light = session.broadcast(spark, bundle.without_tensors(scorer))
    image_size, size, threads = scorer.spec.image_size, settings.score.batch_size, session.task_threads(spark)
    engine = engines.engine_for(settings.score.engine, scorer.spec.backbone, gpus=session.task_gpus(spark))
    if engine == "tensorflow":
        load = prediction.network_loader(scorer.spec, session.broadcast(spark, scorer.tensors), threads)
    else:
        content = session.broadcast(spark, exported_network(own, engine))
        load = prediction.exported_loader(engine, content, threads, scorer.spec.tta)
    limits = settings.score.quality

    def measuring() -> inference.Predict:
        forward = load()

        def measure(seen: np.ndarray) -> list[np.ndarray]:
            damaged = seen["damaged"].astype(np.float32)  # a rejected image has NaN
            return [*forward(seen["pixels"]), quality.measures(seen["pixels"]), seen["side"], damaged]

        return measure

    def finish(outputs: list[np.ndarray | None], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        measured, side, damaged = outputs[-3:] if len(outputs) > 1 else (None, None, None)
        return with_quality(light.value.finish(outputs[:3], errors), measured, side, damaged, image_size, limits)

    def prepare(content: bytes) -> np.ndarray:
        return light.value.prepare_sized(content)

    meter = session.Meter(spark)
    predict = inference.batch_function(
        f"{engine} {scorer.model_id}", measuring, prepare, finish, batch_size=size, meter=meter
    )
    facts = {
        "dataset_id": scorer.facts.get("dataset_id"),
        "model_name": own.model,
        "model_version": own.version,
        "run_id": own.context.run_id,
        "scored_at": datetime.now(UTC),
    }
    share = math.floor(LOST * new.computed / session.slots(spark))
    most = min(MOST_WAITING, max(size, share // size * size))  # whole batches: a file ends with one
    write = parquet_writer(own.place, schemas.SCORED, most)
    names = {"length": "source_bytes", "modified": "source_modified"}

    def written(frames: Any) -> Any:
        return write(frame.rename(columns=names).assign(**facts)[schemas.SCORED.names] for frame in frames)

    rows = new.rows.join(own.tables.rows.select("path", "patient_id"), "path", "left")
    told = tasks.compute_files(
        rows, new.computed, settings, predict, batch_size=size, write=written, result=ROWS_WRITTEN
    )
    with session.progress(spark, "parts scored"):
        total = told.agg(f.sum("rows")).collect()[0][0]
    if total != new.computed:
        raise ClusterError(f"{total} rows were computed of {new.computed} images; run score again")
    return report_throughput(own.context, meter)


def with_quality(
    rows: pd.DataFrame,
    measured: np.ndarray | None,
    side: np.ndarray | None,
    damaged: np.ndarray | None,
    image_size: int,
    limits: config.Quality,
) -> pd.DataFrame:
    """Rows of `bundle.OUTPUTS` with what `quality` says of them; it may let the model abstain, never judge.

    measured: (n, 5) as `quality.measures`; side: (n,), the shorter one of each file in pixels; damaged: (n,), 1 where
    the file is damaged and was accepted; None where no image could be decoded.
    """
    if measured is None or side is None or damaged is None:
        measured, side = np.full((len(rows), len(quality.MEASURES)), np.nan, np.float32), np.full(len(rows), np.nan)
        damaged = np.zeros(len(rows))
    flags = quality.flags(measured, limits, side / image_size, rows["distance"].to_numpy(), damaged == 1)
    rows = rows.assign(flags=[",".join(names) or None for names in flags], side=side)
    rows[list(quality.MEASURES)] = measured
    if limits.action == "abstain":
        flagged = rows["flags"].notna().to_numpy()
        rows.loc[flagged, ["status", "decision"]] = ["abstained", ""]
        rows.loc[flagged, "probability"] = np.nan  # the network's own stays, for those who look into it
        rows.loc[flagged, "reason"] = "quality"
        rows.loc[flagged, "detail"] = [quality.describe_flags(names) for names in flags if names]
    return rows


def exported_network(own: Run, engine: str) -> bytes:
    """The network, exported at its first use and kept in the warehouse; the registry knows its SHA-256."""
    context, spec = own.context, own.scorer.spec.model_copy(update={"tta": 1})
    name = lineage.content_id([own.scorer.facts["tensors_id"], spec.model_dump(), engines.FORMATS[engine]])
    url, tag = (
        files.join(context.warehouse, "models", "exported", f"{name}.{engine}"),
        engines.TAG.format(engine=engine),
    )
    version = context.tracker.find_version(f"{own.model}/{own.version}")
    if files.exists(url):
        content = files.read_bytes(url)
        if version and version.tags.get(tag) == hashes.sha256(content):
            return content
    logs.info(f"exporting the network for {engine}, once")
    content = engines.export(network.judge(spec, own.scorer.tensors), engine)
    files.write_bytes(url, content)
    context.tracker.tag_version(own.model, own.version, {tag: hashes.sha256(content)})
    return content


def runner(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """`run_stage`; or the batches that are there, without a run; or batch after batch, each with a run of its own."""
    if context.settings.score.action == "status":
        return run_untracked(context, name, stage, tags)
    if context.settings.score.action == "score":
        return run_stage(context, name, stage, tags)

    def one(context: StageContext, opened: Opened) -> Summary:
        with session.release_on_exit(context.spark):
            return batch(context, opened)

    return follow.run(context, name, one, tags)
