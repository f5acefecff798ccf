"""All stages on drawn lesions: every image comes out once and can be traced, and nothing else does."""

import io
import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny_backbone
from conftest import STAGES
from PIL import Image

from melanoma_spark import config, pipeline, schemas
from melanoma_spark.errors import ConfigError, DataError, MelanomaError
from melanoma_spark.images import decoding, hashes, quality, synthetic
from melanoma_spark.images.reasons import REASONS
from melanoma_spark.models import calibration, network, operating_points, weights
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.scoring import columns, ledger
from melanoma_spark.storage.manifests import FinetunedManifest, HeadManifest
from melanoma_spark.storage.parquet import training_labels
from melanoma_spark.training import reading, sharding


@pytest.fixture(scope="module")
def stored(line):
    return line.read("images").toPandas().sort_values("sha256", ignore_index=True)


@pytest.fixture(scope="module")
def predictions(line):
    return pd.read_parquet(line.folder / "reports" / line.manifest("reports")["path"] / "predictions")


@pytest.fixture(scope="module")
def scores(line):
    return line.scores()


@pytest.fixture(scope="module")
def runs(line):
    """The runs of MLflow by name: those of the first pass through the line."""
    line.tracker()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(line.context.settings.mlflow.experiment)
    result = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    named: dict[str, mlflow.entities.Run] = {}
    for run in result:
        named.setdefault(run.info.run_name, run)
    return named


def listed_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 3}, "ranks=3 but Spark has only 2 free slots"),
        ({"backbone": {"weights": "/nowhere/mine.h5"}}, "/nowhere/mine.h5 does not exist; name a readable file"),
    ],
)
def test_problems_of_later_stages_are_reported_at_once(new_line, changes, message):
    new = new_line(**changes)
    with pytest.raises(MelanomaError, match=re.escape(message)):
        run_stage(new.context, "pipeline", pipeline.pipeline, {"job": "pipeline"})
    assert not (new.folder / "images").exists()


@pytest.mark.parametrize("stage", ["ingest", "featurize", "evaluate", "score"])
def test_a_stage_logs_its_images_per_second(line, runs, stage):
    message = next(text for text in line.output.splitlines() if text.startswith(f"{stage}: "))
    assert re.search(r"; [\d.,]+ images/s from [\d.,]+ MB, \d+% of the time waiting for them; [\d.]+ s$", message), (
        message
    )
    figures = runs[stage].data.metrics
    assert 0 < figures["images_per_second"] < 1e5
    assert 0 <= figures["wait_share"] <= 1


def test_pipeline_reads_the_archive_once_and_leaves_no_temporary_file(line, runs):
    known = {"metadata.csv", "notes.txt"}
    size = sum(path.stat().st_size for path in listed_files(line.archive) if path.name not in known) / 1e6
    for stage in ("ingest", "score"):
        assert runs[stage].data.metrics["megabytes_read"] == pytest.approx(size, rel=0.05)
    # PySpark makes a file of a closure of more than a megabyte, as of one with weights, until the driver ends.
    assert line.left == 0


@pytest.mark.parametrize("stage", ["train_head", "finetune"])
def test_training_logs_images_per_second_of_each_epoch(line, runs, stage):
    line.tracker()
    history = mlflow.MlflowClient().get_metric_history
    for name, most in (("images_per_second", 1e6), ("wait_share", 1)):
        values = [point.value for point in history(runs[stage].info.run_id, name)]
        assert values
        assert all(0 <= value <= most for value in values)


