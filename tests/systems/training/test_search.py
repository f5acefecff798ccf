"""The search over heads: every figure is that of a fit by hand, the best is named, failures are reported."""

import io
import json
import re
from dataclasses import replace

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import captured_output, open_line

from melanoma_spark import config
from melanoma_spark.dataset import splits
from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.metrics import binary
from melanoma_spark.models import network, weights
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.spark import inference
from melanoma_spark.training import head, loop, search, trials

CUT = "block5_pool"
SPEC = network.Spec(backbone="vgg16", image_size=64, hidden=8, dropout=0.1)
FOLDS, SEEDS = 2, 2
SWEEP = config.Search(
    hidden=(8,), dropout=(0.1,), learning_rate=(1e-2, 1e30), views=(1, 2), trials=5, folds=FOLDS, seeds=SEEDS
)


@pytest.fixture(scope="module")
def featured(spark, lesions, shared_mlflow, tmp_path_factory):
    """A line with features of two views, and its own MLflow experiment."""
    line = open_line(
        spark,
        lesions,
        tmp_path_factory.mktemp("search") / "warehouse",
        backbone={"name": "vgg16"},  # of the tiny one all heads are as good as chance
        mlflow={"tracking_uri": shared_mlflow, "experiment": "search"},
        featurize={"views": 2},
        augment={"enabled": True},
        finetune={"phases": [{"name": "all", "epochs": 1}]},  # of one cut, for speed
        head={"epochs": 6, "learning_rate": 1e-3, "hidden": 32, "dropout": 0.5},
        training_seed=5,
    )
    with captured_output():
        line.stage("ingest")
        line.stage("featurize")
    return line


def searched(line, chosen=SWEEP, **changes):
    """The output of the job."""
    settings = line.context.settings.model_copy(update={"search": chosen, **changes})
    job = replace(line.context, settings=settings, mlflow=line.tracker())
    with captured_output() as text:
        run_stage(job, "search", search.search, {"job": "search"})
    return text.getvalue()


@pytest.fixture(scope="module")
def output(featured):
    return searched(featured)


def actual(line, output):
    """The manifest that the summary names."""
    place = re.search(r"reports/search/\w+", output)[0]
    return json.loads((line.folder / place / "manifest.json").read_text())


@pytest.fixture(scope="module")
def facts(featured, output):
    return actual(featured, output)


@pytest.fixture(scope="module")
def arrays(featured):
    """split, group, label and both views' averages of each train and validation image, from the files alone."""
    stored = featured.read("images").select("sha256", "split", "group", "label").toPandas()
    features = featured.read("features").select("sha256", "view", CUT).toPandas()
    features["mean"] = [np.load(io.BytesIO(content)).astype(np.float32).mean(axis=(0, 1)) for content in features[CUT]]
    mean_of = features.set_index(["sha256", "view"])["mean"].to_dict()
    table = stored[stored["split"] != "test"].sort_values(["split", "sha256"], ignore_index=True)
    table["plain"] = [mean_of[sha, 0] for sha in table["sha256"]]
    table["other"] = [mean_of.get((sha, 1), mean_of[sha, 0]) for sha in table["sha256"]]
    return table


def head_of(settings):
    return config.Head(epochs=6, **{name: settings[name] for name in trials.TRIED})


def by_trial(facts):
    return {result["trial"]: result for result in facts["trials"]}


def runs_of(line):
    """The nested runs of the trials by their parent's id."""
    line.tracker()
    experiment = mlflow.get_experiment_by_name("search").experiment_id
    nested: dict[str, list] = {}
    for run in mlflow.MlflowClient().search_runs([experiment]):
        nested.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    return nested


