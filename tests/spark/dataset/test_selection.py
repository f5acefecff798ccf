"""Selection: every file is kept or rejected with a reason, and nothing that belongs together is parted.

Rows are made here as the jobs before would make them; many cases share a Spark job, since each costs a second.
"""

import hashlib
import hmac
import random
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from functools import reduce

import pytest

from melanoma_spark import config, schemas
from melanoma_spark.archives import ids, layouts, matching, tables
from melanoma_spark.dataset import groups, selection, splits
from melanoma_spark.errors import DataError
from melanoma_spark.images.reasons import REASONS

INGEST = {"test_fraction": 0.3, "validation_fraction": 0.3}
SETTINGS = config.parse({"ingest": INGEST})
THEN = datetime(2024, 5, 6, 7, 8, 9)
FOLDERS = layouts.recognize_layout([], {"benign": 1, "malignant": 1})
TABLE = layouts.recognize_layout([tables.TableHead("t.csv", b"image_id,diagnosis\na,nevus\n")], {"benign": 1})


def settings(indeterminate="leave_out", positive=(), negative=(), overlap="error", **changes):
    labels = {"positive": positive, "negative": negative}
    ingest = {**INGEST, "indeterminate": indeterminate, "split_overlap": overlap, "labels": labels}
    return config.parse({"ingest": ingest, **changes})


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def few_partitions(spark):
    spark.conf.set("spark.sql.shuffle.partitions", "1")
    yield
    spark.conf.unset("spark.sql.shuffle.partitions")


def in_one_job(frames):
    """The rows of several DataFrames of the same columns, by the name of each, in one Spark job."""
    from pyspark.sql import functions as f

    named = [frame.withColumn("case", f.lit(name)) for name, frame in frames.items()]
    result = {name: [] for name in frames}
    for row in reduce(lambda one, other: one.unionByName(other), named).collect():
        values = row.asDict()
        result[values.pop("case")].append(values)
    return result


def by_path(rows):
    result = {row["source_uri"]: row for row in rows}
    assert len(result) == len(rows)
    return result


def file(path, reason=None, detail=None):
    """A row of `schemas.DECODED` without the image, with what the listing adds."""
    unread = reason is not None
    return {
        "source_uri": path,
        "length": 1000,
        "modified": THEN,
        "sha256": digest(path),
        "pixel_sha256": None if unread else digest(f"pixels {path}"),
        "perceptual_hash": None if unread else digest(f"looks {path}")[:16],
        "width": None if unread else 640,
        "height": None if unread else 480,
        "format": None if unread else "JPEG",
        "reason": reason,
        "detail": detail,
        "flags": None,
        "dicom_patient": None,
        "dicom_study": None,
        "path": path,
        "image_id": ids.image_id(path),
    }


def files(spark, rows):
    decoded = [field for field in schemas.DECODED if field.name != "image"]
    schema = schemas.add(type(schemas.DECODED)(decoded), "path", "image_id")
    values = [tuple(row.get(name) for name in schema.names) for row in rows]
    return spark.createDataFrame(spark.sparkContext.parallelize(values, 1), schema)


def records(spark, rows):
    own = [replace(row, reference=row.reference or row.image_id, table="t.csv") for row in rows]
    values = [row.values() for row in own]
    return spark.createDataFrame(spark.sparkContext.parallelize(values, 1), schemas.RECORDS)


def candidates(frame, stated, layout, chosen, name):
    images = frame.selectExpr("path", "image_id", "path as shown")
    matched = matching.match_rows(images, stated, ["t.csv"], name, lambda _, table: table)
    return selection.find_candidates(frame, matched.images, layout, chosen, name)


def plain(frame, stated, layout, chosen):
    return candidates(frame, stated, layout, chosen, lambda text: text)


def decided(rows):
    """Path -> what was made of a file: its label, or the reason for none."""
    for row in rows:
        assert (row["label"] is None) == (row["reason"] is not None)
        assert (row["keys"] == []) == (row["reason"] is not None)
        assert row["reason"] is None or row["reason"] in REASONS
        assert row["reason"] is None or row["detail"]
    return {path: row["reason"] or row["label"] for path, row in by_path(rows).items()}


