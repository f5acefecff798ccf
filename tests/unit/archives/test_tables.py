"""Tables beside images: heads that are understood or not, rows as records, and whatever bytes a table is made of."""

import codecs
import csv
import io
import re
import tracemalloc
from collections import Counter
from functools import cache

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark import attributes
from melanoma_spark.archives import diagnoses, ids, table_text, tables
from melanoma_spark.archives.layouts import understand_table
from melanoma_spark.archives.tables import HEAD, Record, Table, TableHead, read_table, split_of
from melanoma_spark.errors import DataError

REAL = SHARED / "data/metadata"
SIMPLE = "image_id,label\nISIC_1,benign\nISIC_2,malignant\n"
EXPECTED = [Record("ISIC_1", ("benign",)), Record("ISIC_2", ("malignant",))]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def understood(content, path="metadata.csv", **columns):
    content = content.encode() if isinstance(content, str) else content
    return understand_table(TableHead(path, content[:HEAD]), columns)


def records(content, path="metadata.csv", **columns):
    content = content.encode() if isinstance(content, str) else content
    table = understood(content, path, **columns)
    assert isinstance(table, Table), table
    return list(read_table(io.BytesIO(content), table))


def refused(content, **columns):
    why = understood(content, **columns)
    assert isinstance(why, str), why
    return why


@cache
def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path} is not there: the published tables stand outside the repository")
    table = understood(path.read_bytes(), name)
    with path.open("rb") as file:
        return table, list(read_table(file, table))


def targets(rows, target):
    answers = [diagnoses.target_of(row.labels, target) for row in rows]
    assert {answer.contradiction for answer in answers} == {None}
    return Counter(answer.target for answer in answers)


def test_published_tables_are_read_completely():
    table, rows = real("ISIC_2019_Training_GroundTruth.csv")
    assert (table.role, table.layout, table.split) == ("truth", "isic_2019", "train")
    assert len({row.image_id for row in rows}) == len(rows) == 25_331
    words = Counter(row.labels for row in rows)
    assert words["MEL",] == 4_522
    assert words == {
        ("NV",): 12_875,
        ("MEL",): 4_522,
        ("BCC",): 3_323,
        ("BKL",): 2_624,
        ("AK",): 867,
        ("SCC",): 628,
        ("VASC",): 253,
        ("DF",): 239,
    }
    assert targets(rows, "melanoma") == {1: 4_522, 0: 20_809}
    assert targets(rows, "malignant") == {1: 4_522 + 3_323 + 628, None: 867, 0: 25_331 - 8_473 - 867}
    assert not [row.image_id for row in rows if "downsampled" in row.image_id.lower()]

    table, rows = real("ISIC_2019_Training_Metadata.csv")
    assert (table.role, table.layout, table.has_labels) == ("metadata", "isic_2019", False)
    assert len({row.image_id for row in rows}) == len(rows) == 25_331
    assert {row.attributes.get("sex") for row in rows} == {"male", "female", None}
    assert {row.attributes.get("site") for row in rows} >= {"anterior torso", "head/neck", None}
    assert len({row.lesion_id for row in rows} - {None}) == 11_847
    assert {type(row.attributes.get("age")) for row in rows} == {float, type(None)}
    _, truth = real("ISIC_2019_Training_GroundTruth.csv")
    assert {row.image_id for row in rows} == {row.image_id for row in truth}

    table, rows = real("HAM10000_metadata.csv")
    assert (table.role, table.layout) == ("truth", "ham10000")
    assert len({row.image_id for row in rows}) == len(rows) == 10_015
    assert len({row.lesion_id for row in rows}) == 7_470
    assert targets(rows, "melanoma") == {1: 1_113, 0: 8_902}
    assert targets(rows, "malignant") == {1: 1_113 + 514, None: 327, 0: 10_015 - 1_627 - 327}
    attributes = {"age": 80.0, "sex": "male", "site": "scalp", "source": "vidir_modern"}
    assert rows[0] == Record("ISIC_0027419", ("bkl",), None, "HAM_0000118", attributes=attributes)

    table, rows = real("ISIC_2020_kaggle_train.csv")
    assert (table.role, table.layout) == ("truth", "isic_2020")
    assert len({row.image_id for row in rows}) == len(rows) == 33_126
    assert len({row.patient_id for row in rows}) == 2_056
    assert targets(rows, "melanoma") == targets(rows, "malignant") == {1: 584, 0: 32_542}


