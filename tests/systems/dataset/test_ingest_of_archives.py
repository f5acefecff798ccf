"""Ingest of archives as people have them: complete published tables, equal names from two cameras, other places."""

import io
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, counted, open_line
from PIL import Image

from melanoma_spark.errors import DataError
from melanoma_spark.images import synthetic

DATA = SHARED / "data"


@pytest.fixture
def wards(tmp_path: Path) -> Path:
    """Two wards whose cameras number their images from 1: forty images, and six of the same names."""
    archive = tmp_path / "wards"
    for ward, numbers in (("p1", range(1, 41)), ("p2", range(1, 7))):
        (archive / ward).mkdir(parents=True)
        for number in numbers:
            content = synthetic.lesion_jpeg(100 * numbers.stop + number, number % 2 == 1, 64)
            (archive / ward / f"IMG_{number:04}.jpg").write_bytes(content)
    return archive


def labels_of(numbers, folder="") -> str:
    words = ("nevus", "melanoma")
    return "".join(f"{folder}IMG_{number:04}.jpg,{words[number % 2]},{folder or 'x'}-{number}\n" for number in numbers)


def test_ambiguous_labels_are_given_to_no_image(new_line, wards):
    """The recipe: rows by base name, of which six fit an image in each of two folders."""
    (wards / "labels.csv").write_text("path,diagnosis,patient_id\n" + labels_of(range(1, 41)))
    line = new_line(wards, ingest={"test_fraction": 0.3, "validation_fraction": 0.3})
    output = line.stage("ingest")
    facts = counted(line)
    assert (facts["accepted"], facts["reasons"]) == (34, {"ambiguous_metadata": 12})
    assert (
        "; 6 names in tables fit several images, and none has their rows (IMG_0001.jpg of labels.csv fits "
        "p1/IMG_0001.jpg, p2/IMG_0001.jpg; IMG_0002.jpg of labels.csv fits p1/IMG_0002.jpg, p2/IMG_0002.jpg; ...)"
    ) in output
    rejects = pd.read_parquet(line.folder / "rejects" / facts["path"])
    assert {detail for detail in rejects["detail"] if "0003" in detail} == {
        "IMG_0003.jpg of labels.csv fits p1/IMG_0003.jpg, p2/IMG_0003.jpg"
    }
    named = pd.read_parquet(line.folder / "unmatched" / facts["path"])
    assert named["reason"].tolist() == ["ambiguous"] * 6
    assert facts["rows_unclear"]["ambiguous"] == 6
    assert facts["rows_without_image"] == 0

    # with folders in the table each image has its own label, and with a table in each folder too
    table = labels_of(range(1, 41), "p1/") + labels_of(range(1, 7), "p2\\")
    (wards / "labels.csv").write_text("path,diagnosis,patient_id\n" + table)
    assert "; 0 read now" in line.stage("ingest")
    by_folder = line.read("images").toPandas().set_index("sha256").sort_index()
    assert counted(line)["accepted"] == 46
    for row in by_folder.itertuples():
        ward = Path(row.source_uri).parent.name
        assert row.patient_id == f"{ward}{'/' if ward == 'p1' else chr(92)}-{int(row.image_id[4:])}"
    (wards / "labels.csv").unlink()
    for ward, last in (("p1", 41), ("p2", 7)):
        (wards / ward / "labels.csv").write_text("file_name,diagnosis,lesion_id\n" + labels_of(range(1, last)))
    (wards / "p1/IMG_0099.jpg").write_bytes(synthetic.lesion_jpeg(99, False, 64))  # has no row
    assert "; 1 read now" in line.stage("ingest")
    assert counted(line)["accepted"] == 46
    by_table = line.read("images").toPandas().set_index("sha256").sort_index()
    assert (by_table["label"] == by_folder["label"]).all()
    assert set(by_table["lesion_id"]) == {f"x-{number}" for number in range(1, 41)}


def test_an_archive_with_ambiguous_rows_only_is_an_error(new_line, wards):
    for number in range(7, 41):
        (wards / f"p1/IMG_{number:04}.jpg").unlink()
    (wards / "labels.csv").write_text("path,diagnosis,patient_id\n" + labels_of(range(1, 7)))
    with pytest.raises(
        DataError, match=r"ambiguous_metadata 12; 6 names in tables fit several images.*p2/IMG_0001.jpg"
    ):
        new_line(wards).stage("ingest")


def test_an_image_at_two_sizes_stands_on_one_side_and_links_are_named(new_line, tmp_path):
    """The recipe: an archive with a copy of each image at another size and quality, some of it behind links."""
    archive, store = tmp_path / "archive", tmp_path / "store"
    for number in range(60):
        content = synthetic.lesion_jpeg(number, number % 2 == 1, 128)
        folder = ("benign", "malignant")[number % 2]
        for size in ("full", "small"):
            (archive / size / folder).mkdir(parents=True, exist_ok=True)
        (archive / f"full/{folder}/L{number:03}.jpg").write_bytes(content)
        with Image.open(io.BytesIO(content)) as image:
            image.resize((72, 72)).save(archive / f"small/{folder}/L{number:03}.jpg", quality=30)
    store.mkdir()
    for number in (0, 1):
        path = archive / f"small/{('benign', 'malignant')[number]}/L{number:03}.jpg"
        path.rename(store / path.name)
        path.symlink_to(store / path.name)
    line = new_line(archive, ingest={"test_fraction": 0.3, "validation_fraction": 0.3})
    output = line.stage("ingest")
    facts = counted(line)
    assert (facts["accepted"], facts["reasons"]) == (118, {"link": 2}), output
    assert f"; 2 links lead out of the archive and were not read ({archive}/small/benign/L000.jpg, " in output
    assert "ingest.links=follow reads them" in output
    followed = line.context.settings.ingest.model_copy(update={"links": "follow"})
    assert "; 2 read now" in line.stage("ingest", ingest=followed)
    facts = counted(line)
    assert facts["accepted"] + facts["reasons"].get("duplicate", 0) == 120
    by_id = line.read("images").toPandas().groupby("image_id")
    assert len(by_id) == 60
    assert by_id[["group", "split"]].nunique().max().tolist() == [1, 1]
    assert by_id["group"].first().nunique() > 50, "groups do not run together"


