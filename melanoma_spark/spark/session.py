"""The Spark session. Its master and resources come from spark-submit and conf/spark-*.conf, never from here."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from py4j.protocol import Py4JError
from pyspark import Broadcast, SparkConf, StorageLevel, inheritable_thread_target
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from melanoma_spark import logs
from melanoma_spark.background import periodic
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import ClusterError, java_message
from melanoma_spark.spark import checks

Value = TypeVar("Value")


def start(name: str) -> SparkSession:
    """Start the session of a job, quiet and with Arrow. Raises `ClusterError` where Spark does not start."""
    builder = (
        SparkSession.builder.appName(f"melanoma_spark {name}")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.python.worker.reuse", "true")  # the model is loaded once per worker process
        .config("spark.dynamicAllocation.enabled", "false")  # Horovod's ranks need their slots all at once
        # Petastorm's calls of pyarrow's old API cause hundreds of warnings, TensorFlow warns of its processor.
        .config("spark.executorEnv.PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning")
        .config("spark.executorEnv.TF_CPP_MIN_LOG_LEVEL", "2")
        # Broadcast tables pass through the driver, whose memory must not grow with the number of images.
        .config("spark.sql.autoBroadcastJoinThreshold", "1m")
        # Each broadcast table, even of ten rows, holds a page, by default of 64 MB.
        .config("spark.buffer.pageSize", "4m")
        .config("spark.sql.sources.parallelPartitionDiscovery.threshold", "1000")
    )
    try:
        spark = builder.getOrCreate()
    except (Py4JError, PySparkException) as error:
        raise ClusterError(
            f"Spark does not start at {master()}: {java_message(error)}; check that the cluster runs and has "
            "this version of Spark, and that resources are written as Spark expects (conf/spark-*.conf)"
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def master() -> str:
    """Return the master that spark-submit got, whether Spark has started or not."""
    return str(SparkConf().get("spark.master", "local"))


def task_threads(spark: SparkSession) -> int:
    """Return how many threads one task may use without taking another task's core."""
    return max(1, int(spark.conf.get("spark.task.cpus", "1") or 1))


def task_gpus(spark: SparkSession) -> bool:
    """Return whether Spark gives each task a GPU."""
    return float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0) > 0


def is_local(spark: SparkSession) -> bool:
    """Return whether driver and executor are one process."""
    return str(spark.sparkContext.master).startswith("local")


def executor_resources(spark: SparkSession) -> checks.ExecutorResources:
    """Read what Spark is configured to give each executor."""
    local, jvm = is_local(spark), cast(Any, spark.sparkContext._jvm)

    def gigabytes(key: str, default: str) -> float:
        mebibytes = jvm.org.apache.spark.network.util.JavaUtils.byteStringAsMb(str(spark.conf.get(key, default)))
        return int(mebibytes) * 2**20 / 1e9

    heap = gigabytes("spark.driver.memory" if local else "spark.executor.memory", "1g")
    share = float(str(spark.conf.get("spark.executor.memoryOverheadFactor", "0.1")))
    overhead = gigabytes("spark.executor.memoryOverhead", f"{max(384, int(heap * 1e9 / 2**20 * share))}m")
    cap = gigabytes("spark.executor.pyspark.memory", "0")
    contained = str(spark.sparkContext.master).startswith(("yarn", "k8s"))
    return checks.ExecutorResources(heap, overhead, cap, contained, task_threads(spark), task_gpus(spark))


def java_version(spark: SparkSession) -> str:
    """Return the driver's Java version."""
    return str(cast(Any, spark.sparkContext._jvm).java.lang.System.getProperty("java.version"))


def slots(spark: SparkSession) -> int:
    """Return how many tasks can run at once now, at least one."""
    return max(1, _slots(spark))


def _slots(spark: SparkSession) -> int:
    context = spark.sparkContext._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    return int(context.maxNumConcurrentTasks(profile))


def settled_slots(spark: SparkSession, still: float = 3.0) -> int:
    """Return how many tasks can run at once, after that has not changed for some seconds."""
    count, since = _slots(spark), time.monotonic()
    while not is_local(spark) and time.monotonic() - since < still:
        time.sleep(0.5)
        if (now := _slots(spark)) != count:
            count, since = now, time.monotonic()
    return count