@pytest.mark.parametrize(
    "content",
    [
        *(SIMPLE.encode(how) for how in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")),
        codecs.BOM_UTF16_BE + SIMPLE.encode("utf-16-be"),
        *(SIMPLE.replace("\n", end).encode() for end in ("\r\n", "\r")),
        *(SIMPLE.replace(",", between).encode() for between in (";", "\t", "|", " , ")),
        SIMPLE.rstrip("\n").encode(),
        *(SIMPLE.replace("image_id,label", head).encode() for head in ("IMAGE_ID,Label", " image_id , label ")),
        SIMPLE.replace("\nISIC_2", "\n\n , \nISIC_2").encode(),
        *(re.sub(r"(\w+)", r'"\1"', SIMPLE).replace(",", between).encode() for between in ",;"),
        b"hair,image_id,ink,label\n40,ISIC_1,f,benign\n,ISIC_2,,malignant\n",
        b"image_id,label\nISIC_1,benign,a cell too many\nISIC_2,malignant\n",
        b"image_id,label,label,image_id\nISIC_1,benign,nevus,x\nISIC_2,malignant,nevus,y\n",
        b"image_id,label\nISIC_1,benign\n,malignant\nISIC_2,malignant\n",
        ("image_id,label" + ",x" * 998 + SIMPLE.removeprefix("image_id,label")).encode(),  # as many columns as may be
        *(SIMPLE.replace("image_id", name).encode() for name in tables.NAMES["image_id"]),
        *(SIMPLE.replace("label", name).encode() for name in tables.LABELS),
    ],
)
def test_table_is_read_however_it_was_saved_and_its_columns_are_named(content):
    assert records(content) == EXPECTED


CP1252 = "image_id,label,patient_id\n" + "".join(f"{n},benign,x\n" for n in range(10_000))
ISIC = "isic_id,diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4,diagnosis_5,anatom_site_1,anatom_site_2\n"
BRANCH = "Malignant:Malignant melanocytic proliferations (Melanoma):Melanoma, NOS"
FIELDS = "image_id,patient_id,lesion_id,split,age,sex,site,fitzpatrick_skin_type,image_type,attribution,license\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *(
            ("image_id,label,patient_id\nb,nevus,Müller\n".encode(how), [Record("b", ("nevus",), "Müller")])
            for how in ("utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252")
        ),
        # stray bytes behind the head
        (CP1252.encode() + b"z,benign,\x80\x81\n", [Record("z", ("benign",), "€\x81")]),
        # delimiters, quotes and line ends in quotes; cells that are missing; formulas, which are text
        (
            'image_id,label,lesion_id\nISIC_1,"benign, ""typical""","left\r\narm"\n',
            [Record("ISIC_1", ('benign, "typical"',), lesion_id="left\r\narm")],
        ),
        ("image_id,label,patient_id,sex\na\nb,nevus\n", [Record("a"), Record("b", ("nevus",))]),
        ("path,patient_id,sex\na.jpg,A\nb.jpg,B", [Record("a", patient_id="A"), Record("b", patient_id="B")]),
        (
            'image_id,label,patient_id,age\n=1+1,"=HYPERLINK(""http://x"",""y"")",@SUM(A1),=1\n',
            [Record("=1+1", ('=HYPERLINK("http://x","y")',), patient_id="@SUM(A1)")],
        ),
        # all labels, all fields
        (
            "image_id,target,diagnosis,benign_malignant\na,0,unknown,benign\nb,,nevus,nevus\n",
            [Record("a", ("unknown", "benign", "0")), Record("b", ("nevus",))],
        ),
        (ISIC + 'a,Malignant,Malignant melanocytic proliferations (Melanoma),"Melanoma, NOS",,,Trunk,\nb,,,,,,,Back\n',
         [Record("a", (BRANCH,), attributes={"site": "trunk"}), Record("b")]),
        (
            FIELDS + "a,p,l,Valid,85+,F,Head/Neck,type III,Dermoscopic,M,C\nb,NA,unknown,other,-1,?,n/a,7,,None,-\n",
            [
                Record("a", (), "p", "l", (), "validation", {"age": 85, "sex": "female", "site": "head/neck",
                       "skin_type": "III", "image_type": "dermoscopic", "source": "M", "licence": "C"}),
                Record("b"),
            ],
        ),
        # neither column of ISIC 2017 is a nevus; the truth of ISIC 2016 has no header; pairs are of two images
        (
            "image_id,melanoma,seborrheic_keratosis\na,0.0,0.0\nb,1.0,0.0\nc,0.0,1.0\n",
            [Record("a", ("nevus",)), Record("b", ("melanoma",)), Record("c", ("seborrheic_keratosis",))],
        ),
        *(
            (text, [Record("ISIC_0000003", ("benign",)), Record("ISIC_0000012", ("melanoma",))])
            for text in (
                "ISIC_0000003,benign\nISIC_0000012,malignant\n",
                "ISIC_0000003,0.0\nISIC_0000012,1.0\n",
                "ISIC_0000003;0\nISIC_0000012;1\n",
            )
        ),
        (
            "image_name_1,image_name_2\nI_2,I_1\nI_3,I_3\nI_4,\n",
            [Record("I_2", pairs=("I_1+I_2",)), Record("I_1", pairs=("I_1+I_2",))],
        ),
    ],
)  # fmt: skip
def test_rows_as_records(content, expected):
    assert records(content)[-len(expected) :] == expected


