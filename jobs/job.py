"""What every job does around its stage: read the settings, open Spark and MLflow, run, report, and fail in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from melanoma_spark import __version__, backbones, config, files, lineage, operating_points
from melanoma_spark.errors import ConfigError, MelanomaError, of_executor, of_storage, root_cause

TRACEBACK_VARIABLE = "MELANOMA_TRACEBACK"
ERROR_VARIABLE = "MELANOMA_ERROR_FILE"  # where spark-submit.sh looks for the line of an error

# TensorFlow's notes on the processor, once a process, are nobody's news. Set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True)
class Job:
    """What a stage is given."""

    spark: Any
    settings: config.Settings
    warehouse: str
    tracker: Any
    run_id: str = ""
    lease: Any = None


Stage = Callable[[Job], str]


def say(text: str) -> None:
    print(text, flush=True)


def main(name: str, description: str, stage: Stage, needs_archive: bool = False) -> None:
    """Run one stage as a job and leave with its exit status: 0, or that of the error."""
    arguments = _arguments(name, description)
    try:
        settings = config.load(arguments.conf, arguments.settings)
        check(settings, needs_archive)
        if arguments.check:
            return
        sys.exit(_run(name, settings, stage))
    except MelanomaError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        from pyspark.errors import PySparkException

        if not isinstance(error, PySparkException) or os.environ.get(TRACEBACK_VARIABLE):
            raise
        ours = of_executor(error)
        if ours:
            _fail(str(ours), ours.exit_status)
        _fail(f"Spark: {root_cause(error)} (set {TRACEBACK_VARIABLE}=1 to see where)", 1)


def _fail(message: str, status: int) -> None:
    line = f"error: {message}\n"
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
    backbones.check(settings)
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


def run_stage(job: Job, name: str, stage: Stage, tags: dict[str, str]) -> None:
    """One stage in an MLflow run of its own, nested in an open one, with one summary line at its end.

    Raises `ClusterError` where a file system was full, or away.
    """
    from melanoma_spark import lease, session

    started = time.monotonic()
    with (
        one_line(job),
        lease.held(job.warehouse, name, job.settings.wait) as own,
        job.tracker.run(name, tags, config.compared(job.settings)) as run_id,
    ):
        if "job" in tags:  # the outermost run
            text = "".join(f"{key}: {value}\n" for key, value in config.shown(job.settings).items())
            job.tracker.artifact("settings.txt", text.encode())
        session.describe(job.spark, name)
        summary = stage(replace(job, run_id=run_id, lease=own))
        seconds = time.monotonic() - started
        job.tracker.metrics({"seconds": seconds})
    say(f"{name}: {summary}; {seconds:.1f} s")


@contextlib.contextmanager
def one_line(job: Job) -> Iterator[None]:
    """Around what writes: the errors of a full or lost file system, whoever met them, as one that tells the place."""
    scratch = os.environ.get("SPARK_LOCAL_DIRS") or job.spark.conf.get("spark.local.dir", tempfile.gettempdir())
    places = {"the warehouse": job.warehouse.removeprefix("file://"), "Spark's scratch folder": scratch}
    try:
        yield
    except Exception as error:
        told = None if isinstance(error, MelanomaError) else of_storage(error, places)
        if told is None:
            raise
        raise told from error


def _run(name: str, settings: config.Settings, stage: Stage) -> int:
    from melanoma_spark import session, tracking

    warehouse = files.url_of(settings.warehouse)
    files.check_writable(warehouse)
    spark = session.start(name)
    try:
        tracker = tracking.Tracker(settings.mlflow, warehouse)
        job = Job(spark, settings, warehouse, tracker)
        tags = {"job": name, "commit": lineage.commit(), "version": __version__, "stack": stack()}
        run_stage(job, name, stage, tags)
        return 0
    finally:
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