# Seconds within which executors must register. Standalone workers are ready; a node of YARN or Kubernetes first fetches
# and unpacks Python's packages, or an image, which takes minutes.
STANDALONE_START, FETCHED_START = 30.0, 600.0
# Further seconds where machines may have been lost: as long as a cluster waits for them before it replaces them.
# spark.worker.timeout; yarn.nm.liveness-monitor.expiry-interval-ms, which is above Kubernetes' 300 s.
STANDALONE_LOSS, FETCHED_LOSS = 60.0, 600.0
LOG_SECONDS = 10.0  # between two lines of a wait


def wait_for_slots(spark: SparkSession, ranks: int, lost: bool = False, clock: Clock = REAL) -> None:
    """Wait until `ranks` tasks can run at once, while executors register, or replace some that were `lost`.

    Raises `ClusterError` with both numbers when the time for this kind of master is over, and where Spark was ended.
    """
    standalone = str(spark.sparkContext.master).startswith("spark:")
    patience, silence = (STANDALONE_START, STANDALONE_LOSS) if standalone else (FETCHED_START, FETCHED_LOSS)
    if lost:
        patience += silence
    now = clock.monotonic()
    until, next_line = now + (0 if is_local(spark) else patience), now + LOG_SECONDS
    while (free := _slots(spark)) < ranks:
        if is_stopped(spark):
            raise _ended(spark)
        if clock.monotonic() > next_line:
            next_line += LOG_SECONDS
            logs.info(f"{free} of {ranks} slots are free; waiting for executors", "progress", done=free, of=ranks)
        if clock.monotonic() >= until:
            raise ClusterError(
                f"ranks={ranks} but Spark has only {free} free slots (cores / spark.task.cpus over all executors); "
                f"set ranks={max(free, 1)} or give Spark more cores, for example --master local[{ranks}]"
            )
        clock.sleep(0.5)


def is_stopped(spark: SparkSession) -> bool:
    """Return whether Spark's driver, or its connection to the cluster, has ended."""
    try:
        return bool(spark.sparkContext._jsc.sc().isStopped())
    except Exception:  # py4j's own, of many kinds, when the JVM is gone
        return True


def _ended(spark: SparkSession) -> ClusterError:
    name = spark.sparkContext.applicationId
    log = f"`yarn logs -applicationId {name}`" if str(spark.sparkContext.master) == "yarn" else "the cluster's logs"
    return ClusterError(
        f"Spark's application {name} was ended while the job ran, by somebody or by the cluster: {log} may "
        "say why; run the job again, finished work is kept"
    )


def explain_lost_spark(spark: SparkSession, error: BaseException) -> ClusterError | None:
    """Explain an error of a Spark that was ended, or that lost several executors at once; None for other errors."""
    if is_stopped(spark):
        return _ended(spark)
    if "Checkpoint block" in str(error):  # a `checkpointed` table survives the loss of one executor
        return ClusterError(
            "several executors were lost at once, and tables that only they had; run the job again, finished work is "
            "kept"
        )
    return None


def set_arrow_batch_rows(spark: SparkSession, rows: int) -> None:
    """Set the rows of an Arrow batch. The default of 10,000 rows is too many for rows that hold images."""
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(rows))


@contextmanager
def shuffle_partitions(spark: SparkSession, count: int) -> Iterator[None]:
    """Split joins and groupings into `count` partitions, and plan them once.

    Otherwise Spark plans a query again after each shuffle, each of which is then a job of its own. For small tables
    that takes most of the time.
    """
    with changed(spark, {"spark.sql.shuffle.partitions": str(count), "spark.sql.adaptive.enabled": "false"}):
        yield


FEW_ROWS = 100_000


