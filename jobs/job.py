"""What every job does around its stage: read the settings, open Spark and MLflow, run, report, and fail in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from melanoma_spark import __version__, config, lineage, logs
from melanoma_spark.errors import ConfigError, MelanomaError, of_executor, of_storage, root_cause
from melanoma_spark.logs import say as say
from melanoma_spark.models import backbones, engines, operating_points
from melanoma_spark.storage import files

TRACEBACK_VARIABLE = "MELANOMA_TRACEBACK"
ERROR_VARIABLE = "MELANOMA_ERROR_FILE"  # where spark-submit.sh looks for the line of an error

# TensorFlow's notes on the processor, once a process, are nobody's news. Set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True)
class Job:
    """What a stage is given. `spark` is None where its action needs none; `argv` is what the job was started with."""

    spark: Any
    settings: config.Settings
    warehouse: str
    tracker: Any
    run_id: str = ""
    lease: Any = None
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a stage has done, in a line, and the exit status of its job: any but 0 asks a person to look."""

    text: str
    exit_status: int = 0


Stage = Callable[[Job], Summary]
Runner = Callable[[Job, str, Stage, dict[str, str]], Summary]
GRACEFUL = "graceful"  # what --check prints of a job that ends by itself at a signal


@dataclass(frozen=True)
class Command:
    """A job as it is started from a command line.

    `description` is the text of --help. `runner` takes the place of `run_stage`. `needs_archive`, `needs_spark` and
    `graceful` (the stage ends by itself at a signal) may depend on the settings. A stage that is not `prepared` is
    given the settings alone: it opens Spark and MLflow itself, and reports what is wrong with them. `words` are short
    for settings, such as `status` for `score.action=status`.
    """

    name: str
    description: str
    stage: Stage
    runner: Runner | None = None
    needs_archive: Callable[[config.Settings], bool] = lambda settings: False
    needs_spark: Callable[[config.Settings], bool] = lambda settings: True
    graceful: Callable[[config.Settings], bool] = lambda settings: False
    prepared: bool = True
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a job did that was invoked in this process: `log` is all that it printed, on stdout and stderr."""

    exit_status: int
    summary: str
    log: str


def main(command: Command) -> None:
    """Run a job by the arguments of this process, and leave with its exit status."""
    sys.exit(execute(command, sys.argv[1:]).exit_status)


def invoke(command: Command, argv: Sequence[str], spark: Any = None) -> Result:
    """Run a job in this process, the whole way from its arguments to its exit status, as `main` does.

    `spark` is a session to use, which stays open. What nobody foresaw is in the log as a traceback, with status 1.
    """
    log = io.StringIO()
    with logs.restored(), contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            summary = execute(command, argv, spark)
        except SystemExit as left:  # of argparse: --help, and words that it does not know
            summary = Summary("", left.code if isinstance(left.code, int) else 1)
        except Exception as error:
            traceback.print_exc()
            summary = Summary(f"{type(error).__name__}: {error}", 1)
    return Result(summary.exit_status, summary.text, log.getvalue())


def execute(command: Command, argv: Sequence[str], spark: Any = None) -> Summary:
    """A job from its arguments to its summary, or to the line of its error, with the exit status of either.

    Raises what is an error of nobody's but ours, and `SystemExit` as argparse does.
    """
    words = [command.words.get(word, word) for word in argv]
    arguments = _arguments(command.name, command.description, words)
    logs.set_up(command.name, config.log_format(arguments.conf, arguments.settings))
    private = False
    try:
        settings = config.load(arguments.conf, arguments.settings)
        private = settings.privacy.source_names == "hash"
        check(settings, command.needs_archive(settings))
        if not arguments.check:
            return _run(command, settings, spark, tuple(words))
        if command.graceful(settings):
            print(GRACEFUL)
        return Summary("settings are valid")
    except Exception as error:
        told = in_one_line(error, private)
        if told:
            return _fail(*told)
        if logs.in_json():
            return _fail(f"{type(error).__name__}: {error}", 1, traceback=traceback.format_exc())
        raise


def run_without_run(job: Job, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """In the place of `run_stage`: without an MLflow run and a lease, for what only looks."""
    summary = stage(job)
    say(f"{name}: {summary.text}", "done")
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
    ours = of_executor(error)
    if ours:
        return str(ours), ours.exit_status
    cause = root_cause(error)
    if private:
        found = re.match(r"[\w.$]+", cause)
        cause = found[0] if found else type(error).__name__
    return f"Spark: {cause} (set {TRACEBACK_VARIABLE}=1 to see where)", 1


def _fail(message: str, status: int, **fields: Any) -> Summary:
    """Writes the line of an error."""
    line = logs.failure(message, status, **fields) + "\n"
    try:
        # Spark gives out its driver's stderr as its own stdout; spark-submit.sh knows the real one.
        Path(os.environ[ERROR_VARIABLE]).write_text(line)
    except (KeyError, OSError):
        sys.stderr.write(line)
    return Summary(message, status)


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
    engines.engine_for(settings.featurize.engine, settings.backbone.name, settings.featurize.precision)
    operating_points.parse_rule(settings.evaluate.operating_point)


def archive_id(archive: str) -> str:
    """Which archive this is, without telling where it lies."""
    return lineage.content_id([files.url_of(archive)])


def dataset(job: Job, name: str, made_by: str) -> dict[str, Any]:
    """The manifest of what stands under `name`; MLflow is told that the run reads it. Raises as `store.need`."""
    from melanoma_spark.storage import store

    facts = store.need(job.warehouse, name, made_by)
    job.tracker.reads(name, facts["id"])
    return facts


def pixels_of(job: Job, images: dict[str, Any]) -> Any:
    """The rows of images/, a `DataFrame`, by its manifest."""
    from melanoma_spark.storage import store

    return job.spark.read.parquet(store.data_url(job.warehouse, "images", images))


def run_stage(job: Job, name: str, stage: Stage, tags: dict[str, str]) -> Summary:
    """One stage in an MLflow run of its own, nested in an open one, with one summary line at its end.

    Raises `ClusterError` where a file system was full, or away.
    """
    from melanoma_spark.spark import session
    from melanoma_spark.storage import lease

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
        say(f"{name}: {summary.text}; {seconds:.1f} s", "done", seconds=round(seconds, 1))
    return summary


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
    from melanoma_spark.spark import session

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


def _run(command: Command, settings: config.Settings, given: Any, argv: tuple[str, ...]) -> Summary:
    """The stage of a command; `given` is a Spark session to use, or None to start one, which is stopped at the end."""
    from melanoma_spark import tracking
    from melanoma_spark.spark import executors, session

    warehouse, runner = files.url_of(settings.warehouse), command.runner or run_stage
    if not command.prepared:
        return runner(Job(None, settings, warehouse, None, argv=argv), command.name, command.stage, {})
    files.check_writable(warehouse)
    spark = (given or session.start(command.name)) if command.needs_spark(settings) else None
    try:
        if spark is not None:
            tracking.check(settings.mlflow, session.master())
        tracker = tracking.Tracker(settings.mlflow, warehouse)
        if spark is not None and not session.is_local(spark):  # now that executors have had time to come
            executors.check_versions(spark)
        job = Job(spark, settings, warehouse, tracker, argv=argv)
        tags = {"job": command.name, "commit": lineage.commit(), "version": __version__, "stack": stack()}
        return runner(job, command.name, command.stage, tags)
    finally:
        if spark is not None and given is None:
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
