"""Archives: every file and every member is listed, read or rejected with a reason, whatever its name."""

import io
import os
import re
import time
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path

import icc
import numpy as np
import pandas as pd
import pytest
from broken import dicom, encoded
from broken_containers import tarred, zipped
from PIL import Image
from pyspark.errors import PySparkException
from pyspark.sql.functions import encode
from pyspark.sql.types import StructType

from melanoma_spark import config, schemas
from melanoma_spark.archives import ids, layouts, listing, plan, table_files, tables, tasks
from melanoma_spark.errors import ConfigError, DataError, ImageError, error_of_task
from melanoma_spark.images import decoding, hashes, synthetic
from melanoma_spark.spark import session

# Each a valid name of a file, and each something to a shell, a glob, a URL or a table of partitions.
NAMES = (
    *("plain.jpg", "with space.jpg", " edges .jpg", "br[ack]ets.jpg", "{braces,too}.jpg", "comma,comma.jpg"),
    *("per%20cent.jpg", "100%.jpg", "hash#tag.jpg", "hash#1", "what?.jpg", "st*r.jpg", "m\u00e9lan\u00f4me.jpg"),
    *("\u75e3.jpg", "e\u0301 decomposed.jpg", "plus+and&amp;.jpg", "key=value.jpg", "semi;colon.jpg", "quote'\".jpg"),
    *("back\\slash.jpg", "$HOME~.jpg", "~", "UPPER.JPG", "no suffix", "a.b.c.jpeg", "10:30.jpg", "fol:der/below.jpg"),
    *("a::b.jpg", "zip:://c.jpg", "bang!/d.jpg", "new\nline.jpg", "_leading.jpg", "_folder/inside.jpg"),
    "_kind=a/partition.jpg",
)
NO_TEXT = (b"caf\xe9.jpg", b"\xff\xfe/\xe9t\xe9.jpg")  # names of the eighties
HIDDEN = (".hidden.jpg", ".folder/inside.jpg", ".hidden.zip")
SYSTEM = ("__MACOSX/inside.jpg", "Thumbs.db", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg")
PACKED = ("a.jpg", "folder/b c.jpg", "folder/m\u00e9lan\u00f4me [1].jpg", "_d#1.jpg")
KINDS = {
    "four.zip": "zip",
    "four_segmentation.zip": "zip",
    "four.tar": "tar",
    "four.tar.gz": "tar.gz",
    "four.TGZ": "tar.gz",
}
MAX_BYTES = 6000


def drawn(seed: int) -> bytes:
    return synthetic.lesion_jpeg(seed, malignant=bool(seed % 2), size=64)


def settings_of(folder: Path | str | None, **more: object) -> config.Settings:
    url = None if folder is None else str(folder)
    return config.parse({"archive": url, "image_size": 64, "ingest": {"max_bytes": MAX_BYTES}, **more})


def write(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


FOUR = {name: drawn(100 + number) for number, name in enumerate(PACKED)}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """An archive with something of everything, in folders of odd names."""
    above = tmp_path_factory.mktemp("odd")
    root = above / "archive [1], 50%20 #2 a::b {x}"
    for number, name in enumerate((*NAMES, *HIDDEN, *SYSTEM)):
        write(root / "site {a,b} [x]?", name, drawn(number))
    for number, raw in enumerate(NO_TEXT):
        write(root, os.fsdecode(raw), drawn(50 + number))
    write(root, os.fsdecode(b"\xe9.zip"), zipped(FOUR))
    for name, content in FOUR.items():
        write(root / "four", name, content)
    write(root, "four.zip", zipped(FOUR))
    write(root, "four_segmentation.zip", zipped(FOUR))
    write(root, "four.tar", tarred(FOUR))
    write(root, "four.tar.gz", tarred(FOUR, "w:gz"))
    write(root, "four.TGZ", tarred(FOUR, "w:gz"))
    complete = zipped(FOUR, zipfile.ZIP_STORED)
    write(root, "cut.zip", complete[: complete.index(FOUR[PACKED[2]]) + 100])
    at = complete.index(FOUR[PACKED[1]]) + 300
    write(root, "flipped.zip", complete[:at] + bytes([complete[at] ^ 255]) + complete[at + 1 :])
    write(root, "photograph.zip", drawn(60))
    write(root, "photograph_in_truth.txt", drawn(61))
    write(root, "archive.jpg", zipped({"a.jpg": drawn(62)}))
    write(root, "empty.jpg", b"")
    write(root, "empty.zip", b"")
    write(root, "large.jpg", bytes(MAX_BYTES + 1))
    write(root, "ISIC_1_segmentation.png", drawn(63))
    write(root, "broken.jpg", drawn(64)[:700])
    write(root, "page.jpg", b"<!doctype html>")
    write(root, "README", b"no image")
    write(root, "table.CSV", b"a,b\n1,2\n")
    write(above, "outside/one.jpg", drawn(65))
    (root / "links").mkdir()
    (root / "links/inside.jpg").symlink_to("../four/a.jpg")
    (root / "links/outside.jpg").symlink_to(above / "outside/one.jpg")
    (root / "links/folder").symlink_to(above / "outside")
    (root / "links/four").symlink_to("../four")
    (root / "links/cycle").symlink_to("..")
    (root / "links/self").symlink_to("self")
    (root / "links/nothing.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root


@pytest.fixture(scope="module")
def settings(odd):
    return settings_of(odd)


@pytest.fixture(scope="module")
def listed(spark, settings):
    return listing.list_archive(spark, settings).localCheckpoint()


@pytest.fixture(scope="module")
def rows(listed):
    return listed.collect()


@pytest.fixture(scope="module")
def decoded(listed, settings):
    """Rows of decode by source_uri."""
    todo = listed.where("role = 'image' and reason is null")
    actual = tasks.decode_files(todo, todo.count(), settings).collect()
    assert len({row.source_uri for row in actual}) == len(actual)
    return {row.source_uri: row for row in actual}


@pytest.fixture
def small(tmp_path):
    """A loose image and a zip of another one, with the names of people."""
    root = tmp_path / "small"
    write(root, "ward/Anna Schmidt.jpg", drawn(1))
    write(root, "ward/Schmidt.zip", zipped({"Berta Schmidt.jpg": drawn(2)}))
    write(root, "ward/Schmidt broken.jpg", b"no image")
    return root


def shown(raw: str) -> str:
    return os.fsencode(raw).decode("utf-8", "backslashreplace")


def on_disk(root: Path) -> dict[str, Path]:
    """All files but containers, as an archive shows their names."""
    actual = {}
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = Path(folder, name)
            relative = path.relative_to(root)
            packed = path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz") and path.lstat().st_size
            if name.startswith(".") or name == "photograph.zip" or not packed:
                actual[shown(str(relative))] = path
    return actual


def test_every_file_and_member_is_listed_once(rows, odd):
    loose = [row for row in rows if row.kind == "file"]
    files = on_disk(odd)
    assert sorted(row.path for row in loose) == sorted(files)
    for row in loose:
        assert row.source_uri == f"file:{odd}/{row.path}"
        assert row.file == row.path
        if row.reason != "link":
            stat = files[row.path].stat()
            assert row.length == stat.st_size
            if not files[row.path].is_symlink():
                assert row.modified.timestamp() == pytest.approx(stat.st_mtime, abs=0.0011)

    assert {bytes(row.raw) for row in rows if row.raw is not None} == {*NO_TEXT, b"\xe9.zip"}
    assert {row.path for row in rows} >= {"caf\\xe9.jpg", "\\xff\\xfe/\\xe9t\\xe9.jpg", "\\xe9.zip/a.jpg"}

    actual = {name: [row for row in rows if row.file == name and row.kind == kind] for name, kind in KINDS.items()}
    for name, members in actual.items():
        assert sorted(row.member for row in members) == sorted(FOUR)
        for row in members:
            assert row.source_uri == f"file:{odd}/{name}!/{row.member}"
            assert row.path == f"{name}/{row.member}"
            assert row.length == len(FOUR[row.member])
            assert row.modified.timestamp() == pytest.approx((odd / name).stat().st_mtime, abs=0.0011)
            assert (row.role, row.reason) == ("image", None)

    assert max(Counter(row.source_uri for row in rows).values()) == 1
    assert max(Counter(row.path for row in rows).values()) == 1
    assert {row.kind for row in rows} == {"file", "zip", "tar", "tar.gz"}


def test_every_readable_image_is_decoded_as_by_decoding(rows, decoded, odd):
    readable = {row.source_uri: row for row in rows if row.role == "image" and row.reason is None}
    assert decoded.keys() == readable.keys()
    for uri, row in decoded.items():
        assert (row.length, row.modified) == (readable[uri].length, readable[uri].modified)
        assert (row.image is None) == (row.reason is not None) == (row.detail is not None)
    failed = {readable[uri].path: row.reason for uri, row in decoded.items() if row.reason}
    assert failed == {
        "archive.jpg": "archive_by_another_name",
        "broken.jpg": "damaged",
        "page.jpg": "not_an_image",
        f"flipped.zip/{PACKED[1]}": "damaged_member",
    }

    field = schemas.images_schema(64).fields["image"]
    files = on_disk(odd)
    read = [path for path in files if (row := decoded.get(f"file:{odd}/{path}")) and row.image is not None]
    assert len(read) == len(NAMES) + len(NO_TEXT) + len(FOUR) + 2  # a link within, and photograph.zip
    for path in read:
        row, content = decoded[f"file:{odd}/{path}"], files[path].read_bytes()
        looked = decoding.decode_with_hashes(content, 64)
        assert row.sha256 == hashes.sha256(content)
        assert row.pixel_sha256 == hashes.pixel_hash(looked.hash_pixels)
        assert row.perceptual_hash == hashes.perceptual_hash(looked.hash_pixels)
        assert (row.width, row.height, row.format) == (64, 64, "JPEG")
        np.testing.assert_array_equal(field.codec.decode(field, row.image), decoding.decode(content, 64))


def test_files_of_systems_are_skipped_with_a_reason_and_profiles_are_noted(spark, tmp_path):
    profiled = encoded(Image.open(io.BytesIO(drawn(1))), icc_profile=icc.of_primaries(icc.P3))
    broken = encoded(Image.open(io.BytesIO(drawn(2))), icc_profile=b"no profile")
    images = {"p1/a.png": profiled, "p1/b.png": broken, "p1/c.jpg": drawn(3)}
    of_system = {"p1/@eaDir/c.jpg/SYNOPHOTO_THUMB_M.jpg": drawn(4), "__MACOSX/p1/._c.jpg": drawn(5)}
    of_system |= {".thumbnails/c.jpg": drawn(6), "Thumbs.db": b"x", "$RECYCLE.BIN/c.jpg": drawn(7)}
    for path, content in (images | of_system).items():
        write(tmp_path, path, content)
    write(tmp_path, "all.zip", zipped(images | of_system))
    settings = config.Settings(archive=str(tmp_path), image_size=64)
    listed = listing.list_archive(spark, settings).localCheckpoint()
    paths = [f"{folder}{path}" for folder in ("", "all.zip/") for path in of_system]
    assert {row.path: (row.role, row.reason) for row in listed.where("reason is not null").collect()} == dict.fromkeys(
        paths, ("other", "system")
    )
    wanted = listed.where("role = 'image'")
    assert wanted.count() == 2 * len(images)
    actual = {
        row.source_uri.rpartition("/")[2]: row.profile for row in tasks.decode_files(wanted, 6, settings).collect()
    }
    assert actual == {"a.png": "converted", "b.png": "broken", "c.jpg": None}


def test_ids_of_a_dicom_file_are_stored_as_names_are(spark, tmp_path, monkeypatch):
    write(tmp_path, "a.dcm", dicom(PatientID="17", StudyInstanceUID="1.2.3"))
    monkeypatch.setenv(config.NAME_KEY, "a key of some length")

    def ids(**changes):
        settings = config.Settings(archive=str(tmp_path), image_size=64, **changes)
        listed = listing.list_archive(spark, settings)
        (row,) = tasks.decode_files(listed, 1, settings).collect()
        return row.dicom_patient, row.dicom_study

    assert ids() == ("17", "1.2.3")
    private = config.Settings(privacy={"source_names": "hash"})
    assert ids(privacy=private.privacy) == tuple(map(plan.stored_name(private), ("17", "1.2.3")))


@pytest.mark.parametrize("container", [*KINDS, "\\xe9.zip"])
def test_members_are_decoded_as_loose_files_are(decoded, odd, container):
    for name in PACKED:
        loose, member = decoded[f"file:{odd}/four/{name}"], decoded[f"file:{odd}/{container}!/{name}"]
        assert member.image is not None
        same = ("sha256", "pixel_sha256", "perceptual_hash", "width", "height", "format", "image", "reason")
        assert [member[column] for column in same] == [loose[column] for column in same]


def contents(listed, count, settings):
    """The files' bytes through `tasks.compute_files`, two at a time."""
    refused = ImageError

    def compute(batches):
        import pandas as pd

        for batch in batches:
            assert 0 < len(batch) <= 2
            yield pd.DataFrame(
                {
                    "content": [None if isinstance(one, refused) else one for one in batch],
                    "reason": [one.reason if isinstance(one, refused) else None for one in batch],
                    "detail": [one.detail if isinstance(one, refused) else None for one in batch],
                }
            )

    result = StructType.fromDDL("content binary, reason string, detail string")
    output = StructType([*schemas.SOURCE, *result])
    return tasks.compute_files(listed, count, settings, compute, batch_size=2, result=output)


def test_contents_and_hashes_are_those_of_the_files(listed, rows, settings, odd):
    actual = contents(listed, listed.count(), settings).collect()
    places = {row.source_uri: row for row in rows}
    assert sorted(row.source_uri for row in actual) == sorted(places)
    files = on_disk(odd)
    for row in actual:
        place = places[row.source_uri]
        if place.reason is not None:
            assert (row.content, row.sha256, row.reason, row.detail) == (None, None, place.reason, place.detail)
            continue
        assert (row.length, row.modified) == (place.length, place.modified)
        if place.path == f"flipped.zip/{PACKED[1]}":
            assert (row.content, row.reason) == (None, "damaged_member")
            continue
        expected = files[place.path].read_bytes() if place.kind == "file" else FOUR[place.member]
        assert (bytes(row.content), row.reason, row.detail) == (expected, None, None)
        assert row.sha256 == hashes.sha256(expected)
        assert row.image_id == place.image_id == ids.image_id(place.path)

    named = listed.withColumn("source_key", encode("source_uri", "utf-8"))
    actual = tasks.hash_files(named, listed.count(), settings).collect()
    expected = contents(listed, listed.count(), settings).collect()
    output = {bytes(row.source_key).decode(): (row.image_id, row.sha256, row.reason, row.detail) for row in actual}
    assert len(output) == len(actual)
    assert output == {row.source_uri: (row.image_id, row.sha256, row.reason, row.detail) for row in expected}


def test_ids_do_not_have_the_number_of_a_repeated_name():
    assert listing.image_id("a.zip/x.jpg#2", "zip") == listing.image_id("x.jpg", "file") == "x"
    assert listing.image_id("x#2", "file") == listing.image_id("a.tar/x#2.jpg", "tar") == "x#2"


def test_a_missing_file_is_one_rejected_row(spark, small):
    settings = settings_of(small)
    listed = listing.list_archive(spark, settings).localCheckpoint()
    (small / "ward/Schmidt.zip").unlink()
    (small / "ward/Schmidt broken.jpg").write_bytes(bytes(MAX_BYTES + 1))
    actual = {
        row.source_uri.rpartition("/")[2]: row.reason
        for row in tasks.decode_files(listed, listed.count(), settings).collect()
    }
    assert actual == {
        "Anna Schmidt.jpg": None,
        "Berta Schmidt.jpg": "unreadable",
        "Schmidt broken.jpg": "too_many_bytes",
    }


def test_listing_keeps_all_workers(spark, small):
    def daemons(batches):
        for _ in batches:
            yield pd.DataFrame({"pid": [os.getppid()]})

    daemon = spark.range(0, 1, 1, 1).mapInPandas(daemons, "pid long").collect()[0].pid
    workers = Path(f"/proc/{daemon}/task/{daemon}/children")
    before = set(workers.read_text().split())
    listing.list_archive(spark, settings_of(small)).count()
    time.sleep(0.5)  # one that ends does so after its rows have come
    assert before <= set(workers.read_text().split())


def test_times_are_the_same_in_every_time_zone(spark, small):
    """What is decoded is joined to the listing by them."""
    settings, key = settings_of(small), "spark.sql.session.timeZone"
    before, stamp = spark.conf.get(key), 1_700_000_000.123456
    for path in small.rglob("*.*"):
        os.utime(path, (stamp, stamp))
    try:
        for zone in ("UTC", "America/New_York"):
            spark.conf.set(key, zone)
            listed = listing.list_archive(spark, settings).localCheckpoint()
            for table in (
                listed,
                tasks.decode_files(listed, listed.count(), settings),
                contents(listed, listed.count(), settings),
            ):
                actual = table.selectExpr("unix_micros(modified) as micros").collect()
                assert [row.micros / 1e6 for row in actual] == [pytest.approx(stamp, abs=1e-5)] * 3, zone
    finally:
        spark.conf.set(key, before)


def test_archives_are_named_by_path_or_by_url(spark, small, tmp_path, monkeypatch):
    expected = {f"file:{small}/ward/{name}" for name in ("Anna Schmidt.jpg", "Schmidt broken.jpg")}
    expected |= {f"file:{small}/ward/Schmidt.zip!/Berta Schmidt.jpg"}
    monkeypatch.chdir(tmp_path)
    for url in (f"file://{small}", f"file:{small}/", "small"):
        assert {row.source_uri for row in listing.list_archive(spark, settings_of(url)).collect()} == expected
    (tmp_path / "other").symlink_to(small)
    actual = listing.list_archive(spark, settings_of(tmp_path / "other"))
    assert {row.path for row in actual.where("reason is null").collect()} == {
        "ward/Anna Schmidt.jpg",
        "ward/Schmidt broken.jpg",
        "ward/Schmidt.zip/Berta Schmidt.jpg",
    }


@pytest.mark.parametrize("name", ["four #1 [x].zip", "four.tar.gz", "no suffix", "link.zip"])
def test_one_container_is_an_archive(spark, tmp_path, name):
    root = tmp_path / "folder"
    write(root, "beside.jpg", drawn(1))
    write(tmp_path, "elsewhere.zip", zipped(FOUR))
    if name == "link.zip":
        (root / name).symlink_to(tmp_path / "elsewhere.zip")
    else:
        write(root, name, tarred(FOUR, "w:gz") if name == "four.tar.gz" else zipped(FOUR))
    settings = settings_of(root / name)
    listed = listing.list_archive(spark, settings).localCheckpoint()
    assert {row.source_uri: row.reason for row in listed.collect()} == {
        f"file:{root}/{name}!/{member}": None for member in FOUR
    }
    actual = contents(listed, listed.count(), settings).collect()
    assert {row.source_uri.partition("!/")[2]: bytes(row.content) for row in actual} == FOUR


def test_bad_archives_are_named_in_one_line(spark, tmp_path):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    for url, error, message in [
        (tmp_path / "nowhere", DataError, f"{tmp_path}/nowhere does not exist.*archive=URL"),
        (tmp_path / "empty", DataError, f"{tmp_path}/empty holds no files; expected a folder"),
        (tmp_path / "image.png", DataError, f"{tmp_path}/image.png is a file, .*folder"),
        ("nosuchscheme://host/folder", DataError, "nosuchscheme://host/folder cannot be read: .*nosuchscheme"),
        ("", ConfigError, "no archive named; add archive=URL"),
        (None, ConfigError, "no archive named; add archive=URL"),
    ]:
        with pytest.raises(error, match=message) as caught:
            listing.list_archive(spark, settings_of(url))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packing", ["loose", "zip", "tar.gz"])
def test_tables_are_read_wherever_they_are(spark, tmp_path, packing):
    root = tmp_path / "archive #1 [x]"
    table = "\ufeffimage_id,label,patient_id\n" + "".join(f'"im {n}, a.jpg",nevus,p{n}\n' for n in range(5000))
    files = {"below/Metadata.CSV": table.encode(), "below/im 1, a.jpg": drawn(1), "b/im 2, a.jpg": drawn(2)}
    settings = config.parse({"archive": str(root), "image_size": 64})
    if packing == "loose":
        for name, content in files.items():
            write(root, name, content)
    else:
        write(root, f"x.{packing}", tarred(files, "w:gz") if packing == "tar.gz" else zipped(files))
    above = "" if packing == "loose" else f"x.{packing}/"
    listed = listing.list_archive(spark, settings).localCheckpoint()
    heads, actual = table_files.read_table_heads(listed, settings)
    assert [(head.path, head.head) for head in heads] == [(f"{above}below/Metadata.CSV", table.encode()[: tables.HEAD])]
    assert table_files.count_images_by_folder(listed) == {f"{above}below": 1, f"{above}b": 1}
    layout = layouts.recognize_layout(heads, table_files.count_images_by_folder(listed))
    rows = table_files.read_records(spark, layout, actual, settings).collect()
    assert [(row.image_id, row.labels, row.patient_id) for row in rows] == [
        (f"im {n}, a", ["nevus"], f"p{n}") for n in range(5000)
    ]


@pytest.mark.parametrize("gone", ["labels.csv", "labels.zip", "cut.zip"])
def test_a_missing_table_is_named_with_a_hint(spark, tmp_path, gone):
    table = b"image_id,label\na,nevus\nb,melanoma\n" * 50
    write(tmp_path, "a.jpg", drawn(1))
    write(tmp_path, gone, table if gone == "labels.csv" else zipped({"labels.csv": table}, zipfile.ZIP_STORED))
    settings = settings_of(tmp_path)
    listed = listing.list_archive(spark, settings).localCheckpoint()
    heads, actual = table_files.read_table_heads(listed, settings)
    layout = layouts.recognize_layout(heads, {})
    if gone == "cut.zip":
        (tmp_path / gone).write_bytes((tmp_path / gone).read_bytes()[:300])
    else:
        (tmp_path / gone).unlink()
    path = gone if gone == "labels.csv" else f"{gone}/labels.csv"
    output = f"{path} cannot be read: .*; make it readable, or take it out of the archive, and run ingest again"
    with pytest.raises(DataError, match=output) as error:
        table_files.read_table_heads(listed, settings)
    assert "\n" not in str(error.value)
    with pytest.raises(PySparkException) as caught:
        table_files.read_records(spark, layout, actual, settings).collect()
    ours = error_of_task(caught.value)
    assert isinstance(ours, DataError)
    assert re.fullmatch(output, str(ours))


def test_slow_work_is_spread_over_more_tasks_with_runs_of_neighbors(spark, tmp_path):
    (tmp_path / "many.zip").write_bytes(zipped({f"{number:03d}.jpg": b"x" for number in range(300)}))
    listed = listing.list_archive(spark, settings_of(tmp_path)).localCheckpoint()

    def dealt(*words):
        parts = plan.in_reading_order(listed, 300, *words).select("index").rdd.glom().collect()
        return [[row["index"] for row in part] for part in parts]

    complete, finer = dealt(), dealt(12, 10)
    assert (len(complete), len(finer)) == (session.slots(spark), 12)
    assert sum(1 for part in finer if part) > 6
    for part in finer:
        assert part == sorted(part)
        assert all({at // 10 * 10 + step for step in range(10)} <= set(part) for at in part), "runs stay together"
    assert sorted(chain(*finer)) == sorted(chain(*complete)) == list(range(300))


def test_hashed_names_contain_no_name(spark, small, monkeypatch):
    settings = settings_of(small, privacy={"source_names": "hash"})

    def read(key, *tables):
        monkeypatch.setenv(config.NAME_KEY, key)
        listed = listing.list_archive(spark, settings).localCheckpoint()
        return [[row.asDict() for row in table(listed, 3, settings).collect()] for table in tables]

    def names(actual):
        return {
            row[column] for rows in actual for row in rows for column in ("source_uri", "image_id") if column in row
        }

    first = read("a key of sixteen or more", tasks.decode_files, lambda *given: contents(*given).drop("content"))
    assert [len(rows) for rows in first] == [3, 3]
    for row in (*first[0], *first[1]):
        for column, value in row.items():
            output = value.decode("latin-1") if isinstance(value, bytes | bytearray) else str(value)
            assert not any(name in output for name in ("Schmidt", "Anna", "Berta", "ward", "small")), column
    assert len(names(first)) == 6
    assert names(read("a key of sixteen or more", contents)) == names(first)
    assert not names(read("another key of sixteen or more", contents)) & names(first)


@pytest.mark.parametrize("key", [None, "", "too short"])
def test_names_are_not_hashed_without_a_key(spark, small, monkeypatch, key):
    monkeypatch.delenv(config.NAME_KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(config.NAME_KEY, key)
    with pytest.raises(ConfigError, match=f"at least 16 characters.*{config.NAME_KEY}"):
        listing.list_archive(spark, settings_of(small, privacy={"source_names": "hash"}))
