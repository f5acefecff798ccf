"""score --follow: what lands in an archive is scored, batch after batch, by structured streaming, until a signal.

Spark's stream says when: at each trigger its source (`archives.landing`) looks at the folder, and only when
something has changed is there a batch. Each goes through the very code of `score`, and through the same ledger, in the
main thread: so a signal is met between two batches, and ending the stream ends no batch.
"""

from __future__ import annotations

import gc
import logging
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from melanoma_spark import clock, logs
from melanoma_spark.archives import plan
from melanoma_spark.errors import BusyError, ClusterError, ConfigError
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.runner.stage import describe_error, open_run, translate_storage_errors
from melanoma_spark.storage import files, lease

LOOK = 1.0  # seconds after which a signal is met at the latest
Batch = Callable[..., Summary]  # of a job, and of what opens its MLflow run
Given = tuple[int, threading.Event]  # files to look at; set when that has been done


def run(context: StageContext, name: str, batch: Batch, tags: dict[str, str]) -> Summary:
    """Follows the archive until a signal, or with score.follow.once until nothing is left.

    Holds the lease meanwhile. A batch that fails is tried again at a later trigger, each time later; with `once` it
    ends the job. Raises `BusyError` when another job has taken the lease, `ClusterError` when Spark is gone, and at the
    start as `plan.locate`, but for a folder in which nothing has landed yet.
    """
    if not plan.is_empty_folder(str(context.settings.archive)):
        plan.locate(context.settings.archive)
    with (
        logs.context(stage=name),
        lease.acquire(context.warehouse, name, context.settings.wait) as own,
        ended_by_signals() as over,
        tempfile.TemporaryDirectory() as folder,
    ):
        following = Following(replace(context, lease=own), name, batch, tags, over, Path(folder))
        every = f"a look every {context.settings.score.follow.interval:g} s"
        logs.result(f"{name}: following the archive, {every}; a signal ends it after the batch in hand", "started")
        try:
            following.until_over()
        finally:
            following.stop()
        text = f"{following.batches} batches, {'nothing more' if following.done else 'told to end'}"
        logs.result(f"{name}: {text}", "done")
        return Summary(text, following.status if context.settings.score.follow.once else 0)


