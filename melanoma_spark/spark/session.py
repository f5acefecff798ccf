"""The Spark session. Its master and resources come from spark-submit and conf/spark-*.conf, never from here."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from py4j.protocol import Py4JError
from pyspark import SparkConf, StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from melanoma_spark import logs
from melanoma_spark.background import every
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import ClusterError, java_message
from melanoma_spark.spark import checks


def start(name: str) -> SparkSession:
    """The session of a job, quiet and with Arrow on. Raises `ClusterError` where Spark does not start."""
    chosen = (
        SparkSession.builder.appName(f"melanoma_spark {name}")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.python.worker.reuse", "true")  # the model is loaded once per worker process
        .config("spark.dynamicAllocation.enabled", "false")  # Horovod's ranks need their slots all at once
        # Petastorm's calls of pyarrow's old API warn by the hundred, TensorFlow of the processor it runs on.
        .config("spark.executorEnv.PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning")
        .config("spark.executorEnv.TF_CPP_MIN_LOG_LEVEL", "2")
        # What is broadcast passes through the driver, whose memory must not grow with the number of images.
        .config("spark.sql.autoBroadcastJoinThreshold", "1m")
        # Each table that is broadcast, be it of ten rows, holds a page: of 64 MB, if Spark chooses.
        .config("spark.buffer.pageSize", "4m")
        .config("spark.sql.sources.parallelPartitionDiscovery.threshold", "1000")
    )
    try:
        spark = chosen.getOrCreate()
    except (Py4JError, PySparkException) as error:
        raise ClusterError(
            f"Spark does not start at {master()}: {java_message(error)}; see that a cluster is there and is of "
            "this Spark, and that resources are written as Spark wants them (conf/spark-*.conf)"
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def master() -> str:
    """That spark-submit was given, whether Spark has started or not."""
    return str(SparkConf().get("spark.master", "local"))


def task_threads(spark: SparkSession) -> int:
    """Threads that one task may use without taking another task's core."""
    return max(1, int(spark.conf.get("spark.task.cpus", "1") or 1))


def task_gpus(spark: SparkSession) -> bool:
    """Whether Spark gives each task a GPU."""
    return float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0) > 0


def is_local(spark: SparkSession) -> bool:
    """Whether driver and executor are one process."""
    return str(spark.sparkContext.master).startswith("local")


def executor_resources(spark: SparkSession) -> checks.Asked:
    """What Spark is to give each executor."""
    local, jvm = is_local(spark), cast(Any, spark.sparkContext._jvm)

    def gigabytes(key: str, default: str) -> float:
        mebibytes = jvm.org.apache.spark.network.util.JavaUtils.byteStringAsMb(str(spark.conf.get(key, default)))
        return int(mebibytes) * 2**20 / 1e9

    heap = gigabytes("spark.driver.memory" if local else "spark.executor.memory", "1g")
    share = float(str(spark.conf.get("spark.executor.memoryOverheadFactor", "0.1")))
    overhead = gigabytes("spark.executor.memoryOverhead", f"{max(384, int(heap * 1e9 / 2**20 * share))}m")
    cap = gigabytes("spark.executor.pyspark.memory", "0")
    contained = str(spark.sparkContext.master).startswith(("yarn", "k8s"))
    return checks.Asked(heap, overhead, cap, contained, task_threads(spark), task_gpus(spark))


def java_version(spark: SparkSession) -> str:
    """Of the driver."""
    return str(cast(Any, spark.sparkContext._jvm).java.lang.System.getProperty("java.version"))


def slots(spark: SparkSession) -> int:
    """Tasks that can run at once now, at least one."""
    return max(1, _slots(spark))


def _slots(spark: SparkSession) -> int:
    context = spark.sparkContext._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    return int(context.maxNumConcurrentTasks(profile))


def settled_slots(spark: SparkSession, still: float = 3.0) -> int:
    """Tasks that can run at once, when their number has stayed for some seconds: executors come one after another."""
    count, since = _slots(spark), time.monotonic()
    while not is_local(spark) and time.monotonic() - since < still:
        time.sleep(0.5)
        if (now := _slots(spark)) != count:
            count, since = now, time.monotonic()
    return count