@pytest.mark.skipif(not (DATA / "isic_ids").is_dir(), reason="../shared/data is not there")
def test_real_images_with_their_real_metadata(new_line, tmp_path):
    archive = tmp_path / "isic"
    shutil.copytree(DATA / "isic_ids", archive / "images")
    for name in ("GroundTruth", "Metadata"):
        shutil.copy(DATA / f"metadata/ISIC_2019_Training_{name}.csv", archive)
    line = new_line(archive, ingest={"test_fraction": 0.3, "validation_fraction": 0.3})
    output = line.stage("ingest")
    facts = counted(line)
    assert facts["layout"].startswith("isic_2019"), output
    truth = pd.read_csv(archive / "ISIC_2019_Training_GroundTruth.csv")
    truth.index = truth["image"].str.replace("_downsampled", "")
    here = {path.stem for path in (archive / "images").glob("*.jpg")}
    assert facts["rows_without_image"] == len(truth) - len(here & set(truth.index))
    assert facts["reasons"].get("no_label", 0) == len(here - set(truth.index))
    table = line.read("images").toPandas().set_index("image_id")
    assert table.groupby("lesion_id")["split"].nunique().max() == 1
    expected = truth.loc[table.index, ["MEL", "BCC", "SCC"]].sum(axis=1)
    assert (table["label"] == expected).all()


@pytest.mark.skipif(not (DATA / "metadata").is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("table", "layout", "name", "together"),
    [
        ("HAM10000_metadata.csv", "ham10000", "image_id", "lesion_id"),
        ("ISIC_2020_kaggle_train.csv", "isic_2020", "image_name", "patient_id"),
    ],
)
def test_real_metadata_with_drawn_images(new_line, tmp_path, table, layout, name, together):
    """The complete published table, with a tiny image for every 100th lesion or patient."""
    (tmp_path / "archive").mkdir()
    shutil.copy(DATA / "metadata" / table, tmp_path / "archive")
    truth = pd.read_csv(DATA / "metadata" / table).set_index(name)
    if layout == "ham10000":
        malignant, known = truth["dx"].isin(["mel", "bcc"]).astype(int), truth["dx"] != "akiec"
    else:
        malignant, known = truth["target"], truth["target"] >= 0
    chosen = truth[truth[together].isin(truth[together].drop_duplicates().iloc[::100])]
    with zipfile.ZipFile(tmp_path / "archive" / "images.zip", "w") as archive:
        for image in chosen.index:
            noise = np.random.default_rng(zlib.crc32(image.encode())).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, "PNG")
            archive.writestr(f"{image}.png", buffer.getvalue())

    line = new_line(tmp_path / "archive", image_size=32, ingest={"test_fraction": 0.3, "validation_fraction": 0.3})
    output = line.stage("ingest")
    facts = counted(line)
    assert facts["layout"].startswith(layout), output
    assert facts["rows_without_image"] == len(truth) - len(chosen)
    used = chosen[known[chosen.index]]
    assert facts["reasons"].get("indeterminate", 0) == len(chosen) - len(used)
    images = line.read("images").toPandas().set_index("image_id")
    assert set(images.index) == set(used.index)
    assert (images["label"] == malignant[images.index].astype(int)).all()
    assert images.groupby(together)["split"].nunique().max() == 1
    assert set(images["split"]) == {"train", "validation", "test"}
    assert images.groupby(together).size().max() > 1


def test_files_of_images_are_cut_by_what_they_hold(spark, lesions, shared_mlflow, tmp_path):
    """Training reads file by file: where the archive lies and how Spark is set must not change what it trains."""
    shutil.copytree(lesions, tmp_path / "elsewhere", copy_function=shutil.copy2)
    key = "spark.sql.shuffle.partitions"
    result = []
    for archive, partitions in ((lesions, "200"), (tmp_path / "elsewhere", "7")):
        changes = {"image_size": 128, "ingest": {"shard_mb": 1}, "mlflow": {"tracking_uri": shared_mlflow}}
        line = open_line(spark, archive, tmp_path / partitions, **changes)
        spark.conf.set(key, partitions)
        try:
            line.stage("ingest")
        finally:
            spark.conf.unset(key)
        folder = tmp_path / partitions / "images" / line.manifest("images")["path"]
        paths = sorted(folder.glob("*.parquet"))
        result.append([pd.read_parquet(path, columns=["split", "sha256"]).to_numpy().tolist() for path in paths])
    assert len(result[0]) == 3
    assert result[0] == result[1]
