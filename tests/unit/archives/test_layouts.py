"""Archive layouts: recognized from heads of tables and names of folders, or required by name; and ignored files."""

import io

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.archives import ids, layouts
from melanoma_spark.archives.layouts import (
    LAYOUTS,
    Layout,
    classify_file,
    label_from_folders,
    recognize_layout,
)
from melanoma_spark.archives.tables import FIELDS, HEAD, Record, TableHead, read_table
from melanoma_spark.errors import ConfigError, DataError

REAL = SHARED / "data/metadata"

TRUTH_2016 = {
    "ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "ISIC_0000000,benign\nISIC_0000002,malignant\n",
    "ISBI2016_ISIC_Part3_Test_GroundTruth.csv": "ISIC_0000003,0.0\nISIC_0000012,1.0\n",
}
TRUTH_2017 = {
    f"ISIC-2017_{split}_Part3_GroundTruth.csv": f"image_id,melanoma,seborrheic_keratosis\nISIC_{n},0.0,0.0\n"
    for n, split in enumerate(["Training", "Validation", "Test_v2"])
}
TRUTH_2018 = {
    "ISIC2018_Task3_Training_GroundTruth.csv": "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n",  # noqa: E501
    "ISIC2018_Task3_Training_LesionGroupings.csv": "image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_1,histopathology\n",  # noqa: E501
}
TRUTH_2019 = {
    "ISIC_2019_Training_GroundTruth.csv": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_1_downsampled,1,0,0,0,0,0,0,0,0\n",  # noqa: E501
    "ISIC_2019_Training_Metadata.csv": "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_1_downsampled,55,,L_1,f\n",  # noqa: E501
}
TRUTH_2020 = {
    "ISIC_2020_Training_GroundTruth_v2.csv": "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,"  # noqa: E501
    "diagnosis,benign_malignant,target\nISIC_1,IP_1,IL_1,male,45.0,head/neck,unknown,benign,0\n",
    "ISIC_2020_Training_Duplicates.csv": "image_name_1,image_name_2\nISIC_1,ISIC_2\n",
}
HAM = {
    "HAM10000_metadata": "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_1,ISIC_1,mel,histo,80.0,male,scalp\n"
}
CLI = {
    "metadata.csv": "isic_id,attribution,copyright_license,age_approx,anatom_site_1,diagnosis_1,diagnosis_2,diagnosis_3,sex\n"  # noqa: E501
    "ISIC_1,MSK,CC-0,50,Trunk,Malignant,Malignant epidermal proliferations,,male\n"
}
OLD_CLI = {
    "metadata.csv": "isic_id,attribution,copyright_license,age_approx,anatom_site_general,benign_malignant,diagnosis,sex\n"  # noqa: E501
    "ISIC_1,MSK,CC-0,50,torso,benign,nevus,male\n"
}
OWN = {"befunde.csv": "Nummer;Wort\na;gut\n"}
TABLES = {
    "isic_2016": TRUTH_2016,
    "isic_2017": TRUTH_2017,
    "isic_2018": TRUTH_2018,
    "isic_2019": TRUTH_2019,
    "isic_2020": TRUTH_2020,
    "ham10000": HAM,
    "isic_cli": CLI,
}
FOLDERS = {"benign": 3, "malignant": 2}
SPLIT_FOLDERS = {f"{split}/{name}": 1 for split in ("train", "test") for name in ("benign", "malignant")}


def heads(files):
    return [TableHead(path, text.encode()[:HEAD]) for path, text in files.items()]


def result(files, folders=None, layout=None, **changes):
    return recognize_layout(heads(files), folders or {"images": 2}, layout, **changes)


def records(files, layout):
    by_path = {table.path: table for table in layout.tables}
    return {path: list(read_table(io.BytesIO(files[path].encode()), table)) for path, table in by_path.items()}


@pytest.mark.parametrize("name", TABLES)
def test_published_layouts_are_recognized_and_may_be_named(name):
    files = TABLES[name]
    layout = result(files)
    assert (layout.name, layout.has_labels, layout.folder_labels, layout.ignored) == (name, True, False, ())
    assert {table.path for table in layout.tables} == set(files)
    assert layout.summary.startswith(f"{name}: labels from ")
    assert recognize_layout(reversed(heads(files)), {"images": 2}) == result(files, layout=name) == layout
    assert result(files, layout="table").tables == layout.tables


