"""Rows of tables and images: each row goes to the image that it names, or to none."""

from __future__ import annotations

import pytest

from melanoma_spark import records, schemas, tables
from melanoma_spark.records import ABSENT, AMBIGUOUS, ATTACHED

TABLE = "patients.csv"


def found(paths, reference, table=TABLE, contents=()):
    """State and paths of a row among images of one id."""
    contents = contents or [None] * len(paths)
    images = [records.Image(path, path, content) for path, content in zip(paths, contents, strict=True)]
    group = records.Group(tables.image_id(reference).lower(), images, [table])
    match = group.find(table, reference)
    return match.state, [image.path for image in match.images]


P1, P2 = "p1/IMG_0001.jpg", "p2/IMG_0001.jpg"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("IMG_0001.jpg", [P1, P2]),
        ("IMG_0001", [P1, P2]),
        ("p1/IMG_0001.jpg", [P1]),
        ("p2/IMG_0001", [P2]),
        ("P2\\img_0001.JPG", [P2]),
        (r"D:\export\2026\p1\IMG_0001.jpg", [P1]),
        ("/mnt/hospital/p2/IMG_0001.jpg", [P2]),
        ("./p1/IMG_0001.jpg", [P1]),
        ("../images/p1/IMG_0001.jpg", [P1]),
        ("p2/../p1/IMG_0001.jpg", [P1]),
        ("p3/IMG_0001.jpg", [P1, P2]),
        ("xp1/IMG_0001.jpg", [P1, P2]),  # a folder's name is whole or another one
    ],
)
def test_longest_end_of_the_path_decides(reference, expected):
    assert found([P1, P2], reference) == (ATTACHED if len(expected) == 1 else AMBIGUOUS, expected)


def test_a_longer_end_is_needed_where_a_shorter_one_fits_several():
    paths = ["a/p1/x/i.jpg", "b/p1/x/i.jpg", "b/p2/x/i.jpg"]
    assert found(paths, "x/i.jpg") == (AMBIGUOUS, paths)
    assert found(paths, "p2/x/i.jpg") == (ATTACHED, paths[2:])
    assert found(paths, "p1/x/i.jpg") == (AMBIGUOUS, paths[:2])
    assert found(paths, "b/p1/x/i.jpg") == (ATTACHED, paths[1:2])


def test_the_very_name_of_a_file_tells_two_of_one_id_apart():
    paths = ["IMG_1.tif", "IMG_1.jpg"]
    assert found(paths, "IMG_1.jpg") == (ATTACHED, ["IMG_1.jpg"])
    assert found(paths, "img_1.TIF") == (ATTACHED, ["IMG_1.tif"])
    assert found(paths, "IMG_1") == (AMBIGUOUS, paths)
    assert found(["x.jpg", "x_downsampled.jpg"], "x") == (ATTACHED, ["x.jpg"])


def test_members_of_one_name_in_a_container_are_two_images():
    paths = ["part.zip/a.jpg", "part.zip/a.jpg#2"]
    assert found(paths, "a.jpg") == (AMBIGUOUS, paths)


def test_copies_are_one_image():
    assert found([P1, P2], "IMG_0001.jpg", contents="xx") == (ATTACHED, [P1, P2])
    assert found([P1, P2], "IMG_0001.jpg", contents="xy")[0] == AMBIGUOUS
    assert found([P1, P2], "IMG_0001.jpg", contents=["x", None])[0] == AMBIGUOUS


def test_an_id_of_the_isic_archive_is_the_same_image_wherever_it_lies():
    paths = ["part_1/ISIC_0000001.jpg", "all/ISIC_0000001_downsampled.jpg"]
    assert found(paths, "isic_0000001") == (ATTACHED, paths)


@pytest.mark.parametrize("box", ["a.zip", "a"])
def test_a_table_is_about_the_images_of_its_own_folder_first(box):
    paths = [f"{box}/IMG_1.jpg", "b.zip/IMG_1.jpg", "IMG_1.jpg"]
    assert found(paths, "IMG_1.jpg", f"{box}/patients.csv") == (ATTACHED, paths[:1])
    assert found(paths, "IMG_1.jpg", f"{box}/tables/patients.csv") == (ATTACHED, paths[:1])
    assert found(paths, "IMG_1.jpg") == (AMBIGUOUS, paths)
    assert found(paths[1:2], "IMG_1.jpg", f"{box}/patients.csv") == (ATTACHED, paths[1:2])


