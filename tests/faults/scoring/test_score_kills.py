"""A real `kill -9` of an executor in the middle of a score on a cluster: the job continues without it.

What a killed driver leaves, at each of its writes, is the subject of test_crash_points.py.
"""

import os
import shutil
import signal

from conftest import open_line
from kills import wait_until
from standalone import submitted

from melanoma_spark.images import hashes, synthetic

NEW = 60


def test_a_lost_executor_costs_no_row(line, cluster, tmp_path):
    shutil.copytree(line.folder, tmp_path / "warehouse")
    (tmp_path / "archive").mkdir()
    for seed in range(NEW):
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(synthetic.lesion_jpeg(5000 + seed, size=64))
    settings = {"batch_size": 4, "drift": {"minimum": 100_000}}  # whether these images are like others is no matter
    started = submitted(cluster, "score", tmp_path, tmp_path / "archive", score=settings)
    wait_until(started, lambda: list(tmp_path.glob("warehouse/scoring/*/*/part-*.parquet")))
    os.kill(cluster.executor_process(cluster.workers[1]), signal.SIGKILL)
    out, err = started.communicate(timeout=600)
    assert started.returncode == 0, out + err
    result = open_line(line.context.spark, tmp_path / "archive", tmp_path / "warehouse").scores()
    here = {hashes.sha256(path.read_bytes()) for path in (tmp_path / "archive").iterdir()}
    ours = result[result["sha256"].isin(here)]
    assert sorted(ours["sha256"]) == sorted(here)
    assert not list((tmp_path / "warehouse/scoring").rglob("*.parquet"))
