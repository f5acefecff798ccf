"""Logs of jobs: as text for people, as JSON lines for machines, and without a password in either."""

import json
import re

import pytest

from melanoma_spark import config, logs
from melanoma_spark.errors import BusyError, DataError
from melanoma_spark.runner.stage import describe_error
from melanoma_spark.spark import session


@pytest.fixture
def as_json():
    logs.configure("score", "json")
    yield
    logs.configure("", "text")


def output(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_text_has_results_at_the_margin_and_progress_indented(capsys):
    logs.event("started")
    with logs.context(stage="score"):
        logs.info("3 of 4 parts", "progress", done=3, of=4)
        logs.warning("of four")
    logs.result("score: over")
    logs.result("")
    assert capsys.readouterr().out == "  3 of 4 parts\n  warning: of four\nscore: over\n\n"
    assert logs.failure_line("no such thing", 4) == "error: no such thing"


def test_json_has_the_fields_of_what_it_is_about(as_json, capsys):
    with logs.context(stage="pipeline"):
        with logs.context(stage="score"):
            logs.event("started")
            logs.add_context(run_id="r", batch_id="b")
            logs.add_context(counts={"scored": 3})
            logs.info("3 of 4\nparts é", "progress", done=3, of=4)
        logs.warning("over")
    logs.result("")
    first, second, third = output(capsys)
    assert first["event"] == first["message"] == "started"
    time = second.pop("time")
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert time.endswith("Z")
    assert second == {
        "level": "info",
        "job": "score",
        "event": "progress",
        "stage": "score",
        "run_id": "r",
        "batch_id": "b",
        "counts": {"scored": 3},
        "done": 3,
        "of": 4,
        "message": "3 of 4\nparts é",
    }
    assert (third["stage"], third["level"]) == ("pipeline", "warning")
    assert "run_id" not in third
    failed = json.loads(logs.failure_line("no such thing", 4))
    assert (failed["level"], failed["exit_status"], failed["message"]) == ("error", 4, "no such thing")


def test_progress_is_logged_as_json(spark, as_json, capsys):
    import time

    with session.progress(spark, "slow things", seconds=0.2):
        spark.range(0, 2, 1, 2).mapInPandas(lambda batches: (time.sleep(1.5), *batches)[1:], "id long").collect()
    assert {line["event"] for line in output(capsys)} == {"progress"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("archive s3a://KEY:SE/CRET@b/x holds", "archive s3a://KEY:SE/CRET@b/x holds"),  # no URL: a slash ends the host
        ("archive s3a://KEY:SECRET@b/x holds", "archive s3a://***@b/x holds"),
        ("at postgresql://me:pass@host:5432/db?sslmode=x", "at postgresql://***@host:5432/db?***"),
        ("https://h/a.zip?X-Amz-Signature=abc&y=1, then", "https://h/a.zip?***, then"),
        ("what? a=b me@example.org", "what? a=b me@example.org"),
        ("file:///data/me@home/x", "file:///data/me@home/x"),
    ],
)
def test_passwords_are_not_logged(text, shown, as_json, capsys):
    assert logs.without_passwords(text) == shown
    with logs.context(stage=text, counts={"of": [text]}):
        logs.info(text)
    (line,) = output(capsys)
    assert (line["message"], line["stage"], line["counts"]) == (shown, shown, {"of": [shown]})


def test_the_log_format_is_read_from_invalid_settings(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("log: {format: json}\nnonsense: 1\n")
    assert config.log_format(path) == "json"
    assert config.log_format(path, ["log.format=text"]) == "text"
    assert config.log_format(None, ["x", "log.format=json"]) == "json"
    assert config.log_format(tmp_path / "nowhere.yaml") == "text"
    assert config.log_format(None, ["log=json"]) == "text"
    assert config.log_format(None) == "text"


def test_errors_of_spark_name_no_file_where_names_are_private(spark):
    from pyspark.errors import PySparkException

    with pytest.raises(PySparkException) as caught:
        spark.read.parquet("/nowhere/Jane Doe.parquet")
    assert "Jane" in describe_error(caught.value, private=False)[0]
    message, status = describe_error(caught.value, private=True)
    assert "Jane" not in message
    assert message.startswith("Spark: ")
    assert status == 1
    assert describe_error(DataError("told"), private=True) == ("told", 4)
    assert describe_error(BusyError("told"), private=True) == ("told", 5)
    assert describe_error(ValueError("ours"), private=True) is None


def test_no_log_line_holds_a_name_that_is_hashed(copied, monkeypatch, as_json, capsys):
    """A batch with a table of an unknown layout and a file that cannot be decoded."""
    monkeypatch.setenv("MELANOMA_NAME_KEY", "a key of sixteen characters")
    from melanoma_spark.images import synthetic

    (copied.archive / "Jane Doe.jpg").write_bytes(synthetic.lesion_jpeg(900, size=64))
    (copied.archive / "John Roe.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (copied.archive / "Jane Roe.csv").write_text("a,b\n1\n")
    (copied.archive / "metadata.csv").unlink(missing_ok=True)
    privacy = copied.context.settings.privacy.model_copy(update={"source_names": "hash"})
    lines = copied.output_of("score", privacy=privacy)
    assert "Jane" not in lines
    assert "John" not in lines
    last = json.loads(lines.splitlines()[-1])
    assert last["event"] == "done"
    assert last["counts"]["listed"] > 2
    assert last["batch_id"]
    assert last["run_id"]
    assert not re.search("Jane|John", copied.scores().to_csv()), "nor does a row of scores/"
    assert "nothing to do" in copied.stage("score", privacy=privacy)