def test_columns_of_the_user_come_first_and_rows_may_be_text():
    table = "image_id,Foto,label,Befund\nx,a.jpg,1,Nävus\n"
    assert records(table, image_id="foto", label=" befund ") == [Record("a", ("Nävus",))]
    assert refused("nummer,wort\n1,benign\n").startswith(
        "has no column of image ids: expected one of image_id, isic_id"
    )
    assert records("nummer,wort\n1,benign\n", image_id="Nummer", label="Wort") == [Record("1", ("benign",))]

    table, file = understood(SIMPLE), io.BytesIO(SIMPLE.encode())
    assert list(read_table(SIMPLE.splitlines(), table)) == list(read_table(io.StringIO(SIMPLE), table)) == EXPECTED
    rows = read_table(file, table)
    next(rows)
    rows.close()
    assert not file.closed


@pytest.mark.parametrize(
    ("cell", "age"),
    [("45", 45), ("45.0", 45), ("4,5", 4.5), (" 85+ ", 85), (">85", 85), ("30 years", 30), ("0", 0), ("121", None)]
    + [(cell, None) for cell in ("", "nan", "inf", "1e2", "-5", "0x10", "9" * 400, "=1+1", "٤٥", "1900-01-01")],
)
def test_age(cell, age):
    assert records(f'image_id,age\na,"{cell}"\n')[0].attributes.get("age") == age


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("1", "I"), ("6.0", "VI"), ("iv", "IV"), ("FST 3", "III"), ("Fitzpatrick skin type II", "II"), ("type-5", "V")]
    + [(cell, None) for cell in ("", "0", "7", "34", "1.5", "VII", "IIV", "unknown")],
)
def test_skin_type(cell, expected):
    assert records(f"image_id,skin_type\na,{cell}\n")[0].attributes.get("skin_type") == expected


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (("MEL",), ("1,0,0", "1.0,0.0,0.0")),
        (("NV",), ("0.2,0.7,0.1",)),
        (("unknown",), ("0.4,0.3,0.3", "1,1,0", "0,0,0", "1,,")),
        ((), (",,", "nan,nan,nan")),
    ],
)
def test_one_hot(labels, rows):
    table = "image,MEL,NV,BCC\na,0,1,0\n" + "".join(f"b,{cells}\n" for cells in rows)
    assert {row.labels for row in records(table)[1:]} == {labels}


@pytest.mark.parametrize("count", [1001, 40_000])
def test_too_many_columns(count):
    assert refused(b"image_id,label" + b"," * (count - 2)) == f"has {count} columns, the limit is 1000"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n , \n", "is empty"),
        (b"image_id,label\na\x00,benign\n", "is not text: it holds the byte 0x00"),
        (PNG, "is not text: it holds the byte 0x1a"),
        (b"PK\x03\x04" + bytes(30), "is not text"),
        (SIMPLE.encode("utf-32"), "is in UTF-32; save it as UTF-8"),
        (b"a.jpg,benign\nb.jpg,malignant\n", "has no column of image ids"),
        (b"ISIC_1,benign,3\nISIC_2,malignant,4\n", "has no column of image ids"),
        (b"label,sex\nbenign,f\n", "has no column of image ids: .* found label, sex$"),
        (b"image_id,label\na,benign\nb,\"benign\n", "is not a table: line 3: unexpected end of data"),
        (b'image_id,label\na,"benign"x\n', "is not a table: line 2"),
    ],
)  # fmt: skip
def test_files_that_are_not_tables_have_a_reason(content, why):
    with pytest.raises(DataError, match=why):
        raise DataError(refused(content))


