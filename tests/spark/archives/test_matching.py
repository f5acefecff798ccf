"""All rows of an archive's tables: which image gets which values, and the rows without an image."""

import pytest

from melanoma_spark import schemas
from melanoma_spark.archives import ids, matching, tables
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.schemas import ABSENT, AMBIGUOUS, CONTRADICTORY, LEADING_ZEROS, OTHER_FOLDER

TABLE = "patients.csv"
P1, P2 = "p1/IMG_0001.jpg", "p2/IMG_0001.jpg"


@pytest.fixture(scope="module", autouse=True)
def few_partitions(spark):
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    yield
    spark.conf.unset("spark.sql.shuffle.partitions")


def matched(spark, paths, stated, name=lambda text: text):
    """Path -> its values, and the rows of `unmatched`. `stated` has pairs: a table, rows of its `Record`s."""
    listed = [(path, ids.image_id(path), path) for path in paths]
    images = spark.createDataFrame(listed, "path string, image_id string, shown string")
    rows = []
    for table, lines in stated.items():
        for reference, values in lines:
            attributes = {key: values.pop(key) for key in tuple(values) if key in ATTRIBUTES}
            identifier = ids.image_id(reference)
            record = tables.Record(identifier, **values, attributes=attributes, reference=reference, table=table)
            rows.append(record.values())
    frame = spark.createDataFrame(rows, schemas.RECORDS)
    result = matching.match_rows(images, frame, stated, name, lambda _, table: table.localCheckpoint())
    unmatched = sorted(result.unmatched.collect(), key=lambda row: (row.reason, row.image_id))
    return {row.path: row for row in result.images.collect()}, unmatched, matching.summarize_unmatched(result.unmatched)


def patient(reference, patient_id, **values):
    return reference, {"patient_id": patient_id, **values}


def test_rows_of_a_name_of_two_images_are_ambiguous(spark):
    """The recipe: cameras restart their numbers, and a table names files without their folders."""
    paths = [P1, P2, "p1/IMG_0002.jpg"]
    stated = {TABLE: [patient("IMG_0001.jpg", "A"), patient("IMG_0001.jpg", "B"), patient("IMG_0002.jpg", "A")]}
    rows, unmatched, notes = matched(spark, paths, stated)
    assert {path: row.patient_id for path, row in rows.items()} == {P1: None, P2: None, "p1/IMG_0002.jpg": "A"}
    assert [(row.image_id, row.reason, sorted(row.paths)) for row in unmatched] == [("img_0001", AMBIGUOUS, [P1, P2])]
    assert (notes.ambiguous, notes.contradictory) == (1, 0)
    assert str(notes) == (
        "; 1 name in a table fits several images, and none has its rows "
        "(IMG_0001.jpg of patients.csv fits p1/IMG_0001.jpg, p2/IMG_0001.jpg)"
    )

    stated = {TABLE: [("IMG_0001.jpg", {"labels": ("nevus",)})], "more.csv": [patient("p1/IMG_0001.jpg", "A")]}
    rows, _, _ = matched(spark, [P1, P2], stated)
    assert {path: (row.in_table, row.ambiguous_label, row.labels) for path, row in rows.items()} == {
        P1: (True, True, []),
        P2: (False, True, None),
    }


def test_a_row_of_a_missing_image_is_not_attached_to_another_of_its_name(spark):
    """Of two patients' first images one has not come tonight."""
    stated = {
        TABLE: [patient("p1/IMG_0001.jpg", "A"), patient("p2/IMG_0002.jpg", "B"), patient("p3/IMG_0003.jpg", "C")]
    }
    rows, unmatched, notes = matched(spark, [P2, "p2/IMG_0002.jpg", "other/IMG_0003.jpg"], stated)
    assert {path: row.patient_id for path, row in rows.items()} == {"p2/IMG_0002.jpg": "B"}
    assert [(row.image_id, row.reason) for row in unmatched] == [
        ("p1/img_0001", OTHER_FOLDER),
        ("p3/img_0003", OTHER_FOLDER),
    ]
    assert (
        "2 rows of tables name another folder than the image of that name, which does not have them "
        "(p1/IMG_0001.jpg of patients.csv is not p2/IMG_0001.jpg; "
        "p3/IMG_0003.jpg of patients.csv is not other/IMG_0003.jpg)"
    ) in str(notes)


