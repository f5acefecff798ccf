"""Ids: the same text for one id, whoever wrote it, and never one text for two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.archives import ids
from melanoma_spark.archives.ids import image_id, normalize_id, parse_id
from melanoma_spark.archives.tables import TableHead, read_table, understand

WIDE = "\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT ZERO}\N{FULLWIDTH DIGIT ONE}"


@pytest.mark.parametrize(
    ("same", "texts"),
    [
        ("101", ("101", "101.0", "101.00", "101.000000", "101,0", " 101 ", "101\N{NO-BREAK SPACE}", "\ufeff101", WIDE)),
        ("101", ("1.01E+02", "1,01E+02", "1.010E+02", "1.01e+02")),
        ("100000", ("100000", "1e+05", "1.00000E+05")),
        ("10000000000000", ("1e+13",)),
        ("0", ("0", "0.0")),
        ("M\u00fcller", ("M\u00fcller", "Mu\N{COMBINING DIAERESIS}ller", "\u200bM\u00fcller ")),
        ("P-101.0", ("P-101.0",)),
    ],
)
def test_one_id_has_one_text(same, texts):
    assert {normalize_id(text) for text in texts} == {same}
    assert {image_id(f"folder/{text}.jpg") for text in texts} == {same}
    assert {parse_id(text) for text in texts} == {same}


@pytest.mark.parametrize(
    "text",
    [
        *("00101", "00101.0", "0101", "1.5", "101.05", "101.10", "1.2.0", "101.", ".0", "-1.0", "1 0", "1_0", "a", "A"),
        *("1.000", "101,000"),  # thousands
        *("1E2", "1e2", "12E+03", "0E+00", "E+02"),  # codes
        *("1.23E+04", "1.23457E+11", "1E+05"),  # rounded: nobody knows the other digits
        *("1.5e+00", "1e+16", "9.007199254740993e+15"),
        "\N{ARABIC-INDIC DIGIT ONE}.\N{ARABIC-INDIC DIGIT ZERO}",
    ],
)
def test_everything_else_stays(text):
    assert normalize_id(text) == text


def test_numbers_survive_a_spreadsheet():
    """As pandas and R write the numbers of a column with an empty cell, and as a text of `%f`."""
    for number in (1, 12, 101, 4096, 123_456, 5_000_000, 2**40):
        for text in (str(float(number)), repr(float(number)), f"{number:f}", f"{number:.1f}", f"{number:.2f}"):
            assert normalize_id(text) == str(number), text


def test_missing_ids_are_none():
    assert [parse_id(cell) for cell in ("", " ", "nan", "NA", "unknown", "\ufeff", "-")] == [None] * 7


def test_tables_have_one_patient_whatever_wrote_them():
    rows = []
    for cell in ("101", "101.0", " 101", "00101"):
        content = f"image_id,patient_id,lesion_id\n{cell}.jpg,{cell},{cell}\n".encode()
        table = understand(TableHead("t.csv", content), {})
        rows += [
            (row.image_id, row.patient_id, row.lesion_id)
            for row in read_table(content.decode().splitlines(True), table)
        ]
    assert rows == [("101",) * 3] * 3 + [("00101",) * 3]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("file:///archive/benign/ISIC_0000001.jpg", "ISIC_0000001"),
        ("s3a://bucket/ISIC_1.JPEG", "ISIC_1"),
        ("isic_1.jpg", "ISIC_1"),
        ("ISIC_1", "ISIC_1"),
        ("ISIC_0000072_downsampled", "ISIC_0000072"),
        ("x/isic_0000072_DOWNSAMPLED.jpg", "ISIC_0000072"),
        ("images\\benign\\b.png", "b"),
        (" train/a.jpg ", "a"),
        ("a .jpg", "a"),
        ("a/lesion.2.png", "lesion.2"),
        ("a/photo.jpg.png", "photo"),
        ("a/1.2.840.10008.5", "1.2.840.10008.5"),
        ("a/1.2.840.dcm", "1.2.840"),
        ("a/scan.of-the-left-arm", "scan.of-the-left-arm"),
        ("a/.jpg", ".jpg"),
        ("_downsampled", "_downsampled"),
        ("Ab.jpg", "Ab"),
        ("a/with space.jpg", "with space"),
        ("Mu\N{COMBINING DIAERESIS}ller.jpg", "Müller"),
        ("", ""),
        ("folder/", ""),
    ],
)
def test_image_id(path, name):
    assert image_id(path) == name


@given(st.text(max_size=40) | st.text(st.sampled_from("aA1._/ \\\u0308jpgJPG"), max_size=300))
def test_id_of_an_id_is_itself(path):
    name = image_id(path)
    assert image_id(name) == name
    assert len(name) <= ids.MAX_NAME
