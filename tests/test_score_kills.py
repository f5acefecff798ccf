"""Scoring on a real cluster, killed at random moments: driver, executor, Python workers.

MELANOMA_KILLS=24 pytest tests/test_score_kills.py is the whole of it; the suite tries a few.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Line, open_line
from test_kill import kill
from test_standalone_cluster import cluster, submitted

from melanoma_spark import drawing, images

__all__ = ["cluster"]

KILLS = int(os.environ.get("MELANOMA_KILLS", "2"))
NEW = 60  # images that come in before each kill
VICTIMS = ("driver", "executor", "Python workers")


def processes(word: bytes) -> list[int]:
    """Processes on this machine whose command holds a word."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if word in Path(f"/proc/{int(name)}/cmdline").read_bytes():
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


def murder(victim: str, started: subprocess.Popen[str], at: random.Random) -> str:
    if victim == "driver":
        kill(started)
        return "driver"
    executors = processes(b"CoarseGrainedExecutorBackend")
    if victim == "executor":
        victims = [at.choice(executors)] if executors else []
    else:
        victims = [pid for pid in processes(b"pyspark.daemon") if ancestors(pid) & set(executors)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return f"{len(victims)} {victim}"


def once(line: Line) -> int:
    """Every content of the archive has exactly one row of the model version."""
    found = line.scores()
    here = {images.sha256(path.read_bytes()) for path in line.archive.glob("*.jpg")}
    ours = found[found["sha256"].isin(here)]
    assert not ours.duplicated(["sha256", "model_version"]).any()
    assert set(ours["sha256"]) == here
    return len(here)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_every_image_has_one_row(cluster, growing, number):
    at = random.Random(number)
    for seed in range(NEW):
        content = drawing.lesion_jpeg(5000 + NEW * number + seed, size=64)
        (growing.archive / f"{number:03d}-{seed:03d}.jpg").write_bytes(content)
    victim = VICTIMS[number % len(VICTIMS)]
    started = submitted(cluster, "score", growing.folder.parent, growing.archive, score={"batch_size": 4})
    moment = at.uniform(5, 35)
    until = time.monotonic() + moment
    while time.monotonic() < until and started.poll() is None:
        time.sleep(0.05)
    told = murder(victim, started, at) if started.poll() is None else "nobody: it had ended"
    out, err = started.communicate(timeout=300)
    rows = len(growing.scores())
    print(f"\n{number}: killed {told} after {moment:.1f} s; it ended with {started.returncode}; {rows} rows")
    if started.returncode:
        again = submitted(cluster, "score", growing.folder.parent, growing.archive, score={"batch_size": 4})
        out, err = again.communicate(timeout=300)
        assert again.returncode == 0, out + err
        print(out.strip().splitlines()[-1])
    assert once(growing) == NEW * (number + 1)
    assert not list((growing.folder / "scoring").rglob("*.parquet"))


@pytest.fixture(scope="module")
def growing(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A warehouse with the registered model, and an archive that is empty yet."""
    folder = tmp_path_factory.mktemp("growing")
    shutil.copytree(line.folder, folder / "warehouse")
    (folder / "archive").mkdir()
    return open_line(line.job.spark, folder / "archive", folder / "warehouse")
