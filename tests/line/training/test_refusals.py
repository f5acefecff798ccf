"""Training on what does not fit together ends in one line, and leaves no model."""

import shutil

from conftest import refused


def test_fewer_images_than_ranks(line, new_line):
    """Said before any rank is started, and before slots are asked for."""
    other = new_line()
    for name in ("images", "features", "models/head"):
        shutil.copytree(line.folder / name, other.folder / name)
    refused(other, "finetune", "images for 200 ranks: each rank needs at least one; set ranks=", ranks=200)
    assert not (other.folder / "models/finetuned").exists()


def test_a_dataset_that_lost_a_file(line, new_line):
    """The manifest is there, a file of rows is not: no model is trained on the rest."""
    other = new_line()
    for name in ("images", "features"):
        shutil.copytree(line.folder / name, other.folder / name)
    lost = sorted((other.folder / "features").rglob("*.parquet"))[0]
    lost.unlink()
    refused(other, "train_head", "wanted rows; run the job that makes it again")
    assert not (other.folder / "models/head/manifest.json").exists()


def test_weights_that_are_not_those_of_the_features(line, new_line):
    other = new_line(seed=1)
    for name in ("images", "features"):
        shutil.copytree(line.folder / name, other.folder / name)
    refused(other, "train_head", "features/ was made with weights", "melanoma-spark featurize")
    assert not (other.folder / "models/head/manifest.json").exists()