@pytest.fixture(scope="module")
def from_folders(spark):
    """Labels that folders tell, beside a table that has none."""
    result = [
        *(
            file(f"{name}/1.jpg")
            for name in ("melanoma", "Nevus", "train/mel/raw", "odd", "bcc", "malignant", "unknown")
        ),
        file("2.jpg"),
        file("benign/broken.jpg", "corrupt", "OSError while decoding"),
        file("benign/Known.jpg"),
        file("benign/torn.jpg"),
    ]
    stated = records(
        spark,
        [
            tables.Record("KNOWN", (), "p", "l", ("x+y",), attributes={"age": 50.0, "sex": "female"}),
            tables.Record("torn", patient_id="p"),
            tables.Record("torn", patient_id="q"),
            tables.Record("gone", patient_id="p"),
        ],
    )
    frame = files(spark, result)
    cases = {
        "malignant": settings(),
        "melanoma": settings(target="melanoma"),
        "negative": settings("negative", target="melanoma"),
        "positive": settings("positive", target="melanoma"),
        "own": settings(positive=["ODD", "nevus"], negative=["bcc", "melanoma"]),
    }
    message = {name: plain(frame, stated, FOLDERS, chosen) for name, chosen in cases.items()}
    return in_one_job(message)


REFUSED = {"2.jpg": "no_label", "benign/broken.jpg": "corrupt", "benign/torn.jpg": "contradictory_rows"}


@pytest.mark.parametrize(
    ("case", "mel", "nevus", "odd", "bcc", "malignant", "unknown"),
    [
        ("malignant", 1, 0, "unknown_label", 1, 1, "indeterminate"),
        ("melanoma", 1, 0, "unknown_label", 0, "indeterminate", "indeterminate"),
        ("negative", 1, 0, "unknown_label", 0, 0, 0),
        ("positive", 1, 0, "unknown_label", 0, 1, 1),
        ("own", 0, 1, 1, 0, 1, "indeterminate"),
    ],
)
def test_labels_of_folders_follow_target_and_policy(from_folders, case, mel, nevus, odd, bcc, malignant, unknown):
    assert decided(from_folders[case]) == {
        "melanoma/1.jpg": mel,
        "Nevus/1.jpg": nevus,
        "train/mel/raw/1.jpg": 1 if case == "own" else mel,
        "odd/1.jpg": odd,
        "bcc/1.jpg": bcc,
        "malignant/1.jpg": malignant,
        "unknown/1.jpg": unknown,
        "benign/Known.jpg": 0,
        **REFUSED,
    }


def test_word_diagnosis_and_ids_of_an_image_are_kept(from_folders):
    rows = by_path(from_folders["malignant"])
    known = rows["benign/Known.jpg"]
    message = (
        "image_id",
        "word",
        "diagnosis",
        "patient_id",
        "lesion_id",
        "age",
        "sex",
        "in_table",
        "width",
        "modified",
    )
    assert tuple(known[name] for name in message) == (
        *("Known", "benign", "benign", "p", "l", "50", "female", True, 640, THEN),
    )
    of_pixels = [f"pixels:{known['pixel_sha256']}", f"looks:{known['perceptual_hash']}"]
    assert known["keys"] == [*of_pixels, "patient:p", "lesion:l", "pair:x+y"]
    assert rows["Nevus/1.jpg"]["keys"] == [
        f"pixels:{digest('pixels Nevus/1.jpg')}",
        f"looks:{digest('looks Nevus/1.jpg')[:16]}",
    ]
    assert (rows["Nevus/1.jpg"]["in_table"], rows["Nevus/1.jpg"]["diagnosis"]) == (False, "melanocytic nevus")
    broken = rows["benign/broken.jpg"]
    assert (broken["detail"], broken["width"], broken["sha256"]) == (
        *("OSError while decoding", None, digest("benign/broken.jpg")),
    )
    assert rows["odd/1.jpg"]["detail"] == "label 'odd'"
    assert rows["2.jpg"]["detail"] == "no label"
    assert rows["benign/torn.jpg"]["detail"] == "two rows give it another patient_id"


