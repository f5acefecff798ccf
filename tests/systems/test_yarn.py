"""The line on a real YARN with two NodeManagers, over HDFS and an MLflow server: run by `make test-yarn`.

The nodes get Python from an archive, `make package`, as machines without any would. MLflow's runs are in PostgreSQL.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO, SHORT_LIVED, STAGES, Line, java_home, open_line, with_settings
from mlflow_server import mlflow_server

from melanoma_spark.images import synthetic
from melanoma_spark.storage import files

pytestmark = [pytest.mark.yarn, pytest.mark.timeout(1800)]

# Of a container, beside the JVM's heap: a Python worker that trains at 64 px. Two executors fit on one node.
SIZES = {
    "spark.driver.memory": "1g",
    "spark.driver.memoryOverhead": "3g",
    "spark.executor.memory": "512m",
    "spark.executor.memoryOverhead": "2g",
}
BACKBONE = {"name": "vgg16"}  # the nodes do not have the tests' folder
START = 600  # seconds in which ranks must have started: two cores bear all of it


@dataclass(frozen=True)
class Cluster:
    yarn: Any
    hdfs: Any
    server: str  # of MLflow
    folder: Path
    archive: str

    def started(self, job: str, *words: str, mode: str = "client", **changes: Any) -> subprocess.Popen[str]:
        """Start a job on the cluster, in a new folder."""
        place = self.folder / f"{job}-{time.monotonic_ns()}"
        place.mkdir()
        changes["finetune"] = {"start_timeout": START, **changes.get("finetune", {})}
        changes["backbone"] = BACKBONE
        settings = with_settings(
            archive=self.archive,
            warehouse=f"{self.hdfs.url}/warehouse",
            mlflow={"tracking_uri": self.server},
            **changes,
        )
        (place / "settings.yaml").write_text(yaml.safe_dump(settings))
        import pyspark

        spark = {
            **SIZES,
            "spark.yarn.jars": f"local:{Path(pyspark.__file__).parent}/jars/*",  # else 400 MB are sent each time
            "spark.yarn.appMasterEnv.SPARK_LOCAL_IP": "127.0.0.1",
            "spark.executorEnv.SPARK_LOCAL_IP": "127.0.0.1",
            "spark.executor.extraJavaOptions": SHORT_LIVED,
            "spark.driver.host": "127.0.0.1" if mode == "client" else None,
        }
        where = ["--master", "yarn", "--deploy-mode", mode, "--num-executors", "2"]
        where += ["--archives", f"{self.hdfs.url}/apps/env.tar.gz#env"]
        where += [word for key, value in spark.items() if value for word in ("--conf", f"{key}={value}")]
        environment = {
            **os.environ,
            "HADOOP_CONF_DIR": str(self.yarn.conf),
            "PYSPARK_PYTHON": "./env/bin/python",
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_SUBMIT_OPTS": SHORT_LIVED,
        }
        del environment["PYTHONPATH"]  # Spark would send it to the nodes, whose Python is another one
        return subprocess.Popen(
            [str(REPO / "spark-submit.sh"), job, "--conf", "settings.yaml", *where, *words],
            env=environment,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ran(self, job: str, *words: str, **how: Any) -> str:
        """Run a job that must succeed. Returns its output."""
        started = self.started(job, *words, **how)
        output, _ = started.communicate(timeout=1500)
        print(output)  # pytest shows it where a test fails, `pytest -s` always
        assert started.returncode == 0, output
        return output

    def application(self) -> str:
        """Of the job that was started last."""
        return max(path.parent.name for node in self.yarn.nodes for path in self.yarn.containers(node))

    def node_of_the_master(self) -> Path:
        """The node on which YARN has put the first container of that application."""
        result = self.containers().items()
        (name,) = [node for node, paths in result if any(path.name.endswith("_000001") for path in paths)]
        return next(node for node in self.yarn.nodes if node.name == name)

    def containers(self) -> dict[str, list[Path]]:
        """Node -> folders of its containers' logs, of that application."""
        last = self.application()
        return {
            node.name: [path for path in self.yarn.containers(node) if path.parent.name == last]
            for node in self.yarn.nodes
        }


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment for the nodes: that of MELANOMA_ENVIRONMENT, or one packed now."""
    if os.environ.get("MELANOMA_ENVIRONMENT"):
        return Path(os.environ["MELANOMA_ENVIRONMENT"])
    target = tmp_path_factory.mktemp("packed") / "env.tar.gz"
    subprocess.run([REPO / "conf/pack-environment.sh", target], check=True, env={**os.environ, "PACK_LEVEL": "1"})
    return target


@pytest.fixture(scope="module")
def cluster(hdfs: Any, lesions: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import hadoop
    import postgres

    store_, top = files.filesystem(f"{hdfs.url}/lesions")
    store_.put(str(lesions), top, recursive=True)
    store_.makedirs("/apps", exist_ok=True)
    with store_.open("/apps/env.tar.gz", "wb") as sink, packed.open("rb") as source:
        shutil.copyfileobj(source, sink, 1 << 24)
    folder = tmp_path_factory.mktemp("jobs")
    with contextlib.ExitStack() as until_the_end:
        database = until_the_end.enter_context(postgres.postgres())
        server = until_the_end.enter_context(mlflow_server(database, tmp_path_factory.mktemp("server")))
        yarn = until_the_end.enter_context(hadoop.yarn(tmp_path_factory.mktemp("yarn"), java_home(), hdfs))
        yield Cluster(yarn, hdfs, server, folder, f"{hdfs.url}/lesions")


@pytest.fixture(scope="module")
def complete(cluster: Cluster) -> str:
    """The output of the pipeline that a client submitted."""
    return cluster.ran("pipeline")


@pytest.fixture(scope="module")
def line(spark: Any, lesions: Path, shared_mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The line on one machine, with VGG16 as on the cluster."""
    folder, mlflow = tmp_path_factory.mktemp("line") / "warehouse", {"tracking_uri": shared_mlflow}
    result = open_line(spark, lesions, folder, backbone=BACKBONE, mlflow=mlflow)
    for stage in STAGES:
        result.stage(stage)
    return result


