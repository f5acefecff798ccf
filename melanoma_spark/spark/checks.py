"""What is told of the state of driver and executors: facts -> findings with their remedies, and findings as a table."""

from __future__ import annotations

import importlib.metadata
import platform
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from melanoma_spark import __version__
from melanoma_spark.errors import ClusterError

OK, WARNING, FAILED = "ok", "warning", "FAILED"
DRIVER = "driver"
OUR_NAME = "melanoma-spark"  # in uv.lock

# What decodes, computes or carries rows on executors. Other versions give other figures, or an error late in a job.
PACKAGES = (
    *("cloudpickle", "horovod", "keras", "ncnn", "numpy", "onnxruntime", "opencv-python-headless", "pandas"),
    *("petastorm", "pillow", "pyarrow", "pydicom", "simplejpeg", "tensorflow", "tensorflow-cpu"),
)
JAVA = ("17", "21")  # what Spark 4.0 runs on
NEEDS = {"ncnn": 0.6, "tensorflow": 1.2, "onnxruntime": 1.3}  # GB of a Python worker: docs/decisions/engine.md
OF_JVM = 0.4  # GB of spark.executor.memoryOverhead that the JVM itself takes; Spark's least is 384 MiB
SKEW = 30.0  # seconds between clocks that are worth a warning, while leases still bear them
INSTALL = "run `make install` in the checkout"


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was looked at, where, what was found, and where that is amiss, what to do."""

    what: str
    where: str
    found: str
    verdict: str = OK
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """An executor and its machine, as one of its tasks sees them."""

    java: str
    spark: str
    horovod: str  # what is wrong with it, or nothing
    warehouse: str  # likewise
    total: float  # GB of memory
    available: float
    cores: int
    gpus: tuple[str, ...] = ()  # that Spark gave to the task
    devices: int = 0  # GPUs of the machine


@dataclass(frozen=True)
class Answer:
    """What a task tells: when it began and ended by its own clock, and by how many seconds that is off at the least.

    Of the tasks of an executor one alone tells of the machine.
    """

    host: str
    executor: str
    versions: Mapping[str, str]
    unreachable: str
    began: float
    ended: float
    skew: float = 0
    machine: Machine | None = None


@dataclass(frozen=True)
class Asked:
    """What Spark was asked to give to each executor; memory in GB."""

    heap: float
    overhead: float
    python: float  # a cap on all its Python workers; 0 is none
    contained: bool  # the workers' memory is a part of the overhead, as on YARN
    threads: int  # of a task
    gpus: bool  # for each task


def refuse(findings: Iterable[Finding]) -> None:
    """Raises `ClusterError` with the first one that failed."""
    for finding in findings:
        if finding.verdict == FAILED:
            raise ClusterError(f"{finding.where}: {finding.found}; {finding.remedy}")


def of_error(what: str, where: str, error: Exception, remedy: str) -> Finding:
    """Of an error of this package, whose message tells the remedy behind a semicolon, where it tells one."""
    found, _, way_out = str(error).partition("; ")
    return Finding(what, where, found, FAILED, way_out or remedy)


def not_checked(what: str, where: str, error: Exception, remedy: str) -> Finding:
    """Of a check that could not be made, for a reason that nobody foresaw."""
    lines = str(error).strip().splitlines() or [""]
    return Finding(what, where, f"could not be checked: {type(error).__name__}: {lines[0][:300]}", FAILED, remedy)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """By what they are about, in the order in which it came up; executors of which the same is found share a line."""
    places: dict[tuple[bool, Finding], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.where == DRIVER, replace(finding, where="")), []).append(finding.where)
    lines = [replace(finding, where=_places(where)) for (_, finding), where in places.items()]
    order = list(dict.fromkeys(line.what for line in lines))
    return sorted(lines, key=lambda line: order.index(line.what))


def _places(where: Sequence[str]) -> str:
    if len(where) == 1 or where[0] == DRIVER:
        return where[0]
    hosts = sorted({place.removeprefix(on("")) for place in where})
    more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
    return f"{len(where)} executors on {', '.join(hosts[:3])}{more}"


def table(findings: Sequence[Finding]) -> str:
    """Aligned text; a remedy stands below what it is for."""
    rows = [("verdict", "what", "where", "found"), *((f.verdict, f.what, f.where, f.found) for f in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    remedies = ["", *(finding.remedy for finding in findings)]
    lines = []
    for row, remedy in zip(rows, remedies, strict=True):
        lines.append("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
        if remedy:
            lines.append(" " * (sum(widths) + 6) + f"-> {remedy}")
    return "\n".join(lines)


def on(host: str) -> str:
    return f"executor on {host}"


def executors(
    answers: Sequence[Answer], here: Mapping[str, str], own_spark: str, asked: Asked, engine: str, stale: float
) -> Iterator[Finding]:
    """All that is to be said of executors, check by check. `here` and `own_spark` are the driver's versions."""
    first = [(answer, answer.machine) for answer in answers if answer.machine]
    tasks = Counter(answer.executor for answer in answers)
    on_host, at_once = Counter(answer.host for answer, _ in first), Counter(answer.host for answer in answers)
    yield from (java(on(one.host), its.java) for one, its in first)
    yield from (spark(on(one.host), own_spark, its.spark) for one, its in first)
    yield from (packages(on(one.host), here, one.versions) for one, _ in first)
    yield from (horovod(on(one.host), its.horovod) for one, its in first)
    for one, its in first:
        yield memory(on(one.host), tasks[one.executor], asked, its, on_host[one.host], engine)
    yield from (cores(on(one.host), at_once[one.host], asked.threads, its.cores) for one, its in first)
    yield from (gpus(on(one.host), asked, its, one.versions) for one, its in first)
    for one, _ in first:
        of_its_tasks = [answer.unreachable for answer in answers if answer.executor == one.executor]
        yield reached(on(one.host), next(filter(None, of_its_tasks), ""))
    yield from (clock(on(one.host), one.skew, stale) for one, _ in first)
    yield from (warehouse(on(one.host), its.warehouse) for one, its in first)


