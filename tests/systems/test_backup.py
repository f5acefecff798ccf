"""Backup and restore by the very commands of docs/backup.md: nothing is lost, and nothing is scored twice."""

import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from conftest import REPO, Line, open_line
from mlflow_server import mlflow_server

from melanoma_spark.images import synthetic
from melanoma_spark.registry import alias_history
from melanoma_spark.scoring import status
from melanoma_spark.storage import files


def commands(heading: str) -> list[str]:
    """The blocks of commands below a heading of the page."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)^##", (REPO / "docs/backup.md").read_text(), re.M | re.S)
    return re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S)


def run(script: str, **places: str | Path) -> str:
    path = os.pathsep.join([str(REPO / ".venv/bin"), os.environ["PATH"]])  # as .venv/bin/activate sets it
    environment = {**os.environ, "PATH": path, **{name: str(place) for name, place in places.items()}}
    done = subprocess.run(["bash", "-c", script], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scored_once(line: Line, before: pd.DataFrame) -> None:
    """What was scored before is there, as it was; and no content has two rows of a version."""
    result = line.scores()
    contents = result[result["sha256"].notna()]
    assert not contents.duplicated(["sha256", "model_version"]).any()
    kept = result[result["batch_id"].isin(set(before["batch_id"]))]
    order = ["batch_id", "source_uri"]
    pd.testing.assert_frame_equal(*(rows.sort_values(order, ignore_index=True) for rows in (kept, before)))


def land(line: Line, *seeds: int) -> None:
    for seed in seeds:
        (line.archive / f"new_{seed}.jpg").write_bytes(synthetic.lesion_jpeg(seed, size=64))


@pytest.fixture
def moved(line: Line, copied: Line) -> Line:
    """A warehouse at another place, of which nothing lies at the old one any more."""
    (script,) = commands("At another place")
    run(script, WAREHOUSE=copied.folder, OLD=line.folder)
    with sqlite3.connect(copied.folder / "mlflow.db") as database:
        output = "\n".join(database.iterdump())
    assert f"file://{copied.folder}/" in output
    assert f"file://{line.folder}/" not in output
    return copied


def test_a_warehouse_is_restored_by_the_documented_commands(moved, submit, settings_file, tmp_path):
    url, (backup,), (restore, after) = moved.context.warehouse, commands("Backup"), commands("Restore")
    before = moved.scores()
    # a score is at work: it has staged a batch, and written all that comes before its rename
    (first,) = status.committed(url)
    shutil.copytree(moved.folder / f"scores/batch_id={first}", moved.folder / "scores/_staged-at-work")
    shutil.copytree(moved.folder / f"batches/{first}", moved.folder / "batches/at-work")
    places = {"WAREHOUSE": moved.folder, "BACKUP": tmp_path / "backup"}
    run(backup, **places)
    shutil.rmtree(moved.folder / "scores/_staged-at-work")
    assert {path.name for path in (tmp_path / "backup/batches").iterdir()} == {first}

    land(moved, 901, 902)  # after the backup
    assert "= 2 scored" in moved.stage("score")
    for lost in ("scores", "mlartifacts"):
        shutil.rmtree(moved.folder / lost)
    (moved.folder / "mlflow.db").unlink()
    run(restore, **places)
    assert (tmp_path / "warehouse.damaged/batches").is_dir()
    shutil.rmtree(tmp_path / "warehouse.damaged")
    pd.testing.assert_frame_equal(moved.scores(), before)

    # from here on in processes of their own: this one's MLflow holds the file that was lost open
    output = run(after, **places)
    assert "promote: version none -> 1" in output
    assert "1 moves of melanoma@champion" in output
    assert "1 batches in scores/" in output
    land(moved, 903)
    settings = settings_file(archive=str(moved.archive), warehouse=str(moved.folder))
    done = submit("score", "--conf", settings, "--master", "local[2]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= 3 scored" in done.stdout, "what came after the backup, and what has come since"
    assert "by melanoma version 1;" in done.stdout
    scored_once(moved, before)
    with sqlite3.connect(moved.folder / "mlflow.db") as database:
        runs = {run for (run,) in database.execute("select run_uuid from runs")}
    assert set(moved.scores()["run_id"]) <= runs


def test_a_tracking_server_on_postgresql_is_restored_by_the_documented_commands(copied, postgresql, tmp_path):
    """Into another database, and behind another server."""
    import psycopg2

    (backup, restore), art = commands("PostgreSQL"), tmp_path / "art"
    address = postgresql.replace("+psycopg2", "")
    password = re.search(r":(\w+)@", address)[1]
    places = {"BACKUP": tmp_path / "backup", "ARTIFACTS": art, "PGPASSWORD": password}
    (tmp_path / "backup").mkdir()
    for folder in ("registry", "scores", "ledger"):
        shutil.rmtree(copied.folder / folder)
    with mlflow_server(postgresql, tmp_path) as server:
        line = open_line(copied.context.spark, copied.archive, copied.folder, mlflow={"tracking_uri": server})
        assert "melanoma version 1 is champion now" in line.stage("register")
        land(line, 901)
        line.stage("score")
        before = line.scores()
        run(backup, **places, DATABASE=address.replace(f":{password}", ""))
        shutil.rmtree(art)
    connection = psycopg2.connect(address)
    connection.autocommit = True
    connection.cursor().execute("create database restored")
    connection.close()
    new = re.sub(r"/postgres$", "/restored", postgresql)
    run(restore, **places, DATABASE=new.replace("+psycopg2", "").replace(f":{password}", ""))
    with mlflow_server(new, tmp_path) as server:
        line = open_line(copied.context.spark, copied.archive, copied.folder, mlflow={"tracking_uri": server})
        assert str(line.tracker().find_version("melanoma@champion").version) == "1"
        assert "nothing to do" in line.stage("score")
        land(line, 902)
        assert "= 1 scored" in line.stage("score")
        scored_once(line, before)
        (move,) = alias_history.History(line.context.warehouse, "melanoma", "champion").read()
        runs = {run.info.run_id for run in mlflow.MlflowClient().search_runs(["1"])}
        assert {move["evidence"]["run_id"], *line.scores()["run_id"]} <= runs
        assert files.exists(f"{line.context.warehouse}/registry/melanoma/verdicts/1.json")
