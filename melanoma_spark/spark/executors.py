"""Whether the executors are fit: asked in a second, before anything that takes minutes to fail is started."""

from __future__ import annotations

import functools
import glob
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from melanoma_spark.errors import ClusterError, MelanomaError, error_of_task, java_message
from melanoma_spark.spark import checks, session
from melanoma_spark.storage import files

PYTHON = (
    "workers need the driver's Python and packages: at the same path, or sent along by --archives and PYSPARK_PYTHON "
    "(conf/spark-*.conf)"
)
PATIENCE = 5.0  # seconds for a connection
SLOW = 120  # seconds for TensorFlow to load
LOADS = "import horovod.tensorflow as hvd; print('built', 'with' if hvd.gloo_built() else 'without', 'Gloo')"
# What the JVM of an executor says of itself: Spark reflects where the row is.
ITSELF = (
    "reflect('java.lang.System', 'getProperty', 'java.version') AS java",
    "reflect('org.apache.spark.package', 'SPARK_VERSION') AS spark",
)

Look = Callable[[Any], checks.Machine]


def check(spark: Any, size: int) -> None:
    """Return when `size` tasks can run at once, with the driver's versions, and reach it and each other.

    Takes a second or two. Raises `ClusterError` with the executor and what is wrong with it.
    """
    session.wait_for_slots(spark, size)
    here = checks.versions()
    for answer in _asked(spark, spark.sparkContext.parallelize(range(size), size)):
        where = checks.on(answer.host)
        checks.refuse([checks.packages(where, here, answer.versions), checks.reached(where, answer.unreachable)])


def check_versions(spark: Any) -> None:
    """Return when the executors that have registered so far have the driver's versions. Raises as `check`.

    One that comes later is not asked. It costs the start of Python workers, which the first stage then finds.
    """
    here, asked = checks.versions(), 0
    while asked < (there := session.slots(spark)):  # some come while the first ones answer
        asked = there
        for host, found in _versions(spark, asked):
            checks.refuse([checks.packages(checks.on(host), here, found)])


def machines(spark: Any, warehouse: str, written: str) -> list[checks.Answer]:
    """What a task in every slot tells, the first one in each executor of its machine, too. Takes some seconds.

    `written` is a file that the driver wrote into the warehouse, or nothing. Raises `ClusterError` where there is no
    executor, or a task ended.
    """
    slots = session.settled_slots(spark)
    if not slots:
        raise ClusterError("none has come; see that the cluster has free cores, and the memory that one asks for")
    _versions(spark, slots)  # an executor without Python is named by this stage, and not by one with a barrier
    rows = spark.range(0, slots, 1, slots).selectExpr(*ITSELF).rdd
    return _asked(spark, rows, functools.partial(_look, warehouse, written))


def horovod() -> str:
    """What is wrong with Horovod here, or nothing. Tried in a process of its own, which it may take with it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", LOADS]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SLOW)
    except subprocess.TimeoutExpired:
        return f"did not load within {SLOW} s"
    if done.returncode:
        return ([f"ended with {done.returncode}", *done.stderr.strip().splitlines()][-1])[:300]
    return "" if "built with Gloo" in done.stdout else "built without Gloo"


def _versions(spark: Any, tasks: int) -> list[tuple[str, dict[str, str]]]:
    rows = spark.sparkContext.parallelize(range(tasks), tasks)
    return _collected(rows.mapPartitions(lambda _: [(socket.gethostname(), checks.versions())]))


def _asked(spark: Any, rows: Any, look: Look | None = None) -> list[checks.Answer]:
    """What a task of each row tells; all of them run at once."""
    with socket.create_server(("", 0), backlog=1024) as listening:
        driver = (str(spark.conf.get("spark.driver.host")), str(listening.getsockname()[1]))
        sent = time.time()
        answers = _collected(rows.barrier().mapPartitions(functools.partial(_probe, driver, look)))
        received = time.time()
    return [replace(one, skew=checks.skew(sent, one.began, one.ended, received)) for one in answers]


def _collected(tasks: Any) -> list[Any]:
    """Raises `ClusterError` with what a task ended with, and where Spark tells that."""
    from py4j.protocol import Py4JJavaError

    try:
        return list(tasks.collect())
    except Py4JJavaError as error:
        host = re.search(r"\(TID \d+\) \((\S+) executor", str(error))
        where = checks.on(host[1]) if host else "executors"
        message = f"{where} cannot be asked: {java_message(error)}; {PYTHON}"
        raise error_of_task(error) or ClusterError(message) from None


def _probe(driver: tuple[str, str], look: Look | None, rows: Iterator[Any]) -> Iterator[checks.Answer]:
    """In a barrier task."""
    from pyspark import BarrierTaskContext

    began = time.time()
    context = BarrierTaskContext.get()
    host, unreachable = socket.gethostname(), ""
    executors = [task.address for task in context.getTaskInfos()]
    own = executors[context.partitionId()]
    with socket.create_server(("", 0), backlog=1024) as listening:
        address = own.rpartition(":")[0] or host
        others = context.allGather(f"{address} {listening.getsockname()[1]}")
        for name, port in [driver, *(other.split() for other in others)]:
            try:
                socket.create_connection((name, int(port)), timeout=PATIENCE).close()
            except OSError as error:
                unreachable = f"{name}:{port} ({files.reason(error)})"
                break  # each of many may take all of the patience
        context.barrier()  # listening until all have tried
    first = executors.index(own) == context.partitionId()
    machine = look(next(iter(rows))) if look and first else None
    yield checks.Answer(host, own, checks.versions(), unreachable, began, time.time(), machine=machine)


def _look(warehouse: str, written: str, row: Any) -> checks.Machine:
    """In the first task of an executor."""
    import psutil
    from pyspark import TaskContext

    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context else None
    memory = psutil.virtual_memory()
    wrong = ""
    try:
        files.check_writable(warehouse)
        if written and not files.exists(written):
            wrong = (
                f"{warehouse} is another one than the driver's; mount the driver's folder there, or name a shared one"
            )
    except (MelanomaError, OSError) as error:
        wrong = str(error)
    return checks.Machine(
        java=row.java,
        spark=row.spark,
        horovod=horovod(),
        warehouse=wrong,
        total=memory.total / 1e9,
        available=memory.available / 1e9,
        cores=len(os.sched_getaffinity(0)),
        gpus=tuple(gpus.addresses) if gpus else (),
        devices=len(glob.glob("/dev/nvidia[0-9]*")),
    )
