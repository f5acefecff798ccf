"""Checks of driver and executors: each returns a finding with its remedy, and findings are shown as a table."""

import importlib.metadata
import platform
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from melanoma_spark import __version__
from melanoma_spark.errors import ClusterError, MelanomaError

OK, WARNING, FAILED = "ok", "warning", "FAILED"
DRIVER = "driver"
OWN_NAME = "melanoma-spark"  # in uv.lock

# What decodes, computes or carries rows on executors. Other versions change results, or fail late in a job.
PACKAGES = (
    *("cloudpickle", "horovod", "keras", "ncnn", "numpy", "onnxruntime", "opencv-python-headless", "pandas"),
    *("petastorm", "pillow", "pyarrow", "pydicom", "simplejpeg", "tensorflow", "tensorflow-cpu"),
)
JAVA = ("17", "21")  # what Spark 4.0 runs on
NEEDS = {"ncnn": 0.6, "tensorflow": 1.2, "onnxruntime": 1.3}  # GB of a Python worker: docs/decisions/engine.md
JVM_OVERHEAD = 0.4  # GB of spark.executor.memoryOverhead that the JVM itself takes; Spark's least is 384 MiB
SKEW = 30.0  # seconds between clocks above which there is a warning; leases still work
INSTALL = "run `make install` in the checkout"
INSTALL_HOROVOD = "pip install 'melanoma-spark[horovod]'"


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was checked, where, what was found, and what to do if that is wrong."""

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
    horovod: str  # its problem, or empty
    warehouse: str  # its problem, or empty
    total: float  # GB of memory
    available: float
    cores: int
    gpus: tuple[str, ...] = ()  # addresses that Spark gave to the task
    devices: int = 0  # GPUs in the machine


@dataclass(frozen=True)
class Answer:
    """What a task reports: when it began and ended by its own clock, and the least seconds by which that is off.

    One task of each executor also describes its machine.
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
class ExecutorResources:
    """What Spark is configured to give each executor; memory in GB."""

    heap: float
    overhead: float
    python: float  # limit of all its Python workers; 0 is none
    contained: bool  # the overhead includes the workers' memory, as on YARN
    threads: int  # of a task
    gpus: bool  # for each task


def raise_failure(findings: Iterable[Finding]) -> None:
    """Raise `ClusterError` with the first finding that failed."""
    for finding in findings:
        if finding.verdict == FAILED:
            raise ClusterError(f"{finding.where}: {finding.found}; {finding.remedy}")


def finding_of_error(what: str, where: str, error: Exception, remedy: str) -> Finding:
    """Return the finding of a check that failed; an error of this package may name a remedy after a semicolon."""
    if isinstance(error, MelanomaError):
        problem, _, hint = str(error).partition("; ")
        return Finding(what, where, problem, FAILED, hint or remedy)
    lines = str(error).strip().splitlines() or [""]
    return Finding(what, where, f"could not be checked: {type(error).__name__}: {lines[0][:300]}", FAILED, remedy)


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Group findings by subject, in order of first appearance; executors with the same finding share a line."""
    places: dict[tuple[bool, Finding], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.where == DRIVER, replace(finding, where="")), []).append(finding.where)
    lines = [replace(finding, where=_places(where)) for (_, finding), where in places.items()]
    order = list(dict.fromkeys(line.what for line in lines))
    return sorted(lines, key=lambda line: order.index(line.what))


def _places(where: Sequence[str]) -> str:
    if len(where) == 1 or where[0] == DRIVER:
        return where[0]
    hosts = sorted({place.removeprefix(executor_on("")) for place in where})
    more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
    return f"{len(where)} executors on {', '.join(hosts[:3])}{more}"


def findings_table(findings: Sequence[Finding]) -> str:
    """Format findings as aligned text, each remedy below its finding."""
    rows = [("verdict", "what", "where", "found"), *((f.verdict, f.what, f.where, f.found) for f in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    remedies = ["", *(finding.remedy for finding in findings)]
    lines = []
    for row, remedy in zip(rows, remedies, strict=True):
        lines.append("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
        if remedy:
            lines.append(" " * (sum(widths) + 6) + f"-> {remedy}")
    return "\n".join(lines)


def executor_on(host: str) -> str:
    """Return how a finding names the executor on a host."""
    return f"executor on {host}"


def check_executors(
    answers: Sequence[Answer],
    here: Mapping[str, str],
    driver_spark: str,
    resources: ExecutorResources,
    *,
    engine: str,
    stale: float,
) -> Iterator[Finding]:
    """Yield all findings about executors, check by check. `here` and `driver_spark` are the driver's versions."""
    machines = [(executor_on(answer.host), answer, answer.machine) for answer in answers if answer.machine]
    tasks = Counter(answer.executor for answer in answers)
    on_host, at_once = Counter(one.host for _, one, _ in machines), Counter(answer.host for answer in answers)
    yield from (check_java(where, machine.java) for where, _, machine in machines)
    yield from (check_spark(where, driver_spark, machine.spark) for where, _, machine in machines)
    yield from (check_packages(where, here, one.versions) for where, one, _ in machines)
    yield from (check_horovod(where, machine.horovod) for where, _, machine in machines)
    for where, one, machine in machines:
        yield check_memory(where, tasks[one.executor], resources, machine, on_host[one.host], engine=engine)
    for where, one, machine in machines:
        yield check_cores(where, at_once[one.host], resources.threads, machine.cores)
    yield from (check_gpus(where, resources, machine, one.versions) for where, one, machine in machines)
    for where, one, _ in machines:
        unreachable = [answer.unreachable for answer in answers if answer.executor == one.executor]
        yield check_network(where, next(filter(None, unreachable), ""))
    yield from (check_clock(where, one.skew, stale) for where, one, _ in machines)
    yield from (check_warehouse(where, machine.warehouse) for where, _, machine in machines)


