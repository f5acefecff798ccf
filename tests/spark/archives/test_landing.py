"""A landing folder as a source of structured streaming: an offset changes when something has settled, and only then."""

import os
import time
import zipfile

import pytest

from melanoma_spark import config
from melanoma_spark.archives import landing, listing
from melanoma_spark.errors import DataError

LARGE = 2**28


def seen(folder, settle=0.0):
    return landing.summarize_settled(str(folder), LARGE, settle)


def drop(path, seconds=60, content=b"x"):
    """A file that has not changed for some seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_the_digest_is_of_names_sizes_and_times_in_any_order(tmp_path):
    (tmp_path / "empty").mkdir()
    assert seen(tmp_path) == (0, "")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, "abc"), (other, "cba")):
        for name in names:
            os.utime(drop(folder / "sub" / f"{name}.jpg"), (1000, 1000))
    before = seen(one)
    assert before[0] == 3
    assert seen(other) == before
    os.utime(one / "sub/a.jpg", (1001, 1001))
    assert seen(one) != before
    os.utime(one / "sub/a.jpg", (1000, 1000))
    assert seen(one) == before
    (one / "sub/b.jpg").rename(one / "sub/d.jpg")
    assert seen(one)[1] != before[1]
    (one / "sub/d.jpg").unlink()
    assert seen(one)[0] == 2


def test_files_that_changed_recently_are_not_settled(tmp_path, spark):
    drop(tmp_path / "old.jpg", 100_000)
    drop(tmp_path / "young.jpg", 10_000)
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as zipped:
        zipped.writestr("member.jpg", b"x")
    assert [seen(tmp_path, settle)[0] for settle in (30_000, 3000, 0)] == [1, 2, 3]
    listed = listing.list_archive(spark, config.parse({"archive": str(tmp_path)}))
    assert {row.path for row in listing.settled_files(listed, 30_000).collect()} == {"old.jpg"}
    assert {row.path for row in listing.settled_files(listed, 3000).collect()} == {"old.jpg", "young.jpg"}
    assert listing.settled_files(listed, 0).count() == 3


def test_offsets_change_with_the_folder_and_the_asked_file(tmp_path):
    (tmp_path / "asked").write_text("version 1")
    options = {
        "archive": str(tmp_path / "landing"),
        "settle": "30.0",
        "max_bytes": str(LARGE),
        "links": "inside",
        "asked": str(tmp_path / "asked"),
    }
    (tmp_path / "landing").mkdir()
    looks = landing.LandingSource(options).streamReader(None)
    assert looks.latestOffset() == looks.initialOffset() == landing.EMPTY
    drop(tmp_path / "landing/a.jpg", 1000)
    first = looks.latestOffset()
    assert first == looks.latestOffset()
    assert first["files"] == 1
    drop(tmp_path / "landing/b.jpg", 0)
    assert looks.latestOffset() == first
    (tmp_path / "asked").write_text("version 2")
    assert looks.latestOffset() != first
    (partition,) = looks.partitions(first, first)
    assert list(looks.read(partition)) == [(1,)]

    with pytest.raises(DataError, match="does not exist"):
        seen(tmp_path / "nowhere")
    (tmp_path / "asked").write_text("")
    options = {
        "archive": str(tmp_path / "nowhere"),
        "settle": "0",
        "max_bytes": "1",
        "links": "inside",
        "asked": str(tmp_path / "asked"),
    }
    offset = landing.LandingSource(options).streamReader(None).latestOffset()
    assert offset["files"] == 1
    assert "does not exist" in offset["digest"]
