"""MLflow: what is logged, under which run, and the error when it cannot be reached."""

import contextlib
import http.server
import os
import shutil
import socket
import sqlite3
import threading
import time
from contextlib import contextmanager

import mlflow
import pytest

from melanoma_spark import config, tracking
from melanoma_spark.errors import ClusterError, ConfigError, DataError
from melanoma_spark.models import model_registry
from melanoma_spark.storage import files
from melanoma_spark.training.loop import EpochRecord


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """A warehouse with its own MLflow: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("tracking") / "ware house"
    tracking.Tracker(config.Mlflow(), files.url_of(str(folder)))
    return folder


@pytest.fixture
def tracker(warehouse):
    return tracking.Tracker(config.Mlflow(), files.url_of(str(warehouse)))


def stored(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def test_mlflow_lies_in_the_warehouse_unless_a_server_is_named(warehouse):
    assert (warehouse / "mlflow.db").is_file()
    for place in ("file:///data/w", "hdfs://namenode/w"):
        uri = tracking.tracking_uri(config.Mlflow(tracking_uri="http://server:5000"), place)
        assert uri == "http://server:5000"
    assert tracking.tracking_uri(config.Mlflow(), "file:///data/w") == "sqlite:////data/w/mlflow.db"
    with pytest.raises(ConfigError, match=r"hdfs://namenode/w is not a local folder.*mlflow\.tracking_uri="):
        tracking.tracking_uri(config.Mlflow(), "hdfs://namenode/w")


def test_runs_hold_what_was_logged_and_epochs_as_curves(tracker, warehouse):
    with tracker.run("ingest", {"stage": "ingest"}) as run_id:
        tracker.log_parameters({"image_size": "64", "long": "x" * 7000})
        tracker.log_metrics({"accepted": 7, "undefined": float("nan")})
        tracker.set_tags({"dataset_id": "abc"})
        tracker.log_artifact("report.html", b"<p>")
        tracker.log_artifact("plots/roc.png", b"png")
    run = stored(run_id)
    assert (run.info.run_name, run.info.status) == ("ingest", "FINISHED")
    assert run.data.params == {"image_size": "64", "long": "x" * 6000}
    assert run.data.metrics == {"accepted": 7.0}
    assert run.data.tags.items() >= {"stage": "ingest", "dataset_id": "abc"}.items()
    folder = warehouse / "mlartifacts" / run_id / "artifacts"
    assert (folder / "report.html").read_bytes() == b"<p>"
    assert (folder / "plots/roc.png").read_bytes() == b"png"

    nan = float("nan")
    records = [
        EpochRecord("head", epoch, 1.0 / epoch if epoch else nan, 0.5, 0.8, 4.0 * epoch, 2.0, 1.0) for epoch in range(3)
    ]
    with tracker.run("train_head", {}) as run_id:
        tracker.log_epochs(records)
    history = mlflow.MlflowClient().get_metric_history
    assert [(point.step, point.value) for point in history(run_id, "loss")] == [(1, 1.0), (2, 0.5)]
    assert [point.step for point in history(run_id, "validation_loss")] == [0, 1, 2]
    assert [point.value for point in history(run_id, "validation_auroc")] == [0.8] * 3
    assert [(point.step, point.value) for point in history(run_id, "images_per_second")] == [(1, 2.0), (2, 2.0)]
    assert [(point.step, point.value) for point in history(run_id, "wait_share")] == [(1, 0.25), (2, 0.125)]


def test_runs_of_stages_are_nested_and_standalone_runs_are_not(tracker):
    with tracker.run("pipeline", {}) as parent:
        children = []
        for name in ("ingest", "featurize"):
            with tracker.run(name, {}) as run_id:
                children.append(run_id)
                tracker.log_metrics({"seconds": 1})
        tracker.log_metrics({"whole": 2})
    assert [stored(child).data.tags["mlflow.parentRunId"] for child in children] == [parent, parent]
    assert "mlflow.parentRunId" not in stored(parent).data.tags
    assert stored(parent).data.metrics == {"whole": 2.0}
    assert mlflow.active_run() is None
    with pytest.raises(ZeroDivisionError), tracker.run("pipeline", {}) as parent, tracker.run("ingest", {}) as child:
        raise ZeroDivisionError
    assert {stored(run).info.status for run in (parent, child)} == {"FAILED"}
    assert mlflow.active_run() is None

    with tracker.run("score", {}) as run_id:
        own = [
            tracker.log_standalone_run("drift", name, {"batch_id": name}, {"psi/x": 0.25, "nan": float("nan")})
            for name in "ab"
        ]
        tracker.log_metrics({"seconds": 1})
    experiment = mlflow.get_experiment_by_name("melanoma-drift")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "mlartifacts" in experiment.artifact_location
    for name, result in zip("ab", map(stored, own), strict=True):
        assert result.info.experiment_id == experiment.experiment_id
        assert (result.info.run_name, result.info.status) == (name, "FINISHED")
        assert result.data.metrics == {"psi/x": 0.25}
        assert result.data.tags["batch_id"] == name
        assert "mlflow.parentRunId" not in result.data.tags
    assert stored(run_id).data.metrics == {"seconds": 1}, "the open run stays what it is"
    assert stored(run_id).info.experiment_id != experiment.experiment_id


def test_models_that_are_not_there(tracker):
    assert tracker.find_version("melanoma@champion") is None
    assert tracker.find_version("melanoma/3") is None
    with pytest.raises(DataError, match=r"no model melanoma@champion in MLflow at sqlite:.*registered: nothing; run"):
        model_registry.download_model(tracker, "melanoma@champion")
    mlflow.MlflowClient().create_registered_model("other")
    with pytest.raises(DataError, match=r"registered: other; run `melanoma-spark register` first"):
        model_registry.download_model(tracker, "melanoma@champion")
    with pytest.raises(ConfigError, match=r"score\.model: 'melanoma' is neither NAME@ALIAS nor NAME/VERSION"):
        tracker.find_version("melanoma")


def test_all_versions_and_their_tags(tracker):
    client = mlflow.MlflowClient()
    for name in ("versions a", "versions b"):
        client.create_registered_model(name)
        for number in range(2):
            client.create_model_version(name, "file:///nowhere", tags={"report_id": f"{number}"})
    client.delete_model_version("versions b", "1")
    result = [(v.name, str(v.version), v.tags) for v in tracker.versions() if v.name.startswith("versions")]
    own = [("versions a", "1", "0"), ("versions a", "2", "1"), ("versions b", "2", "1")]
    assert sorted(result) == [(name, number, {"report_id": tag}) for name, number, tag in own]


@contextmanager
def a_port(answer: int | None):
    """A port without a server, or with one that answers everything with this status."""
    if answer is None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # held, not listened at
            yield held.getsockname()[1]
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(answer)

        do_POST = do_GET

        def log_message(self, format, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("answer", [None, 404, 500])
def test_an_unreachable_server_is_reported_soon(tmp_path, monkeypatch, answer):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with a_port(answer) as port:
        uri = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        with pytest.raises(ClusterError, match=f"MLflow at {uri} cannot be used: ") as caught:
            tracking.Tracker(config.Mlflow(tracking_uri=uri), files.url_of(str(tmp_path)))
        assert time.monotonic() - started < 30
    assert len(str(caught.value).splitlines()) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


@pytest.mark.parametrize("damage", ["text", "folder"])
def test_a_damaged_database_is_reported_in_one_line(tmp_path, damage):
    if damage == "text":
        (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one" * 100)
    else:
        (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(ClusterError, match=r"MLflow at sqlite:.*mlflow\.db cannot be used: ") as caught:
        tracking.Tracker(config.Mlflow(), files.url_of(str(tmp_path)))
    assert len(str(caught.value).splitlines()) == 1


def test_writing_is_tried_on_a_server(server, tmp_path):
    """Only the experiment remains; a server that cannot keep artifacts is reported."""
    settings = config.Mlflow(tracking_uri=server)
    assert tracking.check_writing(settings, "file:///nowhere") == f"{server}: writes and removes"
    experiment = mlflow.get_experiment_by_name("melanoma")
    assert experiment.tags == tracking.EXPERIMENT_TAGS
    art = tmp_path / "art"
    assert not [path for path in art.rglob("*") if path.is_file()]
    shutil.rmtree(art)
    art.write_text("no folder")
    with pytest.raises(ClusterError, match=f"MLflow at {server} does not take artifacts: "):
        tracking.check_writing(settings, "file:///nowhere")


def test_writing_is_tried_on_an_sqlite_file(warehouse, tmp_path):
    settings, place = config.Mlflow(), files.url_of(str(warehouse))
    before = (warehouse / "mlflow.db").read_bytes()
    assert tracking.check_writing(settings, place) == f"{warehouse}/mlflow.db: may be written"
    assert (warehouse / "mlflow.db").read_bytes() == before
    with contextlib.closing(sqlite3.connect(warehouse / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ClusterError, match=r"cannot be used: database is locked"):
            tracking.check_writing(settings, place)
    there = tmp_path / "new"
    assert "which the first job makes" in tracking.check_writing(settings, files.url_of(str(there)))
    assert list(there.iterdir()) == []
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(ClusterError, match=r"cannot be used: file is not a database"):
        tracking.check_writing(settings, files.url_of(str(tmp_path)))
