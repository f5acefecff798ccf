"""Invalid input ends a job soon, with a status and one line on what is wrong and what to do; nothing is left."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import command, one_line, refused

from melanoma_spark.images import synthetic
from melanoma_spark.runner.cli import invoke


def holds_no_result(warehouse: Path) -> None:
    """Nothing but MLflow's own files, what was decoded, and why files are not used: no manifest, no rows, no lease."""
    if warehouse.exists():
        assert {path.name for path in warehouse.iterdir()} <= {
            "mlflow.db",
            "mlartifacts",
            "decoded",
            "running",
            "rejects",
            "unmatched",
        }
        assert not list(warehouse.glob("running/*"))


def pictures(folder: Path, count: int, name: str = "{}.jpg", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / name.format(number)).write_bytes(synthetic.lesion_jpeg(number, size=64))
    return folder


def test_a_folder_without_images(spark, settings_file, tmp_path):
    (tmp_path / "archive").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "archive" / name).write_text("no image")
    settings = settings_file(archive=str(tmp_path / "archive"), warehouse=str(tmp_path / "warehouse"))
    done = invoke(command("ingest"), ["--conf", str(settings)], spark)
    assert done.exit_status == 4
    one_line(done.log, "error: no usable image in the archive", "not_an_image 2", "has the reason of each file")
    (rejects,) = (tmp_path / "warehouse/rejects").iterdir()
    assert pd.read_parquet(rejects)["reason"].tolist() == ["not_an_image"] * 2
    holds_no_result(tmp_path / "warehouse")


def test_a_table_that_breaks_where_only_executors_read(spark, settings_file, tmp_path):
    archive = pictures(tmp_path / "archive", 4)
    rows = "".join(f"{number},nevus\n" for number in range(20_000))
    (archive / "labels.csv").write_text("image_id,label\n" + rows + "20000,\0\n")
    settings = settings_file(archive=str(archive), warehouse=str(tmp_path / "warehouse"))
    done = invoke(command("ingest"), ["--conf", str(settings)], spark)
    assert done.exit_status == 4
    one_line(done.log, "error: labels.csv is not text: it holds the byte 0x00")
    holds_no_result(tmp_path / "warehouse")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("featurize", ("images is not there yet", "melanoma-spark ingest")),
        ("train_head", ("images is not there yet", "melanoma-spark ingest")),
        ("finetune", ("images is not there yet", "melanoma-spark ingest")),
        ("evaluate", ("images is not there yet", "melanoma-spark ingest")),
        ("register", ("reports is not there yet", "melanoma-spark evaluate")),
        ("score", ("no model melanoma@champion", "melanoma-spark register")),
    ],
)
def test_a_stage_without_its_input_is_refused(new_line, stage, words):
    line = new_line()
    refused(line, stage, *words)
    holds_no_result(line.folder)