def test_ids_that_differ_by_leading_zeros_stay_apart_and_are_named(spark):
    """The recipe: 101 and 00101, of which a spreadsheet may have made one, or not."""
    stated = {
        "a.csv": [patient("a.jpg", "101"), patient("b.jpg", "7"), patient("24306", "P01", lesion_id="09")],
        "b.csv": [patient("c.jpg", "00101"), patient("d.jpg", "101", lesion_id="9"), patient("e.jpg", "P1")],
    }
    paths = [*(f"{name}.jpg" for name in "abcde"), "0024306.jpg"]
    rows, unmatched, notes = matched(spark, paths, stated)
    assert {path: rows[path].patient_id for path in ("a.jpg", "c.jpg", "d.jpg")} == {
        "a.jpg": "101",
        "c.jpg": "00101",
        "d.jpg": "101",
    }
    zeros = {row.detail: sorted(row.paths) for row in unmatched if row.reason == LEADING_ZEROS}
    assert zeros == {
        "patient_id 00101 beside 101": ["a.jpg", "c.jpg", "d.jpg"],
        "image_id 0024306 beside 24306": ["0024306.jpg"],
    }
    assert notes.leading_zeros == 2
    assert ("2 ids differ by leading zeros alone (image_id 0024306 beside 24306; patient_id 00101 beside 101)") in str(
        notes
    )
    private = matched(spark, paths, stated, name=lambda text: text and f"<{len(text)}>")[1]
    assert {row.detail for row in private if row.reason == LEADING_ZEROS} == {
        "patient_id <5> beside <3>",
        "image_id <7> beside <5>",
    }


def test_tables_describe_images_of_other_folders_that_have_no_table(spark):
    stated = {TABLE: [patient("images/IMG_1.jpg", "A"), patient("images/IMG_2.jpg", "B")]}
    rows, unmatched, _ = matched(spark, ["night/IMG_1.jpg", "night/IMG_2.jpg"], stated)
    assert {path: row.patient_id for path, row in rows.items()} == {"night/IMG_1.jpg": "A", "night/IMG_2.jpg": "B"}
    assert not unmatched

    paths = [f"{box}.zip/IMG_{number}.jpg" for box in "ab" for number in (1, 2)]
    stated = {
        "a.zip/patients.csv": [patient("IMG_1.jpg", "A"), patient("IMG_2.jpg", "A"), patient("IMG_3.jpg", "A")],
        "b.zip/patients.csv": [patient("IMG_1.jpg", "B")],
    }
    rows, unmatched, _ = matched(spark, [*paths, "b.zip/IMG_3.jpg"], stated)
    assert {path: row.patient_id for path, row in rows.items()} == {paths[0]: "A", paths[1]: "A", paths[2]: "B"}
    assert [(row.image_id, row.reason) for row in unmatched] == [("img_3", OTHER_FOLDER)], (
        "b.zip has a table of its own"
    )

    stated = {"1.zip/metadata.csv": [patient("lesion_7.jpg", "A"), patient("lesion_8.jpg", "B")]}
    rows, unmatched, _ = matched(spark, ["1.zip/lesion_7.jpg", "2.zip/lesion_8.jpg"], stated)
    assert {path: row.patient_id for path, row in rows.items()} == {
        "1.zip/lesion_7.jpg": "A",
        "2.zip/lesion_8.jpg": "B",
    }
    assert not unmatched
    # Labels in a folder of their own, and a table of other things beside the images.
    stated = {
        "labels/truth.csv": [("lesion_7.jpg", {"labels": ("nevus",)})],
        "images/ages.csv": [("lesion_8.jpg", {"age": 40.0})],
    }
    rows, unmatched, _ = matched(spark, ["images/lesion_7.jpg", "images/lesion_8.jpg"], stated)
    assert {path: row.labels for path, row in rows.items()} == {
        "images/lesion_7.jpg": ["nevus"],
        "images/lesion_8.jpg": [],
    }
    assert not unmatched


