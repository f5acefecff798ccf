"""A container format is an entry of `containers.FORMATS`: listing and reading find it there, and nowhere else."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

import pandas as pd
from broken import LESION, encoded

from melanoma_spark import schemas
from melanoma_spark.archives import containers, contents, listing
from melanoma_spark.archives.containers.common import Entry, Format, Limits, Member, Stop, file_length, read_exactly

MAGIC = b"!<arch>\n"


def _entries(file: BinaryIO, limits: Limits) -> Iterator[Entry]:
    """The members of an archive of Unix' ar: headers of 60 bytes, contents at even places."""
    length, place = file_length(file), len(MAGIC)
    while place < length:
        file.seek(place)
        header = read_exactly(file, 60)
        if header[58:] != b"`\n":
            raise Stop("damaged_archive", f"no header at byte {place}", place)
        size = int(header[48:58])
        yield Entry(header[:16].decode().rstrip(" /"), place + 60, size, size)
        place += 60 + size + size % 2


def _reader(file: BinaryIO) -> Callable[[Member], bytes]:
    def get(member: Member) -> bytes:
        file.seek(member.offset)
        return read_exactly(file, member.size)

    return get


AR = Format((".ar",), lambda head: head.startswith(MAGIC), _entries, _reader)


def ar(files: dict[str, bytes]) -> bytes:
    """What `ar` writes."""
    parts = [MAGIC]
    for name, content in files.items():
        parts.append(f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(content):<10}`\n".encode())
        parts.append(content + b"\n" * (len(content) % 2))
    return b"".join(parts)


def read_archive(root):
    """Path -> content, or the reason for none, as ingest reads an archive."""
    rows = []
    for row in listing.walk_folder(root, "", 10**6):
        if row.kind == "container":
            rows += listing.expand_container(root, row._replace(modified=None), Limits())
        else:
            rows.append(row)
    frame = pd.DataFrame(rows, columns=schemas.LISTING.names, dtype=object)
    read = contents.read_contents(root, [frame.sort_values(["file", "offset"])], 10**6)
    return {row.path: getattr(content, "reason", content) for row, content in read}


def test_a_new_format_is_an_entry(tmp_path, monkeypatch):
    images = {"a.png": encoded(LESION), "b.png": encoded(LESION.rotate(90))}
    (tmp_path / "images.ar").write_bytes(ar(images | {"notes.txt": b"odd"}))
    assert read_archive(f"file:{tmp_path}").keys() == {"images.ar"}
    monkeypatch.setitem(containers.FORMATS, "ar", AR)
    found = read_archive(f"file:{tmp_path}")
    assert {name: found[f"images.ar/{name}"] for name in images} == images
    assert found["images.ar/notes.txt"] == b"odd"
    assert containers.detect_format(ar(images)[:512]) == "ar"
    assert containers.detect_format(b"damaged", "x.AR") == "ar"
