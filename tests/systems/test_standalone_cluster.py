"""The line on a real standalone cluster of two one-core workers gives what it gives in one process."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import STAGES, Line, open_line
from standalone import Cluster, submitted


@pytest.fixture(scope="module")
def distributed(cluster: Cluster, line: Line, tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, str]:
    """The pipeline of the `line` fixture, submitted to the cluster; and what it printed."""
    folder = tmp_path_factory.mktemp("distributed")
    started = submitted(cluster, "pipeline", folder, line.archive)
    out, err = started.communicate(timeout=600)
    assert started.returncode == 0, out + err
    return open_line(line.context.spark, line.archive, folder / "warehouse"), out


def by_key(table: pd.DataFrame, key: str) -> pd.DataFrame:
    return table.sort_values(key, ignore_index=True)


def test_both_workers_ran_an_executor_and_a_horovod_rank_each(cluster: Cluster, distributed: tuple[Line, str]):
    for worker in cluster.workers:
        assert len(cluster.executors(worker)) == 1, f"{worker.name} ran no executor"
        assert cluster.tasks(worker) > 20
    there, output = distributed
    for stage in STAGES:
        assert f"{stage}: " in output
    assert "finetune: 2 ranks" in output
    assert there.manifest("models/finetuned")["ranks"] == 2


def test_dataset_features_and_scores_are_those_of_one_process(line: Line, distributed: tuple[Line, str]):
    there, _ = distributed
    assert there.manifest("images")["id"] == line.manifest("images")["id"]
    assert there.manifest("images")["reasons"] == line.manifest("images")["reasons"]

    ours, theirs = (by_key(which.read("features").toPandas(), "sha256") for which in (line, there))
    assert list(ours["sha256"]) == list(theirs["sha256"])
    header = 128  # of numpy's .npy format, version 1
    for cut in ("block4_pool", "block5_pool"):
        for mine, other in zip(ours[cut], theirs[cut], strict=True):
            assert mine[:header] == other[:header]
            a, b = (np.frombuffer(content[header:], np.float16).astype(np.float32) for content in (mine, other))
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3)

    ours, theirs = (by_key(which.scores(), "source_uri") for which in (line, there))
    assert list(ours["source_uri"]) == list(theirs["source_uri"])
    assert list(ours["status"]) == list(theirs["status"])
    np.testing.assert_allclose(ours["probability"], theirs["probability"], atol=1e-3)
    assert ours["probability"].notna().sum() > 100


@pytest.fixture
def other_numpy(tmp_path: Path) -> list[str]:
    """Options with which executors have another numpy than the driver, by its metadata."""
    metadata = tmp_path / "packages/numpy-0.0.1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    return ["--conf", f"spark.executorEnv.PYTHONPATH={tmp_path}/packages"]


def test_the_doctor_asks_every_executor(cluster: Cluster, lesions: Path, tmp_path: Path, other_numpy: list[str]):
    started = submitted(cluster, "doctor", tmp_path, lesions, other_numpy)
    out, err = started.communicate(timeout=300)
    assert started.returncode == 3, out + err
    lines = [line for line in out.splitlines() if "2 executors on " in line]
    verdicts = {line.split()[1]: line.split()[0] for line in lines}
    assert verdicts.pop("packages") == "FAILED"
    assert {verdicts[what] for what in ("Java", "Spark", "Horovod", "network", "clock", "warehouse")} == {"ok"}
    assert set(verdicts) == {"Java", "Spark", "Horovod", "memory", "cores", "GPUs", "network", "clock", "warehouse"}
    assert "numpy 0.0.1 (driver: " in out
    assert err == "error: 1 of 18 checks failed: packages; the table has remedies\n"
    assert "slots" in out
    assert "2, ranks=2" in out


def test_executors_of_other_versions_are_refused_before_a_job_starts(
    cluster: Cluster, lesions: Path, tmp_path: Path, other_numpy: list[str]
):
    started = submitted(cluster, "ingest", tmp_path, lesions, other_numpy)
    out, err = started.communicate(timeout=300)
    assert (started.returncode, out) == (3, ""), out + err
    assert err.startswith("error: executor on ")
    assert err.endswith("; install the driver's versions there\n")
    assert ": numpy 0.0.1 (driver: " in err
    assert not (tmp_path / "warehouse/images").exists()
