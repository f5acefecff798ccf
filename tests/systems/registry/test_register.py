"""Register: a worse model is refused with the reason, a better one promoted, and every move kept, listed and undone."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
import yaml
from conftest import Line, open_line

from melanoma_spark import config, lineage
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import feature_twins
from melanoma_spark.registry import alias_history
from melanoma_spark.scoring import status
from melanoma_spark.storage import files, manifests

OFF = config.Gate(auroc_margin=None, sensitivity=None, calibration_error=None, subgroup_auroc=None, apart=False)


def register(line: Line, **changes) -> str:
    return line.output_of("register", register_=line.context.settings.register_.model_copy(update=changes))


def champion(line: Line) -> str:
    return str(line.tracker().find_version("melanoma@champion").version)


def moves(line: Line):
    return alias_history.History(line.context.warehouse, "melanoma", "champion").read()


@pytest.fixture
def worse(copied):
    """The line with a fine-tuned network of opposite outputs, evaluated."""
    model = manifests.require(manifests.FinetunedManifest, copied.context.warehouse)
    tensors = manifests.load_model(copied.context.warehouse, model)
    tensors[-2], tensors[-1] = -tensors[-2], -tensors[-1]
    changed = {"id": "opposite", "path": "opposite", "tensors_id": lineage.tensors_id(tensors)}
    manifests.save_model(copied.context.warehouse, model.model_copy(update=changed), tensors)
    copied.stage("evaluate")
    return copied


def test_first_model_gets_both_aliases_and_holds_no_pickle(line):
    tracker = line.tracker()
    for alias in ("champion", "challenger"):
        assert str(tracker.find_version(f"melanoma@{alias}").version) == "1"
    (move,) = moves(line)
    assert (move["action"], move["from"], move["to"]) == ("promote", None, "1")
    assert move["evidence"]["report_id"] == line.manifest("reports")["id"]
    assert [rule["rule"] for rule in move["evidence"]["rules"]] == ["auroc_margin", "apart"]
    version = tracker.find_version("melanoma@champion")
    assert version.tags["gate"] == "passed"
    run_id = version.tags["report_run_id"]
    for page in ("report.html", "model_card.md"):
        assert f"/runs/{run_id}/artifacts/{page})" in version.description
        assert page in {artifact.path for artifact in mlflow.MlflowClient().list_artifacts(run_id)}
    assert "not a medical device" in version.description

    line.tracker()
    folder = Path(mlflow.artifacts.download_artifacts("models:/melanoma@champion"))
    result = [path for path in folder.rglob("*") if path.is_file()]
    assert {"model.json", "weights.npz", "manifest.json", "pyfunc.py", "MLmodel"} <= {path.name for path in result}
    assert not {path.suffix for path in result} & {".pkl", ".pickle", ".joblib", ".cloudpickle", ".keras"}
    pickled = [path.name for path in result if path.read_bytes()[:2] in {bytes([0x80, k]) for k in range(6)}]
    assert pickled == []
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert "python_model" not in flavor, "MLflow would unpickle it"
    assert flavor["model_code_path"].endswith("/pyfunc.py")
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model"


def test_a_worse_model_is_refused_until_the_rules_are_others_and_then_rolled_back(worse):
    page = (worse.folder / "reports" / worse.manifest("reports")["path"] / "report.html").read_text()
    assert "less that of <b>champion, version 1</b>" in page
    output = register(worse)
    assert (
        "melanoma version 2 is challenger only, version 1 stays champion; refused by auroc_margin: AUROC less" in output
    )
    assert champion(worse) == "1"
    tracker = worse.tracker()
    version = tracker.find_version("melanoma@challenger")
    assert str(version.version) == "2"
    assert version.tags["gate"].startswith("refused: auroc_margin: AUROC less the champion's -")
    assert len(moves(worse)) == 1
    verdicts = json.loads((worse.folder / "registry/melanoma/verdicts/2.json").read_text())["rules"]
    assert {rule["rule"]: rule["holds"] for rule in verdicts}["auroc_margin"] is False

    assert "version 2 is challenger only" in register(worse), "the same again, and no version 3"
    assert len(mlflow.MlflowClient().search_model_versions("name='melanoma'")) == 2

    assert "melanoma version 2 is champion now (fine-tuned), 0 rules hold" in register(worse, gate=OFF)
    assert champion(worse) == "2"
    assert "nothing new, melanoma version 2 is champion already" in register(worse)

    assert "melanoma version 1 is champion again, version 2 is not any more" in register(worse, action="rollback")
    assert champion(worse) == "1"
    with pytest.raises(DataError, match="melanoma@champion has no version before 1"):
        register(worse, action="rollback")
    output = register(worse, action="history")
    lines = [line for line in output.splitlines() if ": version" in line]
    assert [line.split(";")[0].split("  ", 3)[-1].split("  ")[-1] for line in lines] == [
        "promote: version none -> 1",
        "promote: version 1 -> 2",
        "rollback: version 2 -> 1",
    ]
    assert [(move["from"], move["to"]) for move in moves(worse)] == [(None, "1"), ("1", "2"), ("2", "1")]


def test_a_champion_without_predictions_is_evaluated_for_the_report(copied, monkeypatch):
    monkeypatch.setattr(feature_twins, "FEWEST", 50)
    monkeypatch.setattr(feature_twins, "COMPONENTS", 20)
    shutil.rmtree(copied.folder / "reports")
    output = copied.stage("evaluate")
    page = (copied.folder / "reports" / copied.manifest("reports")["path"] / "report.html").read_text()
    assert "less that of <b>champion, version 1</b>, on the same images:\n+0.000" in page
    left_out = int(output.split(" with a twin in training are left out")[0].split("(")[-1])
    counts = copied.manifest("images")["counts"]
    assert f"{left_out} of {counts['test_0'] + counts['test_1']} test images look like the lesion of a train" in page
    card = (copied.folder / "images" / copied.manifest("images")["path"] / "_datacard.html").read_text()
    assert "(cosine of whitened features of 0.72 or more)" in card


def test_a_move_outside_of_register_is_recorded(copied):
    tracker = copied.tracker()
    client = mlflow.MlflowClient()
    version = str(client.create_model_version("melanoma", tracker.find_version("melanoma@champion").source).version)
    client.set_registered_model_alias("melanoma", "champion", version)
    output = register(copied, action="history")
    assert f"outside: version 1 -> {version}; the alias was moved without `register`" in output
    assert champion(copied) == version
    assert register(copied, action="history").count(": version") == 2, "told once"


def test_another_test_set_is_evaluated_first(copied):
    facts = files.read_json(f"{copied.context.warehouse}/images/manifest.json")
    files.write_json(f"{copied.context.warehouse}/images/manifest.json", facts | {"id": "other"})
    name = copied.context.settings.register_.model_copy(update={"name": "another model"})
    with pytest.raises(DataError, match=r"images/ has changed since the last report; run `melanoma-spark evaluate`"):
        copied.output_of("register", register_=name)


@pytest.fixture
def database(postgresql) -> str:
    """The address of an empty database for MLflow's server; those of other tests are on SQLite."""
    return postgresql