def test_images_of_one_name_cost_no_more_than_their_folders():
    paths = [f"ward/{number}/IMG_0001.jpg" for number in range(20_000)]
    images = [records.Image(path, path) for path in paths]
    group = records.Group("img_0001", images, [TABLE])
    for number in range(0, 20_000, 7):
        assert group.find(TABLE, f"{number}/IMG_0001.jpg").images == (images[number],)
    for _ in range(1000):
        assert len(group.find(TABLE, "IMG_0001.jpg").images) == 20_000


# All rows of an archive's tables


@pytest.fixture(scope="module", autouse=True)
def few_partitions(spark):
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    yield
    spark.conf.unset("spark.sql.shuffle.partitions")


def matched(spark, paths, said, name=lambda text: text):
    """Path -> what is said of it, and the rows of `unmatched`. `said` has pairs: a table, rows of its `Record`s."""
    listed = [(path, tables.image_id(path), path, None) for path in paths]
    images = spark.createDataFrame(listed, "path string, image_id string, shown string, content string")
    rows = []
    for table, lines in said.items():
        for reference, values in lines:
            record = tables.Record(tables.image_id(reference), **values, reference=reference, table=table)
            rows.append(tuple(getattr(record, column) for column in schemas.RECORDS.names))
    frame = spark.createDataFrame(rows, schemas.RECORDS)
    result = records.match(images, frame, name, lambda _, table: table.localCheckpoint())
    unmatched = sorted(result.unmatched.collect(), key=lambda row: (row.reason, row.image_id))
    return {row.path: row for row in result.images.collect()}, unmatched, records.notes(result.unmatched)


def patient(reference, patient_id, **values):
    return reference, {"patient_id": patient_id, **values}


def test_a_name_that_is_two_images_is_nobodys(spark):
    """The recipe: cameras restart their numbers, and a table names files without their folders."""
    paths = [P1, P2, "p1/IMG_0002.jpg"]
    said = {TABLE: [patient("IMG_0001.jpg", "A"), patient("IMG_0001.jpg", "B"), patient("IMG_0002.jpg", "A")]}
    rows, unmatched, notes = matched(spark, paths, said)
    assert {path: row.patient_id for path, row in rows.items()} == {P1: None, P2: None, "p1/IMG_0002.jpg": "A"}
    assert [(row.image_id, row.reason, sorted(row.paths)) for row in unmatched] == [("img_0001", AMBIGUOUS, [P1, P2])]
    assert (notes.ambiguous, notes.contradictory) == (1, 0)
    assert str(notes) == (
        "; 1 names in tables fit several images, and none has their rows "
        "(IMG_0001.jpg of patients.csv fits p1/IMG_0001.jpg, p2/IMG_0001.jpg)"
    )


def test_a_row_of_an_image_that_is_not_there_is_not_its_namesakes(spark):
    """Of two patients' first images one has not come tonight."""
    said = {TABLE: [patient("p1/IMG_0001.jpg", "A"), patient("p2/IMG_0002.jpg", "B"), patient("p3/IMG_0003.jpg", "C")]}
    rows, unmatched, _ = matched(spark, [P2, "p2/IMG_0002.jpg", "other/IMG_0003.jpg"], said)
    assert {path: row.patient_id for path, row in rows.items()} == {"p2/IMG_0002.jpg": "B"}
    assert [(row.image_id, row.reason) for row in unmatched] == [("p1/img_0001", ABSENT), ("p3/img_0003", ABSENT)]


def test_folders_of_another_place_do_not_matter(spark):
    said = {TABLE: [patient("images/IMG_1.jpg", "A"), patient("images/IMG_2.jpg", "B")]}
    rows, unmatched, _ = matched(spark, ["night/IMG_1.jpg", "night/IMG_2.jpg"], said)
    assert {path: row.patient_id for path, row in rows.items()} == {"night/IMG_1.jpg": "A", "night/IMG_2.jpg": "B"}
    assert not unmatched