class Following:
    """One stream at a time, and the batches it asks for."""

    def __init__(
        self, context: StageContext, name: str, batch: Batch, tags: dict[str, str], over: threading.Event, folder: Path
    ):
        self.context, self.name, self.batch, self.tags, self.over, self.folder = (
            context,
            name,
            batch,
            tags,
            over,
            folder,
        )
        self.settings = context.settings.score.follow
        self.given: queue.SimpleQueue[Given] = queue.SimpleQueue()
        self.stream: Any = None
        self.streams = self.batches = self.retries = self.status = 0
        self.backoff = clock.Backoff(self.settings.interval, self.settings.longest_wait)
        self.looked = 0.0  # when the alias was looked at
        self.due = False  # whether what failed is still to be asked for again
        self.model: str | None = None
        self.done = False

    def until_over(self) -> None:
        while not self.over.is_set() and not self.done:
            if self.stream is None and self.backoff.over:
                self.stream = self.started()
            elif self.stream is not None:
                self.ask()
            try:
                count, handled = self.given.get(timeout=LOOK)
            except queue.Empty:
                self.look_at_stream()
                continue
            try:
                if count and self.backoff.over:  # before that, what landed waits for the next attempt
                    self.one()
            except Exception as error:
                self.failed(error)
            finally:
                handled.set()

    def one(self) -> None:
        """A batch, in an MLflow run of its own where there is anything new."""
        started = time.monotonic()
        with logs.context(stage=self.name), translate_storage_errors(self.context):
            try:
                summary = self.batch(self.context, partial(open_run, name=self.name, tags=self.tags))
            finally:
                gc.collect()  # what Python holds, Spark's driver holds, too
            seconds = time.monotonic() - started
            logs.result(f"{self.name}: {summary.text}; {seconds:.1f} s", "batch", seconds=round(seconds, 1))
        self.backoff.succeeded()
        self.batches, self.due = self.batches + 1, False
        self.status = max(self.status, summary.exit_status)

    def failed(self, error: Exception) -> None:
        """Tells why, and when the next attempt is; raises what another attempt would meet again."""
        if isinstance(error, BusyError) or self.settings.once:
            raise error
        if not alive(self.context.spark):
            raise ClusterError("Spark's driver or its cluster is gone; start score --follow again") from error
        wait, attempt, self.due = self.backoff.failed(), self.backoff.failures, True
        private = self.context.settings.privacy.source_names == "hash"
        told = describe_error(error, private)
        message, status = told or (type(error).__name__ + ("" if private else f": {error}"), 1)
        text = f"{message}; attempt {attempt} failed, the next one in {wait:.0f} s"
        logs.result(text, "batch_failed", logging.ERROR, attempt=attempt, wait=wait, exit_status=status)

    # --- The stream ---

    def started(self) -> Any:
        """A stream that knows nothing yet: its first batch asks the ledger about all there is."""
        try:
            from melanoma_spark.archives import landing
        except ImportError:
            raise ClusterError("score --follow needs Spark 4 or later; run score by a schedule instead") from None
        spark, settings = self.context.spark, self.context.settings
        self.streams += 1
        self.looked, self.due = 0.0, False
        self.ask()
        spark.dataSource.register(landing.LandingSource)
        source = spark.readStream.format("landing").options(
            archive=files.url_of(str(settings.archive)),
            settle=str(self.settings.settle),
            max_bytes=str(settings.ingest.max_bytes),
            asked=str(self.folder / "asked"),
        )
        every: dict[str, Any] = {"processingTime": f"{self.settings.interval} seconds"}
        return (
            source.load()
            .writeStream.queryName(self.name)
            .foreachBatch(self.deliver)
            .trigger(**({"availableNow": True} if self.settings.once else every))
            .option("checkpointLocation", f"file://{self.folder}/checkpoint-{self.streams}")
            .start()
        )

    def deliver(self, rows: Any, number: int) -> None:
        """Of Spark's stream, in a thread of its own: hands a batch to the main thread, and waits for its end."""
        count = rows.collect()[0].files
        handled = threading.Event()
        self.given.put((count, handled))
        while not handled.wait(LOOK) and not self.over.is_set():
            pass

    def ask(self) -> None:
        """Once an interval: another version behind the alias, or a failed batch whose time has come, is news."""
        now = time.monotonic()
        retry = self.due and self.backoff.over
        if self.looked and now < self.looked + self.settings.interval and not retry:
            return
        self.looked = now
        if retry:
            self.retries, self.due = self.retries + 1, False
        try:
            version = self.context.tracker.find_version(self.context.settings.score.model)
        except ConfigError:
            raise
        except Exception:  # MLflow is away, in one of its many ways: the batch that needs it says so
            version = None
        self.model = str(version.version) if version else self.model
        beside = self.folder / "asked.new"
        beside.write_text(f"version {self.model}, retry {self.retries}")
        beside.replace(self.folder / "asked")

    def look_at_stream(self) -> None:
        """Whether it is still at it; one that broke is started anew, later."""
        if self.stream is None or self.stream.isActive:
            return
        error = self.stream.exception()
        self.stream = None
        if error is not None:
            self.failed(error)
        self.done = self.settings.once

    def stop(self) -> None:
        self.over.set()
        if self.stream is not None and alive(self.context.spark):
            self.stream.stop()


def alive(spark: Any) -> bool:
    try:
        return not spark.sparkContext._jsc.sc().isStopped()
    except Exception:  # py4j's own, of many kinds, when the JVM is gone
        return False


@contextmanager
def ended_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set; a second Ctrl-C does what it always did."""
    over = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def end(number: int, frame: Any) -> None:
        over.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, end)
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