def test_rows_that_disagree_leave_the_field_empty(spark):
    stated = {
        "one.csv": [
            patient("a.jpg", "A", age=40.0, sex="female", site="back", lesion_id="1"),
            patient("b.jpg", "B", age=50.0),
            patient("c.jpg", "C", sex="male"),
        ],
        "three.csv": [("d.jpg", {"site": site}) for site in ("chest", "abdomen", "anterior torso")],
        "two.csv": [
            patient("a.jpg", "A", age=41.0, sex="female", site="posterior torso"),
            patient("b.jpg", None, age=50.0, source="x"),
            patient("c.jpg", "D", age=60.0),
        ],
    }
    rows, unmatched, notes = matched(spark, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], stated)
    a, b, c = rows["a.jpg"], rows["b.jpg"], rows["c.jpg"]
    assert (a.patient_id, a.age, a.sex, a.site, a.lesion_id) == ("A", None, "female", "back", "1")
    assert (b.patient_id, b.age, b.source) == ("B", 50.0, "x")
    assert (c.patient_id, c.age, c.sex) == (None, None, None), "nobody knows whose age and sex they are"
    assert [list(row.contradictions) for row in (a, b, c)] == [["age"], [], ["patient_id"]]
    d = rows["d.jpg"]  # two parts of a region are two sites
    assert (d.site, list(d.contradictions)) == (None, ["site"])
    assert [(row.image_id, row.reason, row.detail) for row in unmatched] == [
        ("a", CONTRADICTORY, "a.jpg: age"),
        ("c", CONTRADICTORY, "c.jpg: patient_id"),
        ("d", CONTRADICTORY, "d.jpg: site"),
    ]
    assert str(notes) == "; 3 images have rows that disagree (a.jpg: age; c.jpg: patient_id; ...)"


def test_private_names_are_stored_as_hashes(spark):
    stated = {TABLE: [patient("IMG_0001.jpg", "A"), patient("p1/IMG_0001.jpg", "B"), patient("gone.jpg", "C")]}
    _, unmatched, notes = matched(spark, [P1, P2], stated, lambda text: text and f"<{len(text)}>")
    output = [(row.image_id, row.table, row.reason, row.detail) for row in unmatched]
    assert output == [
        ("<8>", "<12>", AMBIGUOUS, "<12> of <12> fits p1/IMG_0001.jpg, p2/IMG_0001.jpg"),
        ("<4>", "<12>", ABSENT, None),
    ]
    assert "IMG_0001.jpg of" not in str(notes)


@pytest.mark.parametrize(
    ("paths", "stated", "expected"),
    [
        # the table calls p2 another patient's, and the first image of p1 has not come
        (
            ["p2/IMG_1.jpg"],
            {TABLE: [patient("p1/IMG_1.jpg", "A"), patient("p2/IMG_2.jpg", "B")]},
            [OTHER_FOLDER, ABSENT],
        ),
        # the archive has the folder that the row names, and not this image in it
        (["p1/IMG_9.jpg", "p2/IMG_1.jpg"], {TABLE: [patient("p1/IMG_1.jpg", "A")]}, [OTHER_FOLDER]),
        # one name in several folders of the table
        (
            ["p3/IMG_1.jpg"],
            {TABLE: [patient(f"p{n}/IMG_1.jpg", str(n), age=40.0 + n) for n in (1, 2)]},
            [OTHER_FOLDER] * 2,
        ),
        # a folder with a table of its own is not free for another folder's rows
        (
            ["p1/IMG_1.jpg", "p2/IMG_2.jpg"],
            {"p1/t.csv": [patient("IMG_2.jpg", "A", age=40.0)], "p2/t.csv": [patient("IMG_7.jpg", "B")]},
            [OTHER_FOLDER, ABSENT],
        ),
        # names of a folder's table that are used again outside are numbers of a camera
        (
            ["p1/IMG_1.jpg", "p2/IMG_1.jpg", "p2/IMG_2.jpg"],
            {"p1/t.csv": [patient("IMG_1.jpg", None, sex="male"), patient("IMG_2.jpg", "A")]},
            [OTHER_FOLDER],
        ),
    ],
    ids=["table names it", "archive has it", "several folders", "own table", "used again"],
)
def test_rows_of_another_patient_are_attached_to_no_image(spark, paths, stated, expected):
    rows, unmatched, _ = matched(spark, paths, stated)
    assert {row.patient_id for row in rows.values()} <= {None}
    assert {row.age for row in rows.values()} <= {None}
    assert [row.reason for row in sorted(unmatched, key=lambda row: row.image_id)] == expected
