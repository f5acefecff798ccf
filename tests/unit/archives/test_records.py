"""Rows of tables and images: each row goes to the image that it names, or to none."""

import pytest

from melanoma_spark.archives import ids, matching, records
from melanoma_spark.archives.records import AMBIGUOUS, ATTACHED

TABLE = "patients.csv"


def group_of(paths, reference, table=TABLE, contents=(), more=()):
    """The images of one id, as a group for rows of some tables."""
    contents = contents or [None] * len(paths)
    images = [records.Image(path, path, content) for path, content in zip(paths, contents, strict=True)]
    folders = {records.folders_of(path) for path in (table, *more)}
    return records.Group(ids.image_id(reference).lower(), images, [table], folders)


def result(paths, reference, table=TABLE, contents=(), more=()):
    """State and paths of a row among images of one id."""
    candidates = group_of(paths, reference, table, contents, more).fit(table, reference).candidates
    return candidates.state, candidates.paths


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
    assert result([P1, P2], reference) == (ATTACHED if len(expected) == 1 else AMBIGUOUS, expected)


def test_longer_paths_and_exact_names_decide_between_images():
    paths = ["a/p1/x/i.jpg", "b/p1/x/i.jpg", "b/p2/x/i.jpg"]
    assert result(paths, "x/i.jpg") == (AMBIGUOUS, paths)
    assert result(paths, "p2/x/i.jpg") == (ATTACHED, paths[2:])
    assert result(paths, "p1/x/i.jpg") == (AMBIGUOUS, paths[:2])
    assert result(paths, "b/p1/x/i.jpg") == (ATTACHED, paths[1:2])

    paths = ["p1/a.jpg", "backup/p1/a.jpg"]
    assert result(paths, "p1/a.jpg") == (ATTACHED, paths[:1])
    assert result(paths, "backup/p1/a.jpg") == (ATTACHED, paths[1:])
    assert result(["wards/p1/a.jpg", "backup/p1/a.jpg"], "p1/a.jpg", "wards/t.csv") == (ATTACHED, ["wards/p1/a.jpg"])
    assert result(["a.jpg", "backup/a.jpg"], "a.jpg")[0] == AMBIGUOUS, "a name without a folder is no path"

    paths = ["IMG_1.tif", "IMG_1.jpg"]
    assert result(paths, "IMG_1.jpg") == (ATTACHED, ["IMG_1.jpg"])
    assert result(paths, "img_1.TIF") == (ATTACHED, ["IMG_1.tif"])
    assert result(paths, "IMG_1") == (AMBIGUOUS, paths)
    assert result(["x.jpg", "x_downsampled.jpg"], "x") == (ATTACHED, ["x.jpg"])

    paths = ["part.zip/a.jpg", "part.zip/a.jpg#2"]
    assert result(paths, "a.jpg") == (AMBIGUOUS, paths)


def test_copies_and_ids_of_the_isic_archive_are_one_image():
    assert result([P1, P2], "IMG_0001.jpg", contents="xx") == (ATTACHED, [P1, P2])
    assert result([P1, P2], "IMG_0001.jpg", contents="xy")[0] == AMBIGUOUS
    assert result([P1, P2], "IMG_0001.jpg", contents=["x", None])[0] == AMBIGUOUS

    paths = ["part_1/ISIC_0000001.jpg", "all/ISIC_0000001_downsampled.jpg"]
    assert result(paths, "isic_0000001") == (ATTACHED, paths)
    assert result(["p1/ISIC_1.jpg", "p2/ISIC_1.jpg"], "ISIC_1")[0] == AMBIGUOUS, (
        "seven digits, as the archive gives them"
    )