def test_every_file_is_accounted_for_and_broken_ones_have_their_reason(line, stored):
    rejects = pd.read_parquet(line.folder / "rejects" / line.manifest("images")["path"])
    skipped = [f"file:{line.archive}/{name}" for name in ("metadata.csv", "notes.txt")]
    accounted = [*stored["source_uri"], *rejects["source_uri"], *skipped]
    assert sorted(accounted) == sorted(f"file:{path}" for path in listed_files(line.archive))
    facts = line.manifest("images")
    assert (facts["listed"], facts["accepted"], facts["rejected"], facts["skipped"]) == (
        len(accounted),
        len(stored),
        len(rejects),
        len(skipped),
    )
    assert facts["reasons"] == rejects["reason"].value_counts().to_dict()
    assert set(rejects["reason"]) <= set(REASONS)
    assert rejects["detail"].str.len().min() > 0
    expected = f"ingest: {len(accounted)} files listed = {len(stored)} accepted + {len(rejects)} rejected"
    assert line.output.startswith(expected)

    reasons = {Path(uri).name: reason for uri, reason in zip(rejects["source_uri"], rejects["reason"], strict=True)}
    assert (
        reasons.items()
        >= {
            "broken_empty.jpg": "empty",
            "broken_truncated.jpg": "damaged",
            "broken_text.jpg": "not_an_image",
            "broken_random.png": "not_an_image",
            "broken_tiny.png": "too_small",
            "broken_bomb.png": "too_many_pixels",
            "broken_zero_length.png": "empty",
            "broken_page.jpg": "not_an_image",
            "unlabelled.jpg": "no_label",
            ".drawn.json": "hidden",
        }.items()
    )
    assert set(reasons.values()) - {"duplicate"} == {
        reason for name, reason in reasons.items() if not name.startswith("image_")
    }


def test_pixels_are_stored_as_decoded_and_nothing_but_pixels(stored):
    field = schemas.images_schema(64).fields["image"]
    turned = 0
    for row in stored.itertuples():
        content = Path(row.source_uri.removeprefix("file:")).read_bytes()
        assert hashes.sha256(content) == row.sha256
        pixels = decoding.decode(content, 64)
        np.testing.assert_array_equal(field.codec.decode(field, row.image), pixels)
        assert hashes.pixel_hash(decoding.decode(content, hashes.HASH_SIZE)) == row.pixel_sha256
        with Image.open(io.BytesIO(row.image)) as image:
            assert image.format == "PNG"
            assert not image.getexif()
            assert not image.info
        with Image.open(io.BytesIO(content)) as image:
            turned += image.getexif().get(0x0112, 1) != 1
    assert turned == 2  # the archive has some with EXIF
    assert stored["pixel_sha256"].is_unique


def test_rows_have_ids_and_labels_of_the_table_and_one_split_a_group(line, stored):
    table = pd.read_csv(line.archive / "metadata.csv").set_index("image_id").loc[stored["image_id"]]
    assert list(stored["label"]) == [int(label == "malignant") for label in table["label"]]
    for column in ("patient_id", "lesion_id"):
        assert list(stored[column]) == list(table[column])

    assert set(stored["split"]) == {"train", "validation", "test"}
    for column in ("group", "patient_id", "lesion_id", "pixel_sha256"):
        assert stored.groupby(column)["split"].nunique().max() == 1
    counts = line.manifest("images")["counts"]
    result = {f"{split}_{label}": n for (split, label), n in stored.groupby(["split", "label"]).size().items()}
    assert result == counts
    assert sum(counts.values()) == len(stored)
    # Rows lie sorted by split and hash in each file, as readers of a split count on.
    folder = line.folder / "images" / line.manifest("images")["path"]
    for path in folder.glob("*.parquet"):
        rows = pd.read_parquet(path, columns=["split", "sha256"])
        assert list(rows.itertuples(index=False)) == sorted(rows.itertuples(index=False))


def test_features_are_those_of_a_plain_forward_pass(line, stored):
    import keras

    base = weights.resolve(line.context.settings.backbone, line.context.settings.seed)
    network = tiny_backbone.build(False, None, keras.Input((64, 64, 3)))
    network.set_weights(base.tensors)
    cuts = ("block4_pool", "block5_pool")
    model = keras.Model(network.input, [network.get_layer(cut).output for cut in cuts])
    rows = line.read("features").toPandas().set_index("sha256")
    assert sorted(rows.index) == sorted(stored["sha256"])
    some = stored.iloc[::6]
    pixels = np.stack([decoding.decode(Path(uri[5:]).read_bytes(), 64) for uri in some["source_uri"]])
    expected = model.predict(tiny_backbone.preprocess_input(pixels.astype("float32")), verbose=0)
    for cut, values in zip(cuts, expected, strict=True):
        for sha, value in zip(some["sha256"], values, strict=True):
            result = np.load(io.BytesIO(rows.loc[sha, cut]))
            assert result.dtype == np.float16
            np.testing.assert_allclose(result.astype(np.float32), value, rtol=2e-3, atol=2e-3 * np.abs(values).max())


