"""Drift: the figures of the literature, verdicts that do not grow with the batch, and what chance explains is none."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, captured_output, command
from hypothesis import given
from hypothesis import strategies as st
from page import Page
from PIL import Image, ImageDraw
from scipy import stats

from melanoma_spark import config, pipeline
from melanoma_spark.images import decoding, hashes
from melanoma_spark.models import bundle, model_registry, network, pyfunc, training_reference, weights
from melanoma_spark.monitoring import drift as job
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import MEASURES, Measure, of_kind
from melanoma_spark.runner.cli import invoke
from melanoma_spark.runner.context import Summary
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.storage import manifests
from melanoma_spark.storage.manifests import ImagesManifest

LIMITS = config.Drift()
COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=20).filter(any)


def binned(histogram: training_reference.Histogram, values) -> list[int]:
    places = np.searchsorted(histogram.edges, values, side="left")
    return np.bincount(places, minlength=len(histogram.counts)).tolist()


def normal(rows: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, rows)


def known(**changes) -> training_reference.Reference:
    space = training_reference.fit(
        np.random.default_rng(0).normal(size=(50, 4)), np.random.default_rng(1).normal(size=(50, 4))
    )
    histograms = {name: training_reference.histogram(normal(600, seed)) for seed, name in enumerate(of_kind("number"))}
    shares = {"sex": {"female": 200, "male": 180, training_reference.OTHERS: 0}}
    return training_reference.Reference(
        **{"space": space, "histograms": histograms, "shares": shares, "images": {}, **changes}
    )


def held(reference_, values, rows, metadata=None, unlike=0, limits=LIMITS) -> statistics.Drift:
    numbers = {name: binned(reference_.histograms[name], result) for name, result in values.items()}
    return statistics.compare_with_reference(reference_, numbers, metadata or {}, rows, unlike=unlike, limits=limits)


def batch(rows: int, seed: int = 50, **changed) -> dict[str, np.ndarray]:
    return {name: changed.get(name, normal(rows, seed + place)) for place, name in enumerate(of_kind("number"))}


def states(result: statistics.Drift) -> dict[str, str]:
    return {one.name: one.state for one in result.measures}


def test_psi_and_ks_are_those_of_the_literature():
    # Siddiqi's formula by hand, of 100,000 images so that the half image added does not tell
    before, now = np.array([30_000, 50_000, 20_000]), np.array([20_000, 50_000, 30_000])
    expected = (0.2 - 0.3) * np.log(0.2 / 0.3) + (0.3 - 0.2) * np.log(0.3 / 0.2)
    assert statistics.psi(before, now) == pytest.approx(expected, rel=1e-3)
    assert 0 < statistics.psi([10, 0], [0, 10]) < 10, "an empty bin is no infinity"
    # What makes 0.1 and 0.25 a shift of 0.32 and 0.5 standard deviations, and KS then 0.126 and 0.197.
    for bound, other in ((LIMITS.warn.psi, LIMITS.warn.ks), (LIMITS.limit.psi, LIMITS.limit.ks)):
        shift = np.sqrt(bound)
        edges = stats.norm.ppf(np.arange(1, 400) / 400)
        before, now = (np.diff(stats.norm.cdf([-np.inf, *edges, np.inf], at)) * 1e8 for at in (0, shift))
        assert statistics.psi(before, now) == pytest.approx(bound, rel=0.02)
        assert statistics.ks(before, now) == pytest.approx(other, abs=0.005)

    before = normal(900, 1)
    histogram = training_reference.histogram(before)
    for seed, shift in enumerate((0, 0.1, 0.3, 1)):
        now = normal(700, 10 + seed, shift)
        exact = stats.ks_2samp(before, now).statistic
        result = statistics.ks(histogram.counts, binned(histogram, now))
        assert exact - 1 / training_reference.BINS <= result <= exact + 1e-12


@given(COUNTS, st.data())
def test_figures_are_symmetric_and_zero_of_the_same(before, data):
    now = data.draw(st.lists(st.integers(0, 500), min_size=len(before), max_size=len(before)).filter(any))
    for figure in (statistics.psi, statistics.ks):
        assert figure(before, now) == pytest.approx(figure(now, before))
        assert figure(before, now) >= 0
        assert figure(before, before) == pytest.approx(0, abs=1e-12)
    assert statistics.ks(before, now) <= 1 + 1e-12


def test_chance_is_rarely_passed_where_nothing_has_changed():
    histogram = training_reference.histogram(normal(400, 1))
    passed = np.zeros(2, int)
    for seed in range(1000):
        before, now = normal(400, 2000 + seed), normal(80, 5000 + seed)
        counts = [binned(histogram, values) for values in (before, now)]
        passed += [
            statistics.psi(*statistics._tenths(*counts)) > statistics.psi_by_chance(10, 400, 80),
            statistics.ks(*counts) > statistics.ks_by_chance(400, 80),
        ]
    assert passed.max() <= 8  # of 1000, one is expected of each


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(2, 60))
def test_chance_is_that_of_scipys_distributions(before, now, bins):
    by = 1 / before + 1 / now
    assert statistics.psi_by_chance(bins, before, now) == pytest.approx(
        stats.chi2.isf(statistics.CHANCE, bins - 1) * by
    )
    assert statistics.ks_by_chance(before, now) == pytest.approx(stats.kstwobign.isf(statistics.CHANCE) * by**0.5)
    assert statistics.unlike_by_chance(now) == stats.binom.isf(statistics.CHANCE, now, 1 - statistics.WITHIN) / now


def test_bins_are_tenths_and_what_nearly_all_images_have_is_one_by_itself():
    for rows in (20, 57, 400, 601):
        before = training_reference.histogram(normal(rows, 1)).counts
        tenths, same = statistics._tenths(before, before)
        assert len(tenths) == 10
        assert sum(tenths) == sum(same) == rows
    side = training_reference.histogram([224] * 600)
    before, now = statistics._tenths(side.counts, binned(side, [600] * 100))
    assert before.tolist() == [600, 0]
    assert now.tolist() == [0, 100]
    some = training_reference.histogram([0.0] * 380 + list(normal(20, 2) + 9))
    assert statistics._tenths(some.counts, some.counts)[0].tolist() == [380, 20]


def test_batches_like_the_training_images_pass_with_the_same_metrics():
    for rows in (50, 60, 200, 5000):
        result = held(known(), batch(rows), rows, {"sex": {"female": rows // 2, "male": rows - rows // 2}})
        assert result.state == statistics.AS_TRAINED, result
        assert result.verdict == statistics.AS_TRAINED
        assert not result.beyond
        assert {one.name for one in result.measures} == {*of_kind("number"), "sex", "unlike"}

    one, other = (held(known(), batch(rows, seed), rows) for rows, seed in ((60, 1), (900, 99)))
    assert one.metrics.keys() == other.metrics.keys() >= {"state", "psi/distance", "ks/sharpness", "share/unlike"}


def test_verdicts_name_the_measures_that_moved():
    rows = 2000
    assert held(known(), batch(rows, distance=normal(rows, 1, 0.2)), rows).state == statistics.AS_TRAINED
    some = held(known(), batch(rows, sharpness=normal(rows, 1, 0.4)), rows)
    assert some.verdict == "drifting: sharpness"
    much = held(known(), batch(rows, sharpness=normal(rows, 1, 0.4), distance=normal(rows, 2, 1)), rows)
    assert much.verdict == "beyond the limit: distance in feature space"
    assert much.beyond
    assert states(much)["sharpness"] == statistics.DRIFTING
    wider = held(known(), batch(rows, warm=normal(rows, 3, 0, 2.5)), rows)
    assert states(wider)["warm"] == statistics.BEYOND, "PSI sees what has no other middle"

    rows = 500
    result = held(known(), {name: normal(rows, 1, 3) for name in of_kind("number")}, rows)
    assert result.verdict == (
        "beyond the limit: the network's probability, distance in feature space, sharpness, brightness and 4 more"
    )


def test_small_batches_must_move_more_than_chance():
    shifted = {"raw_probability": normal(60, 9, 0.35)}
    small = held(known(), batch(60, **shifted), 60)
    assert next(one for one in small.measures if one.name == "raw_probability").psi > LIMITS.warn.psi
    assert small.state == statistics.AS_TRAINED
    assert held(known(), batch(60, raw_probability=normal(60, 9, 2)), 60).state == statistics.BEYOND

    result = held(known(), batch(49), 49)
    assert result.verdict == "too few to tell: 49 images that training has not seen, 50 are needed"
    assert (result.measures, result.metrics, result.beyond) == ((), {}, False)


def test_limits_of_unlike_images_and_of_ignored_measures():
    for count, state in ((10, statistics.AS_TRAINED), (100, statistics.DRIFTING), (300, statistics.BEYOND)):
        result = held(known(), batch(1000), 1000, unlike=count)
        assert states(result)["unlike"] == state
        assert result.metrics["share/unlike"] == count / 1000
    assert "unlike" not in states(held(known(), batch(1000), 1000, unlike=None))
    assert states(held(known(), batch(60), 60, unlike=4))["unlike"] == statistics.AS_TRAINED, "four of sixty are chance"

    rows = 1000
    moved = batch(rows, raw_probability=normal(rows, 1, 2))
    calm = config.Drift(ignore=("raw_probability",))
    result = held(known(), moved, rows, limits=calm)
    assert result.state == statistics.AS_TRAINED
    assert states(result)["raw_probability"] == statistics.BEYOND
    off = config.Drift(warn={"psi": None, "ks": None}, limit={"psi": None, "ks": None})
    assert held(known(), moved, rows, limits=off).state == statistics.AS_TRAINED


def test_categories_are_compared_where_both_sides_name_some():
    rows = 1000
    same = {"female": 500, "male": 450, "unknown": 500}
    assert states(held(known(), batch(rows), rows, {"sex": same}))["sex"] == statistics.AS_TRAINED
    result = held(known(), batch(rows), rows, {"sex": {"female": 950, "male": 50}})
    assert states(result)["sex"] == statistics.BEYOND
    new = held(known(), batch(rows), rows, {"sex": {"f": 500, "m": 500}})
    assert states(new)["sex"] == statistics.BEYOND, "words that the training images did not have"
    few = {"sex": {"female": 49, "unknown": rows - 49}}
    for silent in ({}, {"sex": {}}, {"sex": {"unknown": rows}}, {"site": {"arm": rows}}, few):
        assert not {"sex", "site"} & states(held(known(), batch(rows), rows, silent)).keys()


@pytest.fixture(scope="module")
def registered(line) -> bundle.Scorer:
    _, artifacts = model_registry.download_model(line.tracker(), "melanoma@champion")
    assert sum(len(artifacts[name]) for name in training_reference.FILES) < 2_000_000
    return bundle.unpack(artifacts)


def test_reference_and_distances_of_the_registered_model(line, registered):
    images = line.read("images").where("split != 'test'").toPandas()
    known = registered.reference
    assert known.images == images["split"].value_counts().to_dict()
    assert known.histograms.keys() == set(of_kind("number"))
    for name, histogram in known.histograms.items():
        expected = len(images) if name not in ("raw_probability", "distance") else known.images["validation"]
        assert sum(histogram.counts) == expected, name
    assert known.histograms["side"].edges == (64.0,)
    report = line.manifest("reports")
    table = pd.read_parquet(line.folder / "reports" / report["path"] / "predictions")
    raw = table[(table["model"] == "fine-tuned") & (table["split"] == "validation")]["raw_probability"]
    assert known.histograms["raw_probability"] == training_reference.histogram(raw)

    result = line.scores()
    scored = result[result["status"] == "scored"]
    assert scored["distance"].notna().all()
    assert result.loc[result["status"] == "rejected", "distance"].isna().all()
    assert scored["side"].min() >= 32
    validation = line.read("images").where("split = 'validation'").select("sha256").toPandas()["sha256"]
    own = scored[scored["sha256"].isin(validation)]["distance"]
    assert own.quantile(training_reference.WITHIN) == pytest.approx(1, rel=0.01), "by any engine as by TensorFlow"
    model = pyfunc.LesionScorer()
    model.scorer, model.forward = registered, network.classifier(registered.spec, registered.tensors)
    some = scored.head(4)
    table = pd.DataFrame({"image": [Path(uri[5:]).read_bytes() for uri in some["source_uri"]]})
    np.testing.assert_allclose(model.predict(None, table)["distance"], some["distance"], rtol=0.01)


def test_images_seen_in_training_are_left_out_of_drift(line, registered):
    scores = line.context.spark.read.parquet(f"{line.context.warehouse}/scores")
    telling = job.rows_for_drift(line.context, scores, registered)
    test = line.read("images").where("split = 'test'").select("sha256").toPandas()["sha256"]
    own = telling.toPandas()
    assert set(test) <= set(own["sha256"])
    learnt = line.read("images").where("split != 'test'").select("sha256").toPandas()["sha256"]
    assert not set(own["sha256"]) & set(learnt)
    assert len(own) + scores.join(line.read("images").where("split != 'test'"), "sha256", "left_semi").count() == (
        scores.where("status = 'scored'").count()
    )
    nothing = telling.sparkSession.createDataFrame([], ", ".join(f"{name} string" for name in of_kind("category")))
    few = line.context.settings.score.drift.model_copy(update={"minimum": 10})
    score_ = line.context.settings.score.model_copy(update={"drift": few})
    calm = replace(line.context, settings=line.context.settings.model_copy(update={"score": score_}))
    result = job.compare_batch(calm, telling, nothing, registered.reference)
    assert result.state == statistics.AS_TRAINED, result
    (folder,) = (line.folder / "batches").iterdir()
    facts = json.loads((folder / "batch.json").read_text())
    assert facts["verdict"] == f"too few to tell: {len(own)} images that training has not seen, 50 are needed"
    assert facts["verdict"] in Page((folder / "worklist.html").read_text(), apart=("b",)).words


def test_counts_of_spark_are_those_of_numpy(spark):
    values = np.random.default_rng(0).normal(size=300).astype(np.float32)
    histogram = training_reference.histogram(values)
    now = np.concatenate([values[:100], values[:50] + 1, [np.nan], histogram.edges])
    rows = spark.createDataFrame(pd.DataFrame({"warm": now.astype(np.float32), "side": [1.0] * len(now)}))
    rows = rows.unionByName(spark.createDataFrame([(None, None)], "warm float, side double"))
    counts = job.count_in_bins(rows, {"warm": histogram, "side": training_reference.Histogram((), (0,))})
    assert counts == {"warm": binned(histogram, now[~np.isnan(now)].astype(np.float32)), "side": [len(now)]}


def test_one_entry_adds_a_measure(monkeypatch, spark, line, registered):
    """It is part of a new reference, and a batch is compared by its SQL expression."""
    cold = Measure("cold", "pixels bluer than red", batch="1 - warm", training=lambda columns: 1 - columns["warm"])
    monkeypatch.setitem(MEASURES, "cold", cold)
    spec, tensors, images = registered.spec, registered.tensors, manifests.read(ImagesManifest, line.context.warehouse)
    reference = job.build_reference(line.context, images, "network", spec, tensors, raw=np.full(50, 0.5))
    assert sum(reference.histograms["cold"].counts) == sum(reference.histograms["warm"].counts) > 0
    rows = spark.createDataFrame([(-9.0,)] * 100, "warm double")
    counts = job.count_in_bins(rows, {"cold": reference.histograms["cold"]})
    result = statistics.compare_with_reference(reference, counts, {}, 100, unlike=None, limits=LIMITS)
    assert result.verdict == "beyond the limit: pixels bluer than red"


def test_a_model_without_reference_has_its_own_verdict(spark):
    result = job.compare_batch(None, None, None, None)
    assert result.verdict == "no training reference: the version was registered without one"
    off = config.load(None, ["register.reference=0"])
    assert job.build_reference(SimpleNamespace(settings=off), {}, "", None, [], raw=None) is None


def test_a_batch_beyond_the_limit_is_committed_and_marked(spark, noise, settings_file):
    before = len(noise.scores())
    conf = settings_file(archive=str(noise.archive), warehouse=str(noise.folder))
    done = invoke(command("score"), ["--conf", str(conf)], spark)
    assert done.exit_status == 6, done.log
    assert "60 scored + 0 rejected" in done.summary
    assert "beyond the limit: " in done.summary
    rows = noise.scores()
    assert len(rows) == before + 60
    own = rows[rows["image_id"].str.startswith("noise")]
    assert own["flags"].str.contains("unlike").all()
    assert own["flags"].str.contains("too_small").sum() == 3
    assert (own["side"] == 48).sum() == 3
    assert (own["distance"] > 1).all()

    (batch_id,) = own["batch_id"].unique()
    facts = json.loads((noise.folder / "batches" / batch_id / "batch.json").read_text())
    output = {one["name"]: one for one in facts["drift"]["measures"]}
    assert {"distance", "unlike", "sharpness", "side"} <= {
        k for k, one in output.items() if one["state"] == statistics.BEYOND
    }
    assert output["unlike"]["share"] == 1
    page = (noise.folder / "batches" / batch_id / "worklist.html").read_text()
    assert facts["verdict"] in Page(page, apart=("b",)).words

    noise.tracker()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("melanoma-drift")
    newest, oldest = client.search_runs([experiment.experiment_id])
    assert newest.info.run_name == newest.data.tags["batch_id"] == batch_id
    assert newest.data.tags["verdict"] == facts["verdict"]
    assert newest.data.metrics["share/unlike"] == 1
    assert newest.data.metrics["rows"] == 60
    assert newest.data.metrics.keys() >= {"state", "psi/distance", "ks/distance", "mean_probability", "share_flagged"}
    assert "state" not in oldest.data.metrics, "of too few images nothing is charted"
    assert newest.info.status == "FINISHED"

    section = noise.context.settings.score
    status = noise.output_of("score", score=section.model_copy(update={"action": "status"}))
    assert facts["verdict"] in status.splitlines()[0]
    assert "nothing to do" in noise.stage("score")


def test_a_marked_stage_gives_the_pipeline_its_exit_status(line, monkeypatch):
    ran = []
    job = replace(line.context, mlflow=line.tracker())
    stages = {"first": lambda job: ran.append("first") or Summary("done"), "marked": lambda job: Summary("done", 6)}
    monkeypatch.setattr(pipeline, "STAGES", {**stages, "last": stages["first"]})
    with captured_output() as text:
        assert run_stage(job, "pipeline", pipeline.pipeline, {"job": "pipeline"}).exit_status == 6
        assert run_stage(job, "first", stages["first"], {"job": "first"}).exit_status == 0
    assert ran == ["first"] * 3
    assert "pipeline: 3 stages" in text.getvalue()


def pictures(kind: str, count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """What is no skin, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        if kind == "noise":
            result.append(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        elif kind == "gradient":
            ends, part = rng.integers(0, 256, (2, 3)), np.linspace(0, 1, size)[:, None, None]
            result.append(np.broadcast_to(ends[0] * (1 - part) + ends[1] * part, (size, size, 3)).astype(np.uint8))
        else:
            page = Image.new("RGB", (size, size), (235, 235, 228))
            for top in range(4, size - 8, 14):
                line_of_text = "".join(map(chr, rng.integers(97, 123, size // 6)))
                ImageDraw.Draw(page).text((6, top), line_of_text, fill=(20, 20, 20))
            result.append(np.asarray(page))
    return result


@pytest.mark.skipif(not (SHARED / "data/lesions").is_dir(), reason="../shared is not there")
def test_on_real_weights_what_is_no_skin_is_farther_than_lesions():
    """VGG16 of ImageNet at 64 px; docs/decisions/drift.md has figures at 224."""
    size = 64
    paths = sorted((SHARED / "data/lesions").glob("*/*.jpg"), key=lambda path: hashes.sha256(path.name.encode()))
    lesions = [decoding.decode(path.read_bytes(), size) for path in paths[:360]]
    spec = network.Spec(backbone="vgg16", image_size=size, hidden=4, dropout=0.0)
    file = SHARED / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    base = weights.resolve(config.Backbone(weights=str(file)), 0).tensors
    head = network.build(spec).get_weights()[len(base) :]
    forward = network.predictor(network.scoring_model(spec, [*base, *head]))
    of = {"lesions": forward(np.stack(lesions))[1]}
    for kind in ("noise", "gradient", "text"):
        of[kind] = forward(np.stack(pictures(kind, 12, size)))[1]
    space = training_reference.fit(of["lesions"][:200], of["lesions"][200:280])
    assert np.mean(space.distances(of["lesions"][280:]) > 1) <= 0.08
    for kind in ("noise", "gradient", "text"):
        assert np.mean(space.distances(of[kind]) > 1) >= 0.9, kind
