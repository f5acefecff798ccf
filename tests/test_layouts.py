"""Archive layouts: metadata as people send it, ids and labels from names, and files that are not read."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark import images, layouts
from melanoma_spark.errors import DataError
from melanoma_spark.layouts import Record

ROOT = "file:///archive"
# Cells are stripped of white space, and a row of empty cells is none, so neither is drawn here.
CELL = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), max_size=12)
IDS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=12)

SIMPLE = "image_id,label\nISIC_1,benign\nISIC_2,malignant\n"
EXPECTED = [Record("ISIC_1", "benign"), Record("ISIC_2", "malignant")]


def written(rows, header=("image_id", "label", "patient_id", "lesion_id"), **dialect):
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows([header, *rows])
    return text.getvalue().encode()


# The metadata table


@pytest.mark.parametrize(
    "content",
    [
        SIMPLE.encode(),
        SIMPLE.encode("utf-8-sig"),
        SIMPLE.replace("\n", "\r\n").encode(),
        SIMPLE.replace("\n", "\r").encode(),
        SIMPLE.rstrip("\n").encode(),
        SIMPLE.replace("image_id,label", "IMAGE_ID,Label").encode(),
        SIMPLE.replace("image_id,label", " image_id , label ").encode(),
        SIMPLE.replace(",", " , ").encode(),
        SIMPLE.replace("\nISIC_2", "\n\n , \nISIC_2").encode(),
        b'"image_id","label"\n"ISIC_1","benign"\n"ISIC_2","malignant"\n',
        b"age,image_id,sex,label\n40,ISIC_1,f,benign\n,ISIC_2,,malignant\n",
        b"image_id,label\nISIC_1,benign,a cell too many\nISIC_2,malignant\n",
    ],
    ids=[
        "plain",
        "byte order mark",
        "CRLF",
        "CR",
        "no line end at the end",
        "upper case header",
        "padded header",
        "padded cells",
        "empty rows",
        "all quoted",
        "other columns",
        "long row",
    ],
)
def test_table_is_read_however_it_was_saved(content):
    assert layouts.read_metadata(content) == EXPECTED


@pytest.mark.parametrize("column", layouts.ID_COLUMNS)
def test_each_generation_of_id_columns_is_known(column):
    assert layouts.read_metadata(SIMPLE.replace("image_id", column).encode()) == EXPECTED


@pytest.mark.parametrize("column", layouts.LABEL_COLUMNS)
def test_each_generation_of_label_columns_is_known(column):
    assert layouts.read_metadata(SIMPLE.replace("label", column).encode()) == EXPECTED


def test_first_known_column_wins_wherever_it_stands():
    assert layouts.read_metadata(b"image,label,image_id\nold,benign,ISIC_1\n") == [Record("ISIC_1", "benign")]


def test_umlauts_of_either_encoding_are_read():
    table = "image_id,label,patient_id\nbild_1,benign,Müller\n"
    for encoding in ("utf-8", "latin-1", "cp1252"):
        assert layouts.read_metadata(table.encode(encoding)) == [Record("bild_1", "benign", "Müller")]


def test_quoted_cells_may_hold_commas_quotes_and_line_ends():
    table = b'image_id,label,lesion_id\nISIC_1,"benign, ""typical""","left\narm"\n'
    assert layouts.read_metadata(table) == [Record("ISIC_1", 'benign, "typical"', None, "left\narm")]


def test_patient_and_lesion_are_read_where_they_are_known():
    table = b"patient_id,lesion_id,image_id,label\np1,l1,a,benign\n,l2,b,benign\np3,,c,benign\n,,d,\n"
    assert layouts.read_metadata(table) == [
        Record("a", "benign", "p1", "l1"),
        Record("b", "benign", None, "l2"),
        Record("c", "benign", "p3", None),
        Record("d", None, None, None),
    ]


def test_cells_missing_at_the_end_of_a_row_are_empty():
    assert layouts.read_metadata(b"image_id,label,patient_id\na\n") == [Record("a", None)]


@given(st.dictionaries(IDS, st.tuples(CELL, CELL, CELL), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_any_table_comes_back_row_for_row(rows, line_end):
    content = written([(key, *cells) for key, cells in rows.items()], lineterminator=line_end)
    expected = [Record(key, *(cell or None for cell in cells)) for key, cells in rows.items()]
    assert layouts.read_metadata(content) == expected


@given(st.binary(max_size=300))
def test_any_bytes_are_records_or_a_data_error(content):
    head = b"image_id,label\n"
    try:
        records = layouts.read_metadata(head + content)
    except DataError as error:
        told = str(error)
    else:
        told = ""
        assert all(isinstance(record, Record) for record in records)
        assert len({record.image_id for record in records}) == len(records)
    assert not told or told.startswith("metadata.csv")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no image id column: expected one of image_id, isic_id, image_name, image; found nothing"),
        (b"name,label\na,benign\n", "has no image id column: .*; found name, label"),
        (b"image_id;label\na;benign\n", "has no image id column: .*; found image_id;label"),
        (b"image_id,diagnosis\na,nevus\n", "has no label column: expected one of label, .*; found image_id, diagnosis"),
        (b"image_id,label\n", "has a header and no rows; remove it to take labels from the folders"),
        (b"image_id,label\n , \n\n", "has a header and no rows"),
        (b'image_id,label\na,"' + b"x" * 200_000, "is not a table of comma-separated values: field larger than"),
    ],
)
def test_unusable_table_is_named_with_what_was_found(content, told):
    with pytest.raises(DataError, match=f"^lesions/metadata.csv {told}"):
        layouts.read_metadata(content, "lesions/metadata.csv")