def test_features_at_more_cuts_than_needed_are_kept(line, copied):
    """A recipe without the phase of the last block is no reason to compute all anew; one with another block is."""
    head_only = config.Finetune(phases=[config.Phase(name="all")])
    assert "0 computed" in copied.stage("featurize", finetune=head_only)
    assert copied.manifest("features")["id"] == line.manifest("features")["id"]
    other = config.Finetune(phases=[config.Phase(name="two", cut="block3_pool")])
    with pytest.raises(ConfigError, match=r"features/ lacks block3_pool, .*; it holds block5_pool, block4_pool; run"):
        copied.stage("finetune", finetune=other)


def test_training_reads_exactly_the_rows_of_its_split(line, stored):
    url = f"{line.context.warehouse}/images/{line.manifest('images')['path']}"
    labels = training_labels(line.context.spark, url)
    for split in ("train", "validation"):
        rows = stored[stored["split"] == split]
        assert labels[split] == dict(zip(rows["sha256"], rows["label"], strict=True))
    assert labels.keys() == {"train", "validation"}
    index = reading.indexes(line.context.spark, url, labels)["validation"][0]
    shared = sharding.share(sharding.deal(index.groups, 8, 1), 0, 1)
    read = list(reading.values(url, "image", index, shared, 1, 1024**2))
    rows = stored[stored["split"] == "validation"]
    expected = [decoding.decode(Path(uri[5:]).read_bytes(), 64).tobytes() for uri in rows["source_uri"]]
    assert sorted(pixels.tobytes() for pixels in read) == sorted(expected)


def test_training_keeps_the_best_epoch_and_never_less_than_the_start(line):
    head, finetuned = line.manifest("models/head"), line.manifest("models/finetuned")
    phases = {"head": head["training"]}
    for epoch in finetuned["training"]:
        phases.setdefault(epoch["phase"], []).append(epoch)
    assert list(phases) == ["head", "block5", "all"]
    for phase, epochs in phases.items():
        aurocs = [epoch["validation_auroc"] for epoch in epochs]
        best = (head["best"] | finetuned["best"])[phase]
        assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
        assert best == int(np.argmax(aurocs))
    # each phase starts where the one before was best
    assert phases["all"][0]["validation_auroc"] == pytest.approx(max(e["validation_auroc"] for e in phases["block5"]))
    assert finetuned["validation_auroc"] == max(epoch["validation_auroc"] for epoch in phases["all"])
    assert finetuned["validation_auroc"] > phases["block5"][0]["validation_auroc"], "nothing was learnt to look at"


def test_models_and_scores_can_be_traced_to_their_images(line, stored, scores, runs):
    head, finetuned = line.manifest("models/head"), line.manifest("models/finetuned")
    assert head["dataset_id"] == finetuned["dataset_id"] == line.manifest("images")["id"]
    assert head["features_id"] == finetuned["features_id"] == line.manifest("features")["id"]
    assert head["weights_id"] == finetuned["weights_id"] == line.manifest("features")["weights"]
    assert finetuned["head_id"] == head["id"]
    tensors = line.tensors(HeadManifest), line.tensors(FinetunedManifest)
    changed = [not np.array_equal(a, b) for a, b in zip(*tensors, strict=True)]
    assert all(changed), "the last phase trains the whole network"

    line.tracker()
    row = scores.iloc[0]
    version = mlflow.MlflowClient().get_model_version(row["model_name"], row["model_version"])
    assert version.tags["dataset_id"] == line.manifest("images")["id"]
    assert version.tags["report_id"] == line.manifest("reports")["id"]
    assert row["run_id"] == runs["score"].info.run_id


