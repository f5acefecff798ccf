"""A small archive to score, and what must hold of scores/ afterwards."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import Line
from PIL import Image

from melanoma_spark.images import hashes, synthetic
from melanoma_spark.scoring import ledger


@pytest.fixture
def scored(copied):
    """The line with another, small archive, of which nothing has been scored."""
    shutil.rmtree(copied.folder / "scores")
    shutil.rmtree(copied.folder / "ledger")
    shutil.rmtree(copied.archive)
    copied.archive.mkdir()
    for seed in range(6):
        (copied.archive / f"{seed}.jpg").write_bytes(synthetic.lesion_jpeg(seed, size=64))
    (copied.archive / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return copied


def rows(line: Line) -> pd.DataFrame:
    return line.scores().sort_values("source_uri", ignore_index=True)


def of_ledger(line: Line) -> pd.DataFrame:
    return ledger.read(line.context.spark, line.context.warehouse, "melanoma", None).toPandas()


def once(line: Line) -> None:
    """Every content has one row for each model version, and every file is in the ledger."""
    result = rows(line)
    contents = result[result["sha256"].notna()]
    assert not contents.duplicated(["sha256", "model_version"]).any()
    here = {
        hashes.sha256(path.read_bytes())
        for path in line.archive.rglob("*")
        if path.is_file() and path.suffix not in (".zip", ".csv") and os.access(path, os.R_OK)
    }
    assert here <= set(contents["sha256"])
    assert not (line.folder / "scoring").exists() or not list((line.folder / "scoring").rglob("*.parquet"))


@pytest.fixture
def noise(copied) -> Line:
    """60 images of magenta noise, which no lesion looks like, with a table and a warehouse that has not scored them."""
    shutil.rmtree(copied.archive)
    copied.archive.mkdir()
    rng = np.random.default_rng(0)
    table = ["image_id,sex,age_approx,diagnosis"]
    for place in range(60):
        size = 48 if place < 3 else 80
        image = Image.fromarray(rng.integers((200, 0, 200), (256, 1, 256), (size, size, 3), dtype=np.uint8))
        image.save(copied.archive / f"noise{place}.png")
        table.append(f"noise{place},{'male' if place % 2 else 'female'},45,nevus")
    (copied.archive / "metadata.csv").write_text("\n".join(table) + "\n")
    return copied