Record = tables.Record
SAID = [  # image, rows of the tables, what is made of it
    ("benign/wins", [Record("wins", ("melanoma",))], 1),
    ("a/isic_0000001", [Record("ISIC_0000001", ("nevus",))], 0),
    ("MiXeD", [Record("mIxEd", ("nevus",))], 0),
    ("ÄRZTIN", [Record("ärztin", ("nevus",))], 0),
    ("ΟΔΟΣ İ", [Record("οδος i̇", ("nevus",))], 0),
    ("benign/alone", [], "no_label"),
    ("benign/empty", [Record("empty")], "no_label"),
    ("benign/odd", [Record("odd", ("frobnitz",))], "unknown_label"),
    ("two", [Record("two", ("malignant",)), Record("two", ("melanoma",))], 1),
    ("other", [Record("other", ("benign",)), Record("Other", patient_id="p")], 0),
    ("benign_melanoma", [Record("benign_melanoma", ("benign", "melanoma"))], "conflicting_labels"),
    ("rows", [Record("rows", ("nevus",)), Record("ROWS", ("melanoma",))], "conflicting_labels"),
    ("patients", [Record("patients", ("nevus",), "p"), Record("patients", (), "q")], "contradictory_rows"),
    ("lesions", [Record("lesions", ("nevus",), None, "k"), Record("lesions", (), None, "l")], "contradictory_rows"),
    ("split", [Record("split", ("nevus",), split="test"), Record("split", split="train")], "contradictory_rows"),
    ("same", [Record("same", ("nevus",), "p", "l", split="test")] * 3, 0),
    ("unclear", [Record("unclear", ("unknown",))], "indeterminate"),
    ("answered", [Record("answered", ("unknown", "benign"))], 0),
]


@pytest.fixture(scope="module")
def from_tables(spark):
    """The rows that a table makes: by plain names, and by names that are private."""
    frame = files(spark, [file(f"{path}.jpg") for path, _, _ in SAID])
    stated = records(spark, [row for _, rows, _ in SAID for row in rows])

    def hashed(text):
        return None if text is None else hmac.new(b"k" * 16, text.encode(), hashlib.sha256).hexdigest()[:32]

    cases = {
        "plain": plain(frame, stated, TABLE, SETTINGS),
        "private": candidates(frame, stated, TABLE, SETTINGS, hashed),
        "again": plain(frame.repartition(5), stated.repartition(3), TABLE, SETTINGS),
    }
    return in_one_job(cases)


DETAILS = {
    "benign/alone.jpg": "no row in the archive's tables",
    "benign/empty.jpg": "no label",
    "benign/odd.jpg": "label 'frobnitz'",
    "rows.jpg": "'melanoma' against 'nevus'",
    **{f"{name}s.jpg": f"two rows give it another {name}_id" for name in ("patient", "lesion")},
    "split.jpg": "two rows give it another split",
}


def test_tables_give_labels_on_any_partitions_and_private_names_as_hashes(from_tables):
    assert decided(from_tables["plain"]) == {f"{path}.jpg": made for path, _, made in SAID}
    rows = by_path(from_tables["plain"])
    assert {path: row["detail"] for path, row in rows.items() if row["reason"]}.items() >= DETAILS.items()
    assert (rows["other.jpg"]["label"], rows["other.jpg"]["patient_id"]) == (0, "p"), "rows of several tables are one"
    assert (rows["same.jpg"]["shipped"], rows["same.jpg"]["lesion_id"]) == ("test", "l")
    assert {row["in_table"] for path, row in rows.items() if path != "benign/alone.jpg"} == {True}

    assert by_path(from_tables["again"]) == by_path(from_tables["plain"])

    def hashed(text):
        return text and hmac.new(b"k" * 16, text.encode(), hashlib.sha256).hexdigest()[:32]

    rows = by_path(from_tables["plain"])
    for path, row in by_path(from_tables["private"]).items():
        ids = {name: hashed(rows[path][name]) for name in ("image_id", "patient_id", "lesion_id")}
        keys = [
            f"{kind}:{hashed(name) if kind in ('patient', 'lesion', 'pair', 'image') else name}"
            for kind, _, name in (key.partition(":") for key in rows[path]["keys"])
        ]
        names = list(map(hashed, rows[path]["names"]))
        assert row == {
            **rows[path],
            **ids,
            "keys": keys,
            "names": names,
        }  # nothing else holds a name, details least of all


