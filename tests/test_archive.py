"""Archives: every file is listed, read or rejected with a reason, whatever its name."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from melanoma_spark import archive, config, drawing, images
from melanoma_spark.errors import ConfigError, DataError

# Each a valid name of a file, and each something to a shell, a glob, a URL or a table of partitions.
NAMES = (
    "plain.jpg",
    "with space.jpg",
    " edges .jpg",
    "br[ack]ets.jpg",
    "{braces,too}.jpg",
    "comma,comma.jpg",
    "per%20cent.jpg",
    "100%.jpg",
    "hash#tag.jpg",
    "what?.jpg",
    "st*r.jpg",
    "m\u00e9lan\u00f4me.jpg",
    "\u75e3.jpg",
    "e\u0301 decomposed.jpg",
    "plus+and&amp;.jpg",
    "key=value.jpg",
    "semi;colon.jpg",
    "quote'\".jpg",
    "back\\slash.jpg",
    "$HOME~.jpg",
    "UPPER.JPG",
    "no suffix",
    "a.b.c.jpeg",
    "fol:der/below.jpg",
)
HIDDEN = (".hidden.jpg", "_hidden.jpg", "_folder/inside.jpg", ".folder/inside.jpg")
LIMITS = config.parse({"image_size": 64, "ingest": {"max_bytes": 20_000}})


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """An archive of odd names in folders of odd names; the folder above each image is its class."""
    root = tmp_path_factory.mktemp("odd") / "archive [1], 50%20 #2"
    for number, name in enumerate((*NAMES, *HIDDEN)):
        path = root / "site {a,b} [x]?" / ("malignant" if number % 2 else "benign") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing.lesion_jpeg(number, malignant=bool(number % 2), size=64))
    (root / "_kind=a").mkdir()
    (root / "_kind=a/partition.jpg").write_bytes(drawing.lesion_jpeg(98, size=64))
    (root / "empty.jpg").touch()
    (root / "notes.txt").write_text("no image")
    (root / "table.CSV").write_text("a,b\n1,2\n")
    (root / "large.jpg").write_bytes(bytes(20_001))
    return root


@pytest.fixture(scope="module")
def listing(spark, odd):
    return archive.listing(spark, str(odd), LIMITS.ingest.max_bytes)


def on_disk(root: Path) -> dict[str, Path]:
    return {f"file:{path}": path for path in root.rglob("*") if path.is_file()}


def test_every_file_is_listed_once_with_its_size_and_time(listing, odd):
    rows = listing.collect()
    files = on_disk(odd)
    assert sorted(row.path for row in rows) == sorted(files)
    for row in rows:
        stat = files[row.path].stat()
        assert row.length == stat.st_size
        assert row.modified.timestamp() == pytest.approx(stat.st_mtime, abs=0.0011)


def test_files_that_are_not_read_have_a_reason(listing, odd):
    reasons = {Path(row.path).relative_to(f"file:{odd}"): row.reason for row in listing.collect() if row.reason}
    files = [path.relative_to(odd) for path in on_disk(odd).values()]
    hidden = [path for path in files if any(f"/{name}".endswith(f"/{path.name}") for name in HIDDEN)]
    assert len(hidden) == len(HIDDEN)
    assert reasons == {
        **dict.fromkeys(hidden, "hidden"),
        Path("empty.jpg"): "empty",
        Path("large.jpg"): "too_many_bytes",
    }
    assert set(reasons.values()) <= set(images.REASONS)


@pytest.mark.parametrize("by", ["folder", "paths"])
def test_contents_are_the_files(spark, listing, odd, by):
    readable = [row.path for row in listing.where("reason is null and lower(path) not like '%.csv'").collect()]
    paths = readable if by == "paths" else None
    rows = archive.contents(spark, str(odd), LIMITS.ingest.max_bytes, paths).collect()
    assert sorted(row.path for row in rows) == sorted(readable)
    assert all(bytes(row.content) == on_disk(odd)[row.path].read_bytes() for row in rows)


def test_only_the_paths_asked_for_are_read(spark, listing, odd):
    wanted = [row.path for row in listing.collect() if "[ack]" in row.path or "%20cent" in row.path]
    assert len(wanted) == 2
    rows = archive.contents(spark, str(odd), LIMITS.ingest.max_bytes, wanted).collect()
    assert sorted(row.path for row in rows) == sorted(wanted)


def test_decode_gives_a_row_for_every_image_file(spark, listing, odd):
    from melanoma_spark import schemas

    field = schemas.images_schema(64).fields["image"]
    rows = archive.decode(spark, str(odd), listing.where("lower(path) not like '%.csv'"), LIMITS).collect()
    files = {path: file for path, file in on_disk(odd).items() if file.suffix != ".CSV"}
    assert sorted(row.source_uri for row in rows) == sorted(files)
    found = {row.source_uri: row for row in rows}
    read = [path for path, row in found.items() if row.reason is None]
    assert len(read) == len(NAMES) + 1  # and the one in the folder that looks like a partition
    assert {found[path].reason for path in files if path.endswith("notes.txt")} == {"not_an_image"}
    for path in read:
        content = files[path].read_bytes()
        pixels = images.decode(content, 64)
        assert found[path].sha256 == hashlib.sha256(content).hexdigest()
        assert found[path].pixel_sha256 == images.pixel_hash(images.decode(content, images.HASH_SIZE))
        np.testing.assert_array_equal(field.codec.decode(field, found[path].image), pixels)
    for path in files.keys() - set(read):
        assert found[path].image is None
        assert found[path].detail


@pytest.mark.parametrize("others", [0, 2])
def test_a_name_that_cannot_be_read_costs_its_own_file_only(spark, tmp_path, others):
    """Hadoop cannot open it, and reading the folder would end the job."""
    for name in ("10:30.jpg", "a.jpg", "b [c].jpg")[: 1 + others]:
        (tmp_path / name).write_bytes(drawing.lesion_jpeg(1, size=64))
    rows = archive.decode(spark, str(tmp_path), archive.listing(spark, str(tmp_path), 20_000), LIMITS).collect()
    assert {Path(row.source_uri).name: row.reason for row in rows if row.reason} == {"10:30.jpg": "unreadable_name"}
    assert len(rows) == 1 + others
    assert "unreadable_name" in images.REASONS


def test_archives_are_named_by_path_or_by_url(spark, odd, listing):
    expected = {row.path for row in listing.collect()}
    for url in (f"file://{odd}", f"file:{odd}/", f"{odd}/"):
        assert {row.path for row in archive.listing(spark, url, 10).collect()} == expected


def test_metadata_is_read_whatever_the_names(spark, tmp_path):
    rows = [("image_id", "label"), *((name.rpartition(".")[0] or name, "nevus") for name in NAMES)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    root = tmp_path / "archive #1 [x]"
    root.mkdir()
    (root / "Metadata.CSV").write_text(text.getvalue(), encoding="utf-8-sig")
    found = archive.metadata(spark, str(root), archive.listing(spark, str(root), 100_000))
    assert [(record.image_id, record.label) for record in found] == [(a.strip(), b) for a, b in rows[1:]]


def test_no_metadata(spark, odd, listing):
    assert archive.metadata(spark, str(odd), listing) == []


def test_two_tables_of_metadata_are_one_too_many(spark, tmp_path):
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        (folder / "metadata.csv").write_text("image_id,label\na,nevus\n")
    with pytest.raises(DataError, match=r"2 files named metadata\.csv"):
        archive.metadata(spark, str(tmp_path), archive.listing(spark, str(tmp_path), 1000))


def test_bad_archives_are_named_in_one_line(spark, tmp_path):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    for url, error, message in [
        (tmp_path / "nowhere", DataError, f"{tmp_path}/nowhere does not exist.*archive=URL"),
        (tmp_path / "empty", DataError, f"{tmp_path}/empty holds no files; expected a folder"),
        (tmp_path / "image.png", DataError, f"{tmp_path}/image.png is a file; .*folder"),
        ("nosuchscheme://host/folder", DataError, "nosuchscheme://host/folder cannot be read: .*nosuchscheme"),
        ("", ConfigError, "no archive named; add archive=URL"),
        (None, ConfigError, "no archive named; add archive=URL"),
    ]:
        with pytest.raises(error, match=message) as caught:
            archive.listing(spark, str(url) if url else url, 1000)
        assert "\n" not in str(caught.value)
