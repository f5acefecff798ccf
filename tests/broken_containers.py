"""Zip, tar and tar.gz files to test with: what makes them, and `CORPUS`, every way to spoil one.

Of the corpus each is small, whatever it would unpack to: name -> (kind, what makes it, reason by member, None where the
member is read; its bytes are then `A`, `B` or `C`). What is wrong with a container as a whole has no member's name.
"""

import gzip
import io
import random
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("zip", "tar", "tar.gz")
A, B, C = (random.Random(seed).randbytes(length) for seed, length in ((1, 900), (2, 1024), (3, 1700)))
PLAIN = {"a.jpg": A, "folder/b.jpg": B, "folder/deep/c.png": C}


def zipped(
    files: dict[str, bytes] | list[tuple[Any, bytes]], method: int = zipfile.ZIP_DEFLATED, streamed: bool = False
) -> bytes:
    """A zip of names or ZipInfos; `streamed` as one that is written to a pipe, with sizes behind the data."""
    file = io.BytesIO()
    with zipfile.ZipFile(Pipe(file) if streamed else file, "w", method) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, content, method)
    return file.getvalue()


class Pipe(io.RawIOBase):
    """Writes on, and never goes back."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return self._file.write(content)


def info(name: str, **fields: Any) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def tarred(
    files: dict[str, bytes] | list[tuple[Any, bytes]], mode: str = "w", form: int = tarfile.PAX_FORMAT, **options: Any
) -> bytes:
    """A tar of names or TarInfos."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form, **options) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def item(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def packed(kind: str, files: dict[str, bytes] | list[tuple[Any, bytes]] = PLAIN) -> bytes:
    if kind == "zip":
        return zipped(files)
    return tarred(files) if kind == "tar" else tarred(files, "w:gz")


def signed(header: bytes | bytearray) -> bytes:
    """A tar header with its checksum put right."""
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def central(content: bytes, number: int = 0) -> int:
    """Where an entry of a zip's central directory starts."""
    place = -1
    for _ in range(number + 1):
        place = content.index(b"PK\1\2", place + 1)
    return place


def bomb_of_one_file() -> bytes:
    return zipped({"zeros.bmp": bytes(4 << 20)})


def overlapping() -> bytes:
    """Fifield's trick, in short: many entries of the central directory share one local file."""
    content = zipped({"good.jpg": A, "x.jpg": B})
    start = central(content)
    first, second, end = content[start : central(content, 1)], content[central(content, 1) : -22], content[-22:]
    copies = b"".join(second.replace(b"x.jpg", b"%d.jpg" % number) for number in range(3))
    entries = first + copies
    numbers = struct.pack("<HHL", 4, 4, len(entries))
    return content[:start] + entries + changed(end, 8, numbers)


def quoted() -> bytes:
    """... and its other half: an entry holds the next one's header and data as its own stored bytes."""
    inner = zipped({"inner.jpg": A}, zipfile.ZIP_STORED)
    kernel = inner[: central(inner)]
    content = zipped({"outer.jpg": kernel}, zipfile.ZIP_STORED)
    start = central(content)
    at = content.index(kernel)
    entry = inner[central(inner) : -22]
    entries = content[start:-22] + changed(entry, 42, struct.pack("<L", at))
    return content[:start] + entries + changed(content[-22:], 8, struct.pack("<HHL", 2, 2, len(entries)))


def with_flag(flag: int) -> bytes:
    content = zipped({"a.jpg": A, "b.jpg": B})
    return changed(content, central(content) + 8, struct.pack("<H", flag))


def with_method(method: int) -> bytes:
    content = zipped({"a.jpg": A, "b.jpg": B})
    return changed(content, central(content) + 10, struct.pack("<H", method))


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    return info(name, create_system=3, external_attr=mode << 16)


def half_header(content: bytes) -> bytes:
    """A tar of three, the second of which has a spoilt header."""
    place = content.index(b"folder/b.jpg")
    return changed(content, place, b"F")


