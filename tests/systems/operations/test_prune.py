"""prune: it removes what it lists, on every kind of store, and never while a job runs."""

import importlib
import json
import os
import re
import shutil
from contextlib import nullcontext

import pytest
from conftest import REPO, STAGES, captured_output, command

from melanoma_spark import config, lineage
from melanoma_spark.errors import BusyError, ClusterError, DataError
from melanoma_spark.images import hashes
from melanoma_spark.models import engines
from melanoma_spark.operations import prune, retention
from melanoma_spark.registry import alias_history
from melanoma_spark.runner.cli import invoke
from melanoma_spark.runner.context import StageContext
from melanoma_spark.storage import files, lease

OLD, NEW, MADE = (lineage.content_id([name]) for name in ("old", "new", "made from"))
DAY = 86400


def fill(url):
    """A warehouse with superseded features, dataset and head, and what stays; returns the paths of what may go."""
    gone = [f"features/{OLD}/part-0", f"images/{OLD}-{MADE}/part-0", f"rejects/{OLD}-{MADE}/part-0"]
    gone += [f"models/head/{OLD}/weights.npz"]
    kept = [path.replace(OLD, NEW) for path in gone] + [f"scores/batch_id=x/{OLD}", f"ledger/m/1/batch_id=x/{OLD}"]
    for path in [*gone, *kept, "batches/x/batch.json"]:
        files.write_bytes(files.join(url, path), b"12345")
    for place, name in (("features", NEW), ("images", f"{NEW}-{MADE}"), ("models/head", NEW)):
        files.write_json(files.join(url, place, "manifest.json"), {"id": NEW, "path": name})
    return sorted(path.rpartition("/")[0] for path in gone)


