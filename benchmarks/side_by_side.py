"""What the benchmarks share: a Spark as the jobs have it, and bare processes to set its speed against, turn by turn."""

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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from melanoma_spark import background
from melanoma_spark.spark import session

REPO = Path(__file__).resolve().parents[1]


def start_spark(slots: int = 2, master: str = ""):
    """A local Spark with the settings of conf/, on the Java and the Python that spark-submit.sh takes."""
    conf = REPO / "conf"
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    find_java()
    words = ["--properties-file", f"'{conf}/spark-local.conf'", "--master", master or f"local[{slots}]"]
    here = ["--conf", f"spark.executorEnv.PYTHONPATH={REPO}"]  # executors of a cluster run in folders of their own
    os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join(
        [*words, "--conf", "spark.ui.showConsoleProgress=false", *here, "pyspark-shell"]
    )
    os.environ["SPARK_SUBMIT_OPTS"] = f'"-Dlog4j2.configurationFile=file:{conf}/log4j2.properties"'
    return session.start("benchmark")


def find_java() -> None:
    conf = REPO / "conf"
    if "JAVA_HOME" not in os.environ:
        found = subprocess.run([conf / "find-java.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        if found != str(conf / "java"):
            os.environ["REAL_JAVA_HOME"] = found
        os.environ["JAVA_HOME"] = str(conf / "java")


class Processes:
    """Processes that have done `prepare(*arguments)`, and then do what it returned with each part they are sent."""

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
        """Wall time of all processes together, one part each."""
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


def family(top: int) -> dict[int, int]:
    """Process -> its processor time in ticks, of a process and all below it."""
    below, ticks = defaultdict(list), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            facts = (folder / "stat").read_text().rpartition(")")[2].split()
            below[int(facts[1])].append(int(folder.name))
            ticks[int(folder.name)] = int(facts[11]) + int(facts[12])
    found, todo = {}, [top]
    while todo:
        process = todo.pop()
        found[process] = ticks.get(process, 0)
        todo += below[process]
    return found


class Memory:
    """Peaks in MB of a process and all below it while in here: of the largest worker's, and of all together (PSS).

    A worker is a Python of Spark's or an actor of Ray's.
    """

    def __init__(self, top: int) -> None:
        self._top, self.largest, self.all = top, 0.0, 0.0
        self._watch = background.every(0.5, self._look)

    def __enter__(self) -> Memory:
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__(None, None, None)

    def _look(self) -> None:
        total = 0.0
        for process in family(self._top):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes()
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                own = next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
                total += own
                if b"pyspark.daemon" in words or b"ray::" in words:
                    self.largest = max(self.largest, own)
        self.all = max(self.all, total)


class Processors:
    """Processor time of this process and all below it, as often as it is asked: those that ended since are kept."""

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        self._before = 0.0
        self._before = self.seconds()

    def seconds(self) -> float:
        self._ticks |= family(os.getpid())
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK") - self._before


class Turns:
    """Speeds in images/s of what takes turns, and the ratios that are wanted of them."""

    def __init__(self, *ratios: tuple[str, str, float]) -> None:
        self._ratios = ratios  # name, over name, wanted
        self._turns: list[dict[str, float]] = []

    def add(self, **speeds: float) -> None:
        self._turns.append(speeds)
        found = [f"ratio {speeds[name] / speeds[over]:.3f}" for name, over, _ in self._ratios]
        print(f"turn {len(self._turns)}: {_told(speeds)}, {', '.join(found)}", flush=True)

    def summary(self) -> None:
        medians = {name: statistics.median(turn[name] for turn in self._turns) for name in self._turns[0]}
        found = []
        for name, over, wanted in self._ratios:
            ratio = statistics.median(turn[name] / turn[over] for turn in self._turns)
            found.append(f"{_plain(name)} over {_plain(over)} {ratio:.3f} (wanted: >= {wanted:.2f})")
        print(f"median: {_told(medians)}, {', '.join(found)}", flush=True)


def _told(speeds: dict[str, float]) -> str:
    return ", ".join(f"{_plain(name)} {speed:.2f} images/s" for name, speed in speeds.items())


def _plain(name: str) -> str:
    return name.replace("_", " ")
