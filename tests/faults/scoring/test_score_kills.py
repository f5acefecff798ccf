"""Scoring on a real cluster, killed at random moments: driver, executor, Python workers.

MELANOMA_KILLS=24 pytest -s tests/faults/scoring/test_score_kills.py is the whole of it, and tells what each kill hit;
the suite tries a few.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from conftest import Line, open_line
from kills import kill
from standalone import Cluster, submitted

from melanoma_spark import drawing, images

KILLS = int(os.environ.get("MELANOMA_KILLS", "2"))
NEW = 60  # images that come in before each kill
VICTIMS = ("driver", "executor", "Python workers")
PATIENCE = 600  # seconds until a job must have ended


@dataclass
class Growing:
    """A warehouse with the registered model, and an archive that grows; and what the kills hit."""

    line: Line
    seconds: float = 0.0  # that an undisturbed run took from its lease to its end
    came: int = 0
    hit: list[str] = field(default_factory=list)


def executors_of(cluster: Cluster) -> list[int]:
    """The executors' processes; other clusters on this machine have their own."""
    found = []
    for name in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{int(name)}/cmdline").read_bytes()
            folder = Path(f"/proc/{name}/cwd").resolve()
        except (ValueError, OSError):
            continue
        if b"CoarseGrainedExecutorBackend" in command and set(folder.parents) & set(cluster.workers):
            found.append(int(name))
    return found


def python_workers() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if b"pyspark.daemon" in Path(f"/proc/{int(name)}/cmdline").read_bytes():
                found.append(int(name))
        except (ValueError, OSError):
            continue
    return found


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found


def murder(victim: str, cluster: Cluster, started: subprocess.Popen[str], at: random.Random) -> str:
    if victim == "driver":
        kill(started)
        return "driver"
    executors = executors_of(cluster)
    victims = [at.choice(executors)] if executors else []
    if victim != "executor":
        victims = [pid for pid in python_workers() if ancestors(pid) & set(executors)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return f"{len(victims)} {victim}"


def stage_of(line: Line, before: set[str]) -> str:
    """How far a run has come, by what lies in the warehouse; `before` are the batches there were when it began."""
    folder = line.folder
    waiting = list(folder.glob("scoring/*/*/part-*.parquet"))

    def new(where: str) -> list[Path]:
        return [path for path in folder.glob(where) if path.name.removeprefix("batch_id=") not in before]

    if new("scores/batch_id=*"):
        return "committed, before what waited is removed" if waiting else "committed"
    if new("ledger/*/*/batch_id=*"):
        return "index"
    if new("batches/*"):
        return "worklist"
    if list(folder.glob("scores/_staged-*")):
        return "staging"
    if waiting:
        rows = sum(len(pd.read_parquet(path, columns=["status"])) for path in waiting)
        return f"scoring, {rows} of {NEW} rows finished"
    if list(folder.glob("scoring/*/*")):
        return f"scoring, 0 of {NEW} rows finished"
    return "listing and reading" if (folder / "running/score.json").exists() else "starting or ended"


def once(line: Line) -> int:
    """Every content of the archive has exactly one row of the model version."""
    found = line.scores()
    here = {images.sha256(path.read_bytes()) for path in line.archive.glob("*.jpg")}
    ours = found[found["sha256"].isin(here)]
    assert not ours.duplicated(["sha256", "model_version"]).any()
    assert set(ours["sha256"]) == here
    return len(here)


def come_in(growing: Growing) -> None:
    for _ in range(NEW):
        name = growing.line.archive / f"{growing.came:05d}.jpg"
        name.write_bytes(drawing.lesion_jpeg(5000 + growing.came, size=64))
        growing.came += 1


def run(cluster: Cluster, growing: Growing) -> subprocess.Popen[str]:
    folder = growing.line.folder.parent
    settings = {"batch_size": 4, "drift": {"minimum": 100_000}}  # whether these images are like others is no matter
    return submitted(cluster, "score", folder, growing.line.archive, score=settings)


def lease_of(growing: Growing, started: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not (growing.line.folder / "running/score.json").exists():
        assert time.monotonic() < until
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_every_image_has_one_row(cluster, growing, number):
    """Moments are drawn one from each of as many equal parts of a run; the victims take turns."""
    at = random.Random(number)
    part = random.Random(0).sample(range(KILLS), KILLS)[number]
    come_in(growing)
    before = {path.name.removeprefix("batch_id=") for path in (growing.line.folder / "scores").glob("batch_id=*")}
    started = run(cluster, growing)
    lease_of(growing, started)
    moment = (part + at.random()) / KILLS * growing.seconds
    until = time.monotonic() + moment
    while time.monotonic() < until and started.poll() is None:
        time.sleep(0.02)
    stage = stage_of(growing.line, before)
    victim = VICTIMS[number % len(VICTIMS)]
    told = murder(victim, cluster, started, at) if started.poll() is None else "nobody"
    out, err = started.communicate(timeout=PATIENCE)
    print(f"\n{number:2}: {told} killed {moment:.1f} s after its lease, at {stage}; it left with {started.returncode}")
    assert victim == "driver" or started.returncode == 0, f"{told}: a lost executor or worker ends no job\n{out}{err}"
    growing.hit.append(stage.partition(",")[0])
    if started.returncode:
        again = run(cluster, growing)
        out, err = again.communicate(timeout=PATIENCE)
        assert again.returncode == 0, out + err
    print(f"    in the end: {out.strip().splitlines()[-1].partition(';')[0]}")
    assert once(growing.line) == growing.came
    assert not list((growing.line.folder / "scoring").rglob("*.parquet"))
    assert not list((growing.line.folder / "scores").glob("_staged-*"))


@pytest.mark.skipif(KILLS < 20, reason="so few kills hit few stages")
def test_the_kills_hit_most_stages(growing):
    print(f"\nhit: {dict(Counter(growing.hit))}")
    assert set(growing.hit) >= {"listing and reading", "scoring", "worklist"}


@pytest.fixture(scope="module")
def growing(line: Line, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Growing:
    folder = tmp_path_factory.mktemp("growing")
    shutil.copytree(line.folder, folder / "warehouse")
    (folder / "archive").mkdir()
    new = Growing(open_line(line.job.spark, folder / "archive", folder / "warehouse"))
    come_in(new)
    started = run(cluster, new)
    lease_of(new, started)
    begun = time.monotonic()
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, out + err
    assert "exporting" not in out, "the line has done that"
    new.seconds = time.monotonic() - begun
    print(f"\nan undisturbed run takes {new.seconds:.1f} s from its lease to its end")
    return new