def candidate(path, label=0, keys=(), pixels=None, looks=None, shipped=None, reason=None, sha256=None):
    """A row of `schemas.CANDIDATES`. Named pixels and looks are the same wherever they are named."""
    own = [f"pixels:{digest(pixels or path)}", f"looks:{digest(looks or path)[:16]}", *keys]
    values = dict.fromkeys(schemas.CANDIDATES.names)
    values |= {"source_uri": path, "length": 1, "modified": THEN, "sha256": sha256 or digest(f"file {path}")}
    values |= {"pixel_sha256": own[0].partition(":")[2], "width": 640, "height": 480, "image_id": path}
    values |= {"label": None if reason else label, "keys": [] if reason else own, "in_table": True}
    values |= {"shipped": shipped, "reason": reason, "detail": "so it was" if reason else None}
    return values


def decide(spark, rows, chosen=SETTINGS, partitions=1):
    values = [tuple(row[name] for name in schemas.CANDIDATES.names) for row in rows]
    frame = spark.createDataFrame(spark.sparkContext.parallelize(values, partitions), schemas.CANDIDATES)
    return selection.decide(frame, chosen)


def group_names(rows):
    """By hand, the group of each usable row by its path: sets of keys that overlap are merged until none does."""
    sets = []
    for row in (row for row in rows if row["keys"]):
        joined = set(row["keys"])
        for other in [result for result in sets if result & joined]:
            sets.remove(other)
            joined |= other
        sets.append(joined)
    lasting = {kind: place for place, kind in enumerate(groups.KINDS)}
    names = {}
    for keys in sets:
        best = min(keys, key=lambda key: (lasting[key.partition(":")[0]], key))
        names.update(dict.fromkeys(keys, best))
    return {row["source_uri"]: names[row["keys"][0]] for row in rows if row["keys"]}


def by_hand(rows):
    """By hand, path -> (reason, detail, group, split) as `split=hash` asks for."""
    names, result = group_names(rows), {}
    pixels = defaultdict(list)
    for row in rows:
        if row["reason"]:
            result[row["source_uri"]] = (row["reason"], row["detail"], None, None)
        else:
            pixels[row["pixel_sha256"]].append(row)
    for same in pixels.values():
        first, *others = sorted(same, key=lambda row: (row["sha256"], row["source_uri"]))
        if len({row["label"] for row in same}) > 1:
            message = ("conflicting_labels", f"{len(same)} images of these pixels, both labels")
            result.update({row["source_uri"]: (*message, names[row["source_uri"]], None) for row in same})
            continue
        group = names[first["source_uri"]]
        result[first["source_uri"]] = (None, None, group, splits.split_of(group, 0, 0.3, 0.3))
        message = ("duplicate", f"same pixels as {first['sha256']}")
        result.update({row["source_uri"]: (*message, names[row["source_uri"]], None) for row in others})
    return result


def placed(rows):
    message = ("reason", "detail", "group", "split")
    return {path: tuple(row[name] for name in message) for path, row in by_path(rows).items()}


def worlds():
    """Archives at random, from one where hardly anything is joined to one where nearly everything is."""
    rng, rows = random.Random(5), []
    for world, names in enumerate([3, 6, 12, 25, 50, 100, 400]):

        def name(kind, world=world, names=names):
            return f"{world}-{kind}{rng.randrange(names)}"

        for place in range(60):
            keys = [f"{kind}:{name(kind)}" for kind in ("patient", "lesion", "pair", "pair") if rng.random() < 0.35]
            pixels, looks = (name(kind) if rng.random() < 0.3 else None for kind in ("same", "alike"))
            reason = "unknown_label" if rng.random() < 0.1 else None
            label = int(rng.random() < 0.3)
            rows.append(candidate(f"{world}/{place}", label, keys, pixels, looks, None, reason))
    return rows


