"""What cannot work ends soon, with a status, in one line that says what is wrong and what to do, and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
from conftest import REPO, said

from jobs import finetune, ingest, pipeline
from jobs.job import invoke
from melanoma_spark import drawing, store
from melanoma_spark.errors import MelanomaError


def one_line(text: str, *words: str) -> None:
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def holds_no_result(warehouse: Path) -> None:
    """Nothing but MLflow's own files and what was decoded, for a later run: no manifest, no rows, and no lease."""
    if warehouse.exists():
        assert {path.name for path in warehouse.iterdir()} <= {"mlflow.db", "mlartifacts", "decoded", "running"}
        assert not list(warehouse.glob("running/*"))


def pictures(folder: Path, count: int, name: str = "{}.jpg", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / name.format(number)).write_bytes(drawing.lesion_jpeg(number, size=64))
    return folder


# --- from their arguments to their exit status


def test_a_folder_without_images(spark, settings_file, tmp_path):
    (tmp_path / "archive").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "archive" / name).write_text("no image")
    settings = settings_file(archive=str(tmp_path / "archive"), warehouse=str(tmp_path / "warehouse"))
    done = invoke(ingest.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 4
    one_line(done.log, "error: no usable image in the archive", "not_an_image 2")
    holds_no_result(tmp_path / "warehouse")


def test_a_table_that_breaks_where_only_executors_read(spark, settings_file, tmp_path):
    archive = pictures(tmp_path / "archive", 4)
    rows = "".join(f"{number},nevus\n" for number in range(20_000))
    (archive / "labels.csv").write_text("image_id,label\n" + rows + "20000,\0\n")
    settings = settings_file(archive=str(archive), warehouse=str(tmp_path / "warehouse"))
    done = invoke(ingest.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 4
    one_line(done.log, "error: labels.csv is not text: it holds the byte 0x00")
    holds_no_result(tmp_path / "warehouse")


def test_an_archive_that_is_not_there(spark, settings_file, tmp_path):
    settings = settings_file(archive=str(tmp_path / "nowhere"), warehouse=str(tmp_path / "warehouse"))
    done = invoke(pipeline.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 4
    one_line(done.log, f"error: archive {tmp_path}/nowhere does not exist", "archive=URL")
    holds_no_result(tmp_path / "warehouse")


def test_a_warehouse_that_cannot_be_written(spark, settings_file, lesions, tmp_path):
    (tmp_path / "file").write_text("no folder")
    settings = settings_file(archive=str(lesions), warehouse=str(tmp_path / "file" / "warehouse"))
    done = invoke(ingest.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 3
    one_line(done.log, f"error: cannot write file://{tmp_path}/file/warehouse", "choose another warehouse=URL")
    assert (tmp_path / "file").read_text() == "no folder"


def test_fewer_slots_than_ranks(spark, settings_file, line, tmp_path):
    for name in ("images", "features", "models/head"):
        shutil.copytree(line.folder / name, tmp_path / "warehouse" / name)
    settings = settings_file(warehouse=str(tmp_path / "warehouse"), ranks=3)
    done = invoke(finetune.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 3
    one_line(done.log, "error: ranks=3 but Spark has only 2 free slots", "set ranks=2 or", "--master local[3]")
    assert not (tmp_path / "warehouse/models/finetuned").exists()


def test_an_unknown_setting(spark, settings_file, tmp_path):
    settings = settings_file(archive="a", warehouse=str(tmp_path / "warehouse"), head={"hiden": 3})
    done = invoke(pipeline.COMMAND, ["--conf", str(settings)], spark)
    assert done.exit_status == 2
    one_line(done.log, "unknown setting 'head.hiden'", "did you mean 'hidden'?", "valid here: ")
    holds_no_result(tmp_path / "warehouse")


def test_no_java(submitted, settings_file, tmp_path):
    """From a copy without .venv, which may hold a Java of its own."""
    copy = tmp_path / "checkout"
    for name in ("conf", "jobs", "melanoma_spark"):
        shutil.copytree(REPO / name, copy / name)
    shutil.copy(REPO / "spark-submit.sh", copy)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "env", "sed", "mktemp", "rm", "cat"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": str(tools), "JAVA_HOME": None, "REAL_JAVA_HOME": None, "JVM_FOLDER": str(tmp_path / "none")}
    started = submitted("ingest", "--conf", settings_file(archive="a"), script=copy / "spark-submit.sh", **environment)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (3, "")
    one_line(err, "Spark needs Java 17 or 21, found no Java", "make install")


# --- through the jobs' functions


def refused(line, stage: str, *words: str, **changes) -> None:
    with pytest.raises(MelanomaError) as caught, said() as text:
        line.stage(stage, **changes)
    assert caught.value.exit_status in (2, 3, 4)
    one_line(str(caught.value), *words)
    assert text.getvalue() == ""
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string=f"name = '{line.job.settings.mlflow.experiment}'")
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FAILED"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image_id,colour\n0,brown\n", ("no labels found", "image_id, colour", "columns.label=NAME")),
        ("name,label\n0,nevus\n", ("no labels found", "metadata.csv", "columns.label=NAME")),
        ("image_id,label\n", ("no usable image", "no_label 3")),
        ("image_id,label\n0,nevus\n0,melanoma\n", ("no usable image", "conflicting_labels 1", "no_label 2")),
        ("", ("no labels found", "metadata.csv")),
        ("image_id,label\n0,nevus\n1,nv\n2,benign\n", ("one class only", "all 3 usable images", "negative")),
        ("image_id,label\n0,carcinoma\n", ("no usable image", "unknown_label 1", "carcinoma")),
        ("image_id,label\nx,nevus\n", ("no usable image", "no_label 3")),
        ("image_id,label\n0,nevus\n1,melanoma\n2,nevus\n", ("split has", "too few groups to split", "seed=N")),
    ],
)
def test_bad_tables(new_line, tmp_path, table, words):
    archive = pictures(tmp_path / "archive", 3)
    if table:
        (archive / "metadata.csv").write_text(table)
    else:
        (archive / "metadata.csv").write_text("\n")
    line = new_line(archive)
    refused(line, "ingest", *words)
    holds_no_result(line.folder)


def test_one_class_by_folders(new_line, tmp_path):
    pictures(tmp_path / "archive" / "melanoma", 4)
    line = new_line(tmp_path / "archive")
    refused(line, "ingest", "one class only: all 4 usable images carry the positive label", "ingest.labels")
    holds_no_result(line.folder)


def test_an_archive_that_is_a_file(new_line, tmp_path):
    picture = pictures(tmp_path / "archive", 1) / "0.jpg"
    line = new_line(picture)
    refused(line, "ingest", f"archive {picture} is a file, but no zip or tar", "name the folder")
    holds_no_result(line.folder)


def test_an_empty_archive(new_line, tmp_path):
    (tmp_path / "archive" / "empty").mkdir(parents=True)
    refused(new_line(tmp_path / "archive"), "ingest", "holds no files", "zip or tar")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("featurize", ("images is not there yet", "spark-submit.sh ingest")),
        ("train_head", ("images is not there yet", "spark-submit.sh ingest")),
        ("finetune", ("images is not there yet", "spark-submit.sh ingest")),
        ("evaluate", ("images is not there yet", "spark-submit.sh ingest")),
        ("register", ("reports is not there yet", "spark-submit.sh evaluate")),
        ("score", ("no model melanoma@champion", "spark-submit.sh register")),
    ],
)
def test_a_stage_before_its_time(new_line, stage, words):
    line = new_line()
    refused(line, stage, *words)
    holds_no_result(line.folder)


