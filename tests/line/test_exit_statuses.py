"""score's exit statuses and its lines as JSON. 6 is in test_score.py; test_spark_submit.py has what a process adds."""

import contextlib
import json
import re
import subprocess
import sys

import pytest
from conftest import REPO, command

from melanoma_spark.errors import ExitStatus
from melanoma_spark.monitoring import statistics
from melanoma_spark.runner.cli import invoke
from melanoma_spark.storage import lease

NOBODY = "http://127.0.0.1:9"  # the port of `discard`, at which nothing listens
SECRET = "s3a://KEY:SECRET@nobody-has-this-bucket/lesions"


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (0, [], None),
        (2, ["score.batch=3"], "unknown setting 'score.batch': did you mean 'batch_size'?"),
        (3, [f"mlflow.tracking_uri={NOBODY}"], f"MLflow at {NOBODY} cannot be used"),
        (4, ["score.model=melanoma/99"], "no model melanoma/99 in MLflow"),
        (5, [], "score is already running on this warehouse"),
    ],
)
def test_an_exit_status_and_its_line(spark, copied, settings_file, status, words, message):
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder))
    held = lease.acquire(copied.context.warehouse, "score") if status == 5 else contextlib.nullcontext()
    with held:
        done = invoke(command("score"), ["--conf", str(settings), "log.format=json", *words], spark)
    assert done.exit_status == status, done.log
    output = [json.loads(line) for line in done.log.splitlines() if line.startswith("{")]
    assert all(line["job"] == "score" and line["time"].endswith("Z") for line in output)
    if status == 0:
        assert [line["event"] for line in output] == ["started", "done"]
        assert output[-1]["run_id"]
        counts = output[-1]["counts"]  # the archive has moved, so its files are copies by content
        assert counts["listed"] == counts["copies"] + counts["rejected"] > 0
        return
    line = output[-1]
    assert (line["level"], line["event"], line["exit_status"]) == ("error", "failed", status)
    assert message in line["message"]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("key", ["archive", "warehouse"])
def test_a_key_in_an_address_is_refused_and_not_logged(settings_file, tmp_path, key, form):
    """Else botocore would log it as the name of a bucket."""
    places = {"archive": str(tmp_path), "warehouse": str(tmp_path / "warehouse"), key: SECRET}
    done = invoke(command("ingest"), ["--conf", str(settings_file(**places)), f"log.format={form}"])
    assert done.exit_status == 2, done.log
    assert "SECRET" not in done.log
    assert f"{key}=s3a://***@nobody-has-this-bucket/lesions has a user or a key in its address" in done.log


def test_help_and_the_page_of_alarms_show_the_table():
    command = [sys.executable, "-m", "jobs.ingest", "--help"]
    shown = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    page = (REPO / "docs/exit-statuses.md").read_text()
    assert "```{exit-statuses}" in page
    assert {int(number) for number in re.findall("^## Status ([0-9])", page, re.MULTILINE)} == set(range(1, 7))
    assert set(range(7)) <= set(ExitStatus)
    for status in ExitStatus:
        assert f"\n  {status:d}  {status.meaning}" in shown
    for verdict in (statistics.DRIFTING, statistics.BEYOND, statistics.TOO_FEW, statistics.NO_REFERENCE):
        assert re.search(rf'^## .*"{verdict}"', page, re.MULTILINE)