SOLO = [  # patients of their own, some with several lesions and look-alikes
    candidate(f"solo/{n}", n % 2, [f"patient:solo{n // 3}", f"lesion:solo{n // 2}.{n // 3}"]) for n in range(30)
]
MORE = [
    candidate(f"later/{n}", n % 2, [f"patient:solo{n}", f"lesion:a{n}", f"pair:a{n // 2}.{n}"], looks=f"solo/{3 * n}")
    for n in range(10)
]
SINGLE = [
    candidate("copy/b", sha256="11", pixels="copy"),
    candidate("copy/a", sha256="11", pixels="copy"),
    candidate("copy/c", sha256="00", pixels="copy2"),
    candidate("copy/d", sha256="01", pixels="copy2"),
    candidate("copy/e", pixels="copy2", reason="unknown_label"),
    candidate("both/a", 0, pixels="both"),
    candidate("both/b", 1, pixels="both"),
    candidate("both/c", 1, pixels="both"),
    # A chain: of a patient, through looks, a lesion and a pair, to another patient.
    candidate("chain/1", keys=["patient:chain z"]),
    candidate("chain/2", keys=["patient:chain z", "lesion:chain"]),
    candidate("chain/3", keys=["lesion:chain"], looks="chain"),
    candidate("chain/4", keys=["pair:chain"], looks="chain"),
    candidate("chain/5", 1, keys=["pair:chain"], pixels="chain"),
    candidate("chain/6", 1, keys=["patient:chain y"], pixels="chain"),
    # What cannot be used joins nothing.
    candidate("apart/1", keys=["patient:apart 1"]),
    candidate("apart/2", keys=["patient:apart 1", "patient:apart 2"], reason="no_label"),
    candidate("apart/3", keys=["patient:apart 2"]),
]


@pytest.fixture(scope="module")
def hashed(spark):
    """`split=hash` of random archives and of single cases."""
    rows = [*worlds(), *SOLO, *SINGLE]
    random.Random(0).shuffle(rows)
    cases = {"all": decide(spark, rows), "grown": decide(spark, [*MORE, *reversed(SOLO)], partitions=3)}
    return rows, in_one_job(cases)


def test_rows_are_decided_once_each_as_by_hand(hashed):
    rows, result = hashed
    assert placed(result["all"]) == by_hand(rows)
    kept = [row for row in result["all"] if row["split"]]
    assert {row["split"] for row in kept} == set(splits.SPLITS)
    reasons = {None, "duplicate", "conflicting_labels", "unknown_label", "no_label"}
    assert {row["reason"] for row in result["all"]} == reasons

    assert sorted(row["source_uri"] for row in result["all"]) == sorted(row["source_uri"] for row in rows)
    assert all((row["reason"] is None) != (row["split"] is None) for row in result["all"])
    given = by_path(rows)
    same = [name for name in schemas.DECISIONS.names if name not in ("reason", "detail", "group", "split")]
    for path, row in by_path(result["all"]).items():
        assert {name: row[name] for name in same} == {name: given[path][name] for name in same}


def test_chains_are_one_group_and_new_images_move_no_image(hashed):
    given, sides = by_path(hashed[0]), defaultdict(set)
    for row in hashed[1]["all"]:
        for key in (row["group"], *given[row["source_uri"]]["keys"]) if row["split"] else ():
            sides[key].add(row["split"])
    assert {len(names) for names in sides.values()} == {1}, "no group and no key stands on two splits"
    named = {path: row[2] for path, row in placed(hashed[1]["all"]).items()}
    assert {named[f"chain/{n}"] for n in range(1, 7)} == {"patient:chain y"}
    assert (named["apart/1"], named["apart/2"], named["apart/3"]) == ("patient:apart 1", None, "patient:apart 2")

    before, after = (placed(hashed[1][name]) for name in ("all", "grown"))
    assert len(after) == len(SOLO) + len(MORE)
    assert {row["source_uri"]: after[row["source_uri"]] for row in SOLO} == {
        row["source_uri"]: before[row["source_uri"]] for row in SOLO
    }


def test_partitions_and_order_do_not_matter(spark, hashed):
    rows, result = hashed
    spark.conf.set("spark.sql.shuffle.partitions", "4")
    try:
        again = [row.asDict() for row in decide(spark, rows[::-1], partitions=7).collect()]
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "1")
    assert by_path(again) == by_path(result["all"])


def of_path(path, patient=None, label="nevus", **values):
    """What a row of a table says of the image that it names by its path."""
    return Record(ids.image_id(path), (label,), patient, **values, reference=path)


