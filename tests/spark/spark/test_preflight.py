"""Checks of executors, and the errors when they differ from the driver."""

import importlib
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from melanoma_spark.errors import ClusterError, java_message
from melanoma_spark.spark import checks, executors
from melanoma_spark.storage import files

ON = checks.executor_on(socket.gethostname())


@pytest.fixture
def other_driver(monkeypatch):
    """The driver alone has another numpy, and a package more."""
    own = checks.package_versions()
    monkeypatch.setattr(checks, "package_versions", lambda: {**own, "numpy": "0.0.1", "more": "1"})


def test_executors_are_ready_out_of_reach_or_missing(spark, monkeypatch):
    executors.check_ready(spark, 2)
    executors.check_versions(spark)

    elsewhere = SimpleNamespace(get=lambda key: "nobody-has-this-name.invalid")
    seen = SimpleNamespace(sparkContext=spark.sparkContext, conf=elsewhere)
    message = rf"{ON}: cannot reach nobody-has-this-name\.invalid:\d+ \(.+\); .*open those between"
    with pytest.raises(ClusterError, match=message):
        executors.check_ready(seen, 2)

    monkeypatch.setattr(executors.session, "settled_slots", lambda spark: 0)
    with pytest.raises(ClusterError, match=r"none has registered; check that the cluster has free cores"):
        executors.probe_machines(spark, "file:///nowhere", "")


@pytest.mark.parametrize("check", [lambda spark: executors.check_ready(spark, 2), executors.check_versions])
def test_other_versions_are_reported_in_one_line(spark, other_driver, check):
    with pytest.raises(ClusterError) as caught:
        check(spark)
    result = checks.installed_versions(["numpy"])["numpy"]
    assert str(caught.value) == (
        f"{ON}: more none (driver: 1), numpy {result} (driver: 0.0.1); install the driver's versions there"
    )


# over the limit of one test: the executor imports Horovod, and TensorFlow with it
def test_machines(spark, tmp_path):
    warehouse = files.url_of(str(tmp_path))
    files.write_bytes(files.join(warehouse, "written"), b"")
    first, second = executors.probe_machines(spark, warehouse, files.join(warehouse, "written"))
    assert (first.host, first.executor) == (second.host, second.executor)
    assert first.versions == second.versions == checks.package_versions()
    assert first.unreachable == second.unreachable == ""
    assert first.skew == second.skew == 0
    assert second.machine is None, "an executor is looked at once"
    result = first.machine
    assert result.java.split(".")[0] in checks.JAVA
    assert result.spark == spark.version
    assert (result.horovod, result.warehouse, result.gpus) == ("", "", ())
    assert 0 < result.available < result.total
    assert result.cores > 0
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [(".", "{place} is another one than the driver's; mount"), ("file/warehouse", "cannot write {place}/")],
)
def test_a_warehouse_that_is_not_the_drivers(tmp_path, monkeypatch, folder, message):
    monkeypatch.setattr(executors, "horovod_problem", lambda: "")
    (tmp_path / "file").write_text("no folder")
    place = files.url_of(str(tmp_path / folder))
    result = executors._describe_machine(place, f"{place}/of-the-driver", SimpleNamespace(java="17", spark="4"))
    assert result.warehouse.startswith(message.format(place=place))


@pytest.mark.parametrize("barrier", [False, True])
def test_the_error_of_a_task_is_reported(spark, barrier):
    def broken(rows):
        return importlib.import_module("nobody_has_this_package")

    rows = spark.sparkContext.parallelize(range(2), 2)
    rows = rows.barrier() if barrier else rows
    with pytest.raises(ClusterError) as caught:
        executors._collect(rows.mapPartitions(broken))
    where, message = str(caught.value).split(" cannot be asked: ")
    assert where == "executors" if barrier else where.startswith("executor on ")
    assert message == f"ModuleNotFoundError: No module named 'nobody_has_this_package'; {executors.PYTHON}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def gloo_built(): return True", ""),
        ("def gloo_built(): return False", "built without Gloo"),
        ("raise ImportError('undefined symbol: x')", "ImportError: undefined symbol: x"),
        ("import os; os.abort()", "ended with -6"),
        ("import time; time.sleep(60)", "did not load within 2 s"),
    ],
)
def test_horovod(tmp_path: Path, monkeypatch, source, message):
    monkeypatch.setattr(executors, "LOAD_SECONDS", 2)
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod/__init__.py").touch()
    (tmp_path / "horovod/tensorflow.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert executors.horovod_problem() == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "An error occurred while calling None.org.apache.spark.sql.classic.SparkSession.\n"
            ": java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\n"
            "This stopped SparkContext was created at:\n",
            "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.",
        ),
        (
            ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, "
            "most recent failure: Lost task 0.3 in stage 0.0 (TID 3) (10.0.0.7 executor 1): java.io.IOException: "
            'Cannot run program "./env/bin/python": error=2, No such file or directory\n'
            "\tat java.base/java.lang.ProcessBuilder.start(ProcessBuilder.java:1143)\n"
            "Caused by: java.io.IOException: error=2, No such file or directory\n",
            'java.io.IOException: Cannot run program "./env/bin/python": error=2, No such file or directory',
        ),
        ("something else\nentirely", "something else"),
        ("", "str"),
    ],
)
def test_java_errors_are_shortened_to_one_line(text, message):
    assert java_message(text) == message