# Versions


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed here."""
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that driver and executors share, if installed."""
    return {"Python": platform.python_version(), "melanoma_spark": __version__, **installed_versions(PACKAGES)}


def check_java(where: str, version: str) -> Finding:
    """Check that Spark runs on this Java."""
    if version.partition(".")[0] in JAVA:
        return Finding("Java", where, version)
    remedy = f"Spark runs on Java {' or '.join(JAVA)}: install one and set JAVA_HOME"
    return Finding("Java", where, version, FAILED, remedy)


def check_spark(where: str, here: str, version: str) -> Finding:
    """Check that an executor has the driver's Spark."""
    if version == here:
        return Finding("Spark", where, version)
    return Finding("Spark", where, f"{version} (driver: {here})", FAILED, "run driver and workers on the same Spark")


def check_packages(where: str, here: Mapping[str, str], there: Mapping[str, str]) -> Finding:
    """Check that an executor has the driver's Python and packages."""
    other = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if not other:
        return Finding("packages", where, f"Python {there['Python']} and {len(there) - 1} packages as on the driver")
    listed = ", ".join(f"{name} {there.get(name, 'none')} (driver: {here.get(name, 'none')})" for name in other)
    return Finding("packages", where, listed, FAILED, "install the driver's versions there")


def check_lock(text: str, installed: Mapping[str, str]) -> Finding:
    """Check that installed packages are those of a uv.lock, and that none is missing."""
    lock = tomllib.loads(text)["package"]
    wanted = {package["name"]: package["version"] for package in lock if "version" in package}
    own = next(package for package in lock if package["name"] == OWN_NAME)
    other = [
        f"{name} {installed[name]} (uv.lock: {wanted[name]})"
        for name in sorted(wanted)
        if installed.get(name, wanted[name]) != wanted[name]
    ]
    # pyspark may come from SPARK_HOME, and is checked as Spark; TensorFlow is one of two packages
    needed = {package["name"] for package in own["dependencies"]} - {"pyspark"}
    missing = [f"{name} is missing" for name in sorted(needed - installed.keys())]
    if not installed.keys() & {"tensorflow", "tensorflow-cpu"}:
        missing.append("tensorflow-cpu is missing")
    if other or missing:
        return Finding("uv.lock", DRIVER, ", ".join([*other, *missing]), FAILED, INSTALL)
    return Finding("uv.lock", DRIVER, f"{len(installed.keys() & wanted.keys())} packages, all as locked")


def locked_names(text: str) -> list[str]:
    """Return the packages of a uv.lock, except this one."""
    return [package["name"] for package in tomllib.loads(text)["package"] if package["name"] != OWN_NAME]


def check_horovod(where: str, problem: str, ranks: int = 1) -> Finding:
    """Turn the answer of `executors.horovod_problem` into a finding; one rank can train without Horovod."""
    if not problem:
        return Finding("Horovod", where, "with TensorFlow and Gloo")
    if "No module named 'horovod'" in problem:
        verdict = FAILED if ranks > 1 else WARNING
        return Finding("Horovod", where, "not installed; only ranks=1 trains without it", verdict, INSTALL_HOROVOD)
    remedy = "build it against the installed TensorFlow: `make install`"
    if "MemoryError" in problem or "map segment" in problem:  # of a library
        remedy = "raise spark.executor.pyspark.memory, or leave it out: it limits address space, also TensorFlow's"
    return Finding("Horovod", where, problem, FAILED, remedy)