NAMED = {  # path -> a name of its group, here; the images of a case are in folders of its name
    # One image at two sizes and qualities, whatever spelling its name has.
    **dict.fromkeys(("sizes/224/a.jpg", "sizes/full/A.png", "sizes/web/a.JPEG"), "a"),
    "sizes/224/b.jpg": "b",
    # Cameras that begin with 1 for each patient, as the table shows by patient, lesion, label, age or place.
    **{f"{name}/p{n}/{name}.jpg": f"{name}{n}" for name in ("IMG_0001", "DSC0001", "P1010001", "1") for n in (1, 2)},
    # ... of which a table knows nothing: nobody's patient is guessed, but they stay together.
    **dict.fromkeys(("silent/p1/IMG_0002.jpg", "silent/p2/IMG_0002.jpg"), "silent"),
    # Names that each patient's folder has are no ids, but a folder's copy at another size has them.
    **{f"often/{size}/p{n}/left.jpg": f"often{n}" for size in ("full", "small") for n in range(4)},
    # An id of one registry is the same image even where tables contradict each other about it.
    **dict.fromkeys(("isic/x/ISIC_0000001.jpg", "isic/y/isic_0000001_downsampled.jpg"), "isic"),
    # What the archive ships on two sides is two images.
    "shipped/x/7.jpg": "7 x",
    "shipped/y/7.jpg": "7 y",
    # Headers of DICOM: a patient, also the one of a table; a study without a patient.
    **dict.fromkeys(("dicom/1.dcm", "dicom/2.dcm", "dicom/3.jpg"), "dicom"),
    **dict.fromkeys(("dicom/4.dcm", "dicom/5.dcm"), "study"),
}
ROWS_OF_PATHS = [
    of_path("IMG_0001/p1/IMG_0001.jpg", "A"),
    of_path("IMG_0001/p2/IMG_0001.jpg", "B"),
    of_path("DSC0001/p1/DSC0001.jpg", lesion_id="L1"),
    of_path("DSC0001/p2/DSC0001.jpg", lesion_id="L2"),
    of_path("P1010001/p1/P1010001.jpg"),
    of_path("P1010001/p2/P1010001.jpg", label="melanoma"),
    of_path("1/p1/1.jpg", attributes={"age": 30.0}),
    of_path("1/p2/1.jpg", attributes={"age": 70.0}),
    of_path("isic/x/ISIC_0000001.jpg", attributes={"sex": "male"}),
    of_path("isic/y/ISIC_0000001.jpg"),
    of_path("shipped/x/7.jpg", split="train"),
    of_path("shipped/y/7.jpg", split="test"),
    of_path("dicom/3.jpg", "17"),
    *(of_path(path) for path in NAMED if path.partition("/")[0] in ("sizes", "silent", "often")),
    *(of_path(f"dicom/{n}.dcm") for n in (1, 2, 4, 5)),
]
HEADERS = {"1": ("17", "1.2"), "2": ("17", "1.3"), "4": (None, "1.4"), "5": (None, "1.4")}


def test_images_that_belong_together_by_an_id_are_one_group_and_others_are_not(spark):
    result = [file(path) for path in NAMED]
    for row in result:
        if row["path"].endswith(".dcm"):
            row["dicom_patient"], row["dicom_study"] = HEADERS[row["image_id"]]
    rows = plain(files(spark, result), records(spark, ROWS_OF_PATHS), TABLE, SETTINGS)
    grouped = {row.source_uri: row for row in selection.assign_groups(rows).collect()}
    assert grouped.keys() == NAMED.keys()
    paths_of = defaultdict(set)
    for path, row in grouped.items():
        paths_of[row.group].add(path)
    expected = defaultdict(set)
    for path, group in NAMED.items():
        expected[group].add(path)
    assert sorted(map(sorted, paths_of.values())) == sorted(map(sorted, expected.values()))
    assert {grouped[f"dicom/{n}.dcm"].group for n in (1, 2)} == {"patient:17"}
    assert {grouped[f"dicom/{n}.dcm"].group for n in (4, 5)} == {"study:1.4"}
    assert {row.group.partition(":")[0] for path, row in grouped.items() if path.startswith(("sizes", "isic"))} == {
        "looks"
    }
    assert [grouped[f"dicom/{n}.dcm"].patient_id for n in (1, 4)] == ["17", None]


