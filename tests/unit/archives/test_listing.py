"""Listing a folder: links are followed as far as the settings allow, each file comes once, and loops end."""

from pathlib import Path

import pytest
from broken_containers import zipped

from melanoma_spark.archives import containers, listing
from melanoma_spark.archives.contents import open_file
from melanoma_spark.archives.listing import LINK_OUT


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with links of every kind, and a store beside it, as DVC and Hugging Face keep files."""
    for name in ("archive/a/1.jpg", "store/ab/cdef", "store/folder/2.jpg", "store/folder/deep/3.jpg", "store/set.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    links = {
        "archive/inside.jpg": "a/1.jpg",
        "archive/out.jpg": "../store/ab/cdef",
        "archive/again.jpg": "out.jpg",
        "archive/broken.jpg": "../store/nothing",
        "archive/folder": "../store/folder",
        "archive/folder2": "../store/folder/deep",
        "archive/same": "a",
        "archive/loop": ".",
        "archive/a/up": "../..",
        "archive/set.zip": "../store/set.zip",
        "store/folder/deep/back": "..",
        "store/folder/home": "../../archive",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path / "archive"


def listed(archive: Path, follow: bool) -> dict[str, tuple[str, str | None]]:
    rows = list(listing.walk_folder(f"file:{archive}", "", 10**6, follow))
    assert len({row.path for row in rows}) == len(rows)
    return {row.path: (row.kind, row.detail) for row in rows}


READ, AGAIN = ("file", None), ("file", "a link to nothing, or to a folder that is listed at its own place")


@pytest.mark.parametrize("top", ["archive", "linked", "archive/../archive"])
def test_links_out_of_the_archive_are_followed_if_the_settings_allow_it(archive, top):
    (archive.parent / "linked").symlink_to("archive")
    inside, follow = (listed(archive.parent / top, follow) for follow in (False, True))
    out = ("file", f"{LINK_OUT}; ingest.links=follow reads what it leads to")
    names = ("out.jpg", "again.jpg", "broken.jpg", "folder", "folder2", "a/up")
    assert inside == {
        **dict.fromkeys(("a/1.jpg", "inside.jpg"), READ),
        **dict.fromkeys(names, out),
        **dict.fromkeys(("same", "loop"), AGAIN),
        "set.zip": out,
    }
    assert follow == {
        **dict.fromkeys(("a/1.jpg", "inside.jpg", "out.jpg", "again.jpg"), READ),
        **dict.fromkeys(("folder/2.jpg", "folder/deep/3.jpg"), READ),
        **dict.fromkeys(("broken.jpg", "folder2", "same", "loop", "a/up"), AGAIN),
        **dict.fromkeys(("folder/deep/back", "folder/home"), AGAIN),
        "set.zip": ("container", None),
    }


def test_what_a_link_leads_to_is_read(archive):
    for row in listing.walk_folder(f"file:{archive}", "", 10**6, follow=True):
        if row.detail is None:
            with open_file(f"file:{archive}", row.file, row.raw) as file:
                assert file.read().decode() == (archive / row.path).resolve().relative_to(archive.parent).as_posix()


def test_hidden_members_are_rejected_by_their_names_whatever_else_they_are(tmp_path):
    names = (".x.jpg", "a/.y.zip", ".git/x.jpg")
    (tmp_path / "set.zip").write_bytes(zipped(dict.fromkeys(names, b"")))
    (container,) = listing.walk_folder(f"file:{tmp_path}", "", 10**6)
    rows = listing.expand_container(f"file:{tmp_path}", container._replace(modified=0), containers.Limits())
    assert {row.path: row.reason for row in rows} == {f"set.zip/{name}": "hidden" for name in names}
