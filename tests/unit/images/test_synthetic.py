"""The drawn archive: the same for the same seed, with known faults, and neither too easy nor too hard."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melanoma_spark.images import synthetic
from melanoma_spark.images.synthetic import draw_archive, draw_lesion, main


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing") / "archive"
    return folder, draw_archive(folder)


def rows_of(folder):
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def good_rows(folder):
    return [row for row in rows_of(folder) if not row["image_id"].startswith("broken_")]


def path_of(folder, row):
    (path,) = (folder / row["label"]).glob(row["image_id"] + ".*")
    return path


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_lesions_are_rgb_and_depend_on_the_generator():
    for size in (32, 96, 131):
        pixels = draw_lesion(np.random.default_rng(1), malignant=True, size=size)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5

    rng = np.random.default_rng(5)
    first, second = draw_lesion(rng, malignant=False), draw_lesion(rng, malignant=False)
    assert np.array_equal(first, draw_lesion(np.random.default_rng(5), malignant=False))
    assert not np.array_equal(first, second)


@given(seed=st.integers(0, 2**32 - 1), malignant=st.booleans())
def test_no_lesion_reaches_a_corner(seed, malignant):
    lesion = synthetic.new_lesion(np.random.default_rng(seed), malignant, np.ones(3, np.float32))
    # The corner squares used below start 1.06 from the centre; a view may shift the lesion by 0.1 and enlarge it 1.06.
    assert lesion.outline.max() * 1.06 + 0.1 < 1.0


def test_files_depend_on_the_seed_and_good_images_not_on_the_broken_ones(tmp_path):
    for name in ("one", "two"):
        draw_archive(tmp_path / name, images=20, seed=3, size=48)
    draw_archive(tmp_path / "other", images=20, seed=4, size=48)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "other")

    counts = draw_archive(tmp_path / "whole", images=20, size=48, broken=False)
    draw_archive(tmp_path / "faulty", images=20, size=48)
    assert counts == {"images": 20, "broken": 0, "unlabelled": 1, "other": 1}
    complete, faulty = digests(tmp_path / "whole"), digests(tmp_path / "faulty")
    added = {name for name in faulty if "broken_" in name}
    assert len(added) == 8
    differing = {name for name in faulty.keys() - added if complete.get(name) != faulty[name]}
    assert differing == {"metadata.csv", synthetic.MARKER}
    assert good_rows(tmp_path / "whole") == good_rows(tmp_path / "faulty")


def test_files_match_the_counts_and_the_table(archive):
    folder, counts = archive
    assert counts == {"images": 360, "broken": 8, "unlabelled": 1, "other": 1}
    assert (folder / "metadata.csv").read_text().splitlines()[0] == "image_id,label,patient_id,lesion_id"
    rows = rows_of(folder)
    assert len(rows) == counts["images"] + counts["broken"]
    assert len({row["image_id"] for row in rows}) == len(rows)

    labelled = {path_of(folder, row) for row in rows}
    on_disk = {path for path in folder.rglob("*") if path.is_file()}
    beside = {path.name for path in on_disk - labelled}
    assert labelled <= on_disk
    assert beside == {"metadata.csv", synthetic.MARKER, "notes.txt", "unlabelled.jpg"}
    with Image.open(folder / "unlabelled.jpg") as image:
        assert np.asarray(image).shape == (96, 96, 3)

    folder, _ = archive
    kinds, turned = Counter(), Counter()
    for row in good_rows(folder):
        path = path_of(folder, row)
        with Image.open(path) as image:
            image.load()
            assert (image.mode, image.size) == ("RGB", (96, 96))
            kinds[image.format, path.suffix] += 1
        turned[_orientation(path)] += 1
    assert turned == {1: 358, 3: 1, 6: 1}
    assert kinds.keys() == {("JPEG", ".jpg"), ("PNG", ".png"), ("PNG", ".jpg")}
    assert kinds["PNG", ".jpg"] == 1
    assert 30 <= kinds["PNG", ".png"] <= 90


@pytest.mark.parametrize("images", [8, 9, 41])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_archives_hold_every_kind_of_image(tmp_path, images, seed):
    counts = draw_archive(tmp_path, images=images, seed=seed, size=32)
    rows = good_rows(tmp_path)
    assert len(rows) == counts["images"] == images
    paths = [path_of(tmp_path, row) for row in rows]
    assert len({path.read_bytes() for path in paths}) == images - 1
    assert sorted(_orientation(path) for path in paths)[-3:] == [1, 3, 6]
    assert sum(path.suffix == ".jpg" and path.read_bytes().startswith(b"\x89PNG") for path in paths) == 1


def test_shares_of_classes_and_corners(archive, tmp_path):
    malignant = sum(row["label"] == "malignant" for row in good_rows(archive[0]))
    assert abs(malignant - 0.4 * 360) <= 1
    for fraction, label in ((0.0, "benign"), (1.0, "malignant")):
        folder = tmp_path / label
        draw_archive(folder, images=8, size=32, malignant_fraction=fraction)
        assert {row["label"] for row in good_rows(folder)} == {label}

    rows, pixels = good_rows(archive[0]), decoded(archive[0]) / 255
    middle = pixels[:, 16:80, 16:80].reshape(len(rows), -1, 3)
    relative = middle / np.median(pixels, axis=(1, 2))[:, None]  # to the skin
    parts = np.percentile(relative, [2, 10, 25, 50, 75], axis=1).transpose(1, 0, 2).reshape(len(rows), -1)
    assert 0.7 < grouped_auc(np.hstack([parts, relative.std(axis=1)]), rows) < 0.99
    corners = pixels[:, np.r_[0:12, 84:96]][:, :, np.r_[0:12, 84:96]].mean(axis=(1, 2))
    assert grouped_auc(corners, rows) < 0.65


def test_views_of_a_lesion_share_patient_and_label_and_look_alike(archive):
    lesions, patients, by_content = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in good_rows(archive[0]):
        lesions[row["lesion_id"]].append(row)
        by_content[path_of(archive[0], row).read_bytes()].append(row["lesion_id"])
    for lesion, rows in lesions.items():
        ((patient, label),) = {(row["patient_id"], row["label"]) for row in rows}
        patients[patient].append((lesion, label))
    assert all(1 <= len(result) <= 4 for result in patients.values())
    assert any(len({label for _, label in result}) == 2 for result in patients.values())
    assert {len(rows) for rows in lesions.values()} == {1, 2, 3}
    copies = [result for result in by_content.values() if len(result) > 1]
    assert len(copies) == 6
    assert all(len(result) == 2 and len(set(result)) == 1 for result in copies)

    folder, _ = archive
    rows, pixels = good_rows(folder), decoded(folder)
    small = pixels.reshape(len(rows), 12, 8, 12, 8, 3).mean(axis=(2, 4)).reshape(len(rows), -1)
    apart = np.sqrt(((small[:, None] - small[None]) ** 2).mean(axis=2))
    lesion = np.array([row["lesion_id"] for row in rows])
    patient = np.array([row["patient_id"] for row in rows])
    same = (lesion[:, None] == lesion) & (apart > 0)
    assert apart[same].mean() < 0.6 * apart[patient[:, None] != patient].mean()


def _orientation(path):
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_turned_jpeg_is_upright_once_oriented(orientation):
    pixels = draw_lesion(np.random.default_rng(2), malignant=True)
    pixels[:20] = 0  # a dark strip on top tells which way is up
    with Image.open(io.BytesIO(synthetic.jpeg_bytes(pixels, orientation))) as image:
        stored, upright = np.asarray(image).astype(int), np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert np.abs(upright - pixels).mean() < 8
    assert (np.abs(stored - pixels).mean() < 8) == (orientation == 1)


def test_finished_drawings_are_kept_and_killed_ones_drawn_again(tmp_path, monkeypatch):
    counts = draw_archive(tmp_path, images=8, size=32)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert draw_archive(tmp_path, images=8, size=32) == counts
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    draw_archive(tmp_path / "whole", images=8, size=32)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_broken_files", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_archive(tmp_path / "half", images=8, size=32)
    assert not (tmp_path / "half" / "metadata.csv").exists()
    draw_archive(tmp_path / "half", images=8, size=32)
    assert digests(tmp_path / "half") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    "other",
    [{"images": 9}, {"seed": 1}, {"size": 33}, {"broken": False}, {"malignant_fraction": 0.5}],
    ids=lambda other: next(iter(other)),
)
def test_another_drawing_is_refused(tmp_path, other):
    draw_archive(tmp_path, images=8, size=32)
    before = digests(tmp_path)
    with pytest.raises(FileExistsError, match=tmp_path.name):
        draw_archive(tmp_path, **({"images": 8, "size": 32} | other))
    assert digests(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", synthetic.MARKER])
@pytest.mark.parametrize("content", ["mine", "{}", "[1]"])
def test_foreign_folder_is_refused_and_a_file_in_its_place(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    for folder in (tmp_path, tmp_path / name):
        with pytest.raises(FileExistsError, match=folder.name):
            draw_archive(folder, images=8, size=32)
    assert digests(tmp_path).keys() == {name}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 7}, "images 7"),
        ({"size": 31}, "size 31"),
        ({"seed": -1}, "seed -1"),
        ({"malignant_fraction": 1.1}, r"malignant_fraction 1\.1"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw_archive(tmp_path / "archive", **wrong)
    with pytest.raises(ValueError, match="size 31"):
        draw_lesion(np.random.default_rng(0), malignant=False, size=31)
    assert not (tmp_path / "archive").exists()


def test_command_prints_one_line_or_explains_a_refusal(tmp_path, capsys):
    folder, root = tmp_path / "drawn", Path(synthetic.__file__).parents[1]
    options = [str(folder), "--images", "8", "--seed", "2", "--size", "32"]
    command = [sys.executable, "-m", "melanoma_spark.images.synthetic", *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}: 8 labelled images, 8 broken files, 1 image without a label, 1 other file\n"
    marker = json.loads((folder / synthetic.MARKER).read_text())
    assert marker["drawing"].items() >= {"images": 8, "seed": 2, "size": 32}.items()

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "holds no drawing" in capsys.readouterr().err


def decoded(folder):
    """The good images, upright: uint8 (images, 96, 96, 3) in the order of their rows."""
    pixels = []
    for row in good_rows(folder):
        with Image.open(path_of(folder, row)) as image:
            pixels.append(np.asarray(ImageOps.exif_transpose(image)))
    return np.stack(pixels)


def grouped_auc(features, rows):
    """AUC of a logistic regression, each patient scored by a model that has not seen that patient."""
    labels = np.array([row["label"] == "malignant" for row in rows])
    patients = [row["patient_id"] for row in rows]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(model, features, labels, groups=patients, cv=GroupKFold(5), method="predict_proba")
    return roc_auc_score(labels, scores[:, 1])
