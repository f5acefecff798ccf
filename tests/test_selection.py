"""Selection: every file is kept or rejected with a reason, and nothing that belongs together is parted."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark import config, images, layouts, splits
from melanoma_spark.errors import DataError
from melanoma_spark.layouts import Record
from melanoma_spark.selection import Found, select

ROOT = "file:///archive"
SETTINGS = config.parse({"ingest": {"test_fraction": 0.3, "validation_fraction": 0.3}})
LABELS = ("benign", "malignant")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def decoded(path, pixels=None, looks=None):
    """A file that was decoded. Named pixels and looks are the same wherever they are named."""
    return Found(
        source_uri=f"{ROOT}/{path}",
        sha256=digest(path),
        pixel_sha256=digest(f"pixels {pixels or path}"),
        perceptual_hash=digest(f"looks {looks or path}")[:16],
    )


def undecoded(path, reason, detail="so it was"):
    return Found(f"{ROOT}/{path}", None if reason == "empty" else digest(path), reason=reason, detail=detail)


# Enough images of both classes to fill all splits, whatever a test adds to them.
BASE = [decoded(f"{LABELS[n % 2]}/base{n:02d}.jpg", pixels=f"base{n}") for n in range(60)]


def chosen(selection):
    """Kept images by their path below the archive."""
    return {row.source_uri.removeprefix(f"{ROOT}/"): row for row in selection.chosen}


def rejected(selection):
    """Rejected files: path below the archive -> (reason, detail)."""
    return {row.source_uri.removeprefix(f"{ROOT}/"): (row.reason, row.detail) for row in selection.rejected}


def by_folder(*more, settings=SETTINGS):
    return select([*BASE, *more], [], ROOT, settings)


def records(*more):
    """The metadata of `BASE`, and more rows."""
    base = [Record(layouts.image_id(file.source_uri), LABELS[n % 2]) for n, file in enumerate(BASE)]
    return [*base, *more]


# Any archive

EXTRAS = st.lists(
    st.tuples(
        st.sampled_from(["benign", "malignant", "Malignant", "nevus", "train", "other"]),
        st.sampled_from([f"base{n}" for n in range(4)] + [f"new{n}" for n in range(4)] + [None]),
        st.sampled_from(["looks0", "looks1", None, None]),
        st.sampled_from([None, None, None, "corrupt", "empty", "too_small"]),
    ),
    max_size=20,
).map(
    lambda rows: [
        undecoded(f"{folder}/extra{n}.jpg", reason) if reason else decoded(f"{folder}/extra{n}.jpg", pixels, looks)
        for n, (folder, pixels, looks, reason) in enumerate(rows)
    ]
)
IDS = st.sampled_from([None, "a", "b", "c"])
KNOWN = st.dictionaries(
    st.integers(0, 19).map("extra{}".format),
    st.tuples(st.sampled_from(["benign", "malignant", "unclear", None]), IDS, IDS),
)


def recorded(rows):
    return records(*(Record(name, *facts) for name, facts in rows.items()))


@given(EXTRAS, st.none() | KNOWN)
def test_every_file_is_kept_or_rejected_exactly_once(extras, known):
    selection = select([*BASE, *extras], recorded(known) if known is not None else [], ROOT, SETTINGS)
    decided = [row.source_uri for row in (*selection.chosen, *selection.rejected)]
    assert sorted(decided) == sorted(file.source_uri for file in (*BASE, *extras))
    assert sum(selection.counts().values()) == len(selection.chosen)
    assert sum(selection.reasons().values()) == len(selection.rejected)
    assert set(selection.reasons()) <= set(images.REASONS)
    assert all(row.detail for row in selection.rejected)


@given(EXTRAS, st.none() | KNOWN)
def test_nothing_that_belongs_together_stands_on_two_splits(extras, known):
    selection = select([*BASE, *extras], recorded(known) if known is not None else [], ROOT, SETTINGS)
    files = {file.source_uri: file for file in (*BASE, *extras)}
    sides = defaultdict(set)
    for row in selection.chosen:
        file = files[row.source_uri]
        keys = {"group": row.group, "patient": row.patient_id, "lesion": row.lesion_id, "looks": file.perceptual_hash}
        for key in keys.items():
            if key[1] is not None:
                sides[key].add(row.split)
    assert {len(found) for found in sides.values()} == {1}


@given(EXTRAS, st.none() | KNOWN)
def test_every_picture_is_kept_once_unless_its_labels_differ(extras, known):
    selection = select([*BASE, *extras], recorded(known) if known is not None else [], ROOT, SETTINGS)
    pixels = {file.source_uri: file.pixel_sha256 for file in (*BASE, *extras)}
    kept = Counter(pixels[row.source_uri] for row in selection.chosen)
    copies = {pixels[row.source_uri] for row in selection.rejected if row.reason == "duplicate"}
    disputed = {pixels[row.source_uri] for row in selection.rejected if row.reason == "conflicting_labels"}
    assert set(kept.values()) == {1}
    assert copies <= set(kept)
    assert not disputed & (set(kept) | copies)


@given(EXTRAS, KNOWN, st.randoms(use_true_random=False))
def test_order_of_files_and_records_does_not_matter(extras, known, rng):
    files, rows = [*BASE, *extras], recorded(known)
    shuffled = select(rng.sample(files, len(files)), rng.sample(rows, len(rows)), ROOT, SETTINGS)
    assert shuffled == select(files, rows, ROOT, SETTINGS)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 11)), max_size=20))
def test_more_images_of_known_patients_move_no_image(later):
    patients = [Record(row.image_id, row.label, f"patient{n // 5}") for n, row in enumerate(records())]
    more = [Record(f"later{n}", label, f"patient{patient}") for n, (label, patient) in enumerate(later)]
    before = select(BASE, patients, ROOT, SETTINGS)
    after = select([*BASE, *(decoded(f"{row.image_id}.jpg") for row in more)], [*patients, *more], ROOT, SETTINGS)
    grown = chosen(after)
    assert {path: grown[path] for path in chosen(before)} == chosen(before)
    assert len(after.chosen) == len(BASE) + len(later)


# Labels


def test_folder_names_the_class_where_there_is_no_metadata():
    kept = chosen(by_folder(decoded("train/melanoma/a.jpg"), decoded("test/nevus/b.jpg")))
    assert {path: row.label for path, row in kept.items() if "base" not in path} == {
        "train/melanoma/a.jpg": 1,
        "test/nevus/b.jpg": 0,
    }
    assert {row.label for path, row in kept.items() if path.startswith("benign/")} == {0}


def test_images_without_a_folder_have_no_label():
    assert rejected(by_folder(decoded("a.jpg")))["a.jpg"] == ("no_label", "label None")


def test_folders_of_other_names_are_an_unknown_label():
    assert rejected(by_folder(decoded("seborrheic_keratosis/a.jpg"))) == {
        "seborrheic_keratosis/a.jpg": ("unknown_label", "label 'seborrheic_keratosis'")
    }


def test_metadata_wins_over_the_folder():
    row = Record("a", "malignant", "p1", "l1")
    kept = chosen(select([*BASE, decoded("benign/a.jpg")], records(row), ROOT, SETTINGS))["benign/a.jpg"]
    assert (kept.image_id, kept.label, kept.patient_id, kept.lesion_id) == ("a", 1, "p1", "l1")
    assert kept.group == "patient:p1"


def test_with_metadata_a_folder_gives_no_label():
    more = [decoded("benign/unlisted.jpg"), decoded("benign/unlabelled.jpg"), decoded("benign/unclear.jpg")]
    rows = records(Record("unlabelled", None), Record("unclear", "Indeterminate"))
    assert rejected(select([*BASE, *more], rows, ROOT, SETTINGS)) == {
        "benign/unlisted.jpg": ("no_label", "no row in metadata.csv"),
        "benign/unlabelled.jpg": ("no_label", "label None"),
        "benign/unclear.jpg": ("unknown_label", "label 'Indeterminate'"),
    }


def test_rows_of_the_metadata_without_an_image_are_counted():
    rows = records(Record("gone1", "benign"), Record("gone2", "benign"), Record("broken", "benign"))
    selection = select([*BASE, undecoded("broken.jpg", "corrupt")], rows, ROOT, SETTINGS)
    assert selection.rows_without_image == 2
    assert select(BASE, records(), ROOT, SETTINGS).rows_without_image == 0


@pytest.mark.parametrize("words", [["MEL", "bcc"], ["mel", "BCC"]])
@pytest.mark.parametrize("label", ["mel", "MEL", "Mel"])
def test_label_words_are_compared_without_regard_to_case(words, label):
    wanted = config.parse({"ingest": {**SETTINGS.ingest.model_dump(), "labels": {"positive": [*words, "malignant"]}}})
    assert chosen(by_folder(decoded(f"{label}/a.jpg"), settings=wanted))[f"{label}/a.jpg"].label == 1


# Duplicates and groups


def test_of_files_with_the_same_pixels_the_one_of_the_smallest_hash_is_kept():
    twins = [decoded(f"benign/twin{n}.jpg", pixels="twin", looks="twin") for n in range(3)]
    first = min(twins, key=lambda file: file.sha256)
    selection = by_folder(*twins)
    names = {file.source_uri.removeprefix(f"{ROOT}/") for file in twins}
    assert {path for path in chosen(selection) if path in names} == {first.source_uri.removeprefix(f"{ROOT}/")}
    assert set(rejected(selection).values()) == {("duplicate", f"same pixels as {first.sha256}")}
    assert len(rejected(selection)) == 2


def test_of_copies_of_one_file_the_first_by_name_is_kept():
    copies = [replace(decoded(f"benign/{name}.jpg", pixels="copy"), sha256=digest("copy")) for name in ("b", "a")]
    selection = by_folder(*copies)
    assert "benign/a.jpg" in chosen(selection)
    assert rejected(selection) == {"benign/b.jpg": ("duplicate", f"same pixels as {digest('copy')}")}


def test_same_pixels_under_both_labels_are_rejected_altogether():
    selection = by_folder(
        decoded("benign/a.jpg", pixels="x"), decoded("malignant/b.jpg", pixels="x"), decoded("benign/c.jpg", pixels="x")
    )
    told = ("conflicting_labels", "3 images, both labels")
    assert rejected(selection) == dict.fromkeys(["benign/a.jpg", "malignant/b.jpg", "benign/c.jpg"], told)


def test_unlabelled_copy_is_no_conflict():
    selection = by_folder(decoded("benign/a.jpg", pixels="x"), decoded("other/b.jpg", pixels="x"))
    assert "benign/a.jpg" in chosen(selection)
    assert rejected(selection)["other/b.jpg"][0] == "unknown_label"


def test_images_that_look_the_same_are_both_kept_in_one_group():
    kept = chosen(by_folder(decoded("benign/a.jpg", looks="same"), decoded("malignant/b.jpg", looks="same")))
    assert kept["benign/a.jpg"].group == kept["malignant/b.jpg"].group
    assert kept["benign/a.jpg"].split == kept["malignant/b.jpg"].split


def test_rejected_copy_still_joins_the_groups_of_its_patients():
    more = [decoded("a1.jpg"), decoded("a2.jpg", pixels="x"), decoded("b1.jpg"), decoded("b2.jpg", pixels="x")]
    rows = records(*(Record(name, "benign", f"patient {name[0]}") for name in ("a1", "a2", "b1", "b2")))
    kept = chosen(select([*BASE, *more], rows, ROOT, SETTINGS))
    assert kept["a1.jpg"].group == kept["b1.jpg"].group == "patient:patient a"


def test_split_is_that_of_the_group_by_its_hash():
    for row in by_folder().chosen:
        assert row.split == splits.split_of(row.group, 0, 0.3, 0.3)


def test_another_seed_splits_otherwise():
    other = by_folder(settings=SETTINGS.model_copy(update={"seed": 1}))
    assert {row.sha256: row.split for row in other.chosen} != {row.sha256: row.split for row in by_folder().chosen}


def test_rejects_of_the_decoder_keep_their_reason_and_detail():
    selection = by_folder(undecoded("benign/a.jpg", "corrupt", "OSError while decoding"), undecoded("b.jpg", "empty"))
    assert rejected(selection) == {
        "benign/a.jpg": ("corrupt", "OSError while decoding"),
        "b.jpg": ("empty", "so it was"),
    }
    assert selection.reasons() == {"corrupt": 1, "empty": 1}


# Archives that cannot be used


def test_no_files_at_all_is_an_error():
    with pytest.raises(DataError, match=r"^no usable image in the archive; rejected: none$"):
        select([], [], ROOT, SETTINGS)


def test_nothing_but_rejects_is_an_error_that_counts_them():
    files = [undecoded("a.jpg", "empty"), undecoded("b.jpg", "corrupt"), undecoded("c.jpg", "corrupt")]
    with pytest.raises(DataError, match=r"^no usable image in the archive; rejected: corrupt 2, empty 1$"):
        select(files, [], ROOT, SETTINGS)


@pytest.mark.parametrize(("folder", "which"), [("benign", "negative"), ("malignant", "positive")])
def test_one_class_only_is_an_error_that_says_which_and_where_label_words_are_set(folder, which):
    files = [decoded(f"{folder}/{n}.jpg") for n in range(20)] + [decoded("Basal Cell/a.jpg")]
    with pytest.raises(DataError) as error:
        select(files, [], ROOT, SETTINGS)
    assert str(error.value).startswith(f"one class only: all 20 usable images carry the {which} label; ")
    assert "unknown_label 1" in str(error.value)
    assert "'Basal Cell'" in str(error.value)
    assert "ingest.labels.positive" in str(error.value)


def test_split_without_one_of_the_classes_is_an_error_with_ways_out():
    with pytest.raises(DataError) as error:
        select(BASE[:4], [], ROOT, config.Settings())
    assert "positive images of 4: too few groups to split; add images, change seed=N" in str(error.value)


@pytest.mark.parametrize(("seed", "told"), [(1, "15 negative and 0 positive"), (2, "0 negative and 15 positive")])
def test_split_of_one_class_is_an_error_that_names_it(seed, told):
    patients = [replace(row, patient_id=f"{row.label} {n // 30}") for n, row in enumerate(records())]
    with pytest.raises(DataError, match=f"^the train split has {told} images of 60: too few groups to split"):
        select(BASE, patients, ROOT, SETTINGS.model_copy(update={"seed": seed}))


def test_one_patient_alone_cannot_be_split():
    patients = [replace(row, patient_id="only") for row in records()]
    with pytest.raises(DataError, match="too few groups to split"):
        select(BASE, patients, ROOT, SETTINGS)