def test_wide_headers_long_lines_and_cut_heads():
    why = refused(",".join(f"column{n}" for n in range(500)))
    assert "column19," in why
    assert "column20" not in why
    assert why.endswith("and 480 more")
    assert len(refused("x" * HEAD)) < 300
    # In pieces of a MiB it would be two, the second with an id from the middle of a cell.
    table = understood(SIMPLE)
    line = "a,benign," + ",".join(["x" * 100_000] * 15)
    result = []
    with pytest.raises(DataError):
        result.extend(read_table(io.BytesIO(line.encode()), table))
    assert result == []

    complete = ("image_id,label,note\n" + 'a,benign,"some\nlines, of text"\n' * 5000).encode()
    for size in range(HEAD, HEAD + 40):
        table = understand_table(TableHead("t.csv", complete[:size]), {})
        assert isinstance(table, Table)
        assert table.layout == "table"


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"a\x00,benign\n", "is not text: it holds the byte 0x00"),
        (b"a" + b"," * 1000, "has 1001 columns, the limit is 1000$"),
        (b'a,"benign\n' + b"b,benign\n" * 200_000, "a quote is never closed|field larger than"),
        (b'a,"benign', "unexpected end of data"),
        (b"a," + b"x" * 200_000, "field larger than"),
        ((b"a" * 2000 + b",") * 900, "holds a row of more than 1048576 characters"),
        ((b'"' + b"a\n" * 60_000 + b'",') * 10, "holds a row of more than 1048576 characters"),
    ],
    ids=["NUL", "columns", "open quote", "open quote at the end", "long cell", "long line", "long row"],
)
def test_damage_after_the_head_is_a_data_error_with_the_path(tail, why):
    with pytest.raises(DataError, match=rf"^metadata\.csv .*({why})"):
        records(SIMPLE.encode() * 3000 + tail)


def test_processor_time_of_a_table_is_bounded(monkeypatch):
    monkeypatch.setattr(table_text, "MAX_SECONDS", 0)
    with pytest.raises(DataError, match=r"^metadata\.csv is too costly: it takes over 0 s of processor time"):
        records(SIMPLE.encode() * 500)


@pytest.mark.parametrize("part", [".jpg", ".jpg ", "_downsampled", " ", "type ", "1 ", "a/", "0.", "\u0301\u0323"])
def test_very_long_cells_are_read_quickly(part):
    """Suffixes, blanks and combining characters: there are ways to look for each that take the square of the length."""
    cell = "x" + part * (100_000 // len(part)) + "y"
    row = records(f"image_id,age,sex,skin_type,site,label,split\n{cell},{cell},{cell},{cell},{cell},{cell},{cell}\n")[0]
    assert len(row.image_id) <= ids.MAX_NAME
    assert len(row.labels[0]) <= attributes.MAX_WORD
    assert row.attributes.keys() == {"site"}
    assert row.split is None


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ("train", "ISIC_2019_Training_GroundTruth.csv")),
        ("test", ("ISIC-2017_Test_v2_Part3_GroundTruth.csv", "myTestImages")),
        ("validation", ("ISIC2018_Task3_Validation_Input", "VALID")),
        (None, ("train_and_test", "latest", "contested", "")),
    ],
)
def test_split_of_a_name(split, names):
    assert {split_of(name) for name in names} == {split}


@pytest.mark.parametrize(
    ("cells", "sexes"),
    [
        ("HMx", ["male", "female", None]),
        ("MFM", ["male", "female", "male"]),
        (["hombre", "m", "f"], ["male", "male", "female"]),
    ],
)
def test_an_m_beside_an_h_is_a_woman(cells, sexes):
    text = "image,sex\n" + "".join(f"{place},{cell}\n" for place, cell in enumerate(cells))
    assert [row.attributes.get("sex") for row in records(text)] == sexes


def test_tables_without_labels_and_paths_before_ids():
    assert understood("image,label,melanoma,nevus\na,benign,left arm,no\n").one_hot == {}
    table = understood("image,dx,MEL,NV,diagnosis_1,sex\na,nevus,0,1,Benign,f\n")
    assert table.has_labels
    bare = table.without_labels()
    assert not bare.has_labels
    lines = ["image,dx,MEL,NV,diagnosis_1,sex", "a,nevus,0,1,Benign,f"]
    assert list(read_table(lines, bare)) == [Record("a", attributes={"sex": "female"})]

    head = "image_id,path,patient_id\n"
    assert references(head + "I1,p1/I1.jpg,A\nI2,,B\nI3,p1/I4.jpg,C\nI5,I5.jpg,D\n") == ["p1/I1.jpg", "I2", "I3", "I5"]
    assert references(head + "p2/I1,E:\\DCIM\\I1.jpg,A\n") == ["p2/I1"], "an id that has folders keeps them"
    rows = "".join(f"I{number},p/I{number}.jpg,A\n" for number in range(60))
    assert references(f"{head}{rows}I99,p/I98.jpg,X\n")[-1] == "I99", "whatever the first rows are like"
    assert references("file,path\na/1.jpg,b/1.jpg\n", image_id="file") == ["a/1.jpg"]


