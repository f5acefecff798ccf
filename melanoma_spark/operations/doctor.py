"""Checks that this machine, Spark's executors, the warehouse and MLflow are ready for the other jobs.

`jobs/doctor.py` has the text for users.
"""

import functools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict

from pyspark.sql import SparkSession

from melanoma_spark import config, lineage, logs, tracking
from melanoma_spark.errors import ClusterError
from melanoma_spark.models import backbones, engines, weights
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.spark import checks, executors, session
from melanoma_spark.spark.checks import DRIVER, OK, WARNING, Finding
from melanoma_spark.storage import files, lease
from melanoma_spark.training import horovod

SERVER = "check that the server runs and can write its runs and artifacts, or name another: mlflow.tracking_uri="
LEVELS = {OK: logging.INFO, WARNING: logging.WARNING, checks.FAILED: logging.ERROR}


def doctor(context: StageContext) -> Summary:
    """Run all checks and log their findings.

    Raises:
        ClusterError: A check failed.
        ConfigError: The engine cannot score with this backbone.
    """
    engines.engine_for(context.settings.score.engine, context.settings.backbone.name)
    findings = checks.merge_findings(check_all(context.settings, context.warehouse))
    if logs.in_json():
        for finding in findings:
            text = f"{finding.what}, {finding.where}: {finding.found}"
            text += f"; {finding.remedy}" if finding.remedy else ""
            logs.result(text, "finding", LEVELS[finding.verdict], **asdict(finding))
    else:
        logs.result(checks.findings_table(findings))
    failed = [finding.what for finding in findings if finding.verdict == checks.FAILED]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise ClusterError(f"{len(failed)} of {len(findings)} checks failed: {names}; the table has remedies")
    warnings = sum(finding.verdict == WARNING for finding in findings)
    return Summary(f"{len(findings)} checks, {warnings} of them with a warning, none failed")


def check_all(settings: config.Settings, warehouse: str) -> Iterator[Finding]:
    """Yield the findings about the driver, the warehouse, Spark and MLflow."""
    yield from run_check("uv.lock", DRIVER, check_lock, checks.INSTALL)
    horovod_check = functools.partial(checks.check_horovod, DRIVER, ranks=horovod.required_ranks(settings))
    yield from run_check("Horovod", DRIVER, lambda: [horovod_check(executors.horovod_problem())], checks.INSTALL)
    remedy = "name a readable file: backbone.weights="
    yield from run_check("weights", DRIVER, lambda: [check_weights(settings)], remedy)
    probe = files.join(warehouse, f".doctor-{uuid.uuid4().hex[:8]}")

    def check_warehouse() -> list[Finding]:
        files.check_writable(warehouse)
        files.write_bytes(probe, b"")
        return [Finding("warehouse", DRIVER, f"{warehouse}: writes")]

    findings = run_check("warehouse", DRIVER, check_warehouse, "name another one: warehouse=URL")
    yield from findings
    written = findings[0].verdict == OK
    try:
        yield from check_spark(settings, warehouse, probe if written else "")
    finally:
        if written:
            with suppress(Exception):  # the warehouse may be away by now
                files.remove(probe)


def run_check(what: str, where: str, check: Callable[[], Iterable[Finding]], remedy: str) -> list[Finding]:
    """Return the findings of a check; an error is a finding too, and stops no other check."""
    try:
        return list(check())
    except Exception as error:
        return [checks.finding_of_error(what, where, error, remedy)]


def check_lock() -> list[Finding]:
    """Compare the installed packages with those of uv.lock."""
    path = lineage.checkout() / "uv.lock"
    if not path.is_file():
        return [Finding("uv.lock", DRIVER, "not compared: there is none beside this code, as in a packed environment")]
    text = path.read_text()
    return [checks.check_lock(text, checks.installed_versions(checks.locked_names(text)))]


def check_weights(settings: config.Settings) -> Finding:
    """Check that the weights of the backbone are where the jobs look for them."""
    backbone = settings.backbone
    place = weights.locate(backbone)
    if not place:
        remedy = f"without internet put {backbones.backbone(backbone.name).imagenet_file} into ~/.keras/models"
        return Finding("weights", DRIVER, f"none of {backbone.name} here, Keras will download them", WARNING, remedy)
    text = f"{backbone.name}, {place}"
    if place != weights.RANDOM:
        text += f", content id {weights.resolve(backbone, settings.seed).content_id}"
    return Finding("weights", DRIVER, text)


def check_spark(settings: config.Settings, warehouse: str, probe: str) -> Iterator[Finding]:
    """Yield the findings about Spark, and about MLflow and the executors, which depend on its master."""
    started: list[SparkSession] = []

    def start() -> list[Finding]:
        spark = session.start("doctor")
        started.append(spark)
        java = checks.check_java(DRIVER, session.java_version(spark))
        return [java, Finding("Spark", DRIVER, f"{spark.version}, {session.master()}")]

    def check_mlflow() -> list[Finding]:
        tracking.check(settings.mlflow, session.master())
        return [Finding("MLflow", DRIVER, tracking.check_writing(settings.mlflow, warehouse))]

    yield from run_check("Spark", DRIVER, start, "")
    yield from run_check("MLflow", DRIVER, check_mlflow, SERVER)
    for spark in started:
        try:
            yield from check_executors(spark, settings, warehouse, probe)
        finally:
            spark.stop()


def check_executors(spark: SparkSession, settings: config.Settings, warehouse: str, probe: str) -> Iterator[Finding]:
    """Yield the findings about slots and executors; `probe` is a file that executors read, or empty."""

    def check_slots() -> list[Finding]:
        session.wait_for_slots(spark, settings.ranks)
        return [Finding("slots", DRIVER, f"{session.settled_slots(spark)}, ranks={settings.ranks}")]

    def check_machines() -> Iterable[Finding]:
        answers = executors.probe_machines(spark, warehouse, probe)
        engine = engines.engine_for(settings.score.engine, settings.backbone.name, gpus=session.task_gpus(spark))
        return checks.check_executors(
            answers,
            checks.package_versions(),
            spark.version,
            session.executor_resources(spark),
            engine=engine,
            stale=lease.STALE,
        )

    yield from run_check("slots", DRIVER, check_slots, "")
    yield from run_check("executors", "cluster", check_machines, executors.PYTHON)