SHIPPED = [
    candidate("train/1", keys=["patient:1"], shipped="train"),
    candidate("train/2", keys=["patient:1"]),
    candidate("test/1", keys=["patient:2"], shipped="test"),
    candidate("test/2", keys=["lesion:2"], shipped="test"),
    candidate("test/3", keys=["patient:2", "lesion:2"]),
    candidate("none/1", keys=["patient:3"]),
    candidate("copy/1", pixels="copy", shipped="test", sha256="0"),
    candidate("copy/2", pixels="copy", sha256="1"),
    candidate("bad/1", shipped="train", reason="unknown_label"),
]
MANY = [candidate(f"many/{n}", keys=[f"patient:many{n // 2}"], shipped="train") for n in range(60)]
OVERLAP = [
    candidate("over/1", keys=["patient:a"], shipped="train"),
    candidate("over/2", keys=["patient:a"], shipped="test"),
    candidate("over/3", keys=["patient:b"], shipped="validation"),
    candidate("over/4", keys=["patient:b"], shipped="train"),
    candidate("over/5", keys=["lesion:c"], pixels="c", shipped="test", sha256="1"),
    candidate("over/6", keys=["lesion:c"], pixels="c", shipped="train", sha256="0"),
    candidate("over/7", keys=["patient:a"]),
]


@pytest.fixture(scope="module")
def shipped(spark):
    honour, repair = settings(split="from_layout"), settings(split="from_layout", overlap="repair")
    valid = candidate("valid/1", keys=["patient:9"], shipped="validation")
    cases = {
        "with": decide(spark, [*SHIPPED, *MANY, valid], honour),
        "without": decide(spark, [*SHIPPED, *MANY], honour),
        "repaired": decide(spark, [*SHIPPED, *OVERLAP], repair),
    }
    return {name: placed(rows) for name, rows in in_one_job(cases).items()}


def test_shipped_splits_are_honored_and_completed(shipped):
    sides = {path: row[3] for path, row in shipped["with"].items()}
    assert {sides[row["source_uri"]] for row in MANY} == {"train"}
    assert {path: side for path, side in sides.items() if not path.startswith("many")} == {
        **dict.fromkeys(("train/1", "train/2", "none/1"), "train"),
        **dict.fromkeys(("test/1", "test/2", "test/3", "copy/1"), "test"),
        **dict.fromkeys(("copy/2", "bad/1"), None),
        "valid/1": "validation",
    }

    cut = {"train": set(), "validation": set()}
    for path, (reason, _, group, side) in shipped["without"].items():
        if reason is None and side != "test":
            assert side == splits.split_of(group, 0, 0.0, 0.3)
            cut[side].add(path)
    assert all(len(paths) > 6 for paths in cut.values())
    in_test = {path for path, row in shipped["without"].items() if row[3] == "test"}
    assert in_test == {"test/1", "test/2", "test/3", "copy/1"}

    result = {path: row for path, row in shipped["repaired"].items() if path.startswith("over")}
    message = ("split_overlap", "its group stands in the shipped split ")
    assert result == {
        "over/1": (message[0], f"{message[1]}test", "patient:a", None),
        "over/2": (None, None, "patient:a", "test"),
        "over/3": (None, None, "patient:b", "validation"),
        "over/4": (message[0], f"{message[1]}validation", "patient:b", None),
        "over/5": (None, None, "lesion:c", "test"),  # and not lost as the copy of one that is left out
        "over/6": (message[0], f"{message[1]}test", "lesion:c", None),
        "over/7": (None, None, "patient:a", "test"),
    }
    assert shipped["repaired"]["test/3"] == (None, None, "patient:2", "test")


def test_overlap_is_an_error_that_lists_groups(spark):
    more = [
        candidate(f"p/{n}/{side}", keys=[f"patient:p{n}"], shipped=side) for n in range(4) for side in ("train", "test")
    ]
    with pytest.raises(DataError) as error:
        decide(spark, [*SHIPPED, *OVERLAP, *more], settings(split="from_layout"))
    assert str(error.value) == (
        "split=from_layout: 7 groups stand on two sides of the shipped split: lesion:c (test and train), "
        "patient:a (test and train), patient:b (train and validation), patient:p0 (test and train), "
        "patient:p1 (test and train); repair it with ingest.split_overlap=repair, or use split=hash"
    )