def test_every_trial_fold_and_seed_is_fitted_once(featured, facts, arrays):
    tasks = pd.DataFrame(facts["tasks"])
    assert len(tasks) == 5 * FOLDS * SEEDS
    assert not tasks.duplicated(["trial", "seed", "fold"]).any()
    assert set(tasks["seed"]) == {5, 6} == set(facts["seeds"])
    tried = [result["settings"] for _, result in sorted(by_trial(facts).items())]
    assert tried == [
        {"hidden": 32, "dropout": 0.5, "learning_rate": 1e-3, "views": 2, "tta": 1},  # in force
        {"hidden": 8, "dropout": 0.1, "learning_rate": 1e-2, "views": 1, "tta": 1},
        {"hidden": 8, "dropout": 0.1, "learning_rate": 1e-2, "views": 2, "tta": 1},
        {"hidden": 8, "dropout": 0.1, "learning_rate": 1e30, "views": 1, "tta": 1},
        {"hidden": 8, "dropout": 0.1, "learning_rate": 1e30, "views": 2, "tta": 1},
    ]
    assert [by_trial(facts)[trial]["in_force"] for trial in range(5)] == [True, False, False, False, False]
    assert (facts["images"], facts["groups"]) == (len(arrays), arrays["group"].nunique())
    assert facts["made_from"] == [featured.manifest("images")["id"], featured.manifest("features")["id"]]


def test_one_trial_cross_validates_the_head_in_force_by_group_or_by_image(featured, facts, arrays):
    """The cost of groups: the same head and images, once with each group in one fold, once image by image."""
    for grouped, column in ((True, "group"), (False, "sha256")):
        chosen = SWEEP.model_copy(update={"trials": 1, "grouped": grouped})
        text = searched(featured, chosen)
        one = actual(featured, text)
        assert [result["in_force"] for result in one["trials"]] == [True]
        assert len(one["tasks"]) == FOLDS * SEEDS
        folds = [splits.fold_of(value, FOLDS, featured.context.settings.seed) for value in arrays[column]]
        assert one["folds"] == np.bincount(folds).tolist()
        assert one["grouped"] == grouped
        assert (", ignored" in text) == (not grouped)
        # the same fits of the same arrays as in a search of several heads
        alike = [task for task in facts["tasks"] if task["trial"] == 0]
        same = [task["auroc"] for task in one["tasks"]] == pytest.approx([task["auroc"] for task in alike], abs=1e-6)
        assert same == grouped


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_a_task_is_a_fit_of_the_same_arrays(facts, arrays, trial):
    """Without the fold's groups, by their images as they are; an image of the validation split has no other view."""
    chosen = head_of(by_trial(facts)[trial]["settings"])
    fold = np.array([splits.fold_of(group, FOLDS, 0) for group in arrays["group"]])
    assert np.bincount(fold).tolist() == facts["folds"]
    spec = head.network_spec(chosen, "vgg16", 64)
    expected, got = [], []
    for task in facts["tasks"]:
        if task["trial"] != trial:
            continue
        seen, held = arrays[fold != task["fold"]], arrays[fold == task["fold"]]
        assert not set(seen["group"]) & set(held["group"])
        columns = ["plain", "other"][: chosen.views]
        views = [(np.stack(seen[column]), seen["label"].to_numpy(np.int8)) for column in columns]
        evaluated = np.stack(held["plain"]), held["label"].to_numpy(np.int8)
        _, records = head.fit(chosen, task["seed"], spec, views, evaluated, log=lambda text: None)
        best = loop.best_of(records)
        expected.append((best.validation_auroc, best.validation_loss, best.epoch))
        got.append((task["auroc"], task["loss"], task["epoch"]))
    assert len(got) == FOLDS * SEEDS
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert len(set(got)) == len(got)


