"""A job in this process: from its arguments to its exit status, by the code that a separate process runs."""

import json

import pytest
from conftest import REPO, command, one_line

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
    ("command", "argv", "exit_status", "message"),
    [
        (command("ingest"), ["--help"], 0, "archive=/data/lesions"),
        (command("ingest"), ["--frobnicate"], 2, "unrecognized arguments: --frobnicate"),
        (command("ingest"), ["imagesize=64"], 2, "error: unknown setting 'imagesize': did you mean 'image_size'?"),
        (command("ingest"), [], 2, "error: no archive named"),
        (command("pipeline"), ["archive=/a", "split=hasch"], 2, "error: setting split:"),
        (command("pipeline"), ["archive=/a", "--check"], 0, ""),
        (
            command("pipeline"),
            ["image_size=64", "--check", "archive=/a", "--conf", f"{REPO}/conf/local.yaml", "seed=1"],
            0,
            "",
        ),
        (command("score"), ["--follow", "archive=/a", "--check"], 0, "graceful"),
        (command("score"), ["archive=s3a://KEY:SECRET@bucket/x"], 2, "has a user or a key in its address"),
        (command("prune"), ["warehouse=/not/there"], 4, "error: file:///not/there is not there"),
        (command("prune"), ["warehouse=s3a://KEY:SECRET@bucket/w"], 2, "has a user or a key in its address"),
        (command("prune"), ["warehouse=hdfs://nobody.invalid:1/w"], 3, "error: hdfs://nobody.invalid:1/w: "),
        (command("score"), ["status", "warehouse=/not/there", "score.within=1"], 4, "error: there is no batch"),
    ],
)
def test_exit_status_and_line_of_jobs_that_end_before_spark(command, argv, exit_status, message):
    result = invoke(command, argv)
    assert result.exit_status == exit_status, result.log
    assert message in result.log
    assert "Traceback" not in result.log


@pytest.mark.parametrize("job", ["ingest", "pipeline", "score", "evaluate"])
@pytest.mark.parametrize(
    ("archive", "warehouse", "message"),
    [
        ("lesions", "lesions", "archive={archive} holds warehouse={warehouse}: pictures"),
        ("lesions/", "lesions/deep/w", "archive={archive} holds warehouse={warehouse}: pictures"),
        ("lesions", "link/w", "holds warehouse={warehouse}; warehouse leads to {top}/lesions/w: pictures"),
        (
            "link",
            "lesions/w",
            "archive={archive} holds warehouse={warehouse}; archive leads to {top}/lesions: pictures",
        ),
        ("lesions", "lesions/../link/../lesions/w", "holds warehouse={warehouse}"),
        ("w/batches/1/pictures", "w", "archive={archive} is written by jobs, in warehouse={warehouse}: pictures"),
        ("w/images", "w/", "is written by jobs, in warehouse={warehouse}: pictures"),
        ("pictures", "w", "is written by jobs, in warehouse={warehouse}; archive leads to {top}/w/batches"),
    ],
)
def test_a_warehouse_in_its_archive_is_refused_before_spark_starts(tmp_path, job, archive, warehouse, message):
    for folder in ("lesions", "w/batches"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("lesions")
    (tmp_path / "pictures").symlink_to("w/batches")
    places = {"archive": f"{tmp_path}/{archive}", "warehouse": f"{tmp_path}/{warehouse}"}
    result = invoke(command(job), [f"{name}={place}" for name, place in places.items()])
    assert result.exit_status == 2, result.log
    one_line(result.log, "error: ", message.format(**places, top=tmp_path), "choose a warehouse beside the archive")
    assert not list(tmp_path.glob("**/mlflow.db"))


@pytest.mark.parametrize(
    ("archive", "warehouse"),
    [
        ("/a/lesions", "/a/lesions-warehouse"),
        ("/a/w/landing", "/a/w"),
        ("s3a://b/lesions", "s3a://b/lesions2"),
        ("s3a://b/lesions", "/b/lesions/w"),
    ],
)
def test_a_warehouse_beside_its_archive_is_not_refused(archive, warehouse):
    argv = [f"archive={archive}", f"warehouse={warehouse}", "--check"]
    assert invoke(command("score"), argv).exit_status == 0


def test_a_warehouse_in_its_archive_on_s3_is_refused():
    argv = ["archive=s3://b/lesions/", "warehouse=s3a://b/lesions/w"]
    one_line(invoke(command("score"), argv).log, "archive=s3://b/lesions/ holds warehouse=s3a://b/lesions/w: pictures")


def test_jobs_that_read_no_archive_do_not_mind(tmp_path):
    argv = [f"archive={tmp_path}", f"warehouse={tmp_path}/w"]
    assert "error: file:" in invoke(command("prune"), argv).log


@pytest.mark.parametrize(
    ("error", "exit_status"), [(DataError("such data"), 4), (ClusterError("away"), 3), (BusyError("at it"), 5)]
)
def test_an_error_is_one_line_and_a_status(error, exit_status):
    result = invoke(looking(raising(error)), [])
    assert (result.exit_status, result.summary, result.log) == (exit_status, str(error), f"error: {error}\n")
    (line,) = invoke(looking(raising(error)), ["log.format=json"]).log.splitlines()
    message = json.loads(line)
    assert (message["event"], message["exit_status"], message["message"]) == ("failed", exit_status, str(error))


def test_unexpected_errors_summaries_and_arguments():
    result = invoke(looking(raising(ZeroDivisionError("by zero"))), [])
    assert result.exit_status == 1
    assert "Traceback" in result.log
    assert "in stage" in result.log
    result = invoke(looking(lambda job: Summary("done, look", 6)), [])
    assert (result.exit_status, result.summary, result.log) == (6, "done, look", "look: done, look\n")
    seen = []
    command = looking(lambda job: seen.append(job.argv) or Summary("done"), words={"short": "seed=3"})
    invoke(command, ["short", "ranks=1"])
    assert seen == [("seed=3", "ranks=1")]
