"""score: what is new in an archive through the model behind an alias -> `scores/`, one row for every image.

A file that was scored before, by name, size and time, is not read again; a copy of an image that was, by content, has
no second row. A batch is in `scores/` whole or not at all; a killed run is gone on with by the next one.

`score status` tells the last batches.

exit status: 0 done, or nothing to do; 5 another score job is at work on the warehouse (wait=SECONDS waits for it);
2, 3, 4 settings, cluster, data, as every job

example: ./spark-submit.sh score archive=/data/tonight warehouse=/data/warehouse score.model=melanoma@champion
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from jobs import worklist
from jobs.job import Job, archive_id, main, say
from melanoma_spark import (
    archive,
    config,
    exported,
    files,
    images,
    inference,
    ledger,
    lineage,
    network,
    quality,
    schemas,
    serving,
    session,
    store,
)
from melanoma_spark.errors import ClusterError, ImageError

EXPORT_TAG = "onnx_sha256"  # of a registered version
LOST = 0.05  # of a batch may be computed twice after a kill
ROWS_A_PARTITION = 100_000  # of a join
MOST_WAITING = 512  # rows that a task keeps to itself
FEW = 10  # files of a batch that cannot be read are no sign that the archive is away


@dataclass(frozen=True)
class Run:
    """What there is when a run begins."""

    job: Job
    model: str
    version: str
    scorer: serving.Scorer
    place: str  # where its rows wait until all are there
    everything: DataFrame  # the listing, with `source_key`
    listing: DataFrame  # of images
    listed: int
    done: DataFrame  # `schemas.LEDGER`
    before: DataFrame  # `schemas.SCORED`: rows that a killed run has left
    kept: int

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


def run(job: Job) -> str:
    if job.settings.score.action == "status":
        return status(job)
    return batch(job)


def status(job: Job) -> str:
    found = ledger.batches(job.warehouse, job.settings.score.shown)
    for facts in found:
        counts = facts.get("counts", {})
        told = ", ".join(
            f"{counts[key]} {key}" for key in ("scored", "abstained", "rejected", "copies") if counts.get(key)
        )
        model = f"{facts['model']} version {facts['model_version']}" if "model" in facts else "of before version 0.2"
        verdict = facts.get("verdict", "")
        say(f"{facts['batch_id']}  {facts.get('committed_at', '')}  {model}  {told}  {verdict}".rstrip())
    return f"{len(ledger.committed(job.warehouse))} batches in scores/, {len(found)} shown, the newest first"


def batch(job: Job) -> str:
    spark, warehouse, settings = job.spark, job.warehouse, job.settings
    found, artifacts = job.tracker.model_files(settings.score.model)
    scorer, model, version = serving.unpack(artifacts), str(found.name), str(found.version)
    ledger.tidy(spark, warehouse, check_of(job))
    done = known(job, model, version)
    work = lineage.content_id(
        [model, version, scorer.model_id, settings.privacy.model_dump(mode="json"), settings.score.quality.model_dump()]
    )
    place = ledger.unfinished(warehouse, archive_id(str(settings.archive)), work)
    # not persisted: Spark would then give these rows for later ones
    before = ledger.waiting(spark, place, done, job.run_id)
    everything = ledger.keyed(archive.listing(spark, settings)).persist()
    listing = everything.where("role = 'image'")
    own = Run(job, model, version, scorer, place, everything, listing, listing.count(), done, before, before.count())
    try:
        with session.shuffle_partitions(spark, session.slots(spark) + (own.listed + own.kept) // ROWS_A_PARTITION):
            return whole(own)
    finally:
        everything.unpersist()


def check_of(job: Job) -> ledger.Check:
    """Raises where the warehouse is away, or another job has taken it."""
    return job.lease.check if job.lease else lambda: None


def known(job: Job, model: str, version: str) -> DataFrame:
    """What of the ledger counts as scored."""
    found = ledger.known(job.spark, job.warehouse, model, version if job.settings.score.anew else None)
    check_of(job)()  # a warehouse that is away for a moment looks as if it had never scored anything
    return found


def whole(own: Run) -> str:
    """Computes what is new, and commits it with what waits."""
    new = news(own)
    total = own.kept + new.computed
    if not total + new.copied:
        ledger.remove(own.place)
        left = f", of which {new.unreadable} still cannot be read" if new.unreadable else ""
        return f"{own.listed} images listed, all scored before by {own.name}{left}; nothing to do"
    if own.kept:
        say(f"  a killed run has left {own.kept} rows, which are not computed again")
    if new.computed:
        compute(own, new)
    batch_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    return committed(own, new, batch_id, total)


def committed(own: Run, new: New, batch_id: str, total: int) -> str:
    """Makes all rows that wait a batch of `scores/`."""
    job, warehouse = own.job, own.job.warehouse
    rows = ledger.waiting(job.spark, own.place, own.done, job.run_id)
    staged = ledger.stage(rows, warehouse, batch_id, total)
    written = job.spark.read.schema(schemas.SCORED).parquet(staged)
    refuse_lost(written, total, job.settings.score.most_unreadable)
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
        "archive_id": archive_id(str(job.settings.archive)),
        "run_id": job.run_id,
        "counts": counts,
        "rows": total,
    }
    job.tracker.metrics(counts)
    job.tracker.tags({"batch_id": batch_id, "model_version": own.version})
    index = ledger.entries(written).unionByName(new.copies)
    page = worklist.write(job, written, own.listing, own.scorer, facts, counts)
    ledger.refuse_twice(written, total, known(job, own.model, own.version))
    target = ledger.commit(warehouse, batch_id, staged, index, own.model, own.version, facts, check_of(job))
    ledger.remove(own.place)
    told = " + ".join(
        f"{counts[key]} {key}"
        for key in ("scored", "abstained", "rejected", "copies")
        if counts[key] or key != "abstained"
    )
    return f"{own.listed} images listed = {told} + {new.known} scored before, by {own.name}; {target}; {page}"


def refuse_lost(rows: DataFrame, total: int, most: float) -> None:
    """Raises `ClusterError` where more files than a share, and more than a few, were listed and could not be read.

    One of them is a row. Many of them are a part of the archive that is away, or rights that changed.
    """
    lost = rows.where(f.col("reason") == images.GONE)
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
    session.describe(own.job.spark, f"score: the content of {count} files")
    with session.progress(own.job.spark, "parts read"):
        read = archive.hashed(todo, count, own.job.settings).persist()
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


def compute(own: Run, new: New) -> None:
    """Rows of `schemas.SCORED` for all that is new, as files in the run's place: what was finished is not lost."""
    spark, settings, scorer = own.job.spark, own.job.settings, own.scorer
    session.describe(spark, f"score: {new.computed} images with {own.name}")
    # The closures below travel to the executors; the weights go once, as a broadcast.
    light = serving.without_tensors(scorer)
    size, threads, engine = settings.score.batch_size, session.task_threads(spark), settings.score.engine
    if engine == "onnxruntime":
        load = inference.exported_loader(scorer.spec.tta, spark.sparkContext.broadcast(network_as_onnx(own)), threads)
    else:
        load = inference.network_loader(scorer.spec, spark.sparkContext.broadcast(scorer.tensors), threads)
    limits = settings.score.quality

    def measuring() -> inference.Predict:
        forward = load()
        return lambda pixels: [*forward(pixels), quality.measures(pixels)]

    def finish(outputs: list[np.ndarray | None], errors: Sequence[ImageError | None]) -> pd.DataFrame:
        return with_quality(light.finish(outputs[:2], errors), outputs[-1], limits)

    predict = inference.over_batches(f"{engine} {scorer.model_id}", measuring, light.prepare, finish, size)
    facts = {
        "dataset_id": scorer.facts.get("dataset_id"),
        "model_name": own.model,
        "model_version": own.version,
        "run_id": own.job.run_id,
        "scored_at": datetime.now(UTC),
    }
    share = math.floor(LOST * new.computed / session.slots(spark))
    most = min(MOST_WAITING, max(size, share // size * size))  # whole batches: a file ends with one
    write = store.parts(own.place, schemas.SCORED, most)
    names = {"length": "source_bytes", "modified": "source_modified"}

    def written(frames: Any) -> Any:
        return write(frame.rename(columns=names).assign(**facts)[schemas.SCORED.names] for frame in frames)

    whose = worklist.patients(own.job, own.everything)
    rows = new.rows.withColumn("id", f.lower("image_id")).join(whose, "id", "left").drop("id")
    told = archive.computed(rows, new.computed, settings, predict, size, written, store.PARTS)
    with session.progress(spark, "parts scored"):
        total = told.agg(f.sum("rows")).collect()[0][0]
    if total != new.computed:
        raise ClusterError(f"{total} rows were computed of {new.computed} images; run score again")


def with_quality(rows: pd.DataFrame, measured: np.ndarray | None, limits: config.Quality) -> pd.DataFrame:
    """Rows of `serving.OUTPUTS` with what `quality` says of them; it may let the model abstain, never judge."""
    if measured is None:
        measured = np.full((len(rows), len(quality.MEASURES)), np.nan, np.float32)
    flags = quality.flags(measured, limits)
    rows = rows.assign(flags=[",".join(names) or None for names in flags])
    rows[list(quality.MEASURES)] = measured
    if limits.action == "abstain":
        flagged = rows["flags"].notna().to_numpy()
        rows.loc[flagged, ["status", "decision"]] = ["abstained", ""]
        rows.loc[flagged, "probability"] = np.nan  # the network's own stays, for those who look into it
        rows.loc[flagged, "reason"] = "quality"
        rows.loc[flagged, "detail"] = [quality.told(names) for names in flags if names]
    return rows


def network_as_onnx(own: Run) -> bytes:
    """The network, exported at its first use and kept in the warehouse; the registry knows its SHA-256."""
    job, spec = own.job, own.scorer.spec.model_copy(update={"tta": 1})
    name = lineage.content_id([own.scorer.facts["tensors_id"], spec.model_dump(), exported.OPSET])
    url = files.join(job.warehouse, "models", "onnx", f"{name}.onnx")
    version = job.tracker.version(f"{own.model}/{own.version}")
    if files.exists(url):
        content = files.read_bytes(url)
        if version.tags.get(EXPORT_TAG) == images.sha256(content):
            return content
    say("  exporting the network to ONNX, once")
    content = exported.export(network.judge(spec, own.scorer.tensors))
    files.write_bytes(url, content)
    job.tracker.tag_version(own.model, own.version, {EXPORT_TAG: images.sha256(content)})
    return content


if __name__ == "__main__":
    sys.argv[1:] = ["score.action=status" if word == "status" else word for word in sys.argv[1:]]
    main("score", __doc__, run, needs_archive="score.action=status" not in sys.argv)
