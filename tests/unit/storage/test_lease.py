"""Leases: one job of a kind at a time on a warehouse; a dead one blocks no other."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import REPO
from fake_clock import FakeClock

from melanoma_spark.errors import BusyError, ClusterError
from melanoma_spark.storage import files, lease


@pytest.fixture
def warehouse(tmp_path):
    return files.url_of(str(tmp_path))


def another(path, **changes):
    """The file of a job of another machine."""
    path.parent.mkdir(exist_ok=True)
    facts = {"owner": "o", "host": "elsewhere", "process": 1, "process_started": 0.0, "since": "2026-01-02T03:04:05"}
    path.write_text(json.dumps({**facts, "beat": time.time(), **changes}))


def test_one_job_of_a_kind_runs_at_a_time(warehouse, tmp_path):
    with lease.acquire(warehouse, "featurize"):
        words = (
            f"featurize is already running on this warehouse, since .* on {socket.gethostname()} .process {os.getpid()}"
        )
        with pytest.raises(ClusterError, match=words), lease.acquire(warehouse, "featurize"):
            pass
        with lease.acquire(warehouse, "ingest"):
            assert len(list((tmp_path / "running").iterdir())) == 2
    with lease.acquire(warehouse, "featurize"):
        pass
    assert not list((tmp_path / "running").iterdir())

    with pytest.raises(ZeroDivisionError), lease.acquire(warehouse, "ingest"):
        raise ZeroDivisionError
    with lease.acquire(warehouse, "ingest"):
        pass


@pytest.mark.parametrize("not_waited_for", [False, True])
def test_a_job_killed_on_this_machine_blocks_no_other(warehouse, not_waited_for):
    script = textwrap.dedent(f"""
        import os, signal
        from melanoma_spark.storage import lease
        with lease.acquire({warehouse!r}, "score"):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    started = subprocess.Popen([sys.executable, "-c", script], cwd=REPO)
    if not_waited_for:
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    else:
        assert started.wait() == -9
    assert files.exists(files.join(warehouse, "running/score.json"))
    with lease.acquire(warehouse, "score"):
        pass
    started.wait()


def test_jobs_of_another_machine_are_waited_for_until_silent(warehouse, tmp_path):
    file, clock = tmp_path / "running/score.json", FakeClock()
    another(file, beat=clock.now() - lease.STALE / 2)
    with pytest.raises(ClusterError, match=r"^score is .* since 2026-01-02T03:04:05 on elsewhere .*ends in 60 s"):  # noqa: SIM117
        with lease.acquire(warehouse, "score", clock=clock):
            pass
    assert json.loads(file.read_text())["owner"] == "o", "who is refused takes nothing away"
    with pytest.raises(BusyError, match=r"^score is already running"):
        lease.check_idle(warehouse, clock=clock)
    began = clock.now()
    with lease.acquire(warehouse, "score", wait=90, clock=clock):
        assert clock.now() == pytest.approx(began + lease.STALE / 2, abs=lease.RETRY + lease.SETTLE)

    file, clock = tmp_path / "running/score.json", FakeClock()
    clock.passed = lambda now: another(file, beat=now)  # a sign of life whenever it looks again
    another(file, beat=clock.now())
    began = clock.now()
    with (
        pytest.raises(BusyError, match="score is already running"),
        lease.acquire(warehouse, "score", 600, clock=clock),
    ):
        pass
    assert 600 <= clock.now() - began <= 600 + lease.RETRY


def test_torn_leases_and_dead_jobs_block_no_job(warehouse, tmp_path):
    (tmp_path / "running").mkdir()
    (tmp_path / "running/score.json").write_text('{"owner"')
    with lease.acquire(warehouse, "score"):
        pass

    another(tmp_path / "running/score.json", host=socket.gethostname(), process=os.getpid())
    with lease.acquire(warehouse, "score"):
        pass
    another(tmp_path / "running/score.json", beat=time.time() - lease.STALE - 1)
    lease.check_idle(warehouse)
    with lease.block_jobs(warehouse, ["ingest"], "prune"):
        pass


@pytest.mark.parametrize("content", [None, '{"owner"', '{"owner": "o", "host": "elsewhere", "beat": 0}'])
def test_a_job_without_its_lease_may_change_nothing(warehouse, tmp_path, content):
    """Another job has had it and has ended, or this is not the file system that it was."""
    file = tmp_path / "running/score.json"
    with lease.acquire(warehouse, "score") as own:
        own.check()
        file.unlink()
        if content:
            file.write_text(content)
        with pytest.raises(ClusterError, match="is not this job's any more: the warehouse was away, or the job stood"):
            own.check()
    assert file.exists() == bool(content), "what is not its own it does not remove"


def test_signs_of_life_renew_a_lease_and_do_not_bring_it_back(warehouse, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with lease.acquire(warehouse, "score"):
        beats = set()
        until = time.monotonic() + 10
        while len(beats) < 3 and time.monotonic() < until:
            beats.add(json.loads((tmp_path / "running/score.json").read_text())["beat"])
        assert len(beats) >= 3

    monkeypatch.setattr(lease, "BEAT", 0.02)
    with lease.acquire(warehouse, "score"):
        (tmp_path / "running/score.json").unlink()
        time.sleep(0.1)
        assert not (tmp_path / "running/score.json").exists()


def test_of_simultaneous_jobs_one_at_most_gets_the_lease(warehouse):
    inside, most = [], []
    start = threading.Barrier(6)

    def run():
        start.wait()
        try:
            with lease.acquire(warehouse, "score"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.5)
                inside.pop()
        except ClusterError:
            pass

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_blocked_jobs_are_refused_and_the_blocking_job_named(warehouse, tmp_path):
    with lease.block_jobs(warehouse, ("score", "ingest"), "prune") as still:
        for job in ("score", "ingest"):
            with (
                pytest.raises(BusyError, match="prune is already running on this warehouse"),
                lease.acquire(warehouse, job),
            ):
                pass
        still()
        (tmp_path / "running/ingest.json").unlink()
        with pytest.raises(ClusterError, match=r"running/ingest\.json is not this job's any more"):
            still()
    assert not list((tmp_path / "running").iterdir())


@pytest.mark.parametrize("job", ["score", "ingest", "another"])
def test_jobs_cannot_be_blocked_while_one_runs(warehouse, tmp_path, job):
    with lease.acquire(warehouse, job):
        for context in (lease.block_jobs(warehouse, ("score", "ingest"), "prune"), lease.acquire(warehouse, job)):
            with pytest.raises(BusyError, match=f"^{job} is already running"), context:
                pass
        with pytest.raises(BusyError, match=f"^{job} is already running"):
            lease.check_idle(warehouse)
        lease.check_idle(warehouse, but=[job])
        assert [path.name for path in (tmp_path / "running").iterdir()] == [f"{job}.json"]
    lease.check_idle(warehouse)
