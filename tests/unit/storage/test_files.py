"""Small files: written complete or not at all, named in every error, and weights that cannot run code."""

import os
from datetime import UTC, datetime

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.errors import ClusterError, DataError
from melanoma_spark.storage import files

NAMES = st.lists(
    st.text("abc XYZ.-_#%", min_size=1, max_size=8).filter(lambda name: name.strip(".")), min_size=1, max_size=4
)


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}"


@pytest.fixture
def memory():
    """The URL of a store that is no file system of this machine."""
    folder = "memory://test_files"
    yield folder
    filesystem, path = fsspec.core.url_to_fs(folder)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@pytest.fixture(params=["file", "memory"])
def folder(request):
    """The URL of an empty folder, on either kind of store."""
    return request.getfixturevalue("url" if request.param == "file" else "memory")


@pytest.fixture
def blocked(tmp_path):
    """The URL of a folder that even root cannot make: its parent is a file."""
    (tmp_path / "file").write_text("no folder")
    return f"file://{tmp_path}/file/folder"


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("/data/archive", "file:///data/archive"),
        ("/data/archive/", "file:///data/archive"),
        ("/data/./x/../archive", "file:///data/archive"),
        ("file:/data/archive", "file:///data/archive"),
        ("file:/data/archive/", "file:///data/archive"),
        ("file:///data/archive/", "file:///data/archive"),
        ("hdfs://host:9000/archive//", "hdfs://host:9000/archive"),
        ("s3a://bucket/archive", "s3a://bucket/archive"),
        ("/data/100% #1", "file:///data/100% #1"),
    ],
)
def test_url_is_absolute_and_has_no_slash_at_its_end(given_, expected):
    assert files.url_of(given_) == expected
    assert files.join(f"{expected}/", "images", "manifest.json") == f"{expected}/images/manifest.json"


def test_relative_path_is_taken_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.url_of("warehouse") == f"file://{tmp_path}/warehouse"
    assert files.url_of(".") == f"file://{tmp_path}"


@given(NAMES, st.sampled_from(["/", "", "file:/", "file:///", "s3a://bucket/"]))
def test_url_of_a_url_is_itself(names, start):
    url = files.url_of(start + "/".join(names))
    assert files.url_of(url) == url
    assert "://" in url
    assert not url.endswith("/")


def test_small_files_are_written_replaced_and_equal_for_equal_facts(folder):
    target = files.join(folder, "new", "deep", "file")
    assert not files.exists(target)
    files.write_bytes(target, b"old content")
    files.write_bytes(target, b"new")
    assert files.read_bytes(target) == b"new"
    assert files.list_names(files.join(folder, "new", "deep"), "*") == ["file"]

    target = files.join(folder, "manifest.json")
    assert files.read_json(target) is None
    files.write_json(target, {"b": [1, 2.5, None], "a": {"x": "ä"}})
    first = files.read_bytes(target)
    assert files.read_json(target) == {"a": {"x": "ä"}, "b": [1, 2.5, None]}
    files.write_json(target, {"a": {"x": "ä"}, "b": [1, 2.5, None]})
    assert files.read_bytes(target) == first

    files.check_writable(files.join(folder, "warehouse"))
    assert files.list_names(files.join(folder, "warehouse"), "*") == []
    assert files.list_names(files.join(folder, "warehouse"), ".*") == []


def test_names_that_match_are_those_directly_below(folder):
    for name in ("a.parquet", "b.parquet", "c.json", "inner/d.parquet"):
        files.write_bytes(files.join(folder, name), b"")
    assert sorted(files.list_names(folder, "*.parquet")) == ["a.parquet", "b.parquet"]
    assert files.list_names(files.join(folder, "none"), "*") == []


def test_all_files_below_a_folder_with_size_and_time(folder):
    for name, content in (("a", b"1"), ("b/c/d", b"333"), ("b/e", b"")):
        files.write_bytes(files.join(folder, name), content)
    result = sorted(files.walk(folder))
    assert [(path, size) for path, size, _ in result] == [("a", 1), ("b/c/d", 3), ("b/e", 0)]
    if folder.startswith("file:"):
        assert all(abs((datetime.now(UTC) - when).total_seconds()) < 600 for _, _, when in result)
    assert list(files.walk(files.join(folder, "none"))) == []