def test_published_tables_are_read_with_their_splits():
    layout = result(OLD_CLI)
    assert layout.name == "isic_cli"
    attributes = {"age": 50.0, "sex": "male", "site": "torso", "source": "MSK", "licence": "CC-0"}
    old = Record("ISIC_1", ("nevus", "benign"), attributes=attributes)
    assert records(OLD_CLI, layout)["metadata.csv"] == [old]
    assert records(CLI, result(CLI))["metadata.csv"][0].labels == ("Malignant:Malignant epidermal proliferations",)
    rows = records(TRUTH_2019, result(TRUTH_2019))
    assert {row.image_id for table in rows.values() for row in table} == {"ISIC_1"}
    assert ids.image_id("ISIC_2019_Training_Input/ISIC_1.jpg") == "ISIC_1"
    assert [table.role for table in result(TRUTH_2020).tables] == ["pairs", "truth"]
    assert [table.role for table in result(TRUTH_2018).tables] == ["truth", "lesions"]

    layout = result(TRUTH_2017)
    assert sorted(table.split for table in layout.tables) == ["test", "train", "validation"]
    assert "splits from the names of tables" in layout.summary
    only = {path: text for path, text in TRUTH_2017.items() if "Test" not in path}
    assert {table.split for table in result(only).tables} == {None}
    assert {row.split for row in records(TRUTH_2016, result(TRUTH_2016)).values() for row in row} == {"train", "test"}

    files = TRUTH_2020 | HAM
    layout = result(files)
    assert layout.name == "isic_2020+ham10000"
    only = result(files, layout="ham10000")
    assert [table.path for table in only.tables] == ["HAM10000_metadata"]
    assert only.ignored == tuple((path, "is not of the layout ham10000") for path in sorted(TRUTH_2020))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("other", [*TABLES, "folders"])
def test_a_missing_layout_is_refused_with_what_is_there(name, other):
    if name == other:
        return
    with pytest.raises(
        DataError, match=rf"^layout={other} needs .*; found no tables; folders of images: none; layout=null"
    ):
        recognize_layout([], {}, other)
    with pytest.raises(DataError) as error:
        result(TABLES[name], layout=other)
    message = str(error.value)
    assert message.startswith(f"layout={other} needs {LAYOUTS[other].needs}; found ")
    assert min(TABLES[name]) in message
    assert "folders of images: images" in message


def test_columns_and_words_of_the_user():
    columns = {"image_id": "nummer", "label": "WORT"}
    layout = result(OWN, columns=columns)
    assert layout.name == "table"
    assert records(OWN, layout) == {"befunde.csv": [Record("a", ("gut",))]}
    assert result(OWN, layout="table", columns=columns) == layout
    blank = {"patient_id": "", "sex": " ", "age": None}
    assert result(OWN, columns=columns | blank) == layout
    message = r"^ingest.columns.label=Wert: no table has a column of this name; found befunde\.csv .* Nummer, Wort"
    with pytest.raises(DataError, match=message):
        result(OWN, columns={"image_id": "Nummer", "label": "Wert"})

    folders = {"gut": 1, "boese": 1}
    assert result({}, folders).name == "plain"
    assert result({}, folders, words=["GUT", "boese"]).name == "folders"
    named = result({}, folders, "folders")
    assert label_from_folders("boese/a.jpg", named) == ("boese", None)
    with pytest.raises(DataError, match=r"^layout=folders needs folders named like diagnoses"):
        result({}, {"images": 1, "train": 2}, "folders")


NEW_IMAGES = {"tonight.csv": "path,patient_id,age,site\np1/a.jpg,101.0,45,back\n"}


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize("columns", [{}, {"label": "dx"}, {"label": "dx", "patient_id": "patient_id"}])
def test_new_images_need_no_labels_whatever_the_archive_for_training_had(layout, columns):
    read = result(NEW_IMAGES, layout=layout, columns=columns, needs_labels=False)
    (record,) = records(NEW_IMAGES, read)["tonight.csv"]
    assert record == Record("a", patient_id="101", attributes={"age": 45.0, "site": "back"})
    assert read.ignored == ()


def test_columns_that_tables_of_new_images_lack_are_named():
    read = result(NEW_IMAGES, columns={"label": "dx", "site": "where", "sex": "s"}, needs_labels=False)
    assert records(NEW_IMAGES, read)["tonight.csv"][0].patient_id == "101"
    assert read.ignored == (("ingest.columns", "names columns that no table has: s, where"),)


