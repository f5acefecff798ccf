"""An external set: evaluated by the registered model, without images seen in training, with a report."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import evaluate, feature_twins, shortcuts
from melanoma_spark.images import decoding, hashes, synthetic
from melanoma_spark.metrics import binary
from melanoma_spark.models import network
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.storage import manifests


def evaluated(line, archive, **changes):
    """Run the job `evaluate` on another archive. Returns its output, and the report's folder with its rows."""
    import contextlib
    import io
    from dataclasses import replace

    settings = line.context.settings.model_copy(update={"archive": str(archive), **changes})
    job = replace(line.context, settings=settings, mlflow=line.tracker())
    with contextlib.redirect_stdout(io.StringIO()) as text:
        run_stage(job, "evaluate", evaluate.evaluate, {"stage": "evaluate"})
    output = text.getvalue()
    if "report file://" not in output:
        return output, None
    folder = Path(output.split("report file://")[1].split("/report.html")[0])
    return output, (folder, pd.read_parquet(folder / "predictions"))


@pytest.fixture
def another(tmp_path):
    """30 lesions drawn with another seed."""
    synthetic.draw_archive(tmp_path / "another", images=30, size=64, seed=1234)
    return tmp_path / "another"


def test_a_registered_model_is_evaluated_without_images_seen_in_training(copied, another, monkeypatch):
    monkeypatch.setattr(feature_twins, "FEWEST", 50)
    monkeypatch.setattr(feature_twins, "COMPONENTS", 20)
    monkeypatch.setattr(feature_twins, "LEAST", 0.95)
    stored = copied.read("images").toPandas()
    train, twin = np.split(stored[stored["split"] == "train"].head(4), [3])
    kept = stored[stored["split"] == "test"].head(2)
    table = (another / "metadata.csv").read_text()
    for number, row in enumerate([*train.itertuples(), *kept.itertuples()]):
        shutil.copy(row.source_uri.removeprefix("file:"), another / f"known_{number}.jpg")
        table += f"known_{number},{'malignant' if row.label else 'benign'},other_{number},lesion_{number}x\n"
    (twin,) = twin.itertuples()
    with Image.open(twin.source_uri.removeprefix("file:")) as image:
        image.point(lambda value: value + 1).save(another / "twin.png")
    table += f"twin,{'malignant' if twin.label else 'benign'},other_twin,lesion_twin\n"
    (another / "metadata.csv").write_text(table)
    output, (folder, rows) = evaluated(copied, another)

    assert "melanoma version 1 AUC" in output
    left_out = int(output.split(" left out that training has seen")[0].split()[-1])
    assert left_out == 3
    assert not set(train["sha256"]) & set(rows["sha256"])
    assert " left out that training has seen, 1 that have a twin in training;" in output
    of_twin = hashes.sha256((another / "twin.png").read_bytes())
    assert of_twin not in set(rows["sha256"])
    assert set(kept["sha256"]) <= set(rows["sha256"]), "training has not seen test images"
    own = copied.manifest("images")["id"]
    place = f"{copied.context.warehouse}/external/{folder.parts[-3]}"
    external_images = manifests.require(manifests.ImagesManifest, place)
    assert external_images.id != own == copied.manifest("models/finetuned")["dataset_id"]
    assert len(rows) + left_out + 1 == external_images.accepted
    assert set(rows["split"]) == {"test"}

    facts = copied.manifest("models/finetuned")
    tensors = copied.tensors(manifests.FinetunedManifest)
    model = network.build(network.Spec.model_validate(facts["spec"]), tensors)
    files = {hashes.sha256(path.read_bytes()): path for path in another.rglob("*") if path.is_file()}
    some = rows.iloc[::7]
    pixels = np.stack([decoding.decode(files[sha256].read_bytes(), 64) for sha256 in some["sha256"]])
    np.testing.assert_allclose(some["raw_probability"], model.predict(pixels, verbose=0)[:, 0], atol=1e-5)

    auroc = binary.auroc(rows["label"], rows["probability"])
    assert f"AUC {auroc:.4f}" in output
    page = (folder / "report.html").read_text()
    assert f"{left_out} images were left out" in page
    assert f"1 of {len(rows) + 1} test images look like the lesion of a training or validation image" in page
    assert "Sensitivity, validation" not in page
    over = [shortcuts.without_lesion(decoding.decode(files[sha256].read_bytes(), 64)) for sha256 in rows["sha256"]]
    painted = binary.auroc(rows["label"], model.predict(np.stack(over), verbose=0)[:, 0])
    assert f"still ranks with an AUROC of <b>{painted:.3f}</b>" in page
    assert (folder / "model_card.md").exists()
    assert (folder / "isic/prediction.csv").exists()


def test_a_copy_of_the_training_archive_leaves_its_test_split(copied, tmp_path):
    """The same figures as `evaluate` by its other path."""
    shutil.copytree(copied.archive, tmp_path / "again", copy_function=shutil.copy2)
    output, (_, rows) = evaluated(copied, tmp_path / "again")
    stored = copied.read("images").toPandas()
    assert set(rows["sha256"]) == set(stored[stored["split"] == "test"]["sha256"])
    reported = copied.manifest("reports")["metrics"]["test_auroc_finetuned"]
    assert f"AUC {reported:.4f}" in output
    assert binary.auroc(rows["label"], rows["probability"]) == pytest.approx(reported)


def test_the_archive_of_the_warehouse_is_no_external_one(line):
    output, _ = evaluated(line, line.archive)
    assert "nothing new, the report is at" in output


def test_a_model_of_another_warehouse_is_refused(copied, another):
    from melanoma_spark.storage import files

    url = f"{copied.context.warehouse}/images/manifest.json"
    files.write_json(url, files.read_json(url) | {"id": "other"})
    with pytest.raises(
        DataError, match=r"was trained on dataset .*, images/ holds other, so it is unknown what training has seen"
    ):
        evaluated(copied, another)
