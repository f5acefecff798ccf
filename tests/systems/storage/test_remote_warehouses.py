"""The storage of a warehouse on HDFS or S3. test_yarn.py and test_s3_warehouse.py run all stages there."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import REPO

from melanoma_spark.errors import BusyError, ClusterError
from melanoma_spark.storage import files, lease


def test_one_of_many_simultaneous_writers_creates_a_new_file(folder, monkeypatch):
    monkeypatch.setattr(files, "exists", lambda url: False)  # all of them have looked before any has written
    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            url = f"{folder}/{turn}.json"
            wrote = list(pool.map(lambda own: files.write_new(url, own), [b"%d" % n for n in range(8)]))  # noqa: B023
            assert sum(wrote) == 1
            assert files.read_bytes(url) == b"%d" % wrote.index(True)
    assert sorted(files.list_names(folder, "*")) == [f"{turn}.json" for turn in range(5)], "and nothing else stays"


def test_a_second_job_is_refused_on_any_store(folder):
    with lease.acquire(folder, "score") as held:
        with pytest.raises(BusyError, match="score is already running"), lease.acquire(folder, "score"):
            pass
        held.check()
    assert files.list_names(f"{folder}/running", "*") == []


def test_a_new_file_that_cannot_be_written_is_named(s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files, "exists", lambda url: False)
    with pytest.raises(ClusterError, match=r"cannot write s3a://nowhere/move\.json: .*choose another warehouse"):
        files.write_new("s3a://nowhere/move.json", b"{}")


FORKS = """
import multiprocessing, sys
from melanoma_spark.storage import files
assert files.exists(sys.argv[1])
forked = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
forked.start()
forked.join(30)
assert forked.exitcode == 0, forked.exitcode
"""


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(hdfs):
    """Horovod forks the driver; with a warehouse on HDFS its child once stood still for ever."""
    command = [sys.executable, "-c", FORKS, f"{hdfs.url}/"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "forked\n"
