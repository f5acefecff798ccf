"""Scoring where the model, the place, a file or a table has changed: every image once for each model version."""

import shutil
import zipfile
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
from broken import END, half
from conftest import Line, with_pictures
from page import Page
from PIL import Image
from scoring import once, rows

from melanoma_spark.images import synthetic
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.runner.context import archive_id
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.scoring import batch, score
from melanoma_spark.storage import files


def test_an_unreadable_file_is_reported_once_and_read_again(scored, monkeypatch):
    """A file that vanishes between the listing and the reading: root may read everything else."""
    complete, away = scored.archive / "0.jpg", scored.folder / "0.jpg"
    list_archive = batch.list_archive

    def vanishing(spark, settings):
        listed = list_archive(spark, settings).localCheckpoint()
        complete.rename(away)
        return listed

    for output in ("7 images listed = 5 scored + 2 rejected", "of which 1 still cannot be read; nothing to do"):
        with monkeypatch.context() as only_here:
            only_here.setattr(batch, "list_archive", vanishing)
            assert output in scored.stage("score")
        away.rename(complete)
        assert set(rows(scored)["reason"].dropna()) == {"corrupt", UNREADABLE}
        assert len(rows(scored)) == 7, "it is not told every night"
    assert "7 images listed = 1 scored + 0 rejected" in scored.stage("score")
    assert "nothing to do" in scored.stage("score")
    once(scored)


def test_a_new_version_scores_anew_or_not(scored):
    scored.stage("score")
    tracker = scored.tracker()
    client = mlflow.MlflowClient()
    first = tracker.find_version("melanoma@champion")
    second = client.create_model_version("melanoma", first.source)
    for key, value in first.tags.items():
        client.set_model_version_tag("melanoma", second.version, key, value)
    client.set_registered_model_alias("melanoma", "champion", second.version)
    (scored.archive / "new.jpg").write_bytes(synthetic.lesion_jpeg(50, size=64))
    name = archive_id(str(scored.archive))
    other, theirs = (scored.folder / "scoring" / archive / "another model" for archive in (name, "another archive"))
    for folder in (other, theirs):
        folder.mkdir(parents=True)
        (folder / "part.parquet").write_bytes(b"no parquet")
    settings = scored.context.settings.score
    output = scored.stage("score", score=settings.model_copy(update={"anew": False}))
    assert "8 images listed = 1 scored + 0 rejected + 0 copies + 7 scored before, by melanoma version 2" in output
    assert not other.exists(), "what waits of another model is not taken"
    assert theirs.exists(), "the next run on that archive goes on with it"
    shutil.rmtree(theirs)
    output = scored.stage("score")
    assert "8 images listed = 6 scored + 1 rejected + 0 copies + 1 scored before, by melanoma version 2" in output
    once(scored)
    result = rows(scored)
    assert result.groupby("model_version").size().to_dict() == {"1": 7, "2": 8}


def test_model_and_archive_may_change_places(scored, tmp_path):
    """Two archives on one warehouse: a copy in the second has its row already."""
    scored.stage("score")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scored.archive / "0.jpg", other / "a.jpg")
    (other / "b.jpg").write_bytes(synthetic.lesion_jpeg(70, size=64))
    there = replace(
        scored,
        archive=other,
        context=replace(scored.context, settings=scored.context.settings.model_copy(update={"archive": str(other)})),
    )
    assert "2 images listed = 1 scored + 0 rejected + 1 copies + 0 scored before" in there.stage("score")
    once(scored)


