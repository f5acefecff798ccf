"""A job in this process: from its arguments to its exit status, by the code that a process of its own runs."""

import json

import pytest
from conftest import command

from melanoma_spark.errors import BusyError, ClusterError, DataError
from melanoma_spark.runner.cli import Command, invoke
from melanoma_spark.runner.context import Summary


def raising(error):
    def stage(job):
        raise error

    return stage


def looking(stage, **options):
    """A command that needs neither Spark nor MLflow."""
    from melanoma_spark.runner.stage import run_untracked

    options["prepared"] = lambda settings: False
    return Command("look", "look: what is there", stage, runner=run_untracked, **options)


@pytest.mark.parametrize(
    ("command", "argv", "exit_status", "told"),
    [
        (command("ingest"), ["--help"], 0, "archive=/data/lesions"),
        (command("ingest"), ["--frobnicate"], 2, "unrecognized arguments: --frobnicate"),
        (command("ingest"), ["imagesize=64"], 2, "error: unknown setting 'imagesize': did you mean 'image_size'?"),
        (command("ingest"), [], 2, "error: no archive named"),
        (command("pipeline"), ["archive=/a", "split=hasch"], 2, "error: setting split:"),
        (command("pipeline"), ["archive=/a", "--check"], 0, ""),
        (command("score"), ["--follow", "archive=/a", "--check"], 0, "graceful"),
        (command("score"), ["archive=s3a://KEY:SECRET@bucket/x"], 2, "has a user or a key in its address"),
        (command("prune"), ["warehouse=/not/there"], 4, "error: file:///not/there is not there"),
        (command("score"), ["status", "warehouse=/not/there", "score.within=1"], 4, "error: there is no batch"),
    ],
)
def test_exit_status_and_line_of_what_ends_before_spark(command, argv, exit_status, told):
    result = invoke(command, argv)
    assert result.exit_status == exit_status, result.log
    assert told in result.log
    assert "Traceback" not in result.log


@pytest.mark.parametrize(
    ("error", "exit_status"), [(DataError("such data"), 4), (ClusterError("away"), 3), (BusyError("at it"), 5)]
)
def test_an_error_is_one_line_and_a_status(error, exit_status):
    result = invoke(looking(raising(error)), [])
    assert (result.exit_status, result.summary, result.log) == (exit_status, str(error), f"error: {error}\n")
    (line,) = invoke(looking(raising(error)), ["log.format=json"]).log.splitlines()
    told = json.loads(line)
    assert (told["event"], told["exit_status"], told["message"]) == ("failed", exit_status, str(error))


def test_what_nobody_foresaw_is_a_traceback_and_status_1():
    result = invoke(looking(raising(ZeroDivisionError("by zero"))), [])
    assert result.exit_status == 1
    assert "Traceback" in result.log
    assert "in stage" in result.log


def test_a_summary_has_the_status_of_its_job():
    result = invoke(looking(lambda job: Summary("done, look", 6)), [])
    assert (result.exit_status, result.summary, result.log) == (6, "done, look", "look: done, look\n")


def test_a_stage_knows_with_what_it_was_started():
    seen = []
    command = looking(lambda job: seen.append(job.argv) or Summary("done"), words={"short": "seed=3"})
    invoke(command, ["short", "ranks=1"])
    assert seen == [("seed=3", "ranks=1")]