def test_each_container_has_its_own_table(spark):
    paths = [f"{box}.zip/IMG_{number}.jpg" for box in "ab" for number in (1, 2)]
    said = {
        "a.zip/patients.csv": [patient("IMG_1.jpg", "A"), patient("IMG_2.jpg", "A"), patient("IMG_3.jpg", "A")],
        "b.zip/patients.csv": [patient("IMG_1.jpg", "B")],
    }
    rows, unmatched, _ = matched(spark, [*paths, "b.zip/IMG_3.jpg"], said)
    assert {path: row.patient_id for path, row in rows.items()} == {paths[0]: "A", paths[1]: "A", paths[2]: "B"}
    assert [(row.image_id, row.reason) for row in unmatched] == [("img_3", ABSENT)]


def test_a_table_in_one_container_is_about_another_where_names_are_not_used_again(spark):
    said = {"1.zip/metadata.csv": [patient("lesion_7.jpg", "A"), patient("lesion_8.jpg", "B")]}
    rows, unmatched, _ = matched(spark, ["1.zip/lesion_7.jpg", "2.zip/lesion_8.jpg"], said)
    assert {path: row.patient_id for path, row in rows.items()} == {
        "1.zip/lesion_7.jpg": "A",
        "2.zip/lesion_8.jpg": "B",
    }
    assert not unmatched


def test_rows_that_disagree_leave_the_field_empty(spark):
    said = {
        "one.csv": [
            patient("a.jpg", "A", age=40.0, sex="female", site="back", lesion_id="1"),
            patient("b.jpg", "B", age=50.0),
        ],
        "two.csv": [
            patient("a.jpg", "C", age=41.0, sex="female", site="posterior torso"),
            patient("b.jpg", None, age=50.0, source="x"),
        ],
    }
    rows, unmatched, notes = matched(spark, ["a.jpg", "b.jpg"], said)
    a, b = rows["a.jpg"], rows["b.jpg"]
    assert (a.patient_id, a.age, a.sex, a.site, a.lesion_id) == (None, None, "female", "back", "1")
    assert (b.patient_id, b.age, b.source) == ("B", 50.0, "x")
    assert (list(a.contradictions), list(b.contradictions)) == (["patient_id", "age"], [])
    assert [(row.image_id, row.reason, row.detail) for row in unmatched] == [
        ("a", records.CONTRADICTORY, "a.jpg: patient_id, age")
    ]
    assert str(notes) == "; 1 images have rows that disagree (a.jpg: patient_id, age)"


def test_two_parts_of_a_region_are_two_sites(spark):
    said = {TABLE: [("a.jpg", {"site": site}) for site in ("chest", "abdomen", "anterior torso")]}
    rows, _, _ = matched(spark, ["a.jpg"], said)
    assert (rows["a.jpg"].site, list(rows["a.jpg"].contradictions)) == (None, ["site"])


def test_labels_of_a_row_that_fits_several_are_marked(spark):
    said = {TABLE: [("IMG_0001.jpg", {"labels": ("nevus",)})], "more.csv": [patient("p1/IMG_0001.jpg", "A")]}
    rows, _, _ = matched(spark, [P1, P2], said)
    assert {path: (row.in_table, row.ambiguous_label, row.labels) for path, row in rows.items()} == {
        P1: (True, True, []),
        P2: (False, True, None),
    }


def test_private_names_are_told_as_what_name_makes_of_them(spark):
    said = {TABLE: [patient("IMG_0001.jpg", "A"), patient("p1/IMG_0001.jpg", "B"), patient("gone.jpg", "C")]}
    _, unmatched, notes = matched(spark, [P1, P2], said, lambda text: text and f"<{len(text)}>")
    told = [(row.image_id, row.table, row.reason, row.detail) for row in unmatched]
    assert told == [
        ("<8>", "<12>", AMBIGUOUS, "<12> of <12> fits p1/IMG_0001.jpg, p2/IMG_0001.jpg"),
        ("<4>", "<12>", ABSENT, None),
    ]
    assert "IMG_0001.jpg of" not in str(notes)
