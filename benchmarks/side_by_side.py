"""Shared by the benchmarks: a Spark session as the jobs use it, and processes to compare its speed with, in turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from melanoma_spark import background
from melanoma_spark.spark import session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REPO = Path(__file__).resolve().parents[1]


def start_spark(slots: int = 2, master: str = "") -> SparkSession:
    """Start a local Spark with the settings of conf/, on the Java and the Python that melanoma-spark uses."""
    conf = REPO / "conf"
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    find_java()
    words = ["--properties-file", f"'{conf}/spark-local.conf'", "--master", master or f"local[{slots}]"]
    here = ["--conf", f"spark.executorEnv.PYTHONPATH={REPO}"]  # executors of a cluster run in other folders
    os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join(
        [*words, "--conf", "spark.ui.showConsoleProgress=false", *here, "pyspark-shell"]
    )
    os.environ["SPARK_SUBMIT_OPTS"] = f'"-Dlog4j2.configurationFile=file:{conf}/log4j2.properties"'
    return session.start("benchmark")


def find_java() -> None:
    """Set JAVA_HOME as melanoma-spark does, unless it is set."""
    conf = REPO / "conf"
    if "JAVA_HOME" not in os.environ:
        home = subprocess.run([conf / "find-java.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        if home != str(conf / "java"):
            os.environ["REAL_JAVA_HOME"] = home
        os.environ["JAVA_HOME"] = str(conf / "java")


class Processes:
    """Processes that call `prepare(*arguments)` once, and then the function it returned with each part they get."""

    def __init__(self, count: int, prepare: Callable[..., Callable[[Any], None]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, prepare, arguments))
            process.start()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            end.recv()  # prepared

    def __enter__(self) -> Processes:
        return self

    def seconds(self, parts: Sequence[Any]) -> float:
        """Return the wall time in seconds until all processes have done their part, one part each."""
        started = time.monotonic()
        for end, part in zip(self._ends, parts, strict=True):
            end.send(part)
        for end in self._ends:
            end.recv()
        return time.monotonic() - started

    def __exit__(self, *_: object) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()


def _serve(end: Connection, prepare: Callable[..., Callable[[Any], None]], arguments: tuple[Any, ...]) -> None:
    do = prepare(*arguments)
    end.send("prepared")
    while (part := end.recv()) is not None:
        do(part)
        end.send("done")


def process_tree(top: int) -> dict[int, int]:
    """Return the processor time in ticks of a process and of its descendants, by process id."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    ticks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            facts = (folder / "stat").read_text().rpartition(")")[2].split()
            below[int(facts[1])].append(int(folder.name))
            ticks[int(folder.name)] = int(facts[11]) + int(facts[12])
    tree, todo = {}, [top]
    while todo:
        process = todo.pop()
        tree[process] = ticks.get(process, 0)
        todo += below[process]
    return tree


class Memory:
    """Peak memory in MB (PSS) of a process and its descendants: of the largest worker, and of all together.

    A worker is a Python worker of Spark or an actor of Ray.
    """

    def __init__(self, top: int) -> None:
        self._top, self.largest, self.all = top, 0.0, 0.0
        self._watch = background.periodic(0.5, self._sample)

    def __enter__(self) -> Memory:
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__(None, None, None)

    def _sample(self) -> None:
        total = 0.0
        for process in process_tree(self._top):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes()
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                size = next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
                total += size
                if b"pyspark.daemon" in words or b"ray::" in words:
                    self.largest = max(self.largest, size)
        self.all = max(self.all, total)


class Processors:
    """Processor time of this process and its descendants, those that have ended since included."""

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        self._before = 0.0
        self._before = self.seconds()

    def seconds(self) -> float:
        """Return the processor time in seconds since this object was made."""
        self._ticks |= process_tree(os.getpid())
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK") - self._before


class Turns:
    """Speeds in images/s of contestants that take turns, and the ratios with their targets."""

    def __init__(self, *ratios: tuple[str, str, float]) -> None:
        self._ratios = ratios  # name, name it is divided by, target
        self._turns: list[dict[str, float]] = []

    def add(self, **speeds: float) -> None:
        """Add and print one turn: images/s by contestant."""
        self._turns.append(speeds)
        ratios = [f"ratio {speeds[name] / speeds[over]:.3f}" for name, over, _ in self._ratios]
        print(f"turn {len(self._turns)}: {_speeds_text(speeds)}, {', '.join(ratios)}", flush=True)

    def summary(self) -> None:
        """Print the median speeds and ratios."""
        medians = {name: statistics.median(turn[name] for turn in self._turns) for name in self._turns[0]}
        ratios = []
        for name, over, target in self._ratios:
            ratio = statistics.median(turn[name] / turn[over] for turn in self._turns)
            ratios.append(f"{_readable(name)} over {_readable(over)} {ratio:.3f} (target: >= {target:.2f})")
        print(f"median: {_speeds_text(medians)}, {', '.join(ratios)}", flush=True)


def _speeds_text(speeds: dict[str, float]) -> str:
    return ", ".join(f"{_readable(name)} {speed:.2f} images/s" for name, speed in speeds.items())


def _readable(name: str) -> str:
    return name.replace("_", " ")