def test_each_head_is_evaluated_by_each_tta_as_the_complete_network(featured, arrays, monkeypatch):
    wanted = config.Search(
        hidden=(8,), dropout=(0.1,), learning_rate=(1e-2,), trials=2, folds=2, seeds=1, tta=(2, 1, 4)
    )
    facts = actual(featured, searched(featured, wanted))
    assert len(facts["trials"]) == 2 * 3
    assert len(facts["tasks"]) == 2 * 3 * 2
    assert [by_trial(facts)[trial]["settings"]["tta"] for trial in range(3)] == [1, 2, 4], "the one in force first"
    stored = featured.read("images").select("sha256", "image").toPandas().set_index("sha256")["image"]
    pixels = np.stack([cv2.imdecode(np.frombuffer(stored[sha], np.uint8), 1)[..., ::-1] for sha in arrays["sha256"]])
    fold = np.array([splits.fold_of(group, 2, 0) for group in arrays["group"]])
    base = weights.resolve(featured.context.settings.backbone, 0)
    for task in (task for task in facts["tasks"] if task["trial"] in (4, 5) and task["fold"] == 1):
        settings = by_trial(facts)[task["trial"]]["settings"]
        held = fold == 1
        rows = [(np.stack(side["plain"]), side["label"].to_numpy(np.int8)) for side in (arrays[~held], arrays[held])]
        model, _ = head.fit(head_of(settings), task["seed"], SPEC, rows[:1], rows[1], log=lambda text: None)
        complete = network.classifier(
            SPEC.model_copy(update={"tta": settings["tta"]}), [*base.tensors, *model.get_weights()]
        )
        y, p = rows[1][1], complete(pixels[held])[0][:, 0].astype(np.float64)
        assert task["auroc"] == pytest.approx(binary.auroc(y, p), abs=0.02)  # stored features are float16
        assert task["loss"] == pytest.approx(binary.log_loss(y, p), abs=2e-3)

    def never(*_):
        raise AssertionError("the base ran again")

    monkeypatch.setattr(inference, "column_udf", never)
    assert "AUROC" in searched(featured, wanted.model_copy(update={"seeds": 2}))


def test_summary_names_the_best_trial_and_those_that_failed(featured, output, facts):
    best, second, *_ = facts["trials"]
    *before, line = output.splitlines()
    words = re.search(r"best ((?:\w+\.\w+=\S+ ?)+):", line)[1]
    given = config.load(None, [*words.split(), "head.epochs=6"])
    assert (given.head, given.evaluate.tta) == (head_of(best["settings"]), 1)
    assert facts["best"] == best["settings"]
    assert f"5 trials x 2 folds x 2 seeds over {facts['images']} images of {facts['groups']} groups, best " in line
    assert f": AUROC {best['mean']:.4f} +- {best['std']:.4f}, " in line
    aurocs = pd.DataFrame(facts["tasks"]).pivot(index=["seed", "fold"], columns="trial", values="auroc").astype(float)

    def behind(other):
        pairs = aurocs[best["trial"]] - aurocs[other]
        return f"{pairs.mean():.4f} +- {pairs.std(ddof=1):.4f} behind"

    assert f"the runner-up {behind(second['trial'])}" in line
    assert best["trial"] != 0
    assert f"the settings in force {behind(0)}" in line
    assert f"  {words}: AUROC {best['mean']:.4f} +- {best['std']:.4f}" in before
    assert not list(featured.folder.glob("models/*"))

    good, failed = facts["trials"][:3], facts["trials"][3:]
    assert not any(result["reason"] for result in good)
    for result in failed:
        assert result["settings"]["learning_rate"] == 1e30
        assert "the loss is" in result["reason"]
        assert (result["mean"], result["std"], result["folds"]) == (None, None, [])
        words = f"head.hidden=8 head.dropout=0.1 head.learning_rate=1e+30 head.views={result['settings']['views']} "
        words += "evaluate.tta=1"
        assert f"  {words}: failed: {result['reason']}" in output.splitlines()
    assert ", 2 failed; reports/search/" in output
    for task in facts["tasks"]:
        assert (task["auroc"] is None) == bool(task["reason"])