def tar_number(size: bytes) -> bytes:
    header = changed(tarred({"b.jpg": B}, form=tarfile.GNU_FORMAT)[:512], 124, size)
    return tarred({"a.jpg": A}, form=tarfile.GNU_FORMAT)[:1536] + signed(header) + bytes(2048)


def sparse(form: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/holes.bin", "wb") as file:
            for number in range(60):  # enough holes for a map that goes on behind the header
                file.seek(number * 65536)
                file.write(b"x" * 4096)
        (Path(folder) / "z.jpg").write_bytes(A)
        command = ["tar", *form.split(), "--sparse", "-cf", "-", "-C", folder, "holes.bin", "z.jpg"]
        return subprocess.run(command, check=True, capture_output=True).stdout


GOOD = {"a.jpg": None, "folder/b.jpg": None, "folder/deep/c.png": None}
DAMAGED = {"": "damaged_archive"}
ZIP = zipped(PLAIN)
LOCAL_ONLY = ZIP[: central(ZIP)]
GZ = tarred(PLAIN, "w:gz")

CORPUS: dict[str, tuple[str, Callable[[], bytes], dict[str, str | None]]] = {
    # nothing in it
    "zip of nothing": ("zip", lambda: zipped({}), {}),
    "tar of nothing": ("tar", lambda: tarred({}), {}),
    "tar.gz of nothing": ("tar.gz", lambda: tarred({}, "w:gz"), {}),
    "zip of 0 bytes": ("zip", bytes, DAMAGED),
    "tar of 0 bytes": ("tar", bytes, DAMAGED),
    "tar.gz of 0 bytes": ("tar.gz", bytes, DAMAGED),
    "gzip of 0 bytes": ("tar.gz", lambda: gzip.compress(b""), DAMAGED),
    "zip of folders": ("zip", lambda: zipped({"a/": b"", "a/b/": b""}), {}),
    "zip of folders of Windows": ("zip", lambda: zipped({"a\\": b""}), {}),
    "tar of folders": ("tar", lambda: tarred([(item("a", tarfile.DIRTYPE), b"")]), {}),
    "v7 tar of a folder": ("tar", lambda: signed(tarred({"a/": b""})[:512]) + bytes(1024), {}),
    # another thing than its name says
    "zip that is a photograph": ("zip", lambda: b"\xff\xd8\xff" + A, DAMAGED),
    "tar that is a photograph": ("tar", lambda: b"\xff\xd8\xff" + A, DAMAGED),
    "tar.gz that is a photograph": ("tar.gz", lambda: b"\xff\xd8\xff" + A, DAMAGED),
    "tar.gz of text": ("tar.gz", lambda: gzip.compress(b"text" * 999), DAMAGED),
    "tar of random bytes": ("tar", lambda: C * 9, DAMAGED),
    "zip end and no more": ("zip", lambda: b"x" + zipped(PLAIN)[-22:], DAMAGED),
    # members not to read
    "empty ones": ("tar", lambda: tarred({"a.jpg": b"", "b.jpg": B}), {"a.jpg": "empty", "b.jpg": None}),
    "empty one in zip": ("zip", lambda: zipped({"a.jpg": b""}), {"a.jpg": "empty"}),
    "archives": (
        "tar.gz",
        lambda: tarred(dict.fromkeys(("a.ZIP", "b.tar", "c.tar.gz", "d.tgz"), A), "w:gz"),
        dict.fromkeys(("a.ZIP", "b.tar", "c.tar.gz", "d.tgz"), "nested_archive"),
    ),
    "links in tar": (
        "tar",
        lambda: tarred(
            [
                (item("s.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
                (item("h.jpg", tarfile.LNKTYPE, linkname="x" * 300), b""),
                ("a.jpg", A),
            ]
        ),
        {"s.jpg": "link", "h.jpg": "link", "a.jpg": None},
    ),
    "link in GNU tar with a long target": (
        "tar",
        lambda: tarred([(item("s", tarfile.SYMTYPE, linkname="t" * 300), b""), ("a.jpg", A)], form=tarfile.GNU_FORMAT),
        {"s": "link", "a.jpg": None},
    ),
    "link in zip": (
        "zip",
        lambda: zipped([(unix("s.jpg", 0o120777), b"/etc/passwd"), ("a.jpg", A)]),
        {"s.jpg": "link", "a.jpg": None},
    ),
    "pipe in zip": ("zip", lambda: zipped([(unix("p.jpg", 0o010644), A)]), {"p.jpg": "special_file"}),
    "plain file of Unix in zip": ("zip", lambda: zipped([(unix("p.jpg", 0o100644), A)]), {"p.jpg": None}),
    "devices": (
        "tar",
        lambda: tarred([(item(f"{kind!r}", kind), b"") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE)]),
        {"b'3'": "special_file", "b'4'": "special_file"},
    ),
    "fifo": ("tar", lambda: tarred([(item("f", tarfile.FIFOTYPE), b"")]), {"f": "special_file"}),
    "contiguous file": ("tar", lambda: tarred([(item("f", tarfile.CONTTYPE), A)]), {"f": None}),
    "unknown type": ("tar", lambda: tarred([(item("f", b"Q"), A), ("b", B)]), {"f": "special_file", "b": None}),
    "sparse file of old GNU": ("tar", lambda: sparse("--format=gnu"), {"holes.bin": "special_file", "z.jpg": None}),
    "sparse file of pax": (
        "tar",
        lambda: sparse("--format=posix --sparse-version=1.0"),
        {"holes.bin": "special_file", "z.jpg": None},
    ),
    "sparse file of pax 0.1": (
        "tar",
        lambda: sparse("--format=posix --sparse-version=0.1"),
        {"holes.bin": "special_file", "z.jpg": None},
    ),
    "encrypted": ("zip", lambda: with_flag(1), {"a.jpg": "encrypted", "b.jpg": None}),
    "strongly encrypted": ("zip", lambda: with_flag(0x41), {"a.jpg": "encrypted", "b.jpg": None}),
    "a patch": ("zip", lambda: with_flag(0x20), {"a.jpg": "unsupported_compression", "b.jpg": None}),
    "deflate64": ("zip", lambda: with_method(9), {"a.jpg": "unsupported_compression", "b.jpg": None}),
    "zstandard": ("zip", lambda: with_method(93), {"a.jpg": "unsupported_compression", "b.jpg": None}),
    # bombs
    "file of zeros in zip": ("zip", bomb_of_one_file, {"zeros.bmp": "bomb"}),
    "tar.gz of zeros": ("tar.gz", lambda: tarred({"a": A, "z": bytes(16 << 20)}, "w:gz"), {"a": None, "": "bomb"}),
    "gzip of zeros": ("tar.gz", lambda: gzip.compress(bytes(16 << 20)), DAMAGED),
    "shared data": ("zip", overlapping, {"good.jpg": None, "0.jpg": "bomb", "1.jpg": "bomb", "2.jpg": "bomb"}),
    "quoted data": ("zip", quoted, {"outer.jpg": "bomb", "inner.jpg": "bomb"}),
    # before, between and behind
    "self-extracting zip": ("zip", lambda: b"MZ" + C + zipped(PLAIN), GOOD),
    "zip with a comment": ("zip", lambda: zipped(PLAIN)[:-2] + b"\x05\0" + b"PK\5\6!", GOOD),
    "zip with zeros behind it": ("zip", lambda: zipped(PLAIN) + bytes(600), GOOD),
    "zip with something behind it": ("zip", lambda: zipped(PLAIN) + C, GOOD | DAMAGED),
    "two zips": ("zip", lambda: zipped(PLAIN) + zipped({"lost.jpg": A}), GOOD | DAMAGED),
    "two tars": ("tar", lambda: tarred(PLAIN) + tarred({"more.jpg": A}), GOOD | {"more.jpg": None}),
    "two tars in two gzips": ("tar.gz", lambda: GZ + tarred({"more.jpg": A}, "w:gz"), GOOD | {"more.jpg": None}),
    "tar in pieces of gzip": (
        "tar.gz",
        lambda: gzip.compress(tarred(PLAIN)[:700]) + gzip.compress(tarred(PLAIN)[700:]) + bytes(99),
        GOOD,
    ),
    "tar.gz with something behind it": ("tar.gz", lambda: GZ + b"behind", GOOD | DAMAGED),
    "tar with something behind it": ("tar", lambda: tarred(PLAIN) + A, GOOD | DAMAGED),
    "tar without end": ("tar", lambda: tarred(PLAIN).rstrip(b"\0") + bytes(300), GOOD | DAMAGED),
    "tar with one block of zeros for an end": ("tar", lambda: tarred(PLAIN)[: 5632 + 512], GOOD),
    "tar of zeros without end": ("tar", lambda: bytes(3 << 20), DAMAGED),
    # damage
    "zip without central directory": ("zip", lambda: LOCAL_ONLY, GOOD | DAMAGED),
    "self-extracting zip without it": ("zip", lambda: b"MZ" + C + LOCAL_ONLY, GOOD | DAMAGED),
    "stream of deflate without it": ("zip", lambda: zipped(PLAIN, 8, True)[:-60], GOOD | DAMAGED),
    "stream of stored ones without it": ("zip", lambda: zipped(PLAIN, 0, True)[:-60], GOOD | DAMAGED),
    "stream of bzip2 without it": ("zip", lambda: zipped(PLAIN, 12, True)[:-60], DAMAGED),
    "spoilt central directory": (
        "zip",
        lambda: changed(zipped(PLAIN), central(zipped(PLAIN), 1), b"X"),
        GOOD | DAMAGED,
    ),
    "zip that miscounts": ("zip", lambda: changed(ZIP, len(ZIP) - 12, b"\7"), GOOD | DAMAGED),
    "outer zip cut behind an inner one": (
        "zip",
        lambda: (complete := zipped({"in.zip": zipped(PLAIN), "late.jpg": B}, 0))[: complete.index(b"late.jpg") - 30],
        {"in.zip": "nested_archive", "": "damaged_archive"},
    ),
    "spoilt header of tar": ("tar", lambda: half_header(tarred(PLAIN)), {"a.jpg": None, "": "damaged_archive"}),
    "spoilt header in tar.gz": (
        "tar.gz",
        lambda: gzip.compress(half_header(tarred(PLAIN))),
        {"a.jpg": None, "": "damaged_archive"},
    ),
    "checksum of gzip": ("tar.gz", lambda: changed(GZ, len(GZ) - 8, b"1234"), GOOD | DAMAGED),
    "length of gzip": ("tar.gz", lambda: changed(GZ, len(GZ) - 4, b"1234"), GOOD | DAMAGED),
    "long name of no member": (
        "tar",
        lambda: tarred({"a.jpg": A})[:1536] + tarred({"x" * 200: B}, form=tarfile.GNU_FORMAT)[:1024] + bytes(2048),
        {"a.jpg": None, "": "damaged_archive"},
    ),
    "zeros in place of a header": (
        "tar",
        lambda: changed(tarred(PLAIN), 1536, bytes(512)),
        {"a.jpg": None, "": "damaged_archive"},
    ),
    "negative size": ("tar", lambda: tar_number(b"\xff" * 12), {"a.jpg": None, "": "damaged_archive"}),
    "huge size": ("tar", lambda: tar_number(b"\x80" + b"\xff" * 11), {"a.jpg": None, "": "damaged_archive"}),
    "size of letters": ("tar", lambda: tar_number(b"photographs!"), {"a.jpg": None, "": "damaged_archive"}),
    "size in base 256": (
        "tar",
        lambda: tar_number(b"\x80" + (1024).to_bytes(11, "big")),
        {"a.jpg": None, "b.jpg": None},
    ),
}
