"""`score --follow`: scores what lands in an archive, batch after batch, by structured streaming, until a signal.

Spark's stream is the trigger: its source (`archives.landing`) checks the folder, and there is a batch only if something
has changed. A batch is that of `score`, with the same ledger, and runs in the main thread. So a signal is handled
between two batches, and the end of the stream ends no batch.
"""

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

from pyspark.sql import DataFrame
from pyspark.sql.streaming.query import StreamingQuery

from melanoma_spark import clock, logs
from melanoma_spark.archives import plan
from melanoma_spark.errors import BusyError, ClusterError, ConfigError
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.runner.stage import describe_error, open_run, translate_storage_errors
from melanoma_spark.scoring.batch import OpenRun
from melanoma_spark.spark import session
from melanoma_spark.storage import files, lease

POLL = 1.0  # seconds after which a signal is handled at the latest
ScoreBatch = Callable[[StageContext, OpenRun], Summary]
Trigger = tuple[int, threading.Event]  # how many files there are; set once the batch is done


def follow(context: StageContext, name: str, score_batch: ScoreBatch, tags: dict[str, str]) -> Summary:
    """Follow the archive until a signal, or with `score.follow.once` until nothing is left.

    It holds the lease meanwhile. A batch that fails is tried again at a later trigger, each time after a longer wait;
    with `once` it ends the job.

    Raises:
        BusyError: Another job has taken the lease.
        ClusterError: Spark is gone.
        MelanomaError: At the start, as `plan.locate`; the folder may be empty.
    """
    if not plan.is_empty_folder(str(context.settings.archive)):
        plan.locate(context.settings.archive)
    settings = context.settings.score.follow
    with (
        logs.context(stage=name),
        lease.acquire(context.warehouse, name, context.settings.wait) as held,
        event_of_signals() as stopped,
        tempfile.TemporaryDirectory() as folder,
    ):
        follower = Follower(replace(context, lease=held), name, score_batch, tags, stopped, Path(folder))
        interval = f"checking it every {settings.interval:g} s"
        logs.result(f"{name}: following the archive, {interval}; a signal ends it after the current batch", "started")
        try:
            follower.run()
        finally:
            follower.stop()
        text = f"{follower.batches} batches, {'nothing is left' if follower.done else 'ended by a signal'}"
        logs.result(f"{name}: {text}", "done")
        return Summary(text, follower.exit_status if settings.once else 0)


