"""A real standalone cluster of Spark: a master and two workers of one core each."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import REPO, SHORT_LIVED, java_environment, with_settings
from hadoop import free_port

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

    def executor_process(self, worker: Path) -> int:
        """The process of the executor that runs on a worker now."""
        for name in os.listdir("/proc"):
            with contextlib.suppress(ValueError, OSError):
                command = Path(f"/proc/{int(name)}/cmdline").read_bytes()
                folder = Path(f"/proc/{name}/cwd").resolve()
                if b"CoarseGrainedExecutorBackend" in command and worker in folder.parents:
                    return int(name)
        raise AssertionError(f"{worker.name} runs no executor")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import pyspark

    folder = tmp_path_factory.mktemp("cluster")
    home = Path(pyspark.__file__).parent
    environment = {**os.environ, **java_environment(), "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
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


def submitted(
    cluster: Cluster, job: str, folder: Path, archive: Path, options: Sequence[str] = (), **changes: object
) -> subprocess.Popen[str]:
    """A job on the cluster, with a warehouse in the folder."""
    mlflow = {"tracking_uri": f"sqlite:///{folder}/warehouse/mlflow.db"}  # of this one machine: no server is needed
    settings = with_settings(archive=str(archive), warehouse=str(folder / "warehouse"), mlflow=mlflow, **changes)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [str(REPO / "spark-submit.sh"), job, "--conf", str(folder / "settings.yaml")]
    resources = ["--master", cluster.url, "--executor-memory", "1g", "--conf", "spark.driver.host=127.0.0.1"]
    resources += ["--conf", f"spark.executor.extraJavaOptions={SHORT_LIVED}"]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["SPARK_SUBMIT_OPTS"] = SHORT_LIVED
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*command, *resources, *options], env=environment, cwd=folder, **pipes)