@pytest.fixture
def warehouse(tmp_path):
    """Such a warehouse, on this machine."""
    fill(f"file://{tmp_path}")
    return tmp_path


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nobody else starts in the moment in which a lease is taken, so that there are nine of them at once."""
    monkeypatch.setattr(lease, "SETTLE", 0)


@pytest.fixture
def store(folder):
    """The URL of an empty folder on each kind of store, which goes with what is in it."""
    yield f"{folder}/to-prune"
    files.remove(f"{folder}/to-prune")


def run(place, **changes):
    """The lines of its output."""
    settings = config.parse({"warehouse": str(place), **changes})
    with captured_output() as text:
        summary = prune.prune(StageContext(None, settings, files.url_of(str(place)), None))
    return [*text.getvalue().splitlines(), summary.text]


def there(place):
    return sorted(path for path, _, _ in files.walk(files.url_of(str(place))))


def test_prune_removes_what_it_has_listed_on_any_store(store, shared_mlflow):
    gone, mlflow = fill(store), {"tracking_uri": shared_mlflow}
    before = there(store)
    output = run(store, mlflow=mlflow)
    assert there(store) == before, "a dry run changes nothing"
    assert [line.split()[0] for line in output[1:-2]] == gone
    assert (
        "4 entries, 4 files, 0.0 MB can be removed, nothing was removed; to remove them: melanoma-spark prune"
        in output[-1]
    )
    assert output[-1].endswith("prune.apply=true")
    files.make_folder(emptied := f"{store}/features/{'e' * 16}/deep")  # as a removal that was killed leaves it
    again = run(store, mlflow=mlflow, prune={"apply": True})
    assert not files.exists(emptied.rpartition("/")[0])
    assert again[:-1] == output[:-1]
    assert again[-1] == "4 entries, 4 files, 0.0 MB removed"
    assert there(store) == [path for path in before if path.rpartition("/")[0] not in gone]
    assert run(store, mlflow=mlflow)[-1].startswith("all of the 8 files that were checked are needed")


def test_errors_of_prune_are_one_line(warehouse, monkeypatch):
    def refused(url):
        raise PermissionError(13, "Permission denied", url)

    with monkeypatch.context() as only_here:
        only_here.setattr(prune.files, "remove", refused)
        with pytest.raises(ClusterError, match=rf"file://{warehouse}: Permission denied; fix that and run prune again"):
            run(warehouse, prune={"apply": True})
    (warehouse / "features/manifest.json").write_text("{")
    shutil.rmtree(warehouse / "running", ignore_errors=True)
    with pytest.raises(DataError, match=r"features/manifest\.json is not a JSON object"):
        run(warehouse, prune={"apply": True})
    assert (warehouse / f"features/{OLD}").exists()


def test_a_table(warehouse):
    (warehouse / f"features/{OLD}/part-0").write_bytes(b"x" * 12_345_678)
    os.utime(warehouse / f"features/{OLD}/part-0", (0, 0))
    output = run(warehouse)
    assert re.fullmatch(r"what +files +MB  why", output[0])
    assert re.fullmatch(rf"features/{OLD} +1 +12\.3  superseded: features/manifest\.json names another", output[1])
    places = {line.rindex("superseded") for line in output[1:5]}
    assert len(places) == 1
    assert places == {output[0].rindex("why")}
    assert output[-2] == "pictures of worklists stay, whatever their age: prune.worklists_days is not set"
    assert run(warehouse, prune={"worklists_days": 9})[-2].startswith("rejects/")


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("job", ["score", "pipeline", "one that is yet to be written"])
def test_prune_is_refused_while_a_job_runs(warehouse, job, apply):
    url = f"file://{warehouse}"
    with lease.acquire(url, job):
        before = there(warehouse)
        with pytest.raises(BusyError, match=f"{job} is already running on this warehouse") as caught:
            run(warehouse, prune={"apply": apply})
        assert there(warehouse) == before
    assert caught.value.exit_status == 5
    run(warehouse, prune={"apply": apply})


def test_prune_blocks_the_leases_of_all_jobs():
    """Of all that do not open everything by themselves."""
    modules = [importlib.import_module(f"jobs.{path.stem}") for path in (REPO / "jobs").glob("[a-z]*.py")]
    commands = [module.COMMAND for module in modules if hasattr(module, "COMMAND")]
    assert sorted(command.name for command in commands if command.prepared(config.parse({}))) == sorted(prune.JOBS)
    assert set(STAGES) < set(prune.JOBS)


def test_prune_stops_when_it_loses_a_lease(warehouse, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0)  # it looks before each
    monkeypatch.setattr(lease, "periodic", lambda *_: nullcontext())  # a beat in that moment would write it again
    remove = files.remove

    def removing(url):
        remove(url)
        (warehouse / "running/ingest.json").unlink(missing_ok=True)

    monkeypatch.setattr(prune.files, "remove", removing)
    with pytest.raises(ClusterError, match=r"running/ingest\.json is not this job's any more"):
        run(warehouse, prune={"apply": True})
    monkeypatch.undo()
    assert len(run(warehouse)) == 6, "three of four are still there"


def test_prune_removes_nothing_after_losing_a_lease_while_listing(warehouse, monkeypatch):
    decide, before = retention.decide, there(warehouse)

    def deciding(*given):
        (warehouse / "running/score.json").unlink()
        return decide(*given)

    monkeypatch.setattr(retention, "decide", deciding)
    with pytest.raises(ClusterError, match=r"running/score\.json is not this job's any more"):
        run(warehouse, prune={"apply": True})
    assert there(warehouse) == before


def test_the_printed_command_repeats_the_arguments_and_applies(warehouse):
    given = [f"warehouse={warehouse}", "mlflow.experiment=a place", "prune.apply=false"]
    words = f"warehouse={warehouse} 'mlflow.experiment=a place' prune.apply=true"
    assert invoke(command("prune"), given).summary.endswith(f": melanoma-spark prune {words}")


def test_files_of_a_registered_version_stay_until_it_is_deleted(line, copied):
    import mlflow

    before = there(line.folder)
    assert run(line.folder)[-1].startswith("all of the ")
    assert there(line.folder) == before
    assert files.list_names(f"{line.context.warehouse}/decoded", "*") == [line.manifest("images")["decoded"]]
    report, dataset = copied.manifest("reports"), copied.manifest("images")
    exports = copied.folder / "models/exported"
    (kept,) = exports.iterdir()
    for place in ("reports", "images", "rejects"):
        name = report["path"] if place == "reports" else dataset["path"]
        other = NEW if place == "reports" else f"{NEW}-{MADE}"
        shutil.copytree(copied.folder / place / name, copied.folder / place / other)
    for place, name in (("reports", NEW), ("images", f"{NEW}-{MADE}")):
        facts = copied.manifest(place)
        files.write_json(f"{copied.context.warehouse}/{place}/manifest.json", facts | {"id": NEW, "path": name})
    (exports / f"{OLD}.ncnn").write_bytes(b"of a version that was deleted")
    output = run(copied.folder)
    assert [line.split()[0] for line in output[1:-2]] == [f"models/exported/{OLD}.ncnn"]

    tracker = copied.tracker()
    version = tracker.find_version("melanoma@champion")
    assert version.tags[engines.TAG.format(engine="ncnn")] == hashes.sha256(kept.read_bytes())
    mlflow.MlflowClient().delete_model_version("melanoma", version.version)
    with pytest.raises(
        DataError, match=r"melanoma version 1 is champion by registry/, but MLflow at sqlite:///.* does"
    ):
        run(copied.folder, prune={"apply": True})
    assert kept.exists()
    shutil.rmtree(copied.folder / "registry")
    gone = {f"models/exported/{OLD}.ncnn", f"models/exported/{kept.name}", f"reports/{report['path']}"}
    gone |= {f"{place}/{dataset['path']}" for place in ("images", "rejects", "unmatched")}
    assert {line.split()[0] for line in run(copied.folder, prune={"apply": True})[1:-2]} >= gone


def test_a_report_that_moved_an_alias_stays(warehouse, shared_mlflow, monkeypatch):
    url = f"file://{warehouse}"
    files.write_bytes(f"{url}/reports/{OLD}/report.html", b"1")
    files.write_json(f"{url}/reports/manifest.json", {"id": NEW, "path": NEW})
    history = alias_history.History(url, "m", "champion")
    history.append("promote", None, "1", "", {"report_id": OLD})
    history.append("promote", "1", "2", "", {"report_id": NEW})
    files.write_json(f"{url}/registry/m/{alias_history.VERDICTS}/1.json", {})

    class Version:
        def __init__(self, version):
            self.name, self.version, self.tags = "m", version, {}

    monkeypatch.setattr(prune.tracking.Tracker, "versions", lambda self: [Version("2")])
    output = run(warehouse, mlflow={"tracking_uri": shared_mlflow})
    assert f"reports/{OLD}" not in "\n".join(output)
    monkeypatch.setattr(prune.tracking.Tracker, "versions", lambda self: [Version("1")])
    with pytest.raises(DataError, match=r"m version 2 is champion by registry/"):
        run(warehouse, mlflow={"tracking_uri": shared_mlflow})


def test_prune_needs_neither_java_nor_spark_and_creates_no_database(warehouse, submit):
    nothing = {"JAVA_HOME": "/nowhere", "REAL_JAVA_HOME": None, "SPARK_HOME": "/nowhere"}
    done = submit("prune", f"warehouse={warehouse}", "prune.worklists_days=9", **nothing)
    assert (done.returncode, done.stderr) == (0, "")
    words = f"melanoma-spark prune warehouse={warehouse} prune.worklists_days=9 prune.apply=true"
    assert done.stdout.splitlines()[-1].endswith(f"nothing was removed; to remove them: {words}")
    done = submit("prune", f"warehouse={warehouse}", "prune.apply=true", "log.format=json", **nothing)
    output = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in output] == [*["item"] * 4, "note", "done"]
    assert (output[0]["path"], output[0]["files"], output[0]["bytes"], output[0]["removed"]) == (
        f"features/{OLD}",
        1,
        5,
        True,
    )
    assert not (warehouse / "mlflow.db").exists()
    assert not (warehouse / f"features/{OLD}").exists()