class Follower:
    """One stream at a time, and the batches it triggers."""

    def __init__(
        self,
        context: StageContext,
        name: str,
        score_batch: ScoreBatch,
        tags: dict[str, str],
        stopped: threading.Event,
        folder: Path,
    ) -> None:
        self.context, self.name, self.score_batch, self.tags = context, name, score_batch, tags
        self.stopped, self.folder = stopped, folder
        self.settings = context.settings.score.follow
        self.triggers: queue.SimpleQueue[Trigger] = queue.SimpleQueue()
        self.stream: StreamingQuery | None = None
        self.streams = self.batches = self.retries = self.exit_status = 0
        self.backoff = clock.Backoff(self.settings.interval, self.settings.longest_wait)
        self.checked = 0.0  # when the alias was checked
        self.retry_due = False  # whether a failed batch is yet to be triggered again
        self.version: str | None = None
        self.done = False

    def run(self) -> None:
        """Start streams and score what they trigger until a signal, or until nothing is left."""
        while not self.stopped.is_set() and not self.done:
            if self.stream is None and self.backoff.over:
                self.stream = self.start_stream()
            elif self.stream is not None:
                self.check_version()
            try:
                count, handled = self.triggers.get(timeout=POLL)
            except queue.Empty:
                self.check_stream()
                continue
            try:
                if count and self.backoff.over:  # before that, what landed waits for the next try
                    self.run_batch()
            except Exception as error:
                self.handle_failure(error)
            finally:
                handled.set()

    def run_batch(self) -> None:
        """Score a batch, in an MLflow run of its own if anything is new."""
        started = time.monotonic()
        with logs.context(stage=self.name), translate_storage_errors(self.context):
            try:
                summary = self.score_batch(self.context, partial(open_run, name=self.name, tags=self.tags))
            finally:
                gc.collect()  # what Python holds, Spark's driver holds too
            seconds = time.monotonic() - started
            logs.result(f"{self.name}: {summary.text}; {seconds:.1f} s", "batch", seconds=round(seconds, 1))
        self.backoff.succeeded()
        self.batches, self.retry_due = self.batches + 1, False
        self.exit_status = max(self.exit_status, summary.exit_status)

    def handle_failure(self, error: Exception) -> None:
        """Log the error and the time of the next try; raise it if another try would fail too."""
        if isinstance(error, BusyError) or self.settings.once:
            raise error
        if session.is_stopped(self.context.spark):
            raise ClusterError("Spark's driver or its cluster is gone; start score --follow again") from error
        wait, attempt, self.retry_due = self.backoff.failed(), self.backoff.failures, True
        private = self.context.settings.privacy.source_names == "hash"
        message, status = describe_error(error, private) or (
            type(error).__name__ + ("" if private else f": {error}"),
            1,
        )
        text = f"{message}; attempt {attempt} failed, the next one in {wait:.0f} s"
        logs.result(text, "batch_failed", logging.ERROR, attempt=attempt, wait=wait, exit_status=status)

    # --- The stream ---

    def start_stream(self) -> StreamingQuery:
        """Start a stream without a past: its first batch compares all files with the ledger."""
        try:
            from melanoma_spark.archives import landing
        except ImportError:
            raise ClusterError("score --follow needs Spark 4 or later; run score by a schedule instead") from None
        spark, settings = self.context.spark, self.context.settings
        self.streams += 1
        self.checked, self.retry_due = 0.0, False
        self.check_version()
        spark.dataSource.register(landing.LandingSource)
        source = spark.readStream.format("landing").options(
            archive=files.url_of(str(settings.archive)),
            settle=str(self.settings.settle),
            max_bytes=str(settings.ingest.max_bytes),
            links=settings.ingest.links,
            asked=str(self.folder / "asked"),
        )
        interval: dict[str, Any] = {"processingTime": f"{self.settings.interval} seconds"}
        return (
            source.load()
            .writeStream.queryName(self.name)
            .foreachBatch(self.deliver)
            .trigger(**({"availableNow": True} if self.settings.once else interval))
            .option("checkpointLocation", f"file://{self.folder}/checkpoint-{self.streams}")
            .start()
        )

    def deliver(self, rows: DataFrame, number: int) -> None:
        """Hand a trigger to the main thread and wait for the end of its batch; Spark calls it in its own thread."""
        count = rows.collect()[0].files
        handled = threading.Event()
        self.triggers.put((count, handled))
        while not handled.wait(POLL) and not self.stopped.is_set():
            pass

    def check_version(self) -> None:
        """Trigger a batch if another version is behind the alias or a retry is due; checks once an interval."""
        now = time.monotonic()
        retry = self.retry_due and self.backoff.over
        if self.checked and now < self.checked + self.settings.interval and not retry:
            return
        self.checked = now
        if retry:
            self.retries, self.retry_due = self.retries + 1, False
        try:
            version = self.context.tracker.find_version(self.context.settings.score.model)
        except ConfigError:
            raise
        except Exception:  # MLflow is away, in one of many ways: the batch that needs it reports that
            version = None
        self.version = str(version.version) if version else self.version
        asked = self.folder / "asked.new"
        asked.write_text(f"version {self.version}, retry {self.retries}")
        asked.replace(self.folder / "asked")

    def check_stream(self) -> None:
        """Forget a stream that has ended; one that failed is started again later."""
        if self.stream is None or self.stream.isActive:
            return
        error = self.stream.exception()
        self.stream = None
        if error is not None:
            self.handle_failure(error)
        self.done = self.settings.once

    def stop(self) -> None:
        """Stop the stream."""
        self.stopped.set()
        if self.stream is not None and not session.is_stopped(self.context.spark):
            self.stream.stop()


@contextmanager
def event_of_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM, SIGINT and SIGHUP set; a second Ctrl-C has its usual effect."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