def test_poor_images_are_flagged_or_abstained_from(scored):
    noise = np.random.default_rng(0).integers(0, 25, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(scored.archive / "dark.png")
    assert "7 scored + 1 rejected" in scored.stage("score")
    result = rows(scored).set_index("image_id")
    dark = result.loc["dark"]
    assert set(dark["flags"].split(",")) >= {"dark", "heavy_border"}
    assert (dark["status"], dark["reason"]) == ("scored", None)
    assert dark["brightness"] < 0.1
    assert result.loc["0", "flags"] is None
    assert result.loc["0", "dataset_id"] == scored.manifest("images")["id"]

    shutil.rmtree(scored.folder / "scores")
    section = scored.context.settings.score
    strict = section.model_copy(update={"quality": section.quality.model_copy(update={"action": "abstain"})})
    output = scored.stage("score", score=strict)
    assert " 1 abstained + " in output
    row = rows(scored).set_index("image_id").loc["dark"]
    assert (row["status"], row["decision"], row["reason"]) == ("abstained", "", "quality")
    assert "dark: underexposed" in row["detail"]
    assert np.isnan(row["probability"])
    assert 0 <= row["raw_probability"] <= 1


@pytest.fixture
def namesakes(scored):
    """Images of two patients whose cameras number from 1, with a table that names files alone, and one in each zip."""
    shutil.rmtree(scored.archive)
    for seed, name in enumerate(("p1/IMG_0001", "p2/IMG_0001", "p1/IMG_0002", "p2/IMG_0003")):
        path = scored.archive / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(synthetic.lesion_jpeg(seed, size=64))
    for seed, ward in enumerate("ab"):
        with zipfile.ZipFile(scored.archive / f"{ward}.zip", "w") as box:
            box.writestr("DSC_1.jpg", synthetic.lesion_jpeg(10 + seed, size=64))
            box.writestr("patients.csv", f"path,patient_id,sex\nDSC_1.jpg,{ward},f\n")
    lines = ["path,patient_id,sex", "IMG_0001.jpg,A,f", "IMG_0002.jpg,B,f", "IMG_0002.jpg,C,f", "p2/IMG_0003.jpg,D,m"]
    (scored.archive / "patients.csv").write_text("\n".join(lines) + "\n")
    return scored


def patients(line: Line) -> dict[str, str | None]:
    result = rows(line)
    names = result["source_uri"].str.split("/archive/").str[1]
    return dict(zip(names, result["patient_id"].where(result["patient_id"].notna(), None), strict=True))


PATIENTS = {
    "a.zip!/DSC_1.jpg": "a",
    "b.zip!/DSC_1.jpg": "b",
    "p1/IMG_0001.jpg": None,
    "p1/IMG_0002.jpg": None,
    "p2/IMG_0001.jpg": None,
    "p2/IMG_0003.jpg": "D",
}


def test_settings_for_training_serve_tables_without_labels(namesakes):
    """One settings file for all jobs: its layout and its column of labels are those of the training archive."""
    columns = {"columns": {"label": "dx"}}
    ingest = namesakes.context.settings.ingest.model_copy(update=columns)
    output = namesakes.stage("score", layout="isic_2020", ingest=ingest)
    assert "set aside" not in output
    assert patients(namesakes) == PATIENTS


def test_ambiguous_and_contradictory_rows_give_no_patient(namesakes):
    """The recipes: a name that is two images, and two rows of an image that disagree."""
    output = namesakes.stage("score")
    assert patients(namesakes) == PATIENTS
    assert (
        "; 1 name in a table fits several images, and none has its rows (IMG_0001.jpg of patients.csv fits "
        "p1/IMG_0001.jpg, p2/IMG_0001.jpg); 1 image has rows that disagree (p1/IMG_0002.jpg: patient_id)"
    ) in output
    (record,) = (files.read_json(str(path)) for path in namesakes.folder.glob("batches/*/batch.json"))
    assert record["tables"] == {
        "ambiguous": 1,
        "other_folder": 0,
        "contradictory": 1,
        "leading_zeros": 0,
        "examples": {
            "ambiguous": ["IMG_0001.jpg of patients.csv fits p1/IMG_0001.jpg, p2/IMG_0001.jpg"],
            "contradictory": ["p1/IMG_0002.jpg: patient_id"],
        },
        "set_aside": {},
        "unused": {},
    }
    (named,) = namesakes.folder.glob("batches/*/unmatched.csv")
    assert pd.read_csv(named)["reason"].tolist() == ["ambiguous", "contradictory"]
    # what was unclear about older images is not told again of a later batch
    (namesakes.archive / "p3").mkdir()
    (namesakes.archive / "p3/IMG_0009.jpg").write_bytes(synthetic.lesion_jpeg(30, size=64))
    assert "several images" not in namesakes.stage("score")


def test_unreadable_tables_are_set_aside_and_reported(namesakes):
    """The recipe, and its sisters: cut in the middle of a row, of a quote, no text, and no access."""
    complete = "path,patient_id,sex\n" + "".join(f"p1/IMG_000{number}.jpg,wrong,m\n" for number in range(1, 5))
    damaged = {
        "cut.csv": complete[: complete.rindex(",wrong")].encode(),
        "quote.csv": complete.encode() + b'p2/IMG_0003.jpg,"wro',
        "zeros.csv": complete.encode() + bytes(40),
        "utf-32.csv": complete.encode("utf-32"),
        "nothing.csv": b"",
    }
    for name, content in damaged.items():
        (namesakes.archive / name).write_bytes(content)
    (namesakes.archive / "cameras.csv").write_text("serial,bought\n17,2024\n")
    job = replace(namesakes.context, mlflow=namesakes.tracker())
    assert run_stage(job, "score", score.score, {"stage": "score"}).exit_status == 6
    assert patients(namesakes) == PATIENTS
    (record,) = (files.read_json(str(path)) for path in namesakes.folder.glob("batches/*/batch.json"))
    assert set(record["tables"]["set_aside"]) == set(damaged)
    assert "ends in the middle of a row" in record["tables"]["set_aside"]["cut.csv"]
    assert set(record["tables"]["unused"]) == {"cameras.csv"}
    (page,) = namesakes.folder.glob("batches/*/worklist.html")
    assert "cut.csv" in page.read_text()


def test_an_unknown_table_loses_only_patient_ids(scored):
    (scored.archive / "metadata.csv").write_text("a,b\n1,2\n")
    assert "7 images listed = 6 scored + 1 rejected" in scored.stage("score")
    assert scored.scores()["patient_id"].isna().all()
    (page,) = scored.folder.glob("batches/*/worklist.html")
    assert "patients" not in Page(page.read_text()).words.split("Show")[0].split("copies")[0]
    assert not (page.parent / "pictures").exists()


def test_score_rejects_what_is_damaged_or_scores_and_flags_it(scored):
    """By its own setting, whatever the model was registered with."""
    (scored.archive / "cut.jpg").write_bytes(half(synthetic.lesion_jpeg(20, size=96)) + END)
    assert "8 images listed = 6 scored + 2 rejected" in scored.stage("score")
    row = scored.scores().set_index("image_id").loc["cut"]
    assert (row["status"], row["reason"], row["decision"], row["flags"]) == ("rejected", "damaged", "", None)
    assert row["detail"] == "libjpeg: Corrupt JPEG data: premature end of data segment"

    section = scored.context.settings.score
    accepting = {"ingest": scored.context.settings.ingest.model_copy(update={"damaged": "accept"})}
    shutil.rmtree(scored.folder / "scores")
    shutil.rmtree(scored.folder / "ledger")
    assert "8 images listed = 7 scored + 1 rejected" in scored.stage(
        "score", **accepting, score=with_pictures(scored, 9)
    )
    result = scored.scores().set_index("image_id")
    assert (result.loc["cut", "status"], result.loc["cut", "reason"]) == ("scored", None)
    assert result.loc["cut", "flags"].split(",")[0] == "damaged"
    assert 0 <= result.loc["cut", "probability"] <= 1
    assert result.loc["0", "flags"] is None
    (page,) = scored.folder.glob("batches/*/worklist.html")
    pictures = {path.name for path in page.parent.glob("pictures/*")}
    assert {f"{result.loc['cut', 'sha256'][:16]}{end}" for end in (".jpg", "-gradcam.jpg")} <= pictures
    assert "the file is damaged" in page.read_text()

    shutil.rmtree(scored.folder / "scores")
    shutil.rmtree(scored.folder / "ledger")
    strict = section.model_copy(update={"quality": section.quality.model_copy(update={"action": "abstain"})})
    assert " 1 abstained + " in scored.stage("score", **accepting, score=strict)
    row = scored.scores().set_index("image_id").loc["cut"]
    assert (row["status"], row["reason"]) == ("abstained", "quality")
    assert row["detail"].startswith("damaged: the file is damaged")