def test_layouts_give_splits_and_no_rows_are_no_error(spark):
    layout = layouts.recognize_layout([], {"train/benign": 1, "test/malignant": 1})
    result = [file(f"{path}.jpg") for path in ("train/benign/a", "test/malignant/b", "benign/c", "train/benign/d")]
    stated = records(spark, [Record("d", split="test")])
    none = candidate("none", shipped="x", reason="no_label")
    message = plain(files(spark, result), stated, layout, SETTINGS).select("source_uri", "shipped")
    empty = decide(spark, []).unionByName(decide(spark, [none])).selectExpr("source_uri", "reason as shipped")
    rows = {row["source_uri"]: row["shipped"] for row in in_one_job({"all": message.unionByName(empty)})["all"]}
    assert rows == {
        "train/benign/a.jpg": "train",
        "test/malignant/b.jpg": "test",
        "benign/c.jpg": None,
        "train/benign/d.jpg": "test",  # the table is asked first
        "none": "no_label",
    }


def counts(*numbers):
    """Of negative and positive images in train, validation and test."""
    names = [f"{split}_{label}" for split in splits.SPLITS for label in (0, 1)]
    return dict(zip(names, numbers, strict=True))


WORDS = "ingest.labels.positive=[WORD,...] or ingest.labels.negative=[WORD,...]"


@pytest.mark.parametrize(
    ("numbers", "reasons", "unknown", "message"),
    [
        ((0, 0, 0, 0, 0, 0), {}, {}, "no usable image in the archive; rejected: none"),
        (
            *((0, 0, 0, 0, 0, 0), {"corrupt": 2, "unknown_label": 9}, {"odd": 6, "even": 3}),
            "no usable image in the archive; rejected: corrupt 2, unknown_label 9; unknown label words: 'odd' 6, "
            f"'even' 3; give them a meaning with {WORDS}",
        ),
        (
            *((7, 0, 2, 0, 1, 0), {"empty": 1}, {}),
            "one class only: all 10 usable images carry the negative label; rejected: empty 1; if label words are read "
            f"wrongly, name them with {WORDS}; target=melanoma divides the images differently",
        ),
        (
            *((0, 7, 0, 2, 0, 1), {}, {}),
            "one class only: all 10 usable images carry the positive label; rejected: none; if label words are read "
            f"wrongly, name them with {WORDS}; target=melanoma divides the images differently",
        ),
        *(
            (numbers, {}, {}, f"the {split} split has {message} images of 22: too few groups to split; add images, "
             "change seed=N, or raise ingest.test_fraction=SHARE and ingest.validation_fraction=SHARE")
            for split, message, numbers in [
                ("train", "0 negative and 2 positive", (0, 2, 5, 5, 5, 5)),
                ("validation", "1 negative and 0 positive", (9, 9, 1, 0, 1, 2)),
                ("test", "0 negative and 0 positive", (9, 9, 2, 2, 0, 0)),
            ]
        ),
    ],
)  # fmt: skip
def test_too_few_images_are_an_error_with_a_hint(numbers, reasons, unknown, message):
    selection.check(counts(1, 1, 1, 1, 1, 1), reasons, unknown, "malignant")
    with pytest.raises(DataError) as error:
        selection.check(counts(*numbers), reasons, unknown, "malignant")
    assert str(error.value) == message


def test_numbers_of_classes_are_asked_for():
    full = {f"{split}_{label}": 5 for split in splits.SPLITS for label in (0, 1)}
    selection.check(full, {}, {"odd": 3}, "malignant", answers={"0": 12, "1": 3})
    selection.check(full, {}, {"2": 7}, "malignant", answers={})
    with pytest.raises(
        DataError, match=r"numbers of classes: '0' 12, '1' 3, '2' 7; .* ingest\.labels\.positive=\[WORD"
    ):
        selection.check(full, {}, {"2": 7, "odd": 1}, "malignant", answers={"0": 12, "1": 3})