def test_runs_hold_every_trial_and_name_no_file(featured, facts):
    nested = runs_of(featured)[facts["run_id"]]
    assert len(nested) == len(facts["trials"])
    for run in nested:
        result = by_trial(facts)[int(run.info.run_name.removeprefix("trial "))]
        assert run.data.params == {trials.SETTINGS[name]: str(value) for name, value in result["settings"].items()}
        if result["reason"]:
            assert (run.data.tags["failed"], run.data.metrics) == (result["reason"], {})
            continue
        expected = {"auroc_mean": result["mean"], "auroc_std": result["std"], "auroc_std_seeds": result["std_seeds"]}
        expected |= {f"auroc_fold_{fold}": value for fold, value in enumerate(result["folds"])}
        assert run.data.metrics == pytest.approx(expected)
    client = mlflow.MlflowClient()
    complete = client.get_run(facts["run_id"]).data
    assert complete.metrics["best_auroc_mean"] == pytest.approx(facts["trials"][0]["mean"])
    assert (complete.metrics["trials"], complete.metrics["failed"]) == (5, 2)
    with open(client.download_artifacts(facts["run_id"], "trials.csv")) as file:
        table = pd.read_csv(file)
    assert table["trial"].tolist() == [result["trial"] for result in facts["trials"]]
    assert table["mean"].tolist()[:3] == pytest.approx([result["mean"] for result in facts["trials"][:3]])
    with open(client.download_artifacts(facts["run_id"], "tasks.csv")) as file:
        assert len(pd.read_csv(file)) == len(facts["tasks"])
    with open(client.download_artifacts(facts["run_id"], "plots/trials.png"), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"

    names = re.compile(r"image_\d{6}|patient_\d{4}|lesion_\d{5}|" + re.escape(str(featured.folder.parent.parent)))
    for run in [client.get_run(facts["run_id"]), *runs_of(featured)[facts["run_id"]]]:
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        parameters = {key: value for key, value in run.data.params.items() if key != "mlflow.tracking_uri"}
        assert not names.search(json.dumps([parameters, tags]))
    assert not names.search(json.dumps(facts))


def test_a_second_run_fits_nothing_and_another_search_is_kept_apart(featured, output, facts):
    runs = len(runs_of(featured)[facts["run_id"]])
    again = searched(featured)
    assert again.startswith("search: nothing new, 5 trials x 2 folds")
    assert actual(featured, again) == facts
    assert len(runs_of(featured)[facts["run_id"]]) == runs

    smaller = config.Search(hidden=(8,), dropout=(0.3,), learning_rate=(1e-3,), trials=2, folds=3, seeds=1)
    shorter = searched(featured, smaller)
    other = actual(featured, shorter)
    assert other["trials"][0]["in_force"]
    in_force = "head.hidden=32 head.dropout=0.5 head.learning_rate=0.001 head.views=2 evaluate.tta=1"
    assert f"best {in_force}, the settings in force: AUROC " in shorter
    assert shorter.count("in force") == 2, "beside its trial and in the last line"
    assert other["id"] != facts["id"]
    assert len(other["tasks"]) == 2 * 3
    assert other["trials"][0]["std_seeds"] is None
    assert actual(featured, searched(featured)) == facts


def test_all_failing_is_an_error(featured):
    every = config.Search(hidden=(8,), dropout=(0.1,), learning_rate=(1e30,), trials=2, folds=2, seeds=1)
    in_force = featured.context.settings.head.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(
        DataError, match=r"all 2 trials failed, the first one by: head: the loss is .* \(seed 5, fold 0\)"
    ):
        searched(featured, every, head=in_force)


def test_train_head_uses_the_views_of_the_settings(featured):
    chosen = featured.context.settings.head
    with pytest.raises(ConfigError, match=r"head\.views=3, but features/ holds 2 "):
        featured.stage("train_head", head=chosen.model_copy(update={"views": 3}))
    featured.stage("train_head")
    both = featured.manifest("models/head")
    assert "nothing new" in featured.stage("train_head", head=chosen.model_copy(update={"views": 2}))
    assert "nothing new" not in featured.stage("train_head", head=chosen.model_copy(update={"views": 1}))
    assert featured.manifest("models/head")["tensors_id"] != both["tensors_id"]