def test_unknown_names_raise_and_unknown_tables_are_ignored():
    with pytest.raises(ConfigError, match=r"^unknown layout 'isic_2021'; known: isic_2016, .*, plain$"):
        result(HAM, layout="isic_2021")
    with pytest.raises(ConfigError, match=r"^ingest.columns: unknown field wort; known: image_id, .*, label$"):
        result(HAM, columns={"wort": "dx"})
    files = HAM | {"prices.csv": "item,price\na,1\n", "bad.csv": "image_id,label\na\x00,b\n"}
    assert [path for path, _ in result(files).ignored] == ["bad.csv", "prices.csv"]
    assert dict(result(files).ignored)["prices.csv"].endswith("found item, price")


def test_labels_come_from_tables_then_from_folders():
    metadata = {"m.csv": "image,lesion_id,age_approx,anatom_site_general\na,l,40,torso\n"}
    with pytest.raises(
        DataError, match=r"^no labels found: found m\.csv has the columns image, .*; folders of images: i"
    ):
        result(metadata)
    plain = result(metadata, layout="plain")
    assert (plain.name, plain.has_labels) == ("plain", False)
    assert [table.role for table in plain.tables] == ["metadata"]
    folders = result(metadata, FOLDERS)
    assert (folders.name, folders.folder_labels) == ("folders", True)
    assert "more about the images from m.csv" in folders.summary

    layout = result(HAM, FOLDERS)
    assert (layout.name, layout.folder_labels) == ("ham10000", False)
    named = result(HAM, FOLDERS, "folders")
    assert (named.name, named.folder_labels) == ("folders", True)
    assert not any(table.has_labels for table in named.tables)
    assert records(HAM, named)["HAM10000_metadata"][0].lesion_id == "HAM_1"


@pytest.mark.parametrize("third", [None, "valid", "val", "validation"])
def test_folders_with_splits(third):
    layout = result({}, SPLIT_FOLDERS | ({f"{third}/benign": 1} if third else {}))
    assert (layout.name, layout.folder_labels, layout.folder_splits) == ("folders", True, True)
    assert "splits from the names of folders" in layout.summary
    assert label_from_folders("train/malignant/a.jpg", layout) == ("malignant", "train")
    assert label_from_folders("test/benign/a.jpg", layout) == ("benign", "test")
    assert not third or label_from_folders(f"{third}/benign/a.jpg", layout) == ("benign", "validation")


@pytest.mark.parametrize(
    "folders",
    [
        *(["benign", "malignant"], ["melanoma", "nevus", "seborrheic_keratosis"], ["melanoma", "NotMelanoma"]),
        *(["Skin Cancer/images/Train/Pigmented Benign Keratosis", "x"], ["akiec", "bcc"], ["0", "1"]),
        *(["train/benign", "valid/malignant"], ["train/0", "train/1"]),  # training alone is no split
    ],
)
def test_folders_named_like_diagnoses(folders):
    layout = result({}, dict.fromkeys(folders, 1))
    assert layout == Layout("folders", "folders: labels from the names of folders", folder_labels=True)
    assert result({}, dict.fromkeys(folders, 1), "folders") == layout
    assert label_from_folders("train/benign/a.jpg", layout) == ("benign", None)


@pytest.mark.parametrize(
    "folders", [[], ["."], [""], ["images"], ["0"], ["1"], ["0", "1", "2"], ["patient_1", "patient_2"], ["other"]]
)
def test_other_folders_are_plain(folders):
    layout = recognize_layout([], dict.fromkeys(folders, 1))
    assert layout == Layout("plain", "plain: no labels")
    assert label_from_folders("benign/a.jpg", layout) == (None, None)
    assert recognize_layout([], dict.fromkeys(folders, 1), "plain") == layout


@pytest.mark.parametrize(
    ("path", "words", "label"),
    [
        ("benign/patient_1/a.jpg", (), "benign"),
        ("benign/nevus/a.jpg", (), "nevus"),
        ("benign/1/a.jpg", (), "benign"),
        ("melanoma/0/a.jpg", (), "melanoma"),
        ("malignant/other/a.jpg", (), "malignant"),
        ("malignant/unknown/1/a.jpg", (), "malignant"),
        ("unknown/quux/a.jpg", (), "unknown"),
        ("other/1/a.jpg", (), "1"),
        ("benign/train/a.jpg", (), "benign"),
        ("benign/other/a.jpg", ("other",), "other"),
        ("benign/images/a.jpg", (), "benign"),
        ("train/quux/a.jpg", (), "quux"),
        ("gut/quux/a.jpg", ("gut",), "gut"),
        ("images/train/a.jpg", (), None),
        ("a.jpg", (), None),
        ("./a.jpg", (), None),
    ],
)
def test_label_is_the_nearest_folder_that_names_one(path, words, label):
    assert label_from_folders(path, result({}, FOLDERS), words)[0] == label


