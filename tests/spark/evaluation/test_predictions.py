"""Pixels of another version for a model that was registered before, from the archive's files."""

from dataclasses import replace
from pathlib import Path

import icc
import numpy as np
import pytest
from broken import encoded
from PIL import Image

from melanoma_spark import config, schemas
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import predictions
from melanoma_spark.images import decoding, hashes, synthetic
from melanoma_spark.runner.context import StageContext, archive_id
from melanoma_spark.storage.manifests import ImagesManifest

SIZE = 64


@pytest.fixture
def profiled(spark, tmp_path):
    """An archive of lesions with a profile of Display P3, its images/ of version 3, and the rows of these."""
    archive = tmp_path / "archive"
    archive.mkdir()
    rows = []
    field = schemas.images_schema(SIZE).fields["image"]
    for seed in range(3):
        lesion = synthetic.draw_lesion(np.random.default_rng(seed), malignant=bool(seed), size=96)
        content = encoded(Image.fromarray(lesion), icc_profile=icc.of_primaries(icc.P3))
        (archive / f"{seed}.png").write_bytes(content)
        stored = bytes(field.codec.encode(field, decoding.decode(content, SIZE)))
        rows.append((f"file:{archive}/{seed}.png", hashes.sha256(content), "test", stored))
    frame = spark.createDataFrame(rows, "source_uri string, sha256 string, split string, image binary")
    settings = config.Settings(archive=str(archive), image_size=SIZE)
    counts = {"listed": 3, "accepted": 3, "rejected": 0, "skipped": 0, "counts": {}}
    images = ImagesManifest(
        id="x",
        path="x",
        made_from="y",
        archive=archive_id(str(archive)),
        target="malignant",
        image_size=SIZE,
        pixels_version=decoding.PIXELS_VERSION,
        **counts,
    )
    return StageContext(spark, settings, str(tmp_path / "warehouse"), None), images, frame, archive


def test_each_row_gets_the_pixels_that_the_model_saw(profiled):
    context, images, rows, archive = profiled
    field = schemas.images_schema(SIZE).fields["image"]
    result = predictions.decode_again(context, images, rows, decoding.UNMANAGED).collect()
    assert sorted(row.source_uri for row in result) == sorted(f"file:{archive}/{seed}.png" for seed in range(3))
    before = {row.sha256: row.image for row in rows.collect()}
    for row in result:
        content = Path(row.source_uri.removeprefix("file:")).read_bytes()
        expected = decoding.decode(content, SIZE, version=decoding.UNMANAGED)
        assert np.array_equal(field.codec.decode(field, row.image), expected)
        assert bytes(row.image) != bytes(before[row.sha256])


def test_where_the_files_are_not_at_hand_the_comparison_says_so(profiled, tmp_path):
    context, images, rows, archive = profiled
    (archive / "1.png").unlink()
    with pytest.raises(DataError, match=r"version 2, images/ has version 3, and 1 files"):
        predictions.decode_again(context, images, rows, decoding.UNMANAGED)
    other = replace(context, settings=config.Settings(archive=str(tmp_path / "another"), image_size=SIZE))
    for where in (other, replace(context, settings=config.Settings(image_size=SIZE))):
        with pytest.raises(DataError, match=r"archive=URL, or set register\.gate.auroc_margin=null"):
            predictions.decode_again(where, images, rows, decoding.UNMANAGED)