# Versions


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed here."""
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def versions() -> dict[str, str]:
    """Of Python and what driver and executors share, as far as it is installed."""
    return {"Python": platform.python_version(), "melanoma_spark": __version__, **installed(PACKAGES)}


def java(where: str, version: str) -> Finding:
    if version.split(".")[0] in JAVA:
        return Finding("Java", where, version)
    remedy = f"Spark runs on Java {' or '.join(JAVA)}: install one and set JAVA_HOME"
    return Finding("Java", where, version, FAILED, remedy)


def spark(where: str, here: str, found: str) -> Finding:
    if found == here:
        return Finding("Spark", where, found)
    return Finding("Spark", where, f"{found} (driver: {here})", FAILED, "run driver and workers on the same Spark")


def packages(where: str, here: Mapping[str, str], found: Mapping[str, str]) -> Finding:
    """Whether an executor has the driver's Python and packages."""
    other = sorted(name for name in {*here, *found} if here.get(name) != found.get(name))
    if not other:
        return Finding("packages", where, f"Python {found['Python']} and {len(found) - 1} packages as on the driver")
    told = ", ".join(f"{name} {found.get(name, 'none')} (driver: {here.get(name, 'none')})" for name in other)
    return Finding("packages", where, told, FAILED, "install the driver's versions there")


def locked(text: str, there: Mapping[str, str]) -> Finding:
    """Whether installed packages are those of a uv.lock, and all are there that the line needs."""
    lock = tomllib.loads(text)["package"]
    wanted = {package["name"]: package["version"] for package in lock if "version" in package}
    ours = next(package for package in lock if package["name"] == OUR_NAME)
    other = [
        f"{name} {there[name]} (uv.lock: {wanted[name]})"
        for name in sorted(wanted)
        if there.get(name, wanted[name]) != wanted[name]
    ]
    # pyspark may come from SPARK_HOME, and is told as Spark; TensorFlow is one of two packages
    needed = {package["name"] for package in ours["dependencies"]} - {"pyspark"}
    missing = [f"{name} is missing" for name in sorted(needed - there.keys())]
    if not there.keys() & {"tensorflow", "tensorflow-cpu"}:
        missing.append("tensorflow-cpu is missing")
    if other or missing:
        return Finding("uv.lock", DRIVER, ", ".join([*other, *missing]), FAILED, INSTALL)
    return Finding("uv.lock", DRIVER, f"{len(there.keys() & wanted.keys())} packages, all as locked")


def names_locked(text: str) -> list[str]:
    """The packages of a uv.lock, but ours."""
    return [package["name"] for package in tomllib.loads(text)["package"] if package["name"] != OUR_NAME]


