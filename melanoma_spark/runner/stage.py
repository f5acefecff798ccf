"""One stage in an MLflow run of its own: it holds the lease, and reports its summary, or its error in one line."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from melanoma_spark import config, logs
from melanoma_spark.errors import MelanomaError, error_of_task, explain_storage_error, root_cause
from melanoma_spark.runner.context import StageContext, Summary

TRACEBACK_VARIABLE = "MELANOMA_TRACEBACK"


Stage = Callable[[StageContext], Summary]


Runner = Callable[[StageContext, str, Stage, dict[str, str]], Summary]


def run_without_run(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """In the place of `run_stage`: without an MLflow run and a lease, for what only looks."""
    summary = stage(context)
    logs.result(f"{name}: {summary.text}", "done")
    return summary


def in_one_line(error: Exception, private: bool) -> tuple[str, int] | None:
    """An error's message and exit status; None where it is nobody's but ours, or where its traceback is asked for.

    Of Spark's own errors, which may name files, a `private` one tells no more than the kind.
    """
    if isinstance(error, MelanomaError):
        return str(error), error.exit_status
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    if not isinstance(error, PySparkException | Py4JJavaError) or os.environ.get(TRACEBACK_VARIABLE):
        return None
    ours = error_of_task(error)
    if ours:
        return str(ours), ours.exit_status
    cause = root_cause(error)
    if private:
        found = re.match(r"[\w.$]+", cause)
        cause = found[0] if found else type(error).__name__
    return f"Spark: {cause} (set {TRACEBACK_VARIABLE}=1 to see where)", 1


def run_stage(context: StageContext, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """One stage in an MLflow run of its own, nested in an open one, with one summary line at its end.

    Raises `ClusterError` where a file system was full, or away.
    """
    from melanoma_spark.spark import session
    from melanoma_spark.storage import lease

    started = time.monotonic()
    with logs.context(stage=name), one_line(context):
        logs.event("started")
        with lease.held(context.warehouse, name, context.settings.wait) as own, in_run(context, name, tags) as running:
            if context.session is not None:
                session.describe(context.session, name)
            with contextlib.nullcontext() if context.session is None else session.let_go(context.session):
                summary = stage(replace(running, lease=own))
            seconds = time.monotonic() - started
            context.tracker.metrics({"seconds": seconds})
        logs.result(f"{name}: {summary.text}; {seconds:.1f} s", "done", seconds=round(seconds, 1))
    return summary


@contextlib.contextmanager
def in_run(context: StageContext, name: str, tags: dict[str, str]) -> Iterator[StageContext]:
    """The job with an MLflow run open, nested in one that is open already."""
    with context.tracker.run(name, tags, config.notable_settings(context.settings)) as run_id:
        if "job" in tags:  # the outermost run
            text = "".join(f"{key}: {value}\n" for key, value in config.public_settings(context.settings).items())
            context.tracker.artifact("settings.txt", text.encode())
        logs.add_context(run_id=run_id)
        yield replace(context, run_id=run_id)


@contextlib.contextmanager
def one_line(context: StageContext) -> Iterator[None]:
    """Around what writes: errors of a full or lost file system, or of a lost Spark, whoever met them, as one line.

    Raises `ClusterError`, or what it was.
    """
    from melanoma_spark.spark import session

    scratch = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    if context.session is not None:
        scratch = context.session.conf.get("spark.local.dir", scratch)
    places = {"the warehouse": context.warehouse.removeprefix("file://"), "Spark's scratch folder": scratch}
    try:
        yield
    except MelanomaError:
        raise
    except Exception as error:
        told = explain_storage_error(error, places)
        if told is None and context.session is not None:
            told = session.of_lost(context.session, error)
        if told is None:
            raise
        raise told from error
