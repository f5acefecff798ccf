"""Runs a job from its arguments to its exit status: reads settings, opens Spark and MLflow, and runs the stage."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from melanoma_spark import __version__, config, lineage, logs
from melanoma_spark.errors import ConfigError, ExitStatus
from melanoma_spark.models import backbones, engines, operating_points
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.runner.stage import Runner, Stage, describe_error, run_stage
from melanoma_spark.runner.submit import ERROR_VARIABLE, GRACEFUL
from melanoma_spark.storage import files

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Without TensorFlow's notes on the processor in each process. Set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Folders of the warehouse, docs/warehouse.md.
WRITTEN = frozenset(
    (
        *("images", "rejects", "unmatched", "decoded", "features", "models", "reports", "external", "registry"),
        *("scores", "batches", "ledger", "scoring", "running", "mlartifacts"),
    )
)


@dataclass(frozen=True)
class Command:
    """A job as it is started from a command line.

    `description` is the text of --help. `runner` replaces `run_stage`. `needs_archive`, `needs_spark` and `graceful`
    (the stage ends by itself at a signal) may depend on the settings. A stage that is not `prepared` gets only the
    settings: it opens Spark and MLflow itself, and reports what is wrong with them. `words` are short forms of
    settings, such as `status` for `score.action=status`.
    """

    name: str
    description: str
    stage: Stage
    runner: Runner | None = None
    needs_archive: Callable[[config.Settings], bool] = lambda settings: False
    needs_spark: Callable[[config.Settings], bool] = lambda settings: True
    graceful: Callable[[config.Settings], bool] = lambda settings: False
    prepared: Callable[[config.Settings], bool] = lambda settings: True
    may_read_archive: bool = False  # if one is named, though it needs none
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a job did that was invoked in this process: `log` is all its output, on stdout and stderr."""

    exit_status: int
    summary: str
    log: str


def main(command: Command) -> None:
    """Run a job with the arguments of this process, and exit with its status."""
    sys.exit(execute(command, sys.argv[1:]).exit_status)


def invoke(command: Command, argv: Sequence[str], spark: SparkSession | None = None) -> Result:
    """Run a job in this process, from its arguments to its exit status, as `main` does.

    `spark` is a session to use, which stays open. The log shows an internal error as a traceback, with status 1.
    """
    log = io.StringIO()
    with logs.preserve_configuration(), contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            summary = execute(command, argv, spark)
        except SystemExit as exiting:  # of argparse: --help, and unknown options
            summary = Summary("", exiting.code if isinstance(exiting.code, int) else 1)
        except Exception as error:
            traceback.print_exc()
            summary = Summary(f"{type(error).__name__}: {error}", ExitStatus.INTERNAL)
    return Result(summary.exit_status, summary.text, log.getvalue())


def execute(command: Command, argv: Sequence[str], spark: SparkSession | None = None) -> Summary:
    """Run a job, and return its summary, or the line of its error with its exit status.

    Raises internal errors, and `SystemExit` as argparse does.
    """
    words = [command.words.get(word, word) for word in argv]
    arguments = _arguments(command.name, command.description, words)
    logs.configure(command.name, config.log_format(arguments.conf, arguments.settings))
    private = False
    try:
        settings = config.load(arguments.conf, arguments.settings)
        private = settings.privacy.source_names == "hash"
        needs_archive = command.needs_archive(settings)
        check(settings, needs_archive, needs_archive or command.may_read_archive)
        if not arguments.check:
            return _run(command, settings, spark, tuple(words))
        if command.graceful(settings):
            print(GRACEFUL)
        return Summary("settings are valid")
    except Exception as error:
        if described := describe_error(error, private):
            return _fail(*described)
        if logs.in_json():
            return _fail(f"{type(error).__name__}: {error}", ExitStatus.INTERNAL, traceback=traceback.format_exc())
        raise


def _fail(message: str, status: int, **fields: object) -> Summary:
    """Write the line of an error."""
    line = logs.failure_line(message, status, **fields) + "\n"
    try:
        # Spark sends its driver's stderr to its own stdout; melanoma-spark has the real stderr.
        Path(os.environ[ERROR_VARIABLE]).write_text(line)
    except (KeyError, OSError):
        sys.stderr.write(line)
    return Summary(message, status)