def told_by(database: str) -> dict[str, str]:
    """Runs in a database of MLflow: name -> status. Read without MLflow."""
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("select name, status from runs")).all()
    engine.dispose()
    return dict(rows)


def test_with_a_tracking_server_it_is_the_same(copied, server, database):
    there = open_line(copied.context.spark, copied.archive, copied.folder, mlflow={"tracking_uri": server})
    for folder in ("registry", "scores", "reports"):
        shutil.rmtree(there.folder / folder)
    there.stage("evaluate")
    assert "melanoma version 1 is champion now" in there.stage("register")
    assert "130 images listed" in there.stage("score")
    ours, theirs = (line.scores().set_index("source_uri").sort_index() for line in (copied, there))
    assert list(theirs["model_version"].unique()) == ["1"]
    assert list(ours["probability"].dropna()) == list(theirs["probability"].dropna())
    client = mlflow.MlflowClient(server)
    (experiment,) = (e for e in client.search_experiments() if e.name == there.context.settings.mlflow.experiment)
    result = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert result.keys() == {"evaluate", "register", "score"}
    assert {path.path for path in client.list_artifacts(result["evaluate"].info.run_id)} >= {"report.html", "plots"}
    assert {d.dataset.name for d in result["evaluate"].inputs.dataset_inputs} == {"images", "features"}
    version = client.get_model_version_by_alias("melanoma", "champion")
    assert version.tags["gate"] == "passed"
    (batch,) = status.committed(there.context.warehouse)  # which has a run of drift's experiment
    assert told_by(database) == dict.fromkeys([*result, batch], "FINISHED")
    for file in there.folder.rglob("*"):
        assert not file.is_file() or database.rpartition("//")[2].encode() not in file.read_bytes(), "it has a password"