@contextmanager
def interpreted(spark: SparkSession, rows: int) -> Iterator[None]:
    """Let Spark interpret its queries if they are about few rows.

    Otherwise it compiles each query to Java code first. That takes 4 s of an ingest of 2,600 images, and saves 0.7
    microseconds for each row of a query.
    """
    few = {"spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    with changed(spark, few if rows <= FEW_ROWS else {}):
        yield


@contextmanager
def changed(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Change settings of the session until the end."""
    before = {key: str(spark.conf.get(key)) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)


def checkpointed(table: DataFrame) -> DataFrame:
    """Compute a table now, and keep it independent of its sources.

    Two executors hold each part of it, so losing one loses nothing. Spark 3.5 keeps it on one.
    """
    if "storageLevel" not in inspect.signature(table.localCheckpoint).parameters:
        return table.localCheckpoint()
    return table.localCheckpoint(storageLevel=StorageLevel.MEMORY_AND_DISK_2)


_BROADCASTS: list[Broadcast[Any]] = []  # that `release_on_exit` has not destroyed yet


def broadcast(spark: SparkSession, value: Value) -> Broadcast[Value]:
    """Send a value to all executors, until the end of the `release_on_exit` around it."""
    sent = spark.sparkContext.broadcast(value)
    _BROADCASTS.append(sent)
    return sent


@contextmanager
def release_on_exit(spark: SparkSession) -> Iterator[None]:
    """Release what is persisted, checkpointed or `broadcast` inside, on the driver and the executors, at the end.

    A process that runs many stages, or for weeks, would otherwise fill memory and disk: the driver keeps a file of
    each broadcast value, such as a network's weights.
    """
    context, sent = spark.sparkContext._jsc, len(_BROADCASTS)
    before = set(context.getPersistentRDDs().keySet())
    try:
        yield
    finally:
        spark.catalog.clearCache()  # tables; Spark computes again what others still use
        persisted = context.getPersistentRDDs()
        for number in set(persisted.keySet()) - before:
            persisted.get(number).unpersist(False)
        while len(_BROADCASTS) > sent:
            _BROADCASTS.pop().destroy()


@contextmanager
def progress(spark: SparkSession, what: str, seconds: float = 10.0) -> Iterator[None]:
    """Log every few seconds how many tasks of Spark's running stages have ended."""
    tracker = spark.sparkContext.statusTracker()

    def log() -> None:
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        done, of = (sum(getattr(stage, key) for stage in stages if stage) for key in ("numCompletedTasks", "numTasks"))
        if of:
            logs.info(f"{done} of {of} {what}", "progress", done=done, of=of)

    with periodic(seconds, log):
        yield


def describe_jobs(spark: SparkSession, text: str) -> None:
    """Set what Spark's UI and event log show for the jobs that follow."""
    spark.sparkContext.setJobDescription(text)


@contextmanager
def at_once(spark: SparkSession, text: str, query: Callable[[], Value]) -> Iterator[Future[Value]]:
    """Run a query in a thread while the body runs, and wait for it at the end. `text` describes its jobs.

    Queries of few rows are mostly waiting: for the driver, then for the last task.
    """

    def run() -> Value:
        describe_jobs(spark, text)
        return query()

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(inheritable_thread_target(spark)(run))
        yield result
        result.result()


class Meter:
    """Counts what a stage's tasks have done, and how long they waited for input.

    Made on the driver when the work begins; tasks call `add`. Work that Spark repeats counts twice.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._started = time.monotonic()
        names = ("images", "bytes", "waited", "worked")
        self._sums = {name: spark.sparkContext.accumulator(0.0) for name in names}

    def add(self, images: int, size: int, waited: float, worked: float) -> None:
        """Add in a task: images, the bytes they were read from, and seconds of waiting and of work."""
        for name, value in zip(self._sums, (images, size, waited, worked), strict=True):
            self._sums[name].add(float(value))

    def figures(self) -> dict[str, float]:
        """Return the figures on the driver when the work has ended; nothing where there was none.

        `images_per_second` counts from when this was made, `megabytes_read` what files or columns held. `wait_share` is
        the part of the tasks' time in which they waited for images, 0 to 1.
        """
        totals = {name: float(total.value) for name, total in self._sums.items()}
        if not totals["images"]:
            return {}
        return {
            "images_per_second": totals["images"] / (time.monotonic() - self._started),
            "megabytes_read": totals["bytes"] / 1e6,
            "wait_share": totals["waited"] / max(totals["waited"] + totals["worked"], 1e-9),
        }


def partitions_for(spark: SparkSession, rows: int, smallest: int = 64, largest: int = 2048) -> int:
    """Return how many partitions rows that are costly to compute need: about 10 per slot, of limited size.

    Starting a task takes a few tenths of a second, so partitions have at least `smallest` rows unless slots would be
    idle. Each slot gets the same number of tasks, so that none is idle at the end.
    """
    at_once = slots(spark)
    size = min(max(math.ceil(rows / (10 * at_once)), smallest), math.ceil(rows / at_once), largest)
    count = max(1, math.ceil(rows / max(1, size)))
    return min(math.ceil(count / at_once) * at_once, max(1, rows))
