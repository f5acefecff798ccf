"""The registered model: complete in itself, the same scores as the job, and refused when it was changed."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import REPO

from melanoma_spark import lineage
from melanoma_spark.errors import DataError, ImageError
from melanoma_spark.images import decoding, hashes, synthetic
from melanoma_spark.models import bundle, model_registry, network, pyfunc, training_reference
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.storage.tensors import pack_tensors, unpack_tensors

POINT = OperatingPoint("screening", 0.25, "sensitivity>=0.9")
# What a server that has MLflow, but neither this repository nor its package, does with the model and a table.
ELSEWHERE = """
import sys
from pathlib import Path
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path({repo!r})]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.util
assert importlib.util.find_spec("melanoma_spark") is None, "the package is still on the path"
import logging
import mlflow
import pandas as pd
logging.getLogger("mlflow").setLevel(logging.ERROR)
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict(pd.read_parquet(sys.argv[2]))
found.to_parquet(sys.argv[3])
import melanoma_spark
print(melanoma_spark.__file__)
"""


@pytest.fixture(scope="module")
def registered(line, tmp_path_factory):
    """The files of the registered version, in another folder."""
    line.tracker()
    folder = tmp_path_factory.mktemp("registered") / "model"
    mlflow.artifacts.download_artifacts(artifact_uri="models:/melanoma@champion", dst_path=str(folder))
    return folder


@pytest.fixture
def copied_registry(line):
    """The tracker, and the folder of the registered files, which are put back afterwards."""
    tracker = line.tracker()
    source = mlflow.MlflowClient().get_model_version_by_alias("melanoma", "champion").source
    logged = mlflow.get_logged_model(source.removeprefix("models:/")) if source.startswith("models:/") else None
    folder = Path((logged.artifact_location if logged else source).removeprefix("file://")) / "artifacts"
    before = {name: (folder / name).read_bytes() for name in bundle.ARTIFACTS}
    yield tracker, folder
    for name, content in before.items():
        (folder / name).write_bytes(content)


def predict_elsewhere(model: Path, table: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, str]:
    """The model's answers in a process that cannot import this package, and what it printed."""
    table.to_parquet(folder / "table.parquet")
    code = ELSEWHERE.format(repo=str(REPO))
    arguments = [str(model), str(folder / "table.parquet"), str(folder / "found.parquet")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return pd.read_parquet(folder / "found.parquet"), done.stdout


def test_elsewhere_it_gives_the_scores_of_the_score_job(line, registered, tmp_path):
    scores = line.scores()
    scores = scores[~scores["reason"].isin(["hidden"])].reset_index(drop=True)  # the model knows no names of files
    assert (scores["status"] == "rejected").sum() >= 8
    table = pd.DataFrame({"image": [Path(uri[5:]).read_bytes() for uri in scores["source_uri"]]})
    result, printed = predict_elsewhere(registered, table, tmp_path)
    assert str(registered) in printed, "the model did not run the code that was registered with it"
    assert list(result.columns) == list(bundle.OUTPUTS)
    for column in ("probability", "raw_probability"):
        np.testing.assert_allclose(result[column], scores[column].astype(float), atol=1e-5)
    assert result["probability"].notna().sum() == (scores["status"] == "scored").sum() > 100
    for column in ("decision", "operating_point", "threshold", "status", "reason", "detail"):
        assert list(result[column].fillna("")) == list(scores[column].fillna("")), column


@pytest.fixture(scope="module")
def some(line):
    """Scores of a few images and of what is rejected, with the bytes."""
    scores = line.scores()
    scores = scores[~scores["reason"].isin(["hidden", "empty"])]
    rows = pd.concat([scores[scores["status"] == status].head(5) for status in ("scored", "rejected")])
    return rows.assign(image=[Path(uri[5:]).read_bytes() for uri in rows["source_uri"]]).reset_index(drop=True)


def test_as_a_udf_of_spark_it_gives_the_scores_of_the_score_job(line, registered, some):
    from pyspark.sql.functions import struct

    kinds = "probability double, decision string, status string"
    udf = mlflow.pyfunc.spark_udf(line.context.spark, str(registered), result_type=kinds, env_manager="local")
    table = line.context.spark.createDataFrame([(bytes(image),) for image in some["image"]], "image binary")
    result = table.select(udf(struct("image")).alias("found")).select("found.*").toPandas()
    np.testing.assert_allclose(result["probability"].astype(float), some["probability"].astype(float), atol=1e-5)
    assert list(result["decision"]) == list(some["decision"])
    assert list(result["status"]) == list(some["status"]) == ["scored"] * 5 + ["rejected"] * 5


def test_served_over_http_it_gives_the_scores_of_the_score_job(registered, some, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(registered), "--env-manager", "local"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # it looks for uvicorn
        )
    try:
        body = {"columns": ["image"], "data": [[base64.b64encode(image).decode()] for image in some["image"]]}
        answer = posted(f"http://127.0.0.1:{port}/invocations", {"dataframe_split": body}, server)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    result = pd.DataFrame(answer["predictions"])
    np.testing.assert_allclose(result["probability"].astype(float), some["probability"].astype(float), atol=1e-5)
    assert list(result["decision"]) == list(some["decision"])


def posted(url, body, server):
    """The answer, as soon as the server has started."""
    until = time.monotonic() + 120
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None
        except OSError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.5)