@pytest.fixture
def there(cluster: Cluster, complete: str, spark: Any, line: Line) -> Line:
    """The warehouse on HDFS, looked at from here."""
    return open_line(
        spark,
        cluster.archive,
        f"{cluster.hdfs.url}/warehouse",
        backbone=BACKBONE,
        mlflow={"tracking_uri": cluster.server},
        finetune={"start_timeout": START},
    )


def test_every_stage_ends_and_a_rank_ran_on_either_node(cluster, complete):
    for stage in STAGES:
        assert f"{stage}: " in complete
    assert "finetune: 2 ranks" in complete
    result = cluster.containers()
    for node, folders in result.items():
        logs = [(folder / "stderr").read_text() for folder in folders if (folder / "stderr").exists()]
        executors = [log for log in logs if "Finished task" in log]
        assert len(executors) == 1, f"{node}: {folders}"
        print(f"{node}: {executors[0].count('Finished task')} tasks finished in {len(folders)} containers")
        assert executors[0].count("Finished task") > 20


def test_the_figures_are_those_of_one_machine(line, there):
    for key in ("id", "counts", "reasons", "groups"):
        assert there.manifest("images")[key] == line.manifest("images")[key]
    ours, theirs = (which.manifest("reports")["metrics"] for which in (line, there))
    for name in ("test_auroc_head", "test_auroc_finetuned"):
        print(f"{name}: {ours[name]!r} on one machine, {theirs[name]!r} on YARN")
        assert abs(ours[name] - theirs[name]) <= 1e-6


def test_the_scores_are_those_of_one_machine(line, there):
    def by_hash(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["sha256"].notna()].sort_values("sha256", ignore_index=True)

    ours, theirs = by_hash(line.scores()), by_hash(there.scores())
    assert list(ours["sha256"]) == list(theirs["sha256"])
    np.testing.assert_allclose(ours["probability"], theirs["probability"], atol=1e-3)