def test_links_are_not_followed(tmp_path):
    for name in ("inside/folder/file", "outside/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "inside/link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside/file").symlink_to(tmp_path / "outside/file")
    assert [path for path, _, _ in files.walk(f"file://{tmp_path}/inside")] == ["folder/file"]
    (tmp_path / "linked").symlink_to(tmp_path / "inside")
    assert [path for path, _, _ in files.walk(f"file://{tmp_path}/linked")] == ["folder/file"]


def test_folders_without_a_file_go_and_a_link_is_one(url, tmp_path):
    for name in ("kept/inner", "empty/inner/deep", "linked"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "kept/inner/file").write_text("")
    (tmp_path / "linked/link").symlink_to(tmp_path / "kept")
    files.remove_empty_folders(files.join(url, "none"))
    files.remove_empty_folders(url)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inner", "kept", "link", "linked"]
    assert (tmp_path / "linked/link").is_symlink()


def test_a_folder_that_cannot_be_listed_raises(url, tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("")
    ls = LocalFileSystem.ls

    def refused(self, path, detail=False, **options):
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return ls(self, path, detail, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", refused)
    with pytest.raises(PermissionError):
        list(files.walk(url))


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"mtime": 1_500_000_000.5}, datetime(2017, 7, 14, 2, 40, 0, 500_000, UTC)),
        ({"modification_time": 1_500_000_000_500}, datetime(2017, 7, 14, 2, 40, 0, 500_000, UTC)),  # HDFS
        ({"LastModified": datetime(2017, 7, 14, 2, 40, tzinfo=UTC)}, datetime(2017, 7, 14, 2, 40, tzinfo=UTC)),  # S3
        ({"created": 1.0}, None),
    ],
)
def test_when_a_file_was_changed(info, expected):
    assert files.modification_time(info) == expected


class Killed(BaseException):
    """The end of the process: nothing catches it."""


@pytest.mark.parametrize("where", ["writing", "renaming"])
@pytest.mark.parametrize("failure", [Killed, OSError("no space left"), KeyboardInterrupt])
def test_write_that_ends_early_leaves_the_old_content(url, tmp_path, monkeypatch, where, failure):
    target = files.join(url, "manifest.json")
    files.write_bytes(target, b"the old content")

    def dies(*given, **options):
        if where == "writing":
            _, path, value = given
            with open(path, "wb") as file:
                file.write(value[:3])
        raise failure

    monkeypatch.setattr(*((LocalFileSystem, "pipe_file") if where == "writing" else (os, "replace")), dies)
    with pytest.raises((Killed, ClusterError, KeyboardInterrupt)):
        files.write_bytes(target, b"a new content")
    assert (tmp_path / "manifest.json").read_bytes() == b"the old content"
    left = {path.name for path in tmp_path.iterdir()} - {"manifest.json"}
    assert all(name.startswith(".") for name in left), "what a killed write leaves is hidden from readers"


def test_folder_that_cannot_be_written_or_read_is_named_with_a_way_out(blocked, url):
    output = f"^cannot write {blocked}/manifest.json: .*; choose another warehouse=URL$"
    with pytest.raises(ClusterError, match=output):
        files.write_bytes(f"{blocked}/manifest.json", b"{}")
    with pytest.raises(ClusterError, match=f"^cannot write {blocked}/"):
        files.check_writable(blocked)
    with pytest.raises(DataError, match=f"^cannot read {url}/none: No such file or directory$"):
        files.read_bytes(f"{url}/none")


def test_a_new_file_is_never_written_over(url, tmp_path, monkeypatch):
    target = files.join(url, "move.json")
    assert files.write_new(target, b"first")
    assert not files.write_new(target, b"second")
    monkeypatch.setattr(files, "exists", lambda url: False)  # as for two that look before either has written
    assert not files.write_new(target, b"second")
    assert files.read_bytes(target) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["move.json"]


@pytest.mark.parametrize("action", [lambda url: files.write_bytes(url, b""), files.check_writable])
def test_store_of_an_unknown_kind_cannot_be_written(action):
    with pytest.raises(ClusterError, match=r"^cannot write nowhere://bucket/x.*: Protocol not known: nowhere"):
        action("nowhere://bucket/x")


def test_rename_creates_parents_and_remove_takes_folders_and_ignores_missing_ones(folder):
    files.write_bytes(files.join(folder, "attempt", "part", "file"), b"content")
    files.rename(files.join(folder, "attempt"), files.join(folder, "old", "final"))
    assert files.read_bytes(files.join(folder, "old", "final", "part", "file")) == b"content"
    assert not files.exists(files.join(folder, "attempt"))
    files.write_bytes(files.join(folder, "old", "deep", "file"), b"")
    files.write_bytes(files.join(folder, "kept"), b"")
    files.remove(files.join(folder, "old"))
    files.remove(files.join(folder, "old"))
    assert files.list_names(folder, "*") == ["kept"]


@pytest.mark.parametrize("content", [b"", b'{"id": "ab', b"\xff\xfe", b"[1, 2]", b"[[1, 2]]", b"null", b"3"])
def test_damaged_json_is_named_with_a_way_out(url, content):
    files.write_bytes(f"{url}/manifest.json", content)
    with pytest.raises(DataError, match=f"^{url}/manifest.json is not a JSON object; it was damaged, remove it"):
        files.read_json(f"{url}/manifest.json")
