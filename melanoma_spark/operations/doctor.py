"""Whether this machine, Spark's executors, the warehouse and MLflow are as the other jobs need them.

What users are told of it is in `jobs/doctor.py`, the text of --help.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from melanoma_spark import config, lineage, logs, tracking
from melanoma_spark.errors import ClusterError, MelanomaError
from melanoma_spark.models import backbones, engines, weights
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.spark import checks, executors, session
from melanoma_spark.spark.checks import DRIVER, OK, WARNING, Finding
from melanoma_spark.storage import files, lease

SERVER = (
    "see that the server runs and may write where it keeps runs and artifacts, or name another: mlflow.tracking_uri="
)
LEVELS = {OK: logging.INFO, WARNING: logging.WARNING, checks.FAILED: logging.ERROR}


def doctor(context: StageContext) -> Summary:
    """Tells the table. Raises `ClusterError` where a check failed, `ConfigError` for an engine that cannot score."""
    engines.engine_for(context.settings.score.engine, context.settings.backbone.name)
    found = checks.merge_findings(examined(context.settings, context.warehouse))
    if logs.in_json():
        for one in found:
            told = f"{one.what}, {one.where}: {one.found}" + (f"; {one.remedy}" if one.remedy else "")
            logs.result(told, "finding", LEVELS[one.verdict], **asdict(one))
    else:
        logs.result(checks.findings_table(found))
    failed = [one for one in found if one.verdict == checks.FAILED]
    if failed:
        names = ", ".join(dict.fromkeys(one.what for one in failed))
        raise ClusterError(f"{len(failed)} of {len(found)} checks failed: {names}; remedies stand in the table")
    warnings = sum(one.verdict == WARNING for one in found)
    return Summary(f"{len(found)} checks, {warnings} of them with a warning, none failed")


def examined(settings: config.Settings, warehouse: str) -> Iterator[Finding]:
    yield from checked("uv.lock", DRIVER, of_lock, checks.INSTALL)
    yield from checked("Horovod", DRIVER, lambda: [of_horovod(settings.ranks)], checks.INSTALL)
    yield from checked("weights", DRIVER, lambda: [of_weights(settings)], "name a readable file: backbone.weights=")
    written = files.join(warehouse, f".doctor-{uuid.uuid4().hex[:8]}")

    def of_warehouse() -> list[Finding]:
        files.check_writable(warehouse)
        files.write_bytes(written, b"")
        return [Finding("warehouse", DRIVER, f"{warehouse}: writes")]

    found = checked("warehouse", DRIVER, of_warehouse, "name another one: warehouse=URL")
    yield from found
    there = found[0].verdict == OK
    try:
        yield from of_spark(settings, warehouse, written if there else "")
    finally:
        if there:
            with suppress(Exception):  # the warehouse may be away by now
                files.remove(written)


def checked(what: str, where: str, check: Callable[[], Iterable[Finding]], remedy: str) -> list[Finding]:
    """What a check finds; an error of it is a finding, too, and stops no other one."""
    try:
        return list(check())
    except MelanomaError as error:
        return [checks.finding_of_error(what, where, error, remedy)]
    except Exception as error:
        return [checks.finding_of_crash(what, where, error, remedy)]


def of_lock() -> list[Finding]:
    path = lineage.checkout() / "uv.lock"
    if not path.is_file():
        return [Finding("uv.lock", DRIVER, "not compared: there is none beside this code, as in a packed environment")]
    text = path.read_text()
    return [checks.check_lock(text, checks.installed_versions(checks.locked_names(text)))]


def of_horovod(ranks: int) -> Finding:
    return checks.check_horovod(DRIVER, executors.horovod_problem(), ranks)


def of_weights(settings: config.Settings) -> Finding:
    chosen = settings.backbone
    place = weights.locate(chosen)
    if not place:
        remedy = f"without internet put {backbones.backbone(chosen.name).imagenet_file} into ~/.keras/models"
        return Finding("weights", DRIVER, f"none of {chosen.name} at hand, Keras will download them", WARNING, remedy)
    found = weights.resolve(chosen, settings.seed) if place != weights.RANDOM else None
    return Finding("weights", DRIVER, f"{chosen.name}, {place}" + (f", content id {found.content_id}" if found else ""))


def of_spark(settings: config.Settings, warehouse: str, written: str) -> Iterator[Finding]:
    """Of Spark, and of what depends on its master."""
    started: list[Any] = []

    def start() -> list[Finding]:
        spark = session.start("doctor")
        started.append(spark)
        java = checks.check_java(DRIVER, session.java_version(spark))
        return [java, Finding("Spark", DRIVER, f"{spark.version}, {session.master()}")]

    def of_mlflow() -> list[Finding]:
        tracking.check(settings.mlflow, session.master())
        return [Finding("MLflow", DRIVER, tracking.check_writing(settings.mlflow, warehouse))]

    yield from checked("Spark", DRIVER, start, "")
    yield from checked("MLflow", DRIVER, of_mlflow, SERVER)
    for spark in started:
        try:
            yield from of_executors(spark, settings, warehouse, written)
        finally:
            spark.stop()


def of_executors(spark: Any, settings: config.Settings, warehouse: str, written: str) -> Iterator[Finding]:
    def of_slots() -> list[Finding]:
        session.wait_for_slots(spark, settings.ranks)
        return [Finding("slots", DRIVER, f"{session.settled_slots(spark)}, ranks={settings.ranks}")]

    def asked() -> Iterable[Finding]:
        answers = executors.probe_machines(spark, warehouse, written)
        engine = engines.engine_for(settings.score.engine, settings.backbone.name, gpus=session.task_gpus(spark))
        return checks.check_executors(
            answers,
            checks.package_versions(),
            spark.version,
            session.executor_resources(spark),
            engine=engine,
            stale=lease.STALE,
        )

    yield from checked("slots", DRIVER, of_slots, "")
    yield from checked("executors", "cluster", asked, executors.PYTHON)
