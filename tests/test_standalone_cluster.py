"""The line on a real standalone cluster of two one-core workers gives what it gives in one process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, STAGES, Line, open_line, with_settings

PATIENCE = 60  # seconds until master and workers must have met


@dataclass(frozen=True)
class Cluster:
    url: str
    workers: tuple[Path, ...]

    def executors(self, worker: Path) -> list[Path]:
        """The folders of the executors that a worker has run."""
        return sorted(worker.glob("app-*/[0-9]*"))

    def tasks(self, worker: Path) -> int:
        """How many tasks its executors say that they have finished."""
        return sum((folder / "stderr").read_text().count("Finished task") for folder in self.executors(worker))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import pyspark

    folder = tmp_path_factory.mktemp("cluster")
    home = Path(pyspark.__file__).parent
    java = subprocess.run([REPO / "conf/find-java.sh"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "JAVA_HOME": java, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.pop("SPARK_SUBMIT_OPTS", None)

    def daemon(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            command = [str(home / "bin/spark-class"), *arguments]
            return subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )

    url = f"spark://127.0.0.1:{free_port()}"
    where = ["--host", "127.0.0.1", "--webui-port", "0"]
    workers = (folder / "worker-1", folder / "worker-2")
    daemons = [daemon("master", "org.apache.spark.deploy.master.Master", *where, "--port", url.rpartition(":")[2])]
    try:
        for work in workers:
            size = ["--cores", "1", "--memory", "2g", "--work-dir", str(work)]
            daemons.append(daemon(work.name, "org.apache.spark.deploy.worker.Worker", *where, *size, url))
        until = time.monotonic() + PATIENCE
        while (folder / "master.log").read_text().count("Registering worker") < len(workers):
            assert time.monotonic() < until, (folder / "master.log").read_text()[-2000:]
            time.sleep(0.2)
        yield Cluster(url, workers)
    finally:
        for process in daemons:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def distributed(cluster: Cluster, line: Line, tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, str]:
    """The pipeline of the `line` fixture, submitted to the cluster; and what it printed."""
    import yaml

    folder = tmp_path_factory.mktemp("distributed")
    settings = with_settings(archive=str(line.archive), warehouse=str(folder / "warehouse"))
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [str(REPO / "spark-submit.sh"), "pipeline", "--conf", str(folder / "settings.yaml")]
    resources = ["--master", cluster.url, "--executor-memory", "1g", "--conf", "spark.driver.host=127.0.0.1"]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command + resources, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return open_line(line.job.spark, line.archive, folder / "warehouse"), done.stdout


def by_key(table: pd.DataFrame, key: str) -> pd.DataFrame:
    return table.sort_values(key, ignore_index=True)


def test_both_workers_ran_an_executor_and_a_horovod_rank_each(cluster: Cluster, distributed: tuple[Line, str]):
    for worker in cluster.workers:
        assert len(cluster.executors(worker)) == 1, f"{worker.name} ran no executor"
        assert cluster.tasks(worker) > 20
    there, told = distributed
    for stage in STAGES:
        assert f"{stage}: " in told
    assert "finetune: 2 ranks" in told
    assert there.manifest("models/finetuned")["ranks"] == 2


def test_the_dataset_is_the_same(line: Line, distributed: tuple[Line, str]):
    there, _ = distributed
    assert there.manifest("images")["id"] == line.manifest("images")["id"]
    assert there.manifest("images")["reasons"] == line.manifest("images")["reasons"]


def test_the_features_are_equal(line: Line, distributed: tuple[Line, str]):
    there, _ = distributed
    ours, theirs = (by_key(which.read("features").toPandas(), "sha256") for which in (line, there))
    assert list(ours["sha256"]) == list(theirs["sha256"])
    header = 128  # of numpy's .npy format, version 1
    for cut in ("block4_pool", "block5_pool"):
        for mine, other in zip(ours[cut], theirs[cut], strict=True):
            assert mine[:header] == other[:header]
            a, b = (np.frombuffer(content[header:], np.float16).astype(np.float32) for content in (mine, other))
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3)


def test_the_scores_are_equal(line: Line, distributed: tuple[Line, str]):
    there, _ = distributed
    ours, theirs = (by_key(which.scores(), "source_uri") for which in (line, there))
    assert list(ours["source_uri"]) == list(theirs["source_uri"])
    assert list(ours["status"]) == list(theirs["status"])
    np.testing.assert_allclose(ours["probability"], theirs["probability"], atol=1e-3)
    assert ours["probability"].notna().sum() > 100