def test_registered_model_has_signature_example_and_requirements(registered, line):
    model = mlflow.models.Model.load(str(registered))
    assert model.signature.inputs.input_names() == ["image"]
    assert [str(kind) for kind in model.signature.inputs.input_types()] == ["DataType.binary"]
    assert model.signature.outputs.input_names() == list(bundle.OUTPUTS)
    example = model.load_input_example(str(registered))
    content = example["image"][0]
    assert decoding.decode(bytes(content), 64).shape == (64, 64, 3)
    assert bytes(content) == synthetic.lesion_jpeg(seed=1, size=64)  # drawn, no patient's

    needed = (registered / "requirements.txt").read_text()
    for package in ("tensorflow-cpu==", "keras==", "numpy==", "pillow==", "mlflow=="):
        assert package in needed
    for package in ("pyspark", "petastorm", "horovod"):
        assert package not in needed
    description = json.loads((registered / "artifacts/model.json").read_text())
    facts = line.manifest("models/finetuned")
    assert description["facts"]["dataset_id"] == facts["dataset_id"]
    assert description["facts"]["id"] == facts["id"]
    assert "not a medical device" in description["warning"]


def test_the_reference_is_under_the_same_sums(scorer):
    rng = np.random.default_rng(0)
    space = training_reference.fit(rng.random((40, 512)), rng.random((20, 512)))
    known = training_reference.Reference(
        space, {"side": training_reference.histogram([1, 2, 3])}, {"sex": {"f": 9}}, {"train": 40}
    )
    packed = bundle.pack(replace(scorer, reference=known))
    again = bundle.unpack(packed)
    outputs = [np.array([[0.5]]), np.array([[np.nan]]), rng.random((1, 512))]
    np.testing.assert_allclose(again.finish(outputs, [None])["distance"], space.distances(outputs[2]))
    assert scorer.finish(outputs, [None])["distance"].isna().all(), "without one there is no distance"
    for name in training_reference.FILES:
        with pytest.raises(DataError, match=f"the model's {name} was changed after it was registered"):
            bundle.unpack(packed | {name: packed[name] + b" "})
    for name in training_reference.FILES:
        damaged = packed | {name: b"no reference"}
        sums = {key: hashes.sha256(content) for key, content in damaged.items() if key != bundle.MANIFEST}
        with pytest.raises(DataError, match="the model's description is damaged"):
            bundle.unpack(damaged | {bundle.MANIFEST: json.dumps(sums).encode()})


@pytest.mark.parametrize("sums_too", [False, True])
def test_tampered_weights_are_refused(registered, tmp_path, line, sums_too):
    copy = tmp_path / "model"
    shutil.copytree(registered, copy)
    path, manifest = copy / "artifacts/weights.npz", copy / "artifacts/manifest.json"
    tensors = unpack_tensors(path.read_bytes())
    tensors[5].flat[0] += 1e-3
    path.write_bytes(pack_tensors(tensors))
    output = r"weights\.npz was changed after it was registered: SHA-256 .*, manifest\.json has"
    if sums_too:
        sums = json.loads(manifest.read_text()) | {"weights.npz": hashes.sha256(path.read_bytes())}
        manifest.write_text(json.dumps(sums))
        output = "weights were changed after it was registered: content id .*, expected"
    with pytest.raises(DataError, match=output):
        mlflow.pyfunc.load_model(str(copy))


def test_a_changed_model_is_refused_by_the_sum_in_the_registry(line, copied_registry):
    """All sums of the bundle are right, but it is another one: a threshold that finds nothing."""
    tracker, folder = copied_registry
    packed = {name: (folder / name).read_bytes() for name in bundle.ARTIFACTS}
    scorer = bundle.unpack(packed)
    silent = replace(scorer, operating_point=replace(scorer.operating_point, threshold=1.0))
    (folder / "model.json").write_bytes(bundle.pack(silent)["model.json"])
    (folder / "manifest.json").write_bytes(bundle.pack(silent)["manifest.json"])
    with pytest.raises(DataError, match=r"melanoma@champion is not the one that was registered: its manifest\.json"):
        model_registry.download_model(tracker, "melanoma@champion")


@pytest.fixture(scope="module")
def scorer():
    """A small and random one."""
    spec = network.Spec(backbone="vgg16", image_size=32, hidden=4, dropout=0.5)
    import keras

    keras.utils.set_random_seed(0)
    tensors = [value.astype(np.float32) for value in network.build(spec).get_weights()]
    facts = {"id": "m1", "tensors_id": lineage.tensors_id(tensors), "dataset_id": "d1"}
    return bundle.Scorer(spec, tensors, Calibration("platt", 0.8, -0.1), POINT, 16, 10_000, facts)


