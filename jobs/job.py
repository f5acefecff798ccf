"""What every job does around its stage: read the settings, open Spark and MLflow, run, report, and fail in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from melanoma_spark import __version__, backbones, config, exported, files, lineage, logs, operating_points
from melanoma_spark.errors import ConfigError, MelanomaError, of_executor, of_storage, root_cause
from melanoma_spark.logs import say as say

TRACEBACK_VARIABLE = "MELANOMA_TRACEBACK"
ERROR_VARIABLE = "MELANOMA_ERROR_FILE"  # where spark-submit.sh looks for the line of an error

# TensorFlow's notes on the processor, once a process, are nobody's news. Set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True)
class Job:
    """What a stage is given. `spark` is None where its action needs none."""

    spark: Any
    settings: config.Settings
    warehouse: str
    tracker: Any
    run_id: str = ""
    lease: Any = None


class Marked(str):
    """A summary of what was done and yet deserves an exit status of its own: a schedule is to look at it."""

    exit_status: int

    def __new__(cls, summary: str, exit_status: int) -> Marked:
        marked = super().__new__(cls, summary)
        marked.exit_status = exit_status
        return marked


Stage = Callable[[Job], str]
GRACEFUL = "graceful"  # what --check prints of a job that ends by itself at a signal


def main(
    name: str,
    description: str,
    stage: Stage,
    needs_archive: bool = False,
    runner: Callable[[Job, str, Stage, dict[str, str]], int] | None = None,
    needs_spark: Callable[[config.Settings], bool] = lambda settings: True,
    graceful: Callable[[config.Settings], bool] = lambda settings: False,
    prepared: bool = True,
) -> None:
    """Run one stage as a job and leave with its exit status: 0, or that of the error.

    `runner` takes the place of `run_stage`. `graceful` says whether the stage ends by itself at a signal. What is not
    `prepared` is given the settings alone: it opens Spark and MLflow itself, and tells what is wrong with them.
    """
    with _reported(name, description) as (settings, only_check):
        check(settings, needs_archive)
        if not only_check:
            sys.exit(_run(name, settings, stage, runner or run_stage, needs_spark(settings), prepared))
        if graceful(settings):
            print(GRACEFUL)


def alone(name: str, description: str, tell: Callable[[config.Settings], str]) -> None:
    """As `main`, of what only reads small files: `tell` does it without Spark, MLflow and a lease."""
    with _reported(name, description) as (settings, only_check):
        if not only_check:
            say(f"{name}: {tell(settings)}", "done")


@contextlib.contextmanager
def _reported(name: str, description: str) -> Iterator[tuple[config.Settings, bool]]:
    """The settings, and whether to check them only; what goes wrong is told in a line and ends the process."""
    arguments = _arguments(name, description)
    logs.set_up(name, config.log_format(arguments.conf, arguments.settings))
    private = False
    try:
        settings = config.load(arguments.conf, arguments.settings)
        private = settings.privacy.source_names == "hash"
        yield settings, arguments.check
    except Exception as error:
        told = in_one_line(error, private)
        if told:
            _fail(*told)
        if logs.in_json():
            _fail(f"{type(error).__name__}: {error}", 1, traceback=traceback.format_exc())
        raise


def in_one_line(error: Exception, private: bool) -> tuple[str, int] | None:
    """An error's message and exit status; None where it is nobody's but ours, or where its traceback is asked for.

    Of Spark's own errors, which may name files, a `private` one tells no more than the kind.
    """
    if isinstance(error, MelanomaError):
        return str(error), error.exit_status
    from pyspark.errors import PySparkException

    if not isinstance(error, PySparkException) or os.environ.get(TRACEBACK_VARIABLE):
        return None
    ours = of_executor(error)
    if ours:
        return str(ours), ours.exit_status
    cause = root_cause(error)
    if private:
        found = re.match(r"[\w.$]+", cause)
        cause = found[0] if found else type(error).__name__
    return f"Spark: {cause} (set {TRACEBACK_VARIABLE}=1 to see where)", 1


def _fail(message: str, status: int, **fields: Any) -> None:
    line = logs.failure(message, status, **fields) + "\n"
    try:
        # Spark gives out its driver's stderr as its own stdout; spark-submit.sh knows the real one.
        Path(os.environ[ERROR_VARIABLE]).write_text(line)
    except (KeyError, OSError):
        sys.stderr.write(line)
    sys.exit(status)


def check(settings: config.Settings, needs_archive: bool) -> None:
    """What can be known of the settings before Spark starts. Raises `ConfigError`."""
    if needs_archive and not settings.archive:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    for key, url in (("archive", settings.archive), ("warehouse", settings.warehouse)):
        if logs.CREDENTIALS.search(str(url)):  # servers and libraries would tell it, each in words of its own
            raise ConfigError(
                f"{key}={url} has a user or a key in its address; name the bucket or host alone: S3's keys come from "
                "the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE), HDFS's user is HADOOP_USER_NAME"
            )
    backbones.check(settings)
    exported.engine_for(settings.featurize.engine, settings.backbone.name, settings.featurize.precision)
    operating_points.parse_rule(settings.evaluate.operating_point)


def archive_id(archive: str) -> str:
    """Which archive this is, without telling where it lies."""
    return lineage.content_id([files.url_of(archive)])


def dataset(job: Job, name: str, made_by: str) -> dict[str, Any]:
    """The manifest of what stands under `name`; MLflow is told that the run reads it. Raises as `store.need`."""
    from melanoma_spark import store

    facts = store.need(job.warehouse, name, made_by)
    job.tracker.reads(name, facts["id"])
    return facts


def pixels_of(job: Job, images: dict[str, Any]) -> Any:
    """The rows of images/, a `DataFrame`, by its manifest."""
    from melanoma_spark import store

    return job.spark.read.parquet(store.data_url(job.warehouse, "images", images))


def run_stage(job: Job, name: str, stage: Stage, tags: dict[str, str]) -> int:
    """One stage in an MLflow run of its own, nested in an open one, with one summary line at its end.

    Returns the exit status: 0, or that of a `Marked` summary. Raises `ClusterError` where a file system was full, or
    away.
    """
    from melanoma_spark import lease, session

    started = time.monotonic()
    with logs.about(stage=name), one_line(job):
        logs.mark("started")
        with lease.held(job.warehouse, name, job.settings.wait) as own, in_run(job, name, tags) as running:
            if job.spark is not None:
                session.describe(job.spark, name)
            with contextlib.nullcontext() if job.spark is None else session.let_go(job.spark):
                summary = stage(replace(running, lease=own))
            seconds = time.monotonic() - started
            job.tracker.metrics({"seconds": seconds})
        say(f"{name}: {summary}; {seconds:.1f} s", "done", seconds=round(seconds, 1))
    return int(getattr(summary, "exit_status", 0))


def pace(job: Job, meter: Any) -> str:
    """What a `session.Meter` has measured, for the end of a summary; MLflow and a line in JSON are told it, too."""
    figures = meter.figures()
    if not figures:
        return ""
    if job.run_id:  # else MLflow would begin a run for them
        job.tracker.metrics(figures)
    logs.add(**{key: round(value, 3) for key, value in figures.items()})
    return (
        f"; {figures['images_per_second']:.1f} images/s from {figures['megabytes_read']:,.1f} MB, "
        f"{figures['wait_share']:.0%} of the time waiting for them"
    )


@contextlib.contextmanager
def in_run(job: Job, name: str, tags: dict[str, str]) -> Iterator[Job]:
    """The job with an MLflow run open, nested in one that is open already."""
    with job.tracker.run(name, tags, config.compared(job.settings)) as run_id:
        if "job" in tags:  # the outermost run
            text = "".join(f"{key}: {value}\n" for key, value in config.shown(job.settings).items())
            job.tracker.artifact("settings.txt", text.encode())
        logs.add(run_id=run_id)
        yield replace(job, run_id=run_id)


@contextlib.contextmanager
def one_line(job: Job) -> Iterator[None]:
    """Around what writes: errors of a full or lost file system, or of a lost Spark, whoever met them, as one line.

    Raises `ClusterError`, or what it was.
    """
    from melanoma_spark import session

    scratch = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    if job.spark is not None:
        scratch = job.spark.conf.get("spark.local.dir", scratch)
    places = {"the warehouse": job.warehouse.removeprefix("file://"), "Spark's scratch folder": scratch}
    try:
        yield
    except MelanomaError:
        raise
    except Exception as error:
        told = of_storage(error, places)
        if told is None and job.spark is not None:
            told = session.of_lost(job.spark, error)
        if told is None:
            raise
        raise told from error


def _run(
    name: str,
    settings: config.Settings,
    stage: Stage,
    runner: Callable[..., int],
    needs_spark: bool,
    prepared: bool,
) -> int:
    from melanoma_spark import preflight, session, tracking

    warehouse = files.url_of(settings.warehouse)
    if not prepared:
        return runner(Job(None, settings, warehouse, None), name, stage, {})
    files.check_writable(warehouse)
    spark = session.start(name) if needs_spark else None
    try:
        if spark is not None:
            tracking.check(settings.mlflow, session.master())
        tracker = tracking.Tracker(settings.mlflow, warehouse)
        if spark is not None and not session.is_local(spark):  # now that executors have had time to come
            preflight.check_versions(spark)
        job = Job(spark, settings, warehouse, tracker)
        tags = {"job": name, "commit": lineage.commit(), "version": __version__, "stack": stack()}
        return runner(job, name, stage, tags)
    finally:
        if spark is not None:
            spark.stop()


def stack() -> str:
    """The versions on which figures may depend."""
    names = ("pyspark", "tensorflow-cpu", "tensorflow", "keras", "horovod", "petastorm", "mlflow", "numpy")
    found = [f"python {platform.python_version()}"]
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def _arguments(name: str, description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    keys = "\n".join(f"  {key:32} {text}" for key, text in config.valid_keys().items())
    parser = argparse.ArgumentParser(
        prog=f"./spark-submit.sh {name}",
        description=description,
        epilog=f"settings [default]:\n{keys}\n\nsee conf/*.yaml for whole examples",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--conf", metavar="FILE.yaml", help="settings file; without it the defaults hold")
    parser.add_argument("--check", action="store_true", help="check the settings and stop before Spark starts")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that win over the file's")
    return parser.parse_args(argv)