@pytest.mark.parametrize("files", [HAM, TRUTH_2016, TRUTH_2019, CLI])
def test_plain_takes_no_labels_where_there_are_some(files):
    layout = result(files, FOLDERS, "plain")
    assert (layout.name, layout.has_labels) == ("plain", False)
    assert not any(row.labels for rows in records(files, layout).values() for row in rows)


@pytest.mark.parametrize(
    ("reason", "paths"),
    [
        ("hidden", (".a.jpg", "benign/.x/y/a.jpg", ".metadata.csv")),
        (
            "system",
            ("__MACOSX/benign/a.jpg", "benign/.DS_Store", "benign/._a.jpg", "._metadata.csv", "lost+found/a.jpg"),
        ),
        ("system", ("Thumbs.db", "__MACOSX/metadata.csv", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/a.jpg")),
        ("system", ("x/$RECYCLE.BIN/a.jpg", ".Trash-1000/files/a.jpg", "a/.ipynb_checkpoints/a.jpg")),
        ("other", ("README.md", "LICENSE", "x/attribution.TXT")),
        ("table", ("metadata.csv", "Truth.CSV", "benign/more.tsv", "HAM10000_metadata", "ham.tab")),
        ("mask", ("ISIC_0_superpixels.png", "ISIC_0_segmentation.png", "ISIC_0_Segmentation.PNG")),
        ("mask", ("ISIC_0_attribute_pigment_network.png", "ISIC_0_expert1_mask.png")),
        (None, ("a.jpg", "_a.jpg", "a/b.c/d.JPG", "benign/a", "unmask.jpg", "scan.dcm", "photo.xyz")),
        (None, ("csv", "a.csv.jpg", "csv/a.jpg", "a_csv")),
    ],
)
def test_roles_of_files(reason, paths):
    for path in paths:
        role, found_reason, detail = classify_file(path)
        if reason in ("other", "table"):
            assert (role, found_reason, detail) == (reason, None, None), path
        else:
            expected = "other" if reason == "system" else "image"
            assert (role, found_reason, bool(detail)) == (expected, reason, bool(reason)), path


@pytest.mark.parametrize(
    ("names", "message"),
    [([], ""), (["b", "a"], "a, b"), (list("abcde"), "a, b, c, d, e"), (list("gfedcba"), "a, b, c, d, e, and 2 more")],
)
def test_first_few_names_in_order(names, message):
    assert layouts.first_few(names) == message


LINES = [line for files in (*TABLES.values(), OLD_CLI, OWN) for text in files.values() for line in text.splitlines()]
CONTENT = st.binary(max_size=100) | st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=5).map(
    lambda lines: "\n".join(lines).encode("utf-8", "replace")
)
PART = st.sampled_from(["train", "test", "valid", "benign", "nevus", "0", "1", "images", ".", "..", ""]) | st.text(
    max_size=8
)
PATH = st.lists(PART, max_size=4).map("/".join)


@given(
    st.dictionaries(PATH, CONTENT, max_size=4),
    st.dictionaries(PATH, st.integers(0, 9), max_size=5),
    st.none() | st.sampled_from([*LAYOUTS]) | st.text(max_size=5),
    st.dictionaries(st.sampled_from(FIELDS), st.none() | st.sampled_from(["dx", "image", "Nummer", " "]), max_size=2),
    st.lists(st.text(max_size=5), max_size=2),
)
def test_any_archive_has_a_layout_or_a_known_error(files, folders, name, columns, words):
    try:
        layout = recognize_layout([TableHead(*file) for file in files.items()], folders, name, columns, words)
    except (DataError, ConfigError) as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert message
        return
    assert layout.name == name or name is None
    assert layout.summary.startswith(f"{layout.name}: ")
    assert {table.path for table in layout.tables} | {path for path, _ in layout.ignored} == set(files)
    for table in layout.tables:
        try:
            assert all(isinstance(row, Record) for row in read_table(io.BytesIO(files[table.path]), table))
        except DataError as error:
            assert str(error).startswith(f"{table.path} ")  # noqa: PT017
    for folder in folders:
        label, split = label_from_folders(f"{folder}/a.jpg", layout, words)
        assert label is None or layout.folder_labels
        assert split is None or layout.folder_splits


@given(PATH)
def test_any_path_has_a_role(path):
    role, reason, detail = classify_file(path)
    assert role in ("image", "table", "other")
    assert (reason is None) == (detail is None)
    assert reason in (None, "hidden", "mask", "system")
    assert role == "image" or reason in (None, "system")
