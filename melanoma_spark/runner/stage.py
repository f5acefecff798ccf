"""Runs one stage in its own MLflow run: it holds the lease, and reports its summary, or its error in one line."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from melanoma_spark import config, logs
from melanoma_spark.errors import ExitStatus, MelanomaError, error_of_task, explain_storage_error, root_cause
from melanoma_spark.runner.context import StageContext, Summary

TRACEBACK_VARIABLE = "MELANOMA_TRACEBACK"

Stage = Callable[[StageContext], Summary]
Runner = Callable[[StageContext, str, Stage, dict[str, str]], Summary]


def run_untracked(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """Run a stage that only reads, without an MLflow run and a lease. Takes the place of `run_stage`."""
    summary = stage(context)
    logs.result(f"{name}: {summary.text}", "done")
    return summary


def describe_error(error: Exception, private: bool) -> tuple[str, int] | None:
    """Return an error's message and exit status; None for an internal error, or where its traceback is asked for.

    Spark's own errors may name files, so a `private` one shows only its kind.
    """
    if isinstance(error, MelanomaError):
        return str(error), error.exit_status
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    if not isinstance(error, PySparkException | Py4JJavaError) or os.environ.get(TRACEBACK_VARIABLE):
        return None
    if own := error_of_task(error):
        return str(own), own.exit_status
    cause = root_cause(error)
    if private:
        kind = re.match(r"[\w.$]+", cause)
        cause = kind[0] if kind else type(error).__name__
    return f"Spark: {cause} (set {TRACEBACK_VARIABLE}=1 to see where)", ExitStatus.INTERNAL


def run_stage(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """Run a stage in its own MLflow run, nested in an open one, and log its summary at the end.

    Raises `ClusterError` where a file system was full, or away.
    """
    from melanoma_spark.spark import session
    from melanoma_spark.storage import lease

    started = time.monotonic()
    with logs.context(stage=name), translate_storage_errors(context):
        logs.event("started")
        with (
            lease.acquire(context.warehouse, name, context.settings.wait) as held_lease,
            open_run(context, name, tags) as running,
            session.release_on_exit(context.session) if context.session else contextlib.nullcontext(),
        ):
            if context.session is not None:
                session.describe_jobs(context.session, name)
            summary = stage(replace(running, lease=held_lease))
            seconds = time.monotonic() - started
            context.tracker.log_metrics({"seconds": seconds})
        logs.result(f"{name}: {summary.text}; {seconds:.1f} s", "done", seconds=round(seconds, 1))
    return summary


@contextlib.contextmanager
def open_run(context: StageContext, name: str, tags: dict[str, str]) -> Iterator[StageContext]:
    """Open an MLflow run, nested in one that is open already. Yields the context with its id."""
    with context.tracker.run(name, tags, config.notable_settings(context.settings)) as run_id:
        if "job" in tags:  # the outermost run
            text = "".join(f"{key}: {value}\n" for key, value in config.public_settings(context.settings).items())
            context.tracker.log_artifact("settings.txt", text.encode())
        logs.add_context(run_id=run_id)
        yield replace(context, run_id=run_id)


@contextlib.contextmanager
def translate_storage_errors(context: StageContext) -> Iterator[None]:
    """Turn errors of a full or lost file system, or of a lost Spark, into a `ClusterError` with what to do."""
    from melanoma_spark.spark import session

    scratch = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    if context.session is not None:
        scratch = str(context.session.conf.get("spark.local.dir", scratch))
    places = {"the warehouse": context.warehouse.removeprefix("file://"), "Spark's scratch folder": scratch}
    try:
        yield
    except MelanomaError:
        raise
    except Exception as error:
        explained = explain_storage_error(error, places)
        if explained is None and context.session is not None:
            explained = session.explain_lost_spark(context.session, error)
        if explained is None:
            raise
        raise explained from error
