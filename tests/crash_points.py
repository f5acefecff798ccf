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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "MELANOMA_CRASH_POINTS"
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
    actual = []
    for place, write in enumerate(writes):
        inside = ["in"] if write.torn else []
        actual += [
            Point(str(write), moment, "kill") for moment in (["before"] if not place else []) + inside + ["after"]
        ]
        actual += [Point(str(write), moment, "error") for moment in ["before", *inside, "after"]]
        if write.who != "driver":
            actual += [Point(str(write), moment, "lost") for moment in inside or ["before"]]
    return actual


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
        """Do a write, unless it is to fail, or all is over. `error` makes an exception of `FULL` or `LOST`."""
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
            write = Write(self.who, kind, target, self.counts[f"{kind} {target}"], bool(half))
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
        """Hook of the interpreter: records changes below the warehouse that `write` has not seen."""
        if event == "open":
            path, _, flags = arguments
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


def _os_error(reason: tuple[int, str], *_: Any) -> Exception:
    return OSError(*reason)


def install(folder: str | None = None) -> Callable[[], None]:
    """Wrap the functions by which this process writes. Returns what takes the wrappers off again."""
    from fsspec.implementations.local import LocalFileSystem

    from melanoma_spark.storage import files

    process = _Process(folder or os.environ[VARIABLE])
    stack = contextlib.ExitStack()

    def wrap(owner: Any, name: str, kind: str, path: Any, half: Any = None, error: Any = _os_error) -> None:
        """`path`, `half` and `error` are given the arguments of a call; `path` is None of a call that writes nothing.

        `half` is given a function before them that does all of it; it is None where there is no half.
        """
        complete, own = getattr(owner, name), name in vars(owner)

        def call(*arguments: Any, **words: Any) -> Any:
            def do() -> Any:
                return complete(*arguments, **words)

            place = path(*arguments)
            if place is None:
                return do()
            torn = half and (kind != "remove" or os.path.isdir(place)) and (lambda: half(do, *arguments))
            return process.write(kind, str(place), do, torn, lambda reason: error(reason, *arguments))

        setattr(owner, name, call)
        stack.callback(lambda: setattr(owner, name, complete) if own else delattr(owner, name))

    def half_folder(do: Any, store: Any, path: str, *_: Any) -> None:
        _half_removed(Path(path))

    local = LocalFileSystem
    wrap(local, "pipe_file", "file", lambda _, path, *more: path, lambda do, _, path, value, *more: _half(path, value))
    wrap(
        local,
        "open",
        "file",
        lambda _, path, mode="rb", *more: path if "w" in mode else None,
        lambda do, _, path, *more: _half(path, b"PAR1 and then no more"),
    )
    for name in ("rm", "rm_file"):
        wrap(local, name, "remove", lambda _, path, *more: path, half_folder)
    wrap(local, "rmdir", "remove", lambda _, path, *more: path)
    wrap(local, "makedirs", "folder", lambda _, path, *more: None if os.path.exists(path) else path)
    wrap(files, "_replace", "rename", lambda store, old, new: new)
    wrap(os, "link", "rename", lambda old, new, *more: new)
    sys.addaudithook(process.audit)
    if process.who == "driver":
        _install_in_driver(wrap)
    return stack.close


def _half(path: str, content: bytes) -> None:
    Path(path).write_bytes(content[: len(content) // 2])


def _half_removed(folder: Path) -> None:
    actual = sorted(one for one in folder.rglob("*") if one.is_file())
    for one in actual[len(actual) // 2 :]:
        one.unlink()


def _install_in_driver(wrap: Callable[..., None]) -> None:
    import petastorm.utils
    import sqlalchemy.engine.default
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from pyspark.sql.readwriter import DataFrameWriter

    def folder_of(writer: Any, path: str, *_: Any) -> Path:
        return Path(path.removeprefix("file://"))

    def half_spark(do: Any, writer: Any, path: str, *_: Any) -> None:
        """As of a driver that died while it put the files of tasks in place."""
        folder = folder_of(writer, path)
        before = set(folder.glob("*"))
        do()
        (folder / "_SUCCESS").unlink()
        new = sorted(set(folder.glob("part-*")) - before)
        (waiting := folder / "_temporary/0/task_1").mkdir(parents=True)
        for one in new[len(new) // 2 :]:
            one.rename(waiting / one.name)

    def spark_error(reason: tuple[int, str], writer: Any, *_: Any) -> Exception:
        from py4j.protocol import Py4JJavaError

        jvm = writer._spark._jvm
        java = jvm.org.apache.spark.SparkException("Job aborted.", jvm.java.io.IOException(reason[1]))
        return Py4JJavaError("An error occurred while calling o1.parquet.\n", java)

    def metadata_of(dataset: Any, *_: Any) -> Path:
        return Path(dataset.paths) / "_common_metadata"

    def half_metadata(do: Any, dataset: Any, *_: Any) -> None:
        do()
        os.truncate(metadata_of(dataset), metadata_of(dataset).stat().st_size // 2)

    def method_of(_: Any, connection: Any) -> str | None:
        """The database, and the outermost method of MLflow's store. None of a transaction that only reads."""
        raw = getattr(connection, "dbapi_connection", connection)
        if not isinstance(raw, sqlite3.Connection) or not raw.in_transaction:
            return None
        names = [frame.f_code.co_name for frame in _frames() if "sqlalchemy_store.py" in frame.f_code.co_filename]
        return f"{raw.execute('PRAGMA database_list').fetchone()[2]}:{names[-1] if names else '?'}"

    def database_error(reason: tuple[int, str], *_: Any) -> Exception:
        return sqlite3.OperationalError("disk I/O error" if reason == LOST else "database or disk is full")

    def artifact_of(store: Any, local: str, place: str | None = None) -> str:
        return os.path.join(store.artifact_dir, place or "", os.path.basename(local))

    def half_artifact(do: Any, store: Any, local: str, place: str | None = None) -> None:
        (folder := Path(store.artifact_dir, place or "")).mkdir(parents=True, exist_ok=True)
        _half(str(folder / ".artifact.uploading.half"), Path(local).read_bytes())

    def artifacts_of(store: Any, local: str, place: str | None = None) -> str:
        return os.path.join(store.artifact_dir, place or "")

    def half_artifacts(do: Any, *arguments: Any) -> None:
        do()
        _half_removed(Path(artifacts_of(*arguments)))

    for name in ("parquet", "csv", "json", "save"):
        wrap(DataFrameWriter, name, "spark", folder_of, half_spark, spark_error)
    wrap(petastorm.utils, "add_to_dataset_metadata", "petastorm", metadata_of, half_metadata)
    wrap(sqlalchemy.engine.default.DefaultDialect, "do_commit", "mlflow", method_of, None, database_error)
    wrap(LocalArtifactRepository, "log_artifact", "artifact", artifact_of, half_artifact)
    wrap(LocalArtifactRepository, "log_artifacts", "artifact", artifacts_of, half_artifacts)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def as_after_death(warehouse: Path) -> None:
    """What the death of a process does by itself: its leases are void, and no MLflow run is open."""
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