# Seconds in which executors must have come. Standalone workers have all that they need; a node of YARN or Kubernetes
# fetches and unpacks Python's packages, or an image, first, which takes minutes.
SOON, FETCHED = 30.0, 600.0
# Seconds more where machines may have been lost: so long they may be silent before others are asked in their place.
# spark.worker.timeout; yarn.nm.liveness-monitor.expiry-interval-ms, which is above Kubernetes' 300 s.
SILENT, LOST = 60.0, 600.0
TELL = 10.0  # seconds between two lines of a wait


def wait_for_slots(spark: SparkSession, ranks: int, lost: bool = False, clock: Clock = REAL) -> None:
    """Return when `ranks` tasks can run at once; executors may still be registering, or some have been `lost`.

    Raises `ClusterError` with both numbers when those of this kind of master have had their time, and where Spark has
    been ended meanwhile.
    """
    standalone = str(spark.sparkContext.master).startswith("spark:")
    patience, silence = (SOON, SILENT) if standalone else (FETCHED, LOST)
    if lost:
        patience += silence
    now = clock.monotonic()
    until, told = now + (0 if is_local(spark) else patience), now + TELL
    while (free := _slots(spark)) < ranks:
        if _is_stopped(spark):
            raise _ended(spark)
        if clock.monotonic() > told:
            told += TELL
            logs.info(f"{free} of {ranks} slots are there; waiting for executors", "progress", done=free, of=ranks)
        if clock.monotonic() >= until:
            raise ClusterError(
                f"ranks={ranks} but Spark has only {free} free slots (cores / spark.task.cpus over all executors); "
                f"set ranks={max(free, 1)} or give Spark more cores, for example --master local[{ranks}]"
            )
        clock.sleep(0.5)


def _is_stopped(spark: SparkSession) -> bool:
    try:
        return bool(spark.sparkContext._jsc.sc().isStopped())
    except Py4JError:  # its JVM is gone
        return True


def _ended(spark: SparkSession) -> ClusterError:
    name = spark.sparkContext.applicationId
    log = f"`yarn logs -applicationId {name}`" if str(spark.sparkContext.master) == "yarn" else "the cluster's logs"
    return ClusterError(
        f"Spark's application {name} was ended while the job ran, be it by somebody or because the cluster gave it up: "
        f"{log} may tell; run the job again, what was finished is kept"
    )


def explain_lost_spark(spark: SparkSession, error: BaseException) -> ClusterError | None:
    """What an error means where Spark was taken from the job, or all executors at once; None where neither was so."""
    if _is_stopped(spark):
        return _ended(spark)
    if "Checkpoint block" in str(error):  # of `checkpointed`, which survives the loss of one executor
        return ClusterError(
            "several executors were lost at once, and tables that they alone had; run the job again, what was finished "
            "is kept"
        )
    return None


def set_arrow_batch_rows(spark: SparkSession, rows: int) -> None:
    """Rows of an Arrow batch. Arrow counts rows, not bytes, and ours hold images: never leave the default of 10,000."""
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(rows))


@contextmanager
def shuffle_partitions(spark: SparkSession, count: int) -> Iterator[None]:
    """Joins and groupings in here are cut into `count` partitions, and planned once.

    Spark would else plan each query anew after each of its shuffles, for which every one is a job of its own: of tables
    this small, that is most of their time.
    """
    chosen = {"spark.sql.shuffle.partitions": str(count), "spark.sql.adaptive.enabled": "false"}
    before = {key: str(spark.conf.get(key)) for key in chosen}
    for key, value in chosen.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)


def checkpointed(table: DataFrame) -> DataFrame:
    """The table as it is now, whatever becomes of what it was made from; computed at once.

    It lies on two executors, where there are two, so that losing one loses none of it. Spark 3.5 keeps it on one.
    """
    if "storageLevel" not in inspect.signature(table.localCheckpoint).parameters:
        return table.localCheckpoint()
    return table.localCheckpoint(storageLevel=StorageLevel.MEMORY_AND_DISK_2)


