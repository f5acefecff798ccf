"""Asks the executors whether they are ready, within a second or two, before work that takes minutes to fail."""

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

from pyspark import RDD
from pyspark.sql import Row, SparkSession

from melanoma_spark.errors import ClusterError, MelanomaError, error_of_task, java_message
from melanoma_spark.spark import checks, session
from melanoma_spark.storage import files

PYTHON = (
    "workers need the driver's Python and packages: at the same path, or shipped by --archives and PYSPARK_PYTHON "
    "(conf/spark-*.conf)"
)
CONNECT_SECONDS = 5.0
LOAD_SECONDS = 120  # for TensorFlow
LOAD = "import horovod.tensorflow as hvd; print('built', 'with' if hvd.gloo_built() else 'without', 'Gloo')"
# Versions of an executor's JVM: Spark evaluates `reflect` where the row is.
JVM_VERSIONS = (
    "reflect('java.lang.System', 'getProperty', 'java.version') AS java",
    "reflect('org.apache.spark.package', 'SPARK_VERSION') AS spark",
)

DescribeMachine = Callable[[Row], checks.Machine]


def check_ready(spark: SparkSession, size: int) -> None:
    """Wait until `size` tasks can run at once, and check that they have the driver's versions and reach each other.

    Raises `ClusterError` with the executor and its problem.
    """
    session.wait_for_slots(spark, size)
    here = checks.package_versions()
    for answer in _probe_all(spark, spark.sparkContext.parallelize(range(size), size)):
        where = checks.executor_on(answer.host)
        packages = checks.check_packages(where, here, answer.versions)
        checks.raise_failure([packages, checks.check_network(where, answer.unreachable)])


def check_versions(spark: SparkSession) -> None:
    """Check that the executors that have registered so far have the driver's versions. Raises as `check_ready`.

    It starts Python workers, which the first stage then uses.
    """
    here, asked = checks.package_versions(), 0
    while asked < (free := session.slots(spark)):  # more executors may register meanwhile
        asked = free
        for host, versions in _collect_versions(spark, asked):
            checks.raise_failure([checks.check_packages(checks.executor_on(host), here, versions)])


def probe_machines(spark: SparkSession, warehouse: str, written: str) -> list[checks.Answer]:
    """Ask a task in every slot for its versions and network, and one task of each executor for its machine.

    `written` is a file that the driver wrote into the warehouse, or empty. Takes some seconds. Raises `ClusterError`
    where there is no executor, or a task failed.
    """
    slots = session.settled_slots(spark)
    if not slots:
        raise ClusterError("none has registered; check that the cluster has free cores, and the memory of an executor")
    _collect_versions(spark, slots)  # it names an executor without Python, which a barrier stage does not
    rows = spark.range(0, slots, 1, slots).selectExpr(*JVM_VERSIONS).rdd
    return _probe_all(spark, rows, functools.partial(_describe_machine, warehouse, written))


def horovod_problem() -> str:
    """Return the problem of Horovod here, or nothing. Loads it in another process, which it may crash."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {LOAD_SECONDS} s"
    if done.returncode:
        return ([f"ended with {done.returncode}", *done.stderr.strip().splitlines()][-1])[:300]
    return "" if "built with Gloo" in done.stdout else "built without Gloo"


def _collect_versions(spark: SparkSession, tasks: int) -> list[tuple[str, dict[str, str]]]:
    rows = spark.sparkContext.parallelize(range(tasks), tasks)
    return _collect(rows.mapPartitions(lambda _: [(socket.gethostname(), checks.package_versions())]))


def _probe_all(spark: SparkSession, rows: RDD[Any], describe: DescribeMachine | None = None) -> list[checks.Answer]:
    """Collect the answer of a task for each row; all of them run at once."""
    with socket.create_server(("", 0), backlog=1024) as listening:
        driver = (str(spark.conf.get("spark.driver.host")), str(listening.getsockname()[1]))
        sent = time.time()
        answers = _collect(rows.barrier().mapPartitions(functools.partial(_probe, driver, describe)))
        received = time.time()
    return [replace(one, skew=checks.clock_skew(sent, one.began, one.ended, received)) for one in answers]


def _collect(tasks: RDD[Any]) -> list[Any]:
    """Collect rows. Raises `ClusterError` with the error of a task, and its executor if Spark names it."""
    from py4j.protocol import Py4JJavaError

    try:
        return list(tasks.collect())
    except Py4JJavaError as error:
        host = re.search(r"\(TID \d+\) \((\S+) executor", str(error))
        where = checks.executor_on(host[1]) if host else "executors"
        message = f"{where} cannot be asked: {java_message(error)}; {PYTHON}"
        raise error_of_task(error) or ClusterError(message) from None


def _probe(driver: tuple[str, str], describe: DescribeMachine | None, rows: Iterator[Row]) -> Iterator[checks.Answer]:
    """Run in a barrier task: connect to the driver and all other tasks."""
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
                socket.create_connection((name, int(port)), timeout=CONNECT_SECONDS).close()
            except OSError as error:
                unreachable = f"{name}:{port} ({files.reason(error)})"
                break  # each of many may take all the seconds
        context.barrier()  # listening until all have tried
    first = executors.index(own) == context.partitionId()
    machine = describe(next(iter(rows))) if describe and first else None
    yield checks.Answer(host, own, checks.package_versions(), unreachable, began, time.time(), machine=machine)


def _describe_machine(warehouse: str, written: str, row: Row) -> checks.Machine:
    """Run in the first task of an executor."""
    import psutil
    from pyspark import TaskContext

    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context else None
    memory = psutil.virtual_memory()
    problem = ""
    try:
        files.check_writable(warehouse)
        if written and not files.exists(written):
            problem = (
                f"{warehouse} is another one than the driver's; mount the driver's folder there, or name a shared one"
            )
    except (MelanomaError, OSError) as error:
        problem = str(error)
    return checks.Machine(
        java=row.java,
        spark=row.spark,
        horovod=horovod_problem(),
        warehouse=problem,
        total=memory.total / 1e9,
        available=memory.available / 1e9,
        cores=len(os.sched_getaffinity(0)),
        gpus=tuple(gpus.addresses) if gpus else (),
        devices=len(glob.glob("/dev/nvidia[0-9]*")),
    )
