"""score's exit statuses, each through spark-submit.sh, and its last line as JSON. 6 is in test_drift.py."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys

import pytest
from conftest import REPO

from melanoma_spark import errors, lease

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
def test_an_exit_status_and_its_line(copied, submit, settings_file, status, words, message):
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder))
    held = lease.held(copied.job.warehouse, "score") if status == 5 else contextlib.nullcontext()
    with held:
        done = submit("score", "--conf", settings, "--master", "local[1]", "log.format=json", *words)
    assert done.returncode == status, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["job"] == "score" and line["level"] == "info" and line["time"].endswith("Z") for line in told)
    if status == 0:
        assert done.stderr == ""
        assert [line["event"] for line in told] == ["started", "done"]
        assert told[-1]["run_id"]
        assert "nothing to do" in told[-1]["message"]
        return
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["event"], line["exit_status"]) == ("error", "failed", status)
    assert message in line["message"]


def test_a_password_in_an_url_is_not_told(submit, settings_file, tmp_path):
    """Neither as text nor as JSON, nor in the way that Spark's stack traces go."""
    settings = settings_file(archive=SECRET, warehouse=str(tmp_path / "warehouse"))
    done = submit("ingest", "--conf", settings, "--master", "local[1]", AWS_EC2_METADATA_DISABLED="true")
    assert done.returncode in (2, 4), done.stdout + done.stderr
    assert "SECRET" not in done.stdout + done.stderr
    assert "s3a://***@nobody-has-this-bucket" in done.stderr


def test_help_and_the_operators_page_tell_them_all():
    command = [sys.executable, "-m", "jobs.score", "--help"]
    told = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    page = (REPO / "docs/operations.md").read_text()
    kinds = vars(errors).values()
    statuses = {kind.exit_status for kind in kinds if isinstance(kind, type) and hasattr(kind, "exit_status")} | {0, 6}
    assert statuses == set(range(7))
    for status in statuses:
        assert re.search(rf"^  {status}  \w", told, re.MULTILINE)
        assert re.search(rf"^\| {status} \|", page, re.MULTILINE)