def check(settings: config.Settings, needs_archive: bool, reads_archive: bool) -> None:
    """Check the settings as far as possible before Spark starts. Raises `ConfigError`."""
    if needs_archive and not settings.archive:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    for key, url in (("archive", settings.archive), ("warehouse", settings.warehouse)):
        if logs.CREDENTIALS.search(str(url)):  # servers and libraries would show it in their messages
            raise ConfigError(
                f"{key}={url} has a user or a key in its address; name the bucket or host alone: S3's keys come from "
                "the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE), HDFS's user is HADOOP_USER_NAME"
            )
    if settings.archive and reads_archive:
        refuse_overlap(settings.archive, settings.warehouse)
    backbones.check(settings)
    engines.engine_for(settings.featurize.engine, settings.backbone.name, settings.featurize.precision)
    operating_points.parse_rule(settings.evaluate.operating_point)


def refuse_overlap(archive: str, warehouse: str) -> None:
    """Raise `ConfigError` if the archive holds the warehouse, or lies in a folder of the warehouse that jobs write.

    The next job would take the pictures of a worklist, or decoded images, for images of the archive.
    """
    real_archive, real_warehouse = map(_real_url, (archive, warehouse))
    below = f"{real_archive}/".removeprefix(f"{real_warehouse}/").partition("/")[0]
    written = real_archive.startswith(f"{real_warehouse}/") and below in WRITTEN
    if not f"{real_warehouse}/".startswith(f"{real_archive.rstrip('/')}/") and not written:
        return
    link = "".join(
        f"; {name} leads to {real.removeprefix('file://')}"
        for name, given, real in (("archive", archive, real_archive), ("warehouse", warehouse, real_warehouse))
        if real.startswith("file:") and real != files.url_of(given)
    )
    raise ConfigError(
        f"archive={archive} {'is written by jobs, in' if written else 'holds'} warehouse={warehouse}{link}: pictures "
        "that jobs write there would be read as images of the archive; choose a warehouse beside the archive with "
        "warehouse=URL"
    )


def _real_url(path_or_url: str) -> str:
    """The URL of a place: on this machine that to which links lead. `s3` and `s3a` are one store."""
    url = files.url_of(path_or_url)
    if url.startswith("file://"):
        return f"file://{os.path.realpath(files.filesystem(url)[1])}"
    return url.replace("s3a://", "s3://", 1)


def _run(command: Command, settings: config.Settings, given: SparkSession | None, argv: tuple[str, ...]) -> Summary:
    """Run the stage of a command in the Spark session `given`, or in a new one, which is stopped at the end."""
    from melanoma_spark import tracking
    from melanoma_spark.spark import executors, session

    warehouse, runner = files.url_of(settings.warehouse), command.runner or run_stage
    if not command.prepared(settings):
        return runner(StageContext(None, settings, warehouse, None, argv=argv), command.name, command.stage, {})
    files.check_writable(warehouse)
    spark = (given or session.start(command.name)) if command.needs_spark(settings) else None
    try:
        if spark is not None:
            tracking.check(settings.mlflow, session.master())
        tracker = tracking.Tracker(settings.mlflow, warehouse)
        if spark is not None and not session.is_local(spark):  # now that executors have had time to register
            executors.check_versions(spark)
        context = StageContext(spark, settings, warehouse, tracker, argv=argv)
        tags = {"job": command.name, "commit": lineage.commit(), "version": __version__, "stack": stack()}
        return runner(context, command.name, command.stage, tags)
    finally:
        if spark is not None and given is None:
            spark.stop()


def stack() -> str:
    """Return the versions of the packages on which results may depend."""
    names = ("pyspark", "tensorflow-cpu", "tensorflow", "keras", "horovod", "petastorm", "mlflow", "numpy")
    versions = [f"python {platform.python_version()}"]
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join(versions)


def _arguments(name: str, description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    keys = "\n".join(f"  {key:32} {text}" for key, text in config.valid_keys().items())
    statuses = "\n".join(f"  {status:d}  {status.meaning}" for status in ExitStatus)
    parser = argparse.ArgumentParser(
        prog=f"melanoma-spark {name}",
        description=description,
        epilog=f"settings [default]:\n{keys}\n\nsee conf/*.yaml for examples\n\nexit statuses:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--conf", metavar="FILE.yaml", help="settings file; without it the defaults apply")
    parser.add_argument("--check", action="store_true", help="check the settings and stop before Spark starts")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override those of the file")
    return parser.parse_intermixed_args(argv)  # settings may stand before and after options
