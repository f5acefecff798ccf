"""The list of batches, read without Spark from folder names and a JSON file each."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from conftest import REPO

from melanoma_spark.scoring import status
from melanoma_spark.storage import files


@pytest.fixture
def warehouse(tmp_path):
    """Three batches, of which the oldest has no facts and one is not committed yet."""
    for hours, name in ((50, "a"), (40, "b"), (30, "c")):
        (tmp_path / f"scores/batch_id={name}").mkdir(parents=True)
        when = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
        counts = {"listed": 5, "scored": 3, "abstained": 0, "rejected": 1, "copies": 0}
        facts = {"batch_id": name, "committed_at": when, "model": "m", "model_version": "2", "counts": counts}
        if name != "a":
            files.write_json(f"file://{tmp_path}/batches/{name}/batch.json", facts | {"verdict": "drifted"})
    (tmp_path / "scores/_staged-d").mkdir()
    return tmp_path


def test_batches_and_their_facts(warehouse):
    url = f"file://{warehouse}"
    assert status.committed(url) == ["a", "b", "c"]
    assert status.read_facts(url, "a") == {"batch_id": "a"}
    assert status.describe(status.read_facts(url, "a")) == "a    of before version 0.2"
    assert status.describe(status.read_facts(url, "c")).endswith("m version 2  3 scored, 1 rejected  drifted")
    (warehouse / "batches/b/batch.json").write_text("torn")
    assert status.read_facts(url, "b") == {"batch_id": "b"}
    assert status.committed(f"file://{warehouse}/nowhere") == []


def test_counts_are_told_in_one_order():
    counts = {"copies": 2, "scored": 1, "listed": 9}
    assert status.describe_counts(counts) == ["1 scored", "2 copies"]
    assert status.describe_counts(counts, always=("rejected",)) == ["1 scored", "0 rejected", "2 copies"]


def test_status_needs_neither_java_nor_spark_nor_mlflow(warehouse, submit):
    nothing = {"JAVA_HOME": "/nowhere", "REAL_JAVA_HOME": None, "SPARK_HOME": "/nowhere"}
    done = submit("score", "status", f"warehouse={warehouse}", "score.shown=2", **nothing)
    assert (done.returncode, done.stderr) == (0, "")
    last, one, summary = done.stdout.splitlines()
    assert last.startswith("c  ")
    assert one.startswith("b  ")
    assert summary == "score: 3 batches in scores/, 2 shown, the newest first"
    done = submit("score", "score.action=status", f"warehouse={warehouse}", "log.format=json", **nothing)
    output = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("batch_id") for line in output] == ["c", "b", "a", None]
    assert output[0]["counts"]["scored"] == 3
    assert not (warehouse / "mlflow.db").exists()
    code = "import sys, jobs.score; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"pyspark", "mlflow", "tensorflow", "pandas", "petastorm"}


def test_status_tells_when_there_is_no_young_batch(warehouse, submit):
    done = submit("score", "status", f"warehouse={warehouse}", "score.within=36")
    assert done.returncode == 0
    done = submit("score", "status", f"warehouse={warehouse}", "score.within=24")
    assert done.returncode == 4
    assert "30.0 hours ago; expected one within 24 hours (score.within)" in done.stderr