def test_a_second_run_has_nothing_to_do(there):
    for stage in STAGES:
        output = there.stage(stage)
        assert "nothing" in output or " 0 computed " in output, stage


def test_a_driver_on_the_cluster_scores_new_files(cluster, there):
    archive, before = draw(cluster, "landing", range(500, 540)), len(there.scores())
    cluster.ran("score", f"archive={archive}", mode="cluster")
    output = "".join(path.read_text() for paths in cluster.containers().values() for path in paths_of(paths, "stdout"))
    print(output)
    assert "40 images listed = 40 scored" in output
    rows = there.scores()
    assert len(rows) == before + 40
    assert rows["sha256"].dropna().is_unique


def paths_of(folders: list[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).exists()]


def wait_for_a_file(started: subprocess.Popen[str], url: str, name: str, patience: float = 900) -> None:
    """Until a file of such a name lies somewhere below a folder, while the job runs."""
    store_, top = files.filesystem(url)
    until = time.monotonic() + patience
    while not (store_.exists(top) and any(name in path for path in store_.find(top))):
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < until, f"no {name} in {url}"
        time.sleep(0.3)


def draw(cluster: Cluster, folder: str, seeds: range) -> str:
    """An archive of drawn lesions on HDFS."""
    store_, top = files.filesystem(f"{cluster.hdfs.url}/{folder}")
    store_.makedirs(top, exist_ok=True)
    for seed in seeds:
        store_.pipe_file(f"{top}/{seed}.jpg", synthetic.lesion_jpeg(seed, size=64))
    return f"{cluster.hdfs.url}/{folder}"


@pytest.fixture
def losing(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, of which a node may be lost; it comes back afterwards."""
    yield cluster
    for node in cluster.yarn.nodes:
        if node.name not in cluster.yarn.daemons.running:
            cluster.yarn.start(node)
    cluster.yarn.wait()


def test_a_node_lost_while_ranks_train_costs_the_steps_since_the_last_checkpoint(losing, there):
    """The node is that of the application's master, without which no executor can be asked for."""
    before = there.manifest("models/finetuned")
    started = losing.started("finetune", "training_seed=7", finetune={"checkpoint_steps": 1})
    wait_for_a_file(started, f"{losing.hdfs.url}/warehouse/models/finetuned", "checkpoint")
    losing.yarn.kill(losing.node_of_the_master())
    output, _ = started.communicate(timeout=1500)
    print(output)
    assert started.returncode == 0, output
    assert "starting again from the last checkpoint" in output
    assert there.manifest("models/finetuned")["id"] != before["id"]


def test_a_node_lost_while_images_are_scored_loses_and_doubles_none(losing, there):
    archive, before = draw(losing, "more", range(600, 800)), len(there.scores())
    started = losing.started("score", f"archive={archive}", "score.batch_size=4")
    wait_for_a_file(started, f"{losing.hdfs.url}/warehouse/scoring", "part-")
    (other,) = set(losing.yarn.nodes) - {losing.node_of_the_master()}
    losing.yarn.kill(other)
    output, _ = started.communicate(timeout=1500)
    print(output)
    assert started.returncode == 0, output
    assert "200 images listed = 200 scored" in output
    rows = there.scores()
    assert len(rows) == before + 200
    assert rows["sha256"].dropna().is_unique


def test_a_killed_application_ends_its_job_in_one_line_and_the_next_run_resumes(cluster, there):
    archive, before = draw(cluster, "killed", range(900, 940)), len(there.scores())
    started = cluster.started("score", f"archive={archive}", "score.batch_size=4")
    wait_for_a_file(started, f"{cluster.hdfs.url}/warehouse/scoring", "part-")
    name = cluster.application()
    cluster.yarn.end(name)
    output, _ = started.communicate(timeout=300)
    print(output)
    assert started.returncode == 3, output
    assert f"Spark's application {name} was ended while the job ran" in output.splitlines()[-1]
    assert "40 images listed = 40 scored" in cluster.ran("score", f"archive={archive}")
    rows = there.scores()
    assert len(rows) == before + 40
    assert rows["sha256"].dropna().is_unique
