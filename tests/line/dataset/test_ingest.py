"""Ingest of archives as they come: what is in them is found wherever it lies, once, and nothing of it is lost."""

import io
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import SHARED, counted

from melanoma_spark.images import synthetic

DATA = SHARED / "data"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The layout of ISIC 2019 in a folder, a zip, a tar and a tar.gz, with what people leave beside images."""
    root = tmp_path / "mixed"
    root.mkdir()
    images = {f"ISIC_{number:07d}": synthetic.lesion_jpeg(number, number % 2 == 1, 64) for number in range(80)}
    names = list(images)
    for name in names[:20]:
        (root / f"{name}.JPG").write_bytes(images[name])
    with zipfile.ZipFile(root / "part.zip", "w") as archive:
        for name in names[20:40]:
            archive.writestr(f"inside/{name}_downsampled.jpg", images[name])
        archive.writestr("__MACOSX/inside/._x.jpg", b"resource fork")
        archive.writestr("../outside.jpg", images[names[0]])
    for suffix, mode, part in ((".tar", "w", names[40:60]), (".tar.gz", "w:gz", names[60:])):
        with tarfile.open(root / f"part{suffix}", mode) as tar:  # type: ignore[call-overload]
            for name in part:
                entry = tarfile.TarInfo(f"{name.lower()}.jpeg")
                entry.size = len(images[name])
                tar.addfile(entry, io.BytesIO(images[name]))
    (root / "ISIC_0000001_segmentation.png").write_bytes(b"not read")
    complete = (root / "part.zip").read_bytes()
    (root / "cut.zip").write_bytes(complete[: len(complete) // 2])
    truth = "\n".join(f"{name},{n % 2}.0,{1 - n % 2}.0" for n, name in enumerate([*names, "ISIC_9999999"]))
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("image,MEL,NV\n" + truth + "\n")
    rows = "\n".join(f"{name},{30 + n % 40},back,lesion_{n // 2 * 2},female" for n, name in enumerate(names))
    header = "image,age_approx,anatom_site_general,lesion_id,gender\n"
    (root / "ISIC_2019_Training_Metadata.csv").write_text(header + rows + "\n")
    (root / "README.md").write_text("about")
    return root


def unmatched(line) -> list[str]:
    return list(pd.read_parquet(line.folder / "unmatched" / line.manifest("images")["path"])["image_id"])


def test_an_archive_of_many_containers(new_line, mixed, monkeypatch):
    line = new_line(mixed, target="melanoma", ingest={"test_fraction": 0.3, "validation_fraction": 0.3})
    output = line.stage("ingest")
    facts = counted(line)
    assert facts["accepted"] == 80, output
    assert (facts["skipped"], facts["skipped_for"]) == (4, {"system": 1})  # tables, the README, and of __MACOSX
    assert facts["rows_without_image"] == 1
    assert unmatched(line) == ["isic_9999999"]
    assert "ISIC_9999999" in (line.folder / "images" / facts["path"] / "_datacard.html").read_text()
    reasons = facts["reasons"]
    assert (reasons["unsafe_name"], reasons["mask"], reasons["damaged_archive"]) == (1, 1, 1)
    assert reasons["duplicate"] == facts["rejected"] - 3 > 5  # the images before the cut, which part.zip holds whole
    table = line.read("images").toPandas()
    assert set(table["image_id"]) == {f"ISIC_{number:07d}" for number in range(80)}
    number = table["image_id"].str[5:].astype(int)
    assert (table["label"] == number % 2).all()
    assert (table["lesion_id"] == [f"lesion_{n // 2 * 2}" for n in number]).all()
    assert table.groupby("lesion_id")["split"].nunique().max() == 1
    assert set(table["site"]) == {"back"}
    assert (table["age"].astype(float) == 30 + number % 40).all()

    monkeypatch.setenv("MELANOMA_NAME_KEY", "a key of the tests")
    private = line.context.settings.privacy.model_copy(update={"source_names": "hash"})
    line.stage("ingest", privacy=private)
    assert counted(line)["rows_without_image"] == len(unmatched(line)) == 1
    for name in ("images", "rejects", "unmatched", "decoded"):
        for path in (line.folder / name).rglob("*.parquet"):
            if line.manifest("images")["path"] not in str(path) and name != "images":
                continue
            for column in pd.read_parquet(path).select_dtypes("object").drop(columns="image", errors="ignore"):
                stored = "".join(map(str, pd.read_parquet(path)[column]))
                if line.manifest("images")["path"] in str(path):
                    assert "ISIC_" not in stored
                    assert "lesion_" not in stored
    assert sorted(line.read("images").toPandas()["sha256"]) == sorted(table["sha256"])