def test_predictions_are_those_of_both_models_on_validation_and_test(stored, predictions, line):
    evaluated = stored[stored["split"] != "train"]
    assert set(predictions["model"]) == {"head alone", "fine-tuned"}
    for _, rows in predictions.groupby("model"):
        result = rows.sort_values("sha256").reset_index(drop=True)
        expected = evaluated[["sha256", "split", "group", "label"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(result[list(expected.columns)], expected, check_dtype=False)
        assert result["probability"].between(0, 1).all()
        assert result["raw_probability"].between(0, 1).all()
    assert len(predictions) == 2 * len(evaluated)

    rows = stored[stored["split"] != "train"].iloc[::5]
    pixels = np.stack([decoding.decode(Path(uri[5:]).read_bytes(), 64) for uri in rows["source_uri"]])
    for name, kind, near in (("head alone", HeadManifest, 5e-3), ("fine-tuned", FinetunedManifest, 1e-5)):
        spec = network.Spec.model_validate(line.manifest(kind.place)["spec"])
        model = network.build(spec, line.tensors(kind))
        result = predictions[predictions["model"] == name].set_index("sha256").loc[rows["sha256"], "raw_probability"]
        np.testing.assert_allclose(result, model.predict(pixels, verbose=0)[:, 0], atol=near)  # features are float16

    assert sorted(predictions.columns) == sorted(schemas.PREDICTIONS.names)
    assert "source_uri" not in predictions.columns


def test_calibration_and_threshold_come_from_validation_alone(line, predictions):
    for name, result in line.manifest("reports")["calibrations"].items():
        rows = predictions[predictions["model"] == name]
        validation, test = (rows[rows["split"] == split] for split in ("validation", "test"))
        expected = calibration.fit(validation["label"], validation["raw_probability"])
        assert result == vars(expected)
        assert result != vars(calibration.fit(test["label"], test["raw_probability"]))
        np.testing.assert_array_equal(rows["probability"], expected.apply(rows["raw_probability"]))

    facts = line.manifest("reports")
    rule = line.context.settings.evaluate.operating_point
    for name, suffix in (("head alone", "head"), ("fine-tuned", "finetuned")):
        rows = predictions[predictions["model"] == name]
        validation, test = (rows[rows["split"] == split] for split in ("validation", "test"))
        chosen = operating_points.choose(validation["label"], validation["probability"], rule).threshold
        stands = facts["operating_points"][name]["threshold"]
        assert 0 < chosen - stands <= operating_points.TOLERANCE
        assert facts["metrics"][f"threshold_{suffix}"] == stands
        assert ((validation["probability"] >= stands) == (validation["probability"] >= chosen)).all()
        on_test = operating_points.choose(test["label"], test["probability"], rule).threshold
        assert on_test != chosen, "the test cannot tell the splits apart"
        positives = test[test["label"] == 1]["probability"]
        assert facts["metrics"][f"test_sensitivity_{suffix}"] == pytest.approx((positives >= chosen).mean())


def test_metrics_and_isic_export_are_those_of_the_predictions(line, predictions, stored):
    from sklearn.metrics import average_precision_score, roc_auc_score

    metrics = line.manifest("reports")["metrics"]
    for name, suffix in (("head alone", "head"), ("fine-tuned", "finetuned")):
        test = predictions[(predictions["model"] == name) & (predictions["split"] == "test")]
        assert metrics[f"test_auroc_{suffix}"] == pytest.approx(roc_auc_score(test["label"], test["probability"]))
        assert metrics[f"test_auprc_{suffix}"] == pytest.approx(
            average_precision_score(test["label"], test["probability"])
        )
        low, high = metrics[f"test_auroc_low_{suffix}"], metrics[f"test_auroc_high_{suffix}"]
        assert low <= metrics[f"test_auroc_{suffix}"] <= high

    folder = line.folder / "reports" / line.manifest("reports")["path"] / "isic"
    truth, prediction = (pd.read_csv(folder / f"{name}.csv") for name in ("truth", "prediction"))
    test = predictions[(predictions["model"] == "fine-tuned") & (predictions["split"] == "test")]
    test = test.merge(stored[["sha256", "image_id"]], on="sha256")
    assert sorted(truth["image"]) == sorted(test["image_id"])
    for table, column in ((truth, "label"), (prediction, "probability")):
        assert list(table.columns) == ["image", "malignant", "other"]
        assert table["image"].is_unique
        assert list(table.dtypes[1:]) == [float, float]
        expected = test.set_index("image_id").loc[table["image"], column]
        np.testing.assert_allclose(table["malignant"], expected, rtol=1e-12)
        np.testing.assert_allclose(table["other"], 1 - expected, rtol=1e-9, atol=1e-12)


def test_flagged_images_are_subgroups_of_the_report(copied, stored):
    test = stored[stored["split"] == "test"]
    pixels = np.stack([decoding.decode(Path(uri[5:]).read_bytes(), 64) for uri in test["source_uri"]])
    measured = quality.measures(pixels)
    sharpness, brightness = (
        float(np.median(measured[:, quality.MEASURES.index(k)])) for k in ("sharpness", "brightness")
    )
    chosen = copied.context.settings.score
    limits = chosen.quality.model_copy(update={"sharpness": sharpness, "brightest": brightness})
    flags = quality.flags(measured, limits)
    assert {(), ("blurred",), ("bright",), ("blurred", "bright")} >= set(flags)
    message = copied.stage("evaluate", score=chosen.model_copy(update={"quality": limits}))
    assert "nothing new" not in message, "other limits are another report"
    result = {own["value"]: own for own in copied.manifest("reports")["subgroups"] if own["attribute"] == "quality"}
    assert result.keys() == {"no flag", "any flag", "blurred", "bright"}
    labels = test["label"].to_numpy()
    of = {name: np.array([name in names for names in flags]) for name in ("blurred", "bright")}
    of |= {"any flag": of["blurred"] | of["bright"], "no flag": ~(of["blurred"] | of["bright"])}
    for name, own in of.items():
        assert (result[name]["n"], result[name]["positives"]) == (own.sum(), labels[own].sum())


def test_every_image_has_one_complete_score_row(line, scores, predictions):
    promised = {
        *("image_id", "source_uri", "sha256", "probability", "decision", "threshold", "status", "model_name"),
        *("model_version", "run_id", "batch_id", "scored_at", "operating_point", "reason", "detail"),
    }
    assert promised <= set(scores.columns)
    assert sorted(scores.columns) == sorted(columns.schema(batch_id=True).names)
    assert scores["batch_id"].nunique() == 1
    assert [path.name for path in (line.folder / "scores").iterdir()] == [f"batch_id={scores['batch_id'][0]}"]
    assert set(scores["model_name"]) == {"melanoma"}
    assert set(scores["model_version"]) == {"1"}
    assert scores["run_id"].str.len().min() == 32
    assert scores["scored_at"].notna().all()

    listed = sorted(path for path in listed_files(line.archive) if path.suffix not in (".csv", ".txt"))
    assert sorted(
        ledger.read(line.context.spark, line.context.warehouse, "melanoma", "1").toPandas()["source_uri"]
    ) == [f"file:{path}" for path in listed]
    read = scores[scores["sha256"].notna()]
    assert read["sha256"].is_unique
    contents = {hashes.sha256(path.read_bytes()) for path in listed}
    unread = scores[scores["sha256"].isna()]
    assert set(unread["reason"]) == {"empty", "hidden"}
    assert contents == {*read["sha256"], *(hashes.sha256(Path(uri[5:]).read_bytes()) for uri in unread["source_uri"])}
    scored = scores[scores["status"] == "scored"]
    rejected = scores[scores["status"] == "rejected"]
    assert len(scored) + len(rejected) == len(scores)
    assert scored["probability"].between(0, 1).all()
    assert set(scored["decision"]) <= {"positive", "negative"}
    assert ((scored["probability"] >= scored["threshold"]) == (scored["decision"] == "positive")).all()
    assert rejected["probability"].isna().all()
    assert set(rejected["decision"]) == {""}
    assert set(rejected["reason"]) == {"damaged", "empty", "hidden", "not_an_image", "too_many_pixels", "too_small"}
    assert scored["reason"].isna().all()
    for row in scored.itertuples():
        assert row.sha256 == hashes.sha256(Path(row.source_uri[5:]).read_bytes())
        assert row.image_id == Path(row.source_uri).stem
    # Training saw stored pixels, scoring decodes the file: the same function, so the same probability.
    evaluated = predictions[predictions["model"] == "fine-tuned"].set_index("sha256")["probability"]
    scored = scores[scores["status"] == "scored"].drop_duplicates("sha256").set_index("sha256")["probability"]
    np.testing.assert_allclose(scored.loc[evaluated.index], evaluated, atol=1e-5)


def test_runs_are_nested_and_name_datasets_counts_and_system_metrics(runs, line):
    parent = runs["pipeline"]
    assert set(runs) >= {"pipeline", *STAGES}
    for name in STAGES:
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.metrics["seconds"] > 0
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {"test_auroc_head", "test_auroc_finetuned"} <= parent.data.metrics.keys()

    images, features = line.manifest("images")["id"], line.manifest("features")["id"]
    read = {name: {(d.dataset.name, d.dataset.digest) for d in runs[name].inputs.dataset_inputs} for name in STAGES}
    both = {("images", images), ("features", features)}
    assert read["featurize"] == {("images", images)}
    assert read["train_head"] == read["finetune"] == read["evaluate"] == both
    complete = [(d.dataset.name, d.dataset.digest) for d in runs["pipeline"].inputs.dataset_inputs]
    assert complete == [("images", images)], "the column Dataset of MLflow's list of runs"
    for name in ("pipeline", *STAGES):
        for given in runs[name].inputs.dataset_inputs:
            assert str(line.folder) not in given.dataset.source, "where images lie is nobody's business"

    for name, run in runs.items():
        result = {key for key in run.data.metrics if key.startswith("system/")}
        assert ("system/cpu_utilization_percentage" in result) == (name == "pipeline"), name

    facts = line.manifest("images")
    logged = runs["ingest"].data
    assert {key: logged.metrics[key] for key in ("listed", "accepted", "rejected", "skipped")} == {
        key: float(facts[key]) for key in ("listed", "accepted", "rejected", "skipped")
    }
    assert logged.tags["dataset_id"] == facts["id"]
    assert runs["featurize"].data.tags["features_id"] == line.manifest("features")["id"]
    assert runs["featurize"].data.metrics["computed"] == facts["accepted"]


def test_notable_settings_are_parameters_and_all_settings_an_artifact(line, runs):
    line.tracker()
    expected = config.notable_settings(line.context.settings)
    assert runs["pipeline"].data.params == expected
    assert {"head.hidden", "finetune.batch_size", "ingest.test_fraction"} <= expected.keys(), "the last is no default"
    assert "search.trials" not in expected
    text = Path(mlflow.MlflowClient().download_artifacts(runs["pipeline"].info.run_id, "settings.txt")).read_text()
    assert text == "".join(f"{key}: {value}\n" for key, value in config.public_settings(line.context.settings).items())
    assert str(line.folder) not in text


@pytest.mark.parametrize(("stage", "place"), [("train_head", "models/head"), ("finetune", "models/finetuned")])
def test_every_epoch_is_on_the_curve(line, runs, stage, place):
    line.tracker()
    epochs = line.manifest(place)["training"]
    for name in ("validation_auroc", "validation_loss"):
        points = mlflow.MlflowClient().get_metric_history(runs[stage].info.run_id, name)
        assert [point.value for point in points] == pytest.approx([epoch[name] for epoch in epochs])
        assert [point.step for point in points] == list(range(len(epochs)))


def test_report_and_registered_version_are_logged(line, runs):
    line.tracker()
    client = mlflow.MlflowClient()
    run_id = runs["evaluate"].info.run_id
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(run_id)}
    plots = {artifact.path for artifact in client.list_artifacts(run_id, "plots")}
    names = "roc precision_recall calibration decision_curve confusion histogram training"
    assert plots == {f"plots/{name}.png" for name in names.split()}
    kept = (line.folder / "reports" / line.manifest("reports")["path"] / "report.html").read_bytes()
    assert Path(client.download_artifacts(run_id, "report.html")).read_bytes() == kept
    phases = ", ".join(
        f"{name} (epoch {line.manifest('models/finetuned')['best'][name]})" for name in ("block5", "all")
    )
    assert f"then more of the network by phases: {phases}; epoch 0 is the start" in kept.decode()
    metrics = runs["evaluate"].data.metrics
    assert metrics.items() >= line.manifest("reports")["metrics"].items()

    version = mlflow.MlflowClient().get_model_version_by_alias("melanoma", "champion")
    assert version.version == "1" or version.version == 1
    facts, metrics = line.manifest("models/finetuned"), line.manifest("reports")["metrics"]
    assert (
        version.tags.items()
        >= {
            "model": "fine-tuned",
            "dataset_id": facts["dataset_id"],
            "weights_id": facts["weights_id"],
            "weights_origin": "random",
            "report_id": line.manifest("reports")["id"],
            "test_auroc": f"{metrics['test_auroc_finetuned']:.4f}",
        }.items()
    )
    assert version.tags["commit"]
    assert "licences" not in version.tags, "drawn images have none"


def test_no_file_name_of_the_archive_leaves_the_warehouses_tables(line, runs):
    """Names of files can name patients: reports, runs and models are shown to others."""
    line.tracker()
    names = re.compile(rb"image_\d{6}|broken_[a-z]+|unlabelled\.jpg|patient_\d{4}|lesion_\d{5}")
    assert names.search((line.archive / "metadata.csv").read_bytes())
    shown = [path for folder in ("reports", "mlartifacts") for path in listed_files(line.folder / folder)]
    shown = [path for path in shown if path.parent.name not in ("predictions", "isic")]  # tables of the warehouse
    assert {"report.html", "MLmodel", "model.json", "weights.npz", "pyfunc.py", "synthetic.py"} <= {
        p.name for p in shown
    }
    for path in shown:
        if path.name == "synthetic.py":  # draws such names itself
            continue
        assert not names.search(path.read_bytes()), path
    for run in runs.values():
        logged = json.dumps([run.data.params, run.data.tags, run.data.metrics]).encode()
        assert not names.search(logged), run.info.run_name
    for version in mlflow.MlflowClient().search_model_versions("name='melanoma'"):
        assert not names.search(json.dumps(version.tags).encode())


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a warehouse but MLflow's, with its size and time."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in listed_files(folder)
        if "mlartifacts" not in path.parts and path.name != "mlflow.db"
    }