def horovod(where: str, wrong: str) -> Finding:
    if not wrong:
        return Finding("Horovod", where, "with TensorFlow and Gloo")
    remedy = "build it against the TensorFlow that is there: `make install`"
    if "MemoryError" in wrong or "map segment" in wrong:  # of a library
        remedy = "raise spark.executor.pyspark.memory, or leave it out: it caps address space, TensorFlow's too"
    return Finding("Horovod", where, wrong, FAILED, remedy)


# Resources


def memory(where: str, tasks: int, asked: Asked, machine: Machine, executors: int, engine: str) -> Finding:
    """Whether the Python workers of an executor have room; `executors` share its machine.

    `engine` is what scores. Training and evaluating take TensorFlow.
    """
    if asked.contained:
        room, of = asked.overhead + asked.python - OF_JVM, "spark.executor.memoryOverhead"
    else:
        room, of = min(machine.available, machine.total - executors * asked.heap) / executors, "the machine"
    if asked.python and asked.python < room:
        room, of = asked.python, "spark.executor.pyspark.memory"
    score, train = tasks * NEEDS[engine], tasks * max(NEEDS[engine], NEEDS["tensorflow"])
    needed = f"{tasks} workers take {score:.1f} GB to score by {engine}, {train:.1f} GB to train"
    if room >= train:  # how much more differs from one executor to the next, and is no news
        return Finding("memory", where, f"{needed}; {of} has that")
    if asked.python and room == asked.python:
        remedy = "raise spark.executor.pyspark.memory, or leave it out"
    elif asked.contained:
        remedy = "raise spark.executor.memoryOverhead"
    else:
        remedy = "run fewer tasks at once (--executor-cores, --master local[N]), or ask for a smaller heap"
    found = f"{needed}; {of} has {max(room, 0):.1f} GB for them"
    return Finding("memory", where, found, FAILED if room < score else WARNING, remedy)


def cores(where: str, tasks: int, threads: int, there: int) -> Finding:
    """`tasks` are all that run at once on the executor's machine, `there` its cores."""
    found = f"{tasks} tasks of {threads} threads on {there} cores"
    if tasks * threads <= there:
        return Finding("cores", where, found)
    remedy = "give Spark no more cores than the machine has: tasks only wait for each other"
    return Finding("cores", where, found, WARNING, remedy)


def gpus(where: str, asked: Asked, machine: Machine, versions: Mapping[str, str]) -> Finding:
    if not asked.gpus:
        if not machine.devices:
            return Finding("GPUs", where, "none")
        found = f"{machine.devices} in the machine, Spark gives tasks none"
        remedy = "to use them set spark.executor.resource.gpu.* and spark.task.resource.gpu.amount"
        return Finding("GPUs", where, found, WARNING, remedy)
    found = f"Spark gives a task GPU {', '.join(machine.gpus) or 'none'}"
    if "tensorflow" not in versions:
        return Finding("GPUs", where, f"{found}, and TensorFlow is for the CPU alone", FAILED, "`make install GPU=1`")
    if asked.python:
        remedy = "leave out spark.executor.pyspark.memory: it caps address space, of which CUDA takes far more"
        return Finding("GPUs", where, f"{found}, under a cap of memory", FAILED, remedy)
    return Finding("GPUs", where, found)


# Between machines


def reached(where: str, unreachable: str) -> Finding:
    if not unreachable:
        return Finding("network", where, "reaches the driver and the other executors")
    remedy = (
        "ranks talk to each other and to the driver on ports that the system gives them: open those between the "
        "machines of the cluster"
    )
    return Finding("network", where, f"cannot reach {unreachable}", FAILED, remedy)


def skew(sent: float, began: float, ended: float, received: float) -> float:
    """Seconds by which a clock is off at the least: by it a task began and ended, by ours it was sent and received.

    Positive: ahead of ours.
    """
    ahead, behind = ended - received, sent - began
    return max(ahead, 0.0) if ahead >= behind else -max(behind, 0.0)


def clock(where: str, seconds: float, most: float) -> Finding:
    """`most` is what leases do not bear any more."""
    if abs(seconds) <= SKEW:
        return Finding("clock", where, f"within {SKEW:.0f} s of the driver's")
    found = f"at least {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the driver's"
    remedy = f"keep the clocks together (NTP): a lease that is {most:.0f} s old counts as that of a dead job"
    return Finding("clock", where, found, FAILED if abs(seconds) >= most else WARNING, remedy)


def warehouse(where: str, wrong: str) -> Finding:
    if not wrong:
        return Finding("warehouse", where, "writes, and reads what the driver wrote")
    found, _, remedy = wrong.partition("; ")
    return Finding("warehouse", where, found, FAILED, remedy)