CELL = st.text(max_size=5) | st.sampled_from(
    [
        *("image_id", "label", "image", "MEL", "NV", "isic_id", "diagnosis_1", "split", "age", "benign", "1", "0.0"),
        *("ISIC_1", '"', '""', '"a', "=1", "", " ", "\x00", "\ufeff", "é", "\x85", "\u2028", "x" * 300),
        *("image_name_1", "image_name_2"),
    ]
)
SOUP = st.lists(st.tuples(CELL, st.sampled_from([*",;\t|\n\r", "\r\n", ",", ",", "\n"])), max_size=60).map(
    lambda parts: "".join(cell + end for cell, end in parts)
)
CONTENT = (
    st.binary(max_size=400)
    | st.tuples(SOUP, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "utf-32"])).map(
        lambda soup: soup[0].encode(soup[1], "replace")
    )
    | st.binary(max_size=200).map(lambda tail: SIMPLE.encode() + tail)
)


@given(CONTENT, CONTENT)
def test_any_bytes_are_records_or_a_data_error(head, other):
    table = understand_table(TableHead("t.csv", head), {})
    if isinstance(table, str):
        assert table
        return
    for content in (head, other, head + other):  # what is read may have changed since the head was
        try:
            rows = list(read_table(io.BytesIO(content), table))
        except DataError as error:
            assert str(error).startswith("t.csv ")  # noqa: PT017
        else:
            assert all(isinstance(row, Record) and row.image_id for row in rows)
            for target in diagnoses.TARGETS:
                for row in rows:
                    diagnoses.target_of(row.labels, target)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True),
            st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), max_size=12),
        ),
        min_size=1,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_comes_back_row_for_row(rows, line_end, encoding):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=line_end)
    writer.writerows([("image_id", "patient_id", "label"), *((name, patient, "nevus") for name, patient in rows)])
    expected = [Record(name, ("nevus",), ids.parse_id(patient)) for name, patient in rows]
    assert records(text.getvalue().encode(encoding)) == expected


class Rows(io.RawIOBase):
    """A table of so many rows of 2 kB that is never complete in memory."""

    def __init__(self, count):
        self.rest = iter(range(count))
        self.left = b"image_id,label,patient_id,age,note\n"

    def readable(self):
        return True

    def readinto(self, buffer):
        while len(self.left) < len(buffer) and (n := next(self.rest, None)) is not None:
            self.left += b"image_%d,a word of number %d,patient_%d,%d,%s\n" % (n, n, n, n % 100, b"note" * 500)
        size = min(len(buffer), len(self.left))
        buffer[:size], self.left = self.left[:size], self.left[size:]
        return size


def peak(count):
    table = understood("image_id,label,patient_id,age\na,benign,p,1\n")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_table(io.BufferedReader(Rows(count)), table)) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_rows_need_no_more_memory():
    small, large = peak(1200), peak(12_000)  # both fill the cache of normalized ids
    assert large < 1.5 * small, (small, large)
    assert large < 8 << 20


def references(content, **columns):
    return [row.reference for row in records(content, **columns)]


WHOLE = "path,patient_id,sex\np1/a.jpg,PAT001,f\n\np1/b.jpg,PAT002,m\n"


def ending(content, table):
    """The last row of a table, or why it is damaged."""
    try:
        return list(read_table(io.BytesIO(content), table))[-1]
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_table_that_was_cut_in_a_row_is_damaged_wherever(encoding):
    complete = WHOLE.encode(encoding)
    table = understood(complete)
    ends = [ending(complete[:at], table) for at in range(len("path,patient_id,sex\np".encode(encoding)), len(complete))]
    damaged = [end for end in ends if isinstance(end, str)]
    assert len(damaged) > 0.8 * len(ends)
    assert all(re.search("ends in the middle of a (row|character)", why) for why in damaged)
    # within the last cell of all a cut cannot be seen: that cell alone is short then
    assert {row.patient_id for row in ends if isinstance(row, Record)} == {"PAT001", "PAT002"}