SAID_AGAIN = {
    "ingest": "132 files listed, nothing new, {images} images stand in images/",
    "featurize": "{images} images = 0 computed + {images} computed before",
    "train_head": "nothing new, models/head stands",
    "finetune": "nothing new, models/finetuned stands",
    "evaluate": "nothing new, the report is at",
    "register": "nothing new, melanoma version 1 is champion already",
    "score": "130 images listed, all scored before by melanoma version 1; nothing to do",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_run_computes_nothing_and_reports_it(line, stored, stage):
    before = contents(line.folder)
    message = line.stage(stage)
    assert message.startswith(f"{stage}: " + SAID_AGAIN[stage].format(images=len(stored)))
    after = contents(line.folder)
    # featurize says again which dataset the features are of
    assert {k: v for k, v in after.items() if k != "features/manifest.json"} == {
        k: v for k, v in before.items() if k != "features/manifest.json"
    }


def test_a_larger_archive_keeps_splits_and_computes_only_new_images(copied, line, stored):
    rows = (copied.archive / "metadata.csv").read_text()
    for number in range(10):  # two images a patient
        (copied.archive / "benign" / f"grown_{number}.jpg").write_bytes(synthetic.lesion_jpeg(500 + number, size=64))
        rows += f"grown_{number},benign,new_{number // 2},new_{number}\n"
    (copied.archive / "metadata.csv").write_text(rows)
    assert "128 accepted" in copied.stage("ingest")
    grown = copied.read("images").toPandas().set_index("sha256")
    old = stored.set_index("sha256")
    assert (grown.loc[old.index, "split"] == old["split"]).all()
    new = grown[grown["patient_id"].str.startswith("new_")]
    assert "train" in set(new["split"])
    assert new.groupby("patient_id")["split"].agg(["size", "nunique"]).to_numpy().tolist() == [[2, 1]] * 5
    assert copied.manifest("images")["id"] != line.manifest("images")["id"]

    with pytest.raises(DataError, match="rows; run the job that makes it again"):
        copied.stage("train_head")  # the features are not there yet
    assert "128 images = 10 computed + 118 computed before" in copied.stage("featurize")
    features = copied.read("features").toPandas()
    assert sorted(features["sha256"]) == sorted(grown.index)
    with pytest.raises(DataError, match=r"trained on dataset .*; run train_head and finetune again"):
        copied.stage("evaluate")
    assert "validation AUROC" in copied.stage("train_head")