_SENT: list[Any] = []  # what `broadcast` has sent and `release_on_exit` not yet taken back


def broadcast(spark: SparkSession, value: Any) -> Any:
    """`value` to all executors, until the end of the `release_on_exit` around it."""
    sent = spark.sparkContext.broadcast(value)
    _SENT.append(sent)
    return sent


@contextmanager
def release_on_exit(spark: SparkSession) -> Iterator[None]:
    """What is persisted, checkpointed or `broadcast` in here is let go at the end, on the driver and the executors.

    A process that ends lets go of all. One that runs many stages, or lives for weeks, would fill memory and disk: the
    driver keeps a file of all that is broadcast, among it a network's weights.
    """
    context, sent = spark.sparkContext._jsc, len(_SENT)
    before = set(context.getPersistentRDDs().keySet())
    try:
        yield
    finally:
        spark.catalog.clearCache()  # tables; Spark computes again what somebody else would still want
        persisted = context.getPersistentRDDs()
        for number in set(persisted.keySet()) - before:
            persisted.get(number).unpersist(False)
        while len(_SENT) > sent:
            _SENT.pop().destroy()


@contextmanager
def progress(spark: SparkSession, what: str, seconds: float = 10.0) -> Iterator[None]:
    """While Spark's jobs run in here, a line every so often: how many tasks of the running stages have ended."""
    tracker = spark.sparkContext.statusTracker()

    def tell() -> None:
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        done, of = (sum(getattr(stage, key) for stage in stages if stage) for key in ("numCompletedTasks", "numTasks"))
        if of:
            logs.info(f"{done} of {of} {what}", "progress", done=done, of=of)

    with every(seconds, tell):
        yield


def describe_jobs(spark: SparkSession, text: str) -> None:
    """What Spark's UI and event log say of the jobs that follow."""
    spark.sparkContext.setJobDescription(text)


class Meter:
    """How much a stage's tasks have done, and for how long they had nothing to do it with.

    Made on the driver when the work begins; `add` is for the tasks. What Spark does twice counts twice.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._started = time.monotonic()
        names = ("images", "bytes", "waited", "worked")
        self._sums = {name: spark.sparkContext.accumulator(0.0) for name in names}

    def add(self, images: int, size: int, waited: float, worked: float) -> None:
        """In a task: images done, the bytes they were read from, and seconds without and with any at hand."""
        for name, value in zip(self._sums, (images, size, waited, worked), strict=True):
            self._sums[name].add(float(value))

    def figures(self) -> dict[str, float]:
        """On the driver, when the work has ended; nothing where there was none.

        `images_per_second` is over the time since this was made, `megabytes_read` of what files or columns held, and
        `wait_share` the part of the tasks' time in which they waited for their next images, 0 to 1.
        """
        found = {name: float(total.value) for name, total in self._sums.items()}
        if not found["images"]:
            return {}
        return {
            "images_per_second": found["images"] / (time.monotonic() - self._started),
            "megabytes_read": found["bytes"] / 1e6,
            "wait_share": found["waited"] / max(found["waited"] + found["worked"], 1e-9),
        }


def partitions_for(spark: SparkSession, rows: int, smallest: int = 64, largest: int = 2048) -> int:
    """Partitions for rows that are costly to compute: about 10 a slot, each of `smallest` to `largest` rows.

    A task costs a few tenths of a second beside its rows, so it is not cut smaller than that unless slots would idle;
    which they would, too, at the end of five tasks on two slots: there are as many for each slot.
    """
    at_once = slots(spark)
    size = min(max(math.ceil(rows / (10 * at_once)), smallest), math.ceil(rows / at_once), largest)
    count = max(1, math.ceil(rows / max(1, size)))
    return min(math.ceil(count / at_once) * at_once, max(1, rows))