# Resources


def check_memory(
    where: str, tasks: int, resources: ExecutorResources, machine: Machine, executors: int, *, engine: str
) -> Finding:
    """Check that the Python workers of an executor have enough memory; `executors` share its machine.

    `engine` is the one that scores. Training and evaluation take TensorFlow.
    """
    if resources.contained:
        room, owner = resources.overhead + resources.python - JVM_OVERHEAD, "spark.executor.memoryOverhead"
    else:
        room, owner = min(machine.available, machine.total - executors * resources.heap) / executors, "the machine"
    if resources.python and resources.python < room:
        room, owner = resources.python, "spark.executor.pyspark.memory"
    score, train = tasks * NEEDS[engine], tasks * max(NEEDS[engine], NEEDS["tensorflow"])
    needed = f"{tasks} workers take {score:.1f} GB to score by {engine}, {train:.1f} GB to train"
    if room >= train:  # how much more differs between executors and does not matter
        return Finding("memory", where, f"{needed}; {owner} has that")
    if resources.python and room == resources.python:
        remedy = "raise spark.executor.pyspark.memory, or leave it out"
    elif resources.contained:
        remedy = "raise spark.executor.memoryOverhead"
    else:
        remedy = "run fewer tasks at once (--executor-cores, --master local[N]), or ask for a smaller heap"
    found = f"{needed}; {owner} has {max(room, 0):.1f} GB for them"
    return Finding("memory", where, found, FAILED if room < score else WARNING, remedy)


def check_cores(where: str, tasks: int, threads: int, cores: int) -> Finding:
    """Check that the tasks that run at once on a machine have enough cores."""
    found = f"{tasks} tasks of {threads} threads on {cores} cores"
    if tasks * threads <= cores:
        return Finding("cores", where, found)
    remedy = "give Spark no more cores than the machine has, or tasks wait for each other"
    return Finding("cores", where, found, WARNING, remedy)


def check_gpus(where: str, resources: ExecutorResources, machine: Machine, versions: Mapping[str, str]) -> Finding:
    """Check that tasks and packages use the GPUs of a machine."""
    if not resources.gpus:
        if not machine.devices:
            return Finding("GPUs", where, "none")
        found = f"{machine.devices} in the machine, Spark gives tasks none"
        remedy = "to use them set spark.executor.resource.gpu.* and spark.task.resource.gpu.amount"
        return Finding("GPUs", where, found, WARNING, remedy)
    found = f"Spark gives a task GPU {', '.join(machine.gpus) or 'none'}"
    if "tensorflow" not in versions:
        return Finding("GPUs", where, f"{found}, and TensorFlow is for the CPU only", FAILED, "`make install GPU=1`")
    if resources.python:
        remedy = "leave out spark.executor.pyspark.memory: it limits address space, of which CUDA takes far more"
        return Finding("GPUs", where, f"{found}, with a memory limit", FAILED, remedy)
    return Finding("GPUs", where, found)


# Between machines


def check_network(where: str, unreachable: str) -> Finding:
    """Check that an executor reaches the driver and the others."""
    if not unreachable:
        return Finding("network", where, "reaches the driver and the other executors")
    remedy = (
        "ranks connect to each other and to the driver on ports that the system chooses: open those between the "
        "machines of the cluster"
    )
    return Finding("network", where, f"cannot reach {unreachable}", FAILED, remedy)


def clock_skew(sent: float, began: float, ended: float, received: float) -> float:
    """Compute the least seconds by which a clock is ahead of the driver's; negative where it is behind.

    A task began and ended by that clock, and was sent and received by the driver's.
    """
    ahead, behind = ended - received, sent - began
    return max(ahead, 0.0) if ahead >= behind else -max(behind, 0.0)


def check_clock(where: str, seconds: float, most: float) -> Finding:
    """Check a clock; `most` is the skew in seconds at which leases fail."""
    if abs(seconds) <= SKEW:
        return Finding("clock", where, f"within {SKEW:.0f} s of the driver's")
    found = f"at least {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the driver's"
    remedy = f"synchronize the clocks (NTP): a lease that is {most:.0f} s old counts as that of a dead job"
    return Finding("clock", where, found, FAILED if abs(seconds) >= most else WARNING, remedy)


def check_warehouse(where: str, problem: str) -> Finding:
    """Turn what an executor found at the warehouse into a finding."""
    if not problem:
        return Finding("warehouse", where, "writes, and reads what the driver wrote")
    found, _, remedy = problem.partition("; ")
    return Finding("warehouse", where, found, FAILED, remedy)