def signed(packed):
    """The same files with sums that are right."""
    sums = {name: hashes.sha256(packed[name]) for name in bundle.CONTENTS}
    return packed | {bundle.MANIFEST: json.dumps(sums).encode()}


@pytest.mark.parametrize("tta", [1, 8])
def test_the_served_model_scores_by_the_views_of_its_spec(scorer, tmp_path, tta):
    chosen = replace(scorer, spec=scorer.spec.model_copy(update={"tta": tta}))
    paths = {}
    for name, content in bundle.pack(chosen).items():
        (tmp_path / name).write_bytes(content)
        paths[name] = str(tmp_path / name)
    served = pyfunc.LesionScorer()
    served.load_context(SimpleNamespace(artifacts=paths))
    contents = [synthetic.lesion_jpeg(seed, size=48) for seed in range(3)]
    result = served.predict(None, pd.DataFrame({"image": contents}))["probability"]
    pixels = np.stack([scorer.prepare(content) for content in contents])
    plain = network.predictor(network.build(scorer.spec, scorer.tensors))
    views = [pixels, pixels[:, :, ::-1], pixels[:, ::-1], pixels[:, ::-1, ::-1]]
    views += [view.swapaxes(1, 2) for view in views]
    expected = np.mean([plain(np.ascontiguousarray(view))[0][:, 0] for view in views[:tta]], axis=0)
    np.testing.assert_allclose(result, scorer.calibration.apply(expected), atol=1e-6)
    assert np.abs(result - expected).max() > 1e-3, "the test cannot tell calibrated from not"


@pytest.mark.parametrize("damage", ["no json", "missing", "spec", "calibration", "empty weights", "text weights"])
def test_damaged_files_are_refused_in_one_line(scorer, damage):
    packed = bundle.pack(scorer)
    description = json.loads(packed["model.json"])
    if damage == "no json":
        packed["manifest.json"] = b"{"
    elif damage == "missing":
        del description["operating_point"]
        packed["model.json"] = json.dumps(description).encode()
    elif damage == "spec":
        description["spec"]["image_size"] = "large"
        packed["model.json"] = json.dumps(description).encode()
    elif damage == "calibration":
        description["calibration"]["slope"] = -1
        packed["model.json"] = json.dumps(description).encode()
    else:
        packed["weights.npz"] = b"" if damage == "empty weights" else b"no archive"
    with pytest.raises(DataError) as caught:
        bundle.unpack(packed if damage == "no json" else signed(packed))
    assert "was changed after" not in str(caught.value), "the sums are right"
    assert len(str(caught.value).splitlines()) == 1


def test_scorers_are_packed_completely_and_finish_rows(scorer):
    packed = bundle.pack(scorer)
    assert packed["model.json"] == bundle.pack(scorer)["model.json"], "the same every time"
    again = bundle.unpack(packed)
    assert replace(again, tensors=[]) == replace(scorer, tensors=[])
    for before, after in zip(scorer.tensors, again.tensors, strict=True):
        np.testing.assert_array_equal(before, after, strict=True)
    # by this id a worker knows the model that it has loaded
    assert len({replace(scorer, spec=scorer.spec.model_copy(update={"tta": n})).model_id for n in (1, 2, 4, 8)}) == 4
    with pytest.raises(ImageError, match="too_many_pixels"):
        scorer.prepare(synthetic.lesion_jpeg(1, size=101))  # the limits of ingest hold
    assert scorer.prepare(synthetic.lesion_jpeg(1, size=100)).shape == (32, 32, 3)

    description = json.loads(packed["model.json"])
    del description["spec"]["tta"], description["calibration"]
    packed["model.json"] = json.dumps(description).encode()
    again = bundle.unpack(signed(packed))
    assert (again.spec, again.calibration) == (scorer.spec, Calibration())

    broken = ImageError("corrupt", "OSError while decoding 64 x 64 pixels")
    probabilities = np.asarray([[0.25], [np.nan], [0.2499], [1.0]], np.float32)
    outputs = [probabilities, np.full_like(probabilities, np.nan), np.zeros((4, 2), np.float32)]
    result = replace(scorer, calibration=Calibration()).finish(outputs, [None, broken, None, None])
    assert list(result.columns) == list(bundle.OUTPUTS)
    assert list(result["decision"]) == ["positive", "", "negative", "positive"]  # at the threshold: positive
    assert list(result["status"]) == ["scored", "rejected", "scored", "scored"]
    for column in ("probability", "raw_probability"):
        assert result[column].isna().tolist() == [False, True, False, False]
    assert list(result["reason"]) == [None, "corrupt", None, None]
    assert list(result["detail"]) == [None, "OSError while decoding 64 x 64 pixels", None, None]
    assert set(result["threshold"]) == {0.25}
    assert set(result["operating_point"]) == {"screening"}