@pytest.mark.parametrize("box", ["a.zip", "a"])
def test_a_table_describes_the_images_of_its_folder_first(box):
    paths = [f"{box}/IMG_1.jpg", "b.zip/IMG_1.jpg", "IMG_1.jpg"]
    assert result(paths, "IMG_1.jpg", f"{box}/patients.csv") == (ATTACHED, paths[:1])
    assert result(paths, "IMG_1.jpg", f"{box}/tables/patients.csv") == (ATTACHED, paths[:1])
    assert result(paths, "IMG_1.jpg") == (AMBIGUOUS, paths)
    assert result(paths[1:2], "IMG_1.jpg", f"{box}/patients.csv") == (ATTACHED, paths[1:2])
    fit = group_of(paths[1:2], "IMG_1").fit(f"{box}/patients.csv", "IMG_1.jpg")
    assert (fit.outside, fit.owned) == (True, False)
    fit = group_of(paths[1:2], "IMG_1", more=["b.zip/patients.csv"]).fit(f"{box}/patients.csv", "IMG_1.jpg")
    assert (fit.outside, fit.owned) == (True, True)


@pytest.mark.parametrize(
    ("table", "reference", "expected"),
    [
        ("p1/all.csv", "p2/IMG_0001.jpg", P2),
        ("p1/all.csv", "IMG_0001.jpg", P1),
        ("p1/all.csv", r"Z:\exp\2026\p2\IMG_0001.jpg", P2),
        ("p2/tables/all.csv", "p1/IMG_0001.jpg", P1),
    ],
)
def test_folders_that_a_row_names_count_more_than_where_its_table_lies(table, reference, expected):
    assert result([P1, P2], reference, table, more=["p1/t.csv", "p2/t.csv"]) == (ATTACHED, [expected])


def test_fit_has_the_folders_in_which_row_and_image_differ():
    fit = group_of(["2026/p2/IMG_1.jpg"], "IMG_1").fit(TABLE, "x/p1/IMG_1.jpg")
    assert (fit.common, fit.row_folder, fit.image_folder) == (1, "p1", "p2")
    fit = group_of(["2026/p1/IMG_1.jpg"], "IMG_1").fit(TABLE, "2025/p1/IMG_1.jpg")
    assert (fit.common, fit.row_folder, fit.image_folder) == (2, "2025", "2026")
    for reference in ("p1/IMG_1.jpg", "/mnt/2026/p1/IMG_1.jpg"):
        assert not group_of(["2026/p1/IMG_1.jpg"], "IMG_1").fit(TABLE, reference).differs


@pytest.mark.parametrize(
    ("path", "references", "refused"),
    [
        ("IMG_1.jpg", ["IMG_1.jpg", "IMG_1"], []),
        ("IMG_1.jpg", ["IMG_1.jpg", "IMG_1.tif"], [1]),
        ("IMG_1.jpg", ["IMG_1.tif", "IMG_1.png"], [0, 1]),
        ("IMG_1.jpg", ["IMG_1.tif"], []),
        ("p3/IMG_1.jpg", ["p1/IMG_1.jpg", "p2/IMG_1.jpg"], [0, 1]),
        ("IMG_1.jpg", ["p1/IMG_1.jpg", "p2/IMG_1.jpg"], [0, 1]),
        ("p1/IMG_1.jpg", ["p1/IMG_1.jpg", "p2/IMG_1.jpg"], [1]),
        ("p1/IMG_1.jpg", ["IMG_1.jpg", "p1/IMG_1.jpg", "x/p1/IMG_1.jpg"], []),
    ],
)
def test_rows_that_fit_an_image_best_win(path, references, refused):
    group = group_of([path], "IMG_1")
    assert sorted(records.refuse_claims([(one, group.fit(TABLE, one)) for one in references])) == refused


def test_images_of_one_name_cost_no_more_than_their_folders():
    paths = [f"ward/{number}/IMG_0001.jpg" for number in range(4000)]
    group = group_of(paths, "IMG_0001")
    for number in range(4000):
        assert group.fit(TABLE, f"{number}/IMG_0001.jpg").candidates.paths == [paths[number]]
        assert len(group.fit(TABLE, f"q{number}/IMG_0001.jpg").candidates.paths) == 4000


def test_names_are_escaped_for_a_line_of_a_log():
    assert (
        matching.printable("evil\n  done: all fine.csv\x1b[31m \u202e") == r"evil\n  done: all fine.csv\x1b[31m \u202e"
    )
    assert matching.printable(" Mädchen 1.jpg ") == "Mädchen 1.jpg"