def test_wide_header_is_not_quoted_whole():
    with pytest.raises(DataError) as error:
        layouts.read_metadata(",".join(f"column{n}" for n in range(500)).encode())
    assert "column19" in str(error.value)
    assert "column20" not in str(error.value)


def test_equal_rows_count_once():
    assert layouts.read_metadata(b"image_id,label\na,benign\nb,benign\na,benign\n") == [
        Record("a", "benign"),
        Record("b", "benign"),
    ]


@pytest.mark.parametrize("second", ["a,malignant,p1", "a,benign,p2", "a,benign,", "a,,p1"])
def test_rows_of_one_id_that_differ_are_refused(second):
    table = f"image_id,label,patient_id\na,benign,p1\nb,benign,p1\n{second}\n"
    with pytest.raises(DataError, match=r"^metadata\.csv: 1 image ids have rows that differ: a$"):
        layouts.read_metadata(table.encode())


def test_only_the_first_of_many_contradicted_ids_are_named():
    rows = [(f"image{n:02d}", label, "", "") for n in range(8) for label in ("benign", "malignant")]
    with pytest.raises(DataError, match=r"8 image ids have rows that differ: image00, .*, image04, and 3 more"):
        layouts.read_metadata(written(rows))


@pytest.mark.parametrize(
    ("names", "told"),
    [([], ""), (["b", "a"], "a, b"), (list("abcde"), "a, b, c, d, e"), (list("gfedcba"), "a, b, c, d, e, and 2 more")],
)
def test_some_names_the_first_few_in_order(names, told):
    assert layouts.some(names) == told


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("file:///archive/benign/ISIC_0000001.jpg", "ISIC_0000001"),
        ("s3a://bucket/ISIC_1.JPEG", "ISIC_1"),
        ("ISIC_1", "ISIC_1"),
        ("a/lesion.2.png", "lesion.2"),
        ("a/1.2.840.10008.5", "1.2.840.10008"),
        ("a/scan.of-the-left-arm", "scan.of-the-left-arm"),
        ("a/.jpg", ".jpg"),
        ("a/with space.jpg", "with space"),
    ],
)
def test_image_id_is_the_name_without_folders_and_suffix(path, name):
    assert layouts.image_id(path) == name


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (f"{ROOT}/benign/a.jpg", "benign"),
        (f"{ROOT}/train/malignant/a.jpg", "malignant"),
        (f"{ROOT}/a.jpg", None),
    ],
)
@pytest.mark.parametrize("root", [ROOT, ROOT + "/"])
def test_folder_directly_above_an_image_is_its_label_unless_it_is_the_archive(path, label, root):
    assert layouts.folder_label(path, root) == label


@pytest.mark.parametrize("name", ["metadata.csv", "Truth.CSV", "benign/more.csv"])
def test_tables_are_known_by_their_suffix(name):
    assert layouts.is_table(f"{ROOT}/{name}")


@pytest.mark.parametrize("name", ["csv", "a.csv.jpg", "csv/a.jpg", "a_csv"])
def test_other_names_are_no_tables(name):
    assert not layouts.is_table(f"{ROOT}/{name}")


# Files that are not read


@pytest.mark.parametrize(
    "name", [".a.jpg", "_a.jpg", ".git/a.jpg", "_thumbs/a.jpg", "benign/._a.jpg", "benign/.x/y/a.jpg"]
)
def test_hidden_names_are_rejected_at_any_depth(name):
    assert layouts.unread(f"{ROOT}/{name}", ROOT, 100, 1000) == (
        "hidden",
        "a name in its path starts with . or _, which Spark does not read",
    )


@pytest.mark.parametrize("name", ["a.jpg", "a_.jpg", "a/b.c/d.jpg", "_label=benign/a.jpg", "benign/a"])
def test_other_names_are_read(name):
    assert layouts.unread(f"{ROOT}/{name}", ROOT, 100, 1000) is None


def test_hidden_folder_above_the_archive_does_not_hide_it():
    assert layouts.unread("file:///home/.data/_x/a.jpg", "file:///home/.data/_x", 100, 1000) is None


def test_empty_files_and_those_over_the_limit_are_rejected_unread():
    path = f"{ROOT}/a.jpg"
    assert layouts.unread(path, ROOT, 0, 1000) == ("empty", "0 bytes")
    assert layouts.unread(path, ROOT, 1000, 1000) is None
    assert layouts.unread(path, ROOT, 1001, 1000) == ("too_many_bytes", "1001 bytes, the limit is 1000")


def test_every_reason_for_not_reading_is_explained():
    found = [layouts.unread(f"{ROOT}/{name}", ROOT, size, 10) for name, size in ((".a", 1), ("a", 0), ("a", 11))]
    assert {reason for reason, _ in found} == {"hidden", "empty", "too_many_bytes"} & set(images.REASONS)