def test_fewer_images_than_ranks(line, new_line):
    """Said before any rank is started, and before slots are asked for."""
    other = new_line()
    for name in ("images", "features", "models/head"):
        shutil.copytree(line.folder / name, other.folder / name)
    refused(other, "finetune", "images for 200 ranks: each rank needs at least one; set ranks=", ranks=200)
    assert not (other.folder / "models/finetuned").exists()


def test_a_dataset_that_lost_a_file(line, new_line):
    """The manifest stands, the rows do not: no model is trained on what is left."""
    other = new_line()
    for name in ("images", "features"):
        shutil.copytree(line.folder / name, other.folder / name)
    lost = sorted((other.folder / "features").rglob("*.parquet"))[0]
    lost.unlink()
    refused(other, "train_head", "wanted rows; run the job that makes it again")
    assert store.manifest(other.job.warehouse, "models/head") is None


def test_weights_that_are_not_those_of_the_features(line, new_line):
    other = new_line(seed=1)
    for name in ("images", "features"):
        shutil.copytree(line.folder / name, other.folder / name)
    refused(other, "train_head", "features/ was made with weights", "spark-submit.sh featurize")
    assert store.manifest(other.job.warehouse, "models/head") is None


def test_weights_that_do_not_fit(line, new_line, tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"no HDF5")
    other = new_line(backbone={"weights": str(tmp_path / "weights.h5")})
    shutil.copytree(line.folder / "images", other.folder / "images")
    refused(other, "featurize", "weights.h5 is not a Keras HDF5 weights file")
    assert store.manifest(other.job.warehouse, "features") is None
