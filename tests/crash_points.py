"""Crash points: every write of a job, in the driver, in Spark's Python workers and in Horovod's ranks, can fail.

`install` wraps the functions by which a process writes. A write is named by who writes, how, and where, and by how
often this name came before. `Control` is a folder that all processes of a job share: there the writes are listed, and
there stands which of them is to fail, and how:

  before, in, after   nothing of it is done; half of it, as a reader would find it; all of it
  kill                nobody writes any more, as after `kill -9` of driver and workers; not even a `finally`
  error               the error that the write would raise itself: a full disk before and in it, a lost one after it
  lost                only the worker or rank that writes dies

After `kill` each further write of any process raises `Killed`, which is no `Exception`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "MELANOMA_CRASH_POINTS"
MOMENTS = ("before", "in", "after")
FULL, LOST = (errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")
RANDOM = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}|(?<=\.parquet)-\d+|(?<=/)\d+(?=/)|[0-9a-f]{6,}")


class Killed(BaseException):
    """What `kill -9` is in this process."""


@dataclass(frozen=True)
class Write:
    """One write of a job. `torn` says whether half of it can be done."""

    who: str
    kind: str
    target: str
    number: int
    torn: bool

    def __str__(self) -> str:
        return f"{self.who} {self.kind} {self.target} #{self.number}"


@dataclass(frozen=True)
class Point:
    write: str
    moment: str
    how: str

    def __str__(self) -> str:
        return f"{self.how} {self.moment} {self.write}"


class Control:
    """The folder that all processes of a job see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, warehouse: Path, point: Point | None) -> None:
        """Of a job that is about to run; without a point its writes are only listed."""
        for path in self.folder.iterdir():
            path.unlink()
        plan = {"id": os.urandom(8).hex(), "warehouse": str(warehouse), "point": point and asdict(point)}
        (self.folder / "plan.new").write_text(json.dumps(plan))
        (self.folder / "plan.new").rename(self.folder / "plan")

    def stop(self) -> None:
        (self.folder / "plan").unlink()
        (self.folder / "dead").unlink(missing_ok=True)

    def writes(self) -> list[Write]:
        path = self.folder / "writes"
        return [Write(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def unseen(self) -> list[str]:
        """Changes of files below the warehouse that came through none of the wrapped functions."""
        path = self.folder / "unseen"
        return path.read_text().splitlines() if path.exists() else []

    def was_hit(self) -> bool:
        return (self.folder / "hit").exists()


def points(writes: list[Write]) -> list[Point]:
    """All points of a job. What is after a write is before the next one, for a driver that is killed."""
    found = []
    for place, write in enumerate(writes):
        inside = ["in"] if write.torn else []
        found += [Point(str(write), moment, "kill") for moment in (["before"] if not place else []) + inside + ["after"]]
        found += [Point(str(write), moment, "error") for moment in ["before", *inside, "after"]]
        if write.who != "driver":
            found += [Point(str(write), moment, "lost") for moment in inside or ["before"]]
    return found


class _Process:
    """The writes of this process."""

    def __init__(self, folder: str) -> None:
        self.folder, self.plan, self.counts = folder, {}, Counter[str]()
        self.lock, self.local = threading.Lock(), threading.local()

    @property
    def who(self) -> str:
        if "HOROVOD_RANK" in os.environ:
            return "rank"
        return "driver" if "pytest" in sys.modules else "worker"

    def exists(self, name: str) -> bool:
        return os.path.exists(f"{self.folder}/{name}")

    def read(self) -> dict[str, Any]:
        try:
            with open(f"{self.folder}/plan") as file:
                plan = json.load(file)
        except FileNotFoundError:
            plan = {}
        with self.lock:
            if plan.get("id") != self.plan.get("id"):
                self.plan, self.counts = plan, Counter()
        return plan

    def tell(self, name: str, line: str) -> None:
        with open(f"{self.folder}/{name}", "a") as file:
            file.write(line + "\n")

    def die(self) -> None:
        if self.who != "driver":
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed

    def write(self, kind: str, path: str, do: Callable[[], Any], half: Callable[[], Any] | None, error: Any) -> Any:
        """Do a write, unless it is the one that fails, or all is over. `error` makes an exception of `FULL` or `LOST`."""
        if getattr(self.local, "inside", False):
            return do()
        plan = self.read()
        place = path.removeprefix("file:").replace("//", "/")
        if not plan or not place.startswith(plan["warehouse"]):
            return do()
        if self.exists("dead"):
            self.die()
        target = RANDOM.sub("*", place.removeprefix(plan["warehouse"] + "/"))
        with self.lock:
            self.counts[f"{kind} {target}"] += 1
            write = Write(self.who, kind, target, self.counts[f"{kind} {target}"], half is not None)
        self.tell("writes", json.dumps(asdict(write)))
        point = plan["point"] or {}
        moment = point.get("moment") if point.get("write") == str(write) and not self.exists("hit") else None

        def fail() -> None:
            self.tell("hit", str(write))
            if point["how"] == "kill":
                self.tell("dead", str(write))
            if point["how"] != "error":
                self.die()
            raise error(LOST if moment == "after" else FULL)

        if moment == "before":
            fail()
        self.local.inside = True
        try:
            result = half() if moment == "in" and half else do()
        finally:
            self.local.inside = False
        if moment in ("in", "after"):
            fail()
        return result

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Of the interpreter: tells of changes below the warehouse that `write` does not know of."""
        if event == "open":
            path, mode, flags = arguments
            if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"):
            path = arguments[0]
            if event == "os.mkdir" and os.path.isdir(path):
                return
        else:
            return
        warehouse = self.plan.get("warehouse")
        if warehouse and str(path).startswith(warehouse) and not getattr(self.local, "inside", False):
            self.local.inside = True
            try:
                self.tell("unseen", f"{self.who} {event} {path}")
            finally:
                self.local.inside = False


def _os_error(reason: tuple[int, str]) -> OSError:
    return OSError(*reason)


def install(folder: str | None = None) -> Callable[[], None]:
    """Wrap the functions by which this process writes. Returns what takes the wrappers off again."""
    from fsspec.implementations.local import LocalFileSystem

    from melanoma_spark import files

    process = _Process(folder or os.environ[VARIABLE])
    stack = contextlib.ExitStack()

    def wrap(owner: Any, name: str, wrapped: Callable[..., Any]) -> None:
        whole = getattr(owner, name)
        own = name in vars(owner)

        def call(*arguments: Any, **words: Any) -> Any:
            return wrapped(whole, *arguments, **words)

        setattr(owner, name, call)
        stack.callback(lambda: setattr(owner, name, whole) if own else delattr(owner, name))

    def pipe_file(whole: Any, store: Any, path: str, value: bytes, *more: Any, **words: Any) -> Any:
        def half() -> None:
            Path(path).write_bytes(value[: len(value) // 2])

        return process.write("file", path, lambda: whole(store, path, value, *more, **words), half, _os_error)

    def opened(whole: Any, store: Any, path: str, mode: str = "rb", *more: Any, **words: Any) -> Any:
        def do() -> Any:
            return whole(store, path, mode, *more, **words)

        def half() -> None:
            Path(path).write_bytes(b"PAR1 and no more")

        return process.write("file", path, do, half, _os_error) if "w" in mode else do()

    def removed(whole: Any, store: Any, path: str, *more: Any, **words: Any) -> Any:
        inside = sorted(one for one in Path(path).rglob("*") if one.is_file())

        def half() -> None:
            for one in inside[: len(inside) // 2]:
                one.unlink()

        return process.write(
            "remove", path, lambda: whole(store, path, *more, **words), half if len(inside) > 1 else None, _os_error
        )

    def made(whole: Any, store: Any, path: str, *more: Any, **words: Any) -> Any:
        def do() -> Any:
            return whole(store, path, *more, **words)

        return do() if os.path.exists(path) else process.write("folder", path, do, None, _os_error)

    def renamed(whole: Any, store: Any, old: str, new: str) -> Any:
        return process.write("rename", new, lambda: whole(store, old, new), None, _os_error)

    def linked(whole: Any, old: Any, new: Any, *more: Any, **words: Any) -> Any:
        return process.write("rename", str(new), lambda: whole(old, new, *more, **words), None, _os_error)

    wrap(LocalFileSystem, "pipe_file", pipe_file)
    wrap(LocalFileSystem, "open", opened)
    wrap(LocalFileSystem, "rm", removed)
    wrap(LocalFileSystem, "rm_file", removed)
    wrap(LocalFileSystem, "makedirs", made)
    wrap(files, "_replace", renamed)
    wrap(os, "link", linked)
    sys.addaudithook(process.audit)
    if process.who == "driver":
        _install_in_driver(process, wrap)
    return stack.close


def _install_in_driver(process: _Process, wrap: Callable[..., None]) -> None:
    import petastorm.utils
    import sqlalchemy.engine.default
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from pyspark.sql.readwriter import DataFrameWriter

    def spark_writes(whole: Any, writer: Any, path: str, *more: Any, **words: Any) -> Any:
        folder = Path(path.removeprefix("file://"))
        before = set(folder.glob("*"))

        def half() -> None:
            """As of a driver that died while it put the files of tasks in place."""
            whole(writer, path, *more, **words)
            (folder / "_SUCCESS").unlink()
            new = sorted(one for one in folder.glob("part-*") if one not in before)
            (waiting := folder / "_temporary/0/task_1").mkdir(parents=True)
            for one in new[len(new) // 2 :]:
                one.rename(waiting / one.name)

        def error(reason: tuple[int, str]) -> Exception:
            from py4j.protocol import Py4JJavaError

            jvm = writer._spark._jvm
            java = jvm.org.apache.spark.SparkException("Job aborted.", jvm.java.io.IOException(reason[1]))
            return Py4JJavaError("An error occurred while calling o1.parquet.\n", java)

        return process.write("spark", str(folder), lambda: whole(writer, path, *more, **words), half, error)

    def petastorm_writes(whole: Any, dataset: Any, key: Any, value: Any) -> Any:
        path = Path(dataset.paths) / "_common_metadata"

        def half() -> None:
            whole(dataset, key, value)
            os.truncate(path, path.stat().st_size // 2)

        return process.write("petastorm", str(path), lambda: whole(dataset, key, value), half, _os_error)

    def committed(whole: Any, dialect: Any, connection: Any) -> Any:
        def do() -> Any:
            return whole(dialect, connection)

        raw = getattr(connection, "dbapi_connection", connection)
        if not isinstance(raw, sqlite3.Connection) or not raw.in_transaction:
            return do()  # reads
        database = raw.execute("PRAGMA database_list").fetchone()[2]
        frame, method = sys._getframe(), "?"
        while frame.f_back is not None:  # the outermost method of MLflow's store
            if frame.f_code.co_filename.endswith("/sqlalchemy_store.py"):
                method = frame.f_code.co_name
            frame = frame.f_back

        def error(reason: tuple[int, str]) -> Exception:
            return sqlite3.OperationalError("disk I/O error" if reason == LOST else "database or disk is full")

        return process.write("mlflow", f"{database}:{method}", do, None, error)

    def artifact(whole: Any, store: Any, local: str, place: str | None = None) -> Any:
        def half() -> None:
            (folder := Path(store.artifact_dir, place or "")).mkdir(parents=True, exist_ok=True)
            content = Path(local).read_bytes()
            (folder / ".artifact.uploading.half").write_bytes(content[: len(content) // 2])

        path = os.path.join(store.artifact_dir, place or "", os.path.basename(local))
        return process.write("artifact", path, lambda: whole(store, local, place), half, _os_error)

    def artifacts(whole: Any, store: Any, local: str, place: str | None = None) -> Any:
        def half() -> None:
            whole(store, local, place)
            found = sorted(one for one in Path(path).rglob("*") if one.is_file())
            for one in found[len(found) // 2 :]:
                one.unlink()

        path = os.path.join(store.artifact_dir, place or "")
        return process.write("artifact", path, lambda: whole(store, local, place), half, _os_error)

    for name in ("parquet", "csv", "json", "orc", "text", "save"):
        wrap(DataFrameWriter, name, spark_writes)
    wrap(petastorm.utils, "add_to_dataset_metadata", petastorm_writes)
    wrap(sqlalchemy.engine.default.DefaultDialect, "do_commit", committed)
    wrap(LocalArtifactRepository, "log_artifact", artifact)
    wrap(LocalArtifactRepository, "log_artifacts", artifacts)


def as_after_death(warehouse: Path) -> None:
    """What the death of a process does by itself: its leases are of nobody, its MLflow run is open nowhere."""
    import mlflow.tracking.fluent

    for path in (warehouse / "running").glob("*.json"):
        with contextlib.suppress(ValueError):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"process_started": 0.0}))
    mlflow.tracking.fluent._active_run_stack.set([])


def restore(snapshot: Path, warehouse: Path) -> None:
    """The warehouse as it was, at the same place; MLflow's connections to the file that was there are closed."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs

    for engine in [*Runs._engine_map.values(), *Registry._engine_map.values()]:
        engine.dispose()
    shutil.rmtree(warehouse, ignore_errors=True)
    shutil.copytree(snapshot, warehouse)
