"""Zip, tar and tar.gz: ordinary ones as Python's own readers see them, and every way to spoil one."""

import gzip
import io
import itertools
import pickle
import random
import struct
import subprocess
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from broken_containers import (
    CORPUS,
    GZ,
    KINDS,
    LOCAL_ONLY,
    PLAIN,
    A,
    B,
    C,
    central,
    changed,
    item,
    packed,
    signed,
    tarred,
    zipped,
)
from hypothesis import example, given
from hypothesis import strategies as st
from samples import examples

from melanoma_spark.archives import containers
from melanoma_spark.archives.containers import Limits, Member
from melanoma_spark.archives.containers.common import UniqueNames
from melanoma_spark.errors import ImageError
from melanoma_spark.images.reasons import REASONS


def listed(content: bytes, kind: str, **limits: Any) -> list[Member]:
    return list(containers.list_members(io.BytesIO(content), kind, Limits(**limits)))


def printable(name: str) -> bool:
    return all(character.isprintable() or unicodedata.category(character) == "Zs" for character in name)


def contents(content: bytes, kind: str, wanted: list[Member] | None = None) -> dict[str, bytes | str]:
    """What is read of each member: bytes, or the reason for none."""
    wanted = listed(content, kind) if wanted is None else wanted
    result = {}
    for member, got in containers.read_members(io.BytesIO(content), kind, wanted):
        result[member.name] = got.reason if isinstance(got, ImageError) else got
    assert list(result) == [member.name for member in wanted]
    return result


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("streamed", [False, True])
def test_zip_is_what_zipfile_reads(method, streamed):
    content = zipped({**PLAIN, "grün/日本.jpg": b"x" * 5000}, method, streamed)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        expected = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        sizes = [(entry.filename, entry.file_size, entry.compress_size, entry.CRC) for entry in archive.infolist()]
    assert contents(content, "zip") == expected
    assert [(member.name, member.size, member.stored, member.crc) for member in listed(content, "zip")] == sizes


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tar_is_what_tarfile_reads(form, kind):
    files = {**PLAIN, "folder/" * 12 + "name" * 10 + ".jpg": A, "grün.jpg": B, "512.jpg": bytes(512)}
    if form != tarfile.USTAR_FORMAT:
        files["long" * 40 + ".jpg"] = C
    content = tarred(files, "w" if kind == "tar" else "w:gz", form)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = {entry.name: archive.extractfile(entry).read() for entry in archive}
        offsets = [entry.offset_data for entry in archive]
    assert expected == files
    assert contents(content, kind) == expected
    assert [member.offset for member in listed(content, kind)] == offsets
    assert all(member.reason is None for member in listed(content, kind))


def test_members_are_in_order_can_be_pickled_and_read_in_pieces():
    for kind in KINDS:
        result = listed(packed(kind), kind)
        assert [member.index for member in result] == [0, 1, 2]
        assert [member.offset for member in result] == sorted(member.offset for member in result)
        assert pickle.loads(pickle.dumps(result)) == result

    class Dripping(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            return super().read(min(length, 7) if length and length > 0 else length)

    for kind in KINDS:
        file = Dripping(packed(kind))
        wanted = list(containers.list_members(file, kind))
        assert {member.name: got for member, got in containers.read_members(file, kind, wanted)} == PLAIN


def test_tar_of_the_system_s_own_program(tmp_path):
    for name, content in {**PLAIN, "x" * 120 + ".jpg": A}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    for form in ("v7", "oldgnu", "gnu", "ustar", "posix"):
        files = ["a.jpg", "folder"] if form in ("v7", "ustar") else ["."]
        command = ["tar", f"--format={form}", "-czf", tmp_path / "t.tgz", "-C", tmp_path / "in", *files]
        subprocess.run(command, check=True)
        result = contents((tmp_path / "t.tgz").read_bytes(), "tar.gz")
        assert result == (PLAIN if len(files) == 2 else {**PLAIN, "x" * 120 + ".jpg": A}), form


def test_format_is_detected_by_content_then_by_name():
    for kind in KINDS:
        assert containers.detect_format(packed(kind)[:512], "photo.jpg") == kind
        assert containers.detect_format(b"#!/bin/sh\n", f"X.{kind.upper()}") == kind
    assert containers.detect_format(zipped({})[:512]) == "zip"
    assert containers.detect_format(tarred({})[:512]) == "tar"
    assert containers.detect_format(b"", "x.tgz") == "tar.gz"
    for nothing in (b"", b"\xff\xd8\xff" * 200, b"PK", bytes(511)):
        assert containers.detect_format(nothing) is None
        assert containers.detect_format(nothing, "zip") is None

    suffixes = [suffix for form in containers.FORMATS.values() for suffix in form.suffixes]
    assert all(containers.is_container(f"a/B{suffix.upper()}") for suffix in suffixes)
    assert not any(map(containers.is_container, ("a.jpg", "zip", "a.zip/b.jpg", "a.gz", "a.nii.gz")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/etc/passwd.jpg", "etc/passwd.jpg"),
        ("//host/share.jpg", "host/share.jpg"),
        ("C:/x.jpg", "C_/x.jpg"),
        ("c:x.jpg", "c_x.jpg"),
        ("C:\\x.jpg", "C_/x.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        ("\\\\host\\b.jpg", "host/b.jpg"),
        ("../x.jpg", "__/x.jpg"),
        ("a/../../x.jpg", "a/__/__/x.jpg"),
        ("..", "__"),
        ("a/..", "a/__"),
        ("a\nb.jpg", "a\\nb.jpg"),
        ("a\x1b[2Jb.jpg", "a\\x1b[2Jb.jpg"),
        ("a\x7f.jpg", "a\\x7f.jpg"),
        ("a\x85.jpg", "a\\x85.jpg"),
        ("x" * 1025, "x" * 1024),
        ("f/" * 600 + "x.jpg", ("f/" * 512)[:1024]),
        (".", "_"),
    ],
)
def test_hostile_names_are_listed_and_never_read(kind, name, shown):
    content = packed(kind, {name: A, "good.jpg": B})
    bad, _ = listed(content, kind)
    assert (bad.reason, bad.name) == ("unsafe_name", shown)
    assert printable(bad.name)
    assert contents(content, kind) == {shown: "unsafe_name", "good.jpg": B}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("./a.jpg", "a.jpg"),
        ("./x/./a.jpg", "x/a.jpg"),
        ("x//a.jpg", "x/a.jpg"),
        ("a..b.jpg", "a..b.jpg"),
        ("image 1 (2).jpg", "image 1 (2).jpg"),
        ("12:30.jpg", "12:30.jpg"),
        ("lésion 日本　1.jpg", "lésion 日本　1.jpg"),
        ("right\u202eleft.jpg", "right\\u202eleft.jpg"),
        ("x" * 1024, "x" * 1024),
    ],
)
def test_odd_names_are_read(kind, name, shown):
    assert contents(packed(kind, {name: A}), kind) == {shown: A}


@pytest.mark.parametrize(
    ("raw", "of_zip", "of_tar"),
    [
        ("läsion.jpg".encode("cp437"), "läsion.jpg", "l\\x84sion.jpg"),
        ("läsion.jpg".encode("cp1252"), "lΣsion.jpg", "l\\xe4sion.jpg"),
        ("läsion.jpg".encode(), "läsion.jpg", "läsion.jpg"),
        ("ソ.jpg".encode("shift-jis"), "â\uff3c.jpg", "\\x83\uff3c.jpg"),  # its second byte is a backslash
        (b"\xff\xfe.jpg", "\u00a0■.jpg", "\\xff\\xfe.jpg"),
    ],
)
def test_names_in_whatever_encoding(raw, of_zip, of_tar):
    place = b"N" * len(raw)
    content = zipped({place.decode(): A}).replace(place, raw)
    assert contents(content, "zip") == {of_zip: A}
    header = tarred({place.decode(): A}, form=tarfile.GNU_FORMAT)
    header = signed(header[:512].replace(place, raw)) + header[512:]
    assert contents(header, "tar") == {of_tar: A}


def old_v7() -> bytes:
    """A tar header with other bytes in place of the prefix."""
    header = bytearray(tarred({"a.jpg": A}, form=tarfile.USTAR_FORMAT)[:512])
    header[257:265], header[345:350] = bytes(8), b"noise"
    return signed(header) + A.ljust(1024, b"\0") + bytes(1024)


def of_signed_bytes() -> bytes:
    """A tar whose checksum counts bytes from -128 to 127."""
    content = tarred({"ü.jpg": A}, form=tarfile.GNU_FORMAT)
    header = content[:148] + b" " * 8 + content[156:512]
    total = sum(byte - 256 * (byte > 127) for byte in header)
    return changed(content, 148, b"%06o\0 " % total)


STREAMED = zipped({"a.jpg": A, "b.jpg": b"text " * 400}, streamed=True)
LZMA = zipped({"a.jpg": A}, zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (zipped({"aNb.jpg": A}).replace(b"aNb", b"a\0b"), "zip", {"a\\x00b.jpg": "unsafe_name"}),
        (tarred([(item("x", pax_headers={"path": "a\0b"}), A)]), "tar", {"a\\x00b": "unsafe_name"}),
        (changed(zipped({"a.jpg": A}), 6, b"\1"), "zip", {"a.jpg": "encrypted"}),  # by its own header alone
        # an LZMA that asks for gigabytes of memory: version and length, then the properties' first byte
        (changed(LZMA, LZMA.index(b"a.jpg") + 10, b"\0\0\0\xf0"), "zip", {"a.jpg": "damaged_member"}),
        # no deflate behind the first member, and no directory
        (
            changed(STREAMED[: central(STREAMED)], STREAMED.index(b"b.jpg") + 5, b"\xff\xff\xff"),
            *("zip", {"a.jpg": A, "": "damaged_archive"}),
        ),
        (old_v7(), "tar", {"a.jpg": A}),
        (of_signed_bytes(), "tar", {"ü.jpg": A}),
    ],
    ids=["NUL in zip", "NUL in tar", "encrypted", "LZMA", "no deflate", "v7", "signed bytes"],
)
def test_single_members_of_odd_headers(content, kind, expected):
    assert contents(content, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_get_different_names(kind):
    files = [("a.jpg", A), ("a.jpg", B), ("a.jpg#4", C), ("a.jpg", A), ("./a.jpg", B)]
    result = contents(packed(kind, files), kind)
    assert result == {"a.jpg": A, "a.jpg#2": B, "a.jpg#4": C, "a.jpg#4#4": A, "a.jpg#5": B}


@given(st.lists(st.text("ab#12", max_size=4), max_size=60))
@example([f"lesion_{number}.jpg" for number in range(20_000)])  # none is taken for an old one
def test_names_are_unique_whatever_they_are(names):
    unique = UniqueNames(max(100, len(names)))
    result = [unique.unique(name, index) for index, name in enumerate(names)]
    assert len(set(result)) == len(result)
    first = dict(zip(reversed(names), reversed(result), strict=True))
    assert all(given == name for name, given in first.items() if "#" not in name)


@pytest.mark.parametrize("case", CORPUS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_corpus(case):
    kind, make, expected = CORPUS[case]
    content = make()
    result = listed(content, kind)
    assert {member.name: member.reason for member in result} == expected
    assert len(result) == len(expected)
    for member, got in containers.read_members(io.BytesIO(content), kind, result):
        if member.reason is None:
            assert isinstance(got, bytes)
            assert len(got) == member.size
            assert got in (A, B, C) or kind == "tar"
        else:
            assert got.reason == member.reason
            assert member.detail
            assert "\n" not in member.detail


def test_corpus_covers_every_reason():
    met = {reason for _, _, expected in CORPUS.values() for reason in expected.values()} - {None}
    assert len(CORPUS) >= 35
    elsewhere = {"unsafe_name", "too_many_members", "archive_too_large", "damaged_member"}  # the tests around this one
    assert met | elsewhere == set(containers.REASONS) | {"empty"}
    assert {"empty", "too_many_bytes"} <= set(REASONS)
    assert not set(containers.REASONS) & set(REASONS)
    assert all(line and "\n" not in line for line in containers.REASONS.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("limits", "last", "message"),
    [
        ({"max_member_bytes": len(B)}, "too_many_bytes", "1024"),
        ({"max_members": 2}, "too_many_members", "2"),
        ({"max_members": 3}, None, ""),
        ({"max_total_bytes": len(A + B)}, "archive_too_large", str(len(A + B))),
        ({"max_total_bytes": len(A + B + C)}, None, ""),
    ],
)
def test_a_limit_ends_the_listing_with_a_row_and_its_reason(kind, limits, last, message):
    result = listed(packed(kind), kind, **limits)
    assert [member.reason for member in result] == [None, None, last]
    assert message in (result[-1].detail or "")
    complete = last in ("too_many_members", "archive_too_large")
    assert [member.name for member in result] == [*list(PLAIN)[:2], "" if complete else "folder/deep/c.png"]


@pytest.mark.parametrize(
    ("files", "limits", "reasons"),
    [
        ({**{f"folder{n}/": b"" for n in range(5)}, "a.jpg": A}, {"max_members": 3}, ["too_many_members"]),
        ({**{f"folder{n}/": b"" for n in range(5)}, "a.jpg": A}, {"max_members": 6}, [None]),
        # too small for the ratio, which counts from a megabyte on
        ({f"{n}.bmp": bytes(1 << 20) for n in "abc"}, {"max_total_bytes": 2 << 20}, [None, None, "archive_too_large"]),
        ({"zeros.bmp": bytes(4 << 20)}, {"max_ratio": 2000}, [None]),
    ],
)
def test_limits_of_a_zip_of_folders_and_of_zeros(files, limits, reasons):
    assert [member.reason for member in listed(zipped(files), "zip", **limits)] == reasons


def test_gzips_without_an_end_stop_at_a_limit():
    # Attributes for all members, over and over: no member, and nothing that a limit of members would see.
    content = gzip.compress(tarred({}, pax_headers={"comment": "x"})[:1024] * 4000)
    result = listed(content, "tar.gz", max_total_bytes=1000, max_members=100, max_ratio=1e9)
    assert [member.reason for member in result] == ["archive_too_large"]

    class Endless(io.RawIOBase):
        """A gzip of a tar whose only member is of 8 EiB, all of them zeros."""

        def __init__(self) -> None:
            self._packer = zlib.compressobj(9, wbits=31)
            header = item("z.bmp", size=1 << 62).tobuf(tarfile.GNU_FORMAT)
            self._start = self._packer.compress(header) + self._packer.flush(zlib.Z_SYNC_FLUSH)
            self._zeros = self._packer.compress(bytes(8 << 20)) + self._packer.flush(zlib.Z_FULL_FLUSH)
            self.given = 0

        def seek(self, place: int, whence: int = 0) -> int:
            return place

        def read(self, length: int = -1) -> bytes:
            self.given += 1
            assert self.given < 100, "it goes on reading"
            return self._start if self.given == 1 else self._zeros

    limits = Limits(max_total_bytes=32 << 20, max_members=100, max_ratio=1e9)
    result = list(containers.list_members(Endless(), "tar.gz", limits))
    assert [member.reason for member in result] == ["archive_too_large"]

    zeros = zlib.compressobj(9, wbits=31)
    content = zeros.compress(tarred({"a.jpg": A})[:1536]) + zeros.compress(bytes(60 << 20)) + zeros.flush()
    result = listed(content, "tar.gz")
    assert [member.reason for member in result] == [None, "damaged_archive"]  # zeros are padding, for a megabyte


def lie(content: bytes, number: int, place: int, new: bytes, local: int | None = None) -> bytes:
    """A zip whose central directory, and where asked its local header, has a wrong value of one member."""
    start = central(content, number)
    if local is not None:
        (offset,) = struct.unpack_from("<L", content, start + 42)
        content = changed(content, offset + local, new)
    return changed(content, start + place, new)


def long(number: int) -> bytes:
    return struct.pack("<L", number)


TEXT = b"text " * 400
DEFLATED = zipped({"a.jpg": A, "b.jpg": TEXT, "c.jpg": C})
STORED = zipped({"a.jpg": A, "b.jpg": TEXT, "c.jpg": C}, zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    "content",
    [
        lie(DEFLATED, 1, 24, long(1999), 22),  # a smaller size than it has
        lie(DEFLATED, 1, 24, long(2001), 22),  # a larger one
        lie(DEFLATED, 1, 24, long(1), 22),
        lie(DEFLATED, 1, 16, long(7), 14),  # another checksum
        lie(DEFLATED, 1, 20, long(5), 18),  # fewer compressed bytes
        changed(DEFLATED, DEFLATED.index(b"b.jpg") + 5, b"\xff\xff\xff"),  # no deflate
        changed(DEFLATED, DEFLATED.index(b"b.jpg") - 30, b"X"),  # no header
        lie(DEFLATED, 1, 42, long(3)),  # a header elsewhere
        lie(DEFLATED, 1, 42, long(0xFFFFFFF0)),
        lie(DEFLATED, 1, 20, long(0xFFFFFFF0)),  # more than all of it
        lie(DEFLATED, 1, 10, struct.pack("<H", 12)),  # another method
        lie(DEFLATED, 1, 10, struct.pack("<H", 14)),
        lie(DEFLATED, 1, 10, struct.pack("<H", 0)),
        changed(STORED, STORED.index(TEXT) + 100, b"damage"),  # told by its checksum
    ],
)
def test_damaged_member_of_a_zip_leaves_the_others(content):
    result = contents(content, "zip")
    assert result.pop("b.jpg") in ("damaged_member", "bomb")
    if result["a.jpg"] == "bomb":  # b claims a part of it
        result["a.jpg"] = A
    assert result == {"a.jpg": A, "c.jpg": C}


def test_wrong_sizes_and_missing_directories_read_little():
    content = zipped({"a.jpg": bytes(50 << 20)})
    content = lie(content, 0, 24, long(99_000), 22)
    wanted = listed(content, "zip")
    tracemalloc.start()
    assert contents(content, "zip", wanted) == {"a.jpg": "damaged_member"}
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()

    content = zipped({"a.jpg": b"x" * 10, "b.jpg": random.Random(1).randbytes(300_000)})
    result = listed(lie(content, 0, 20, long(100_000), 18), "zip")
    assert [member.reason for member in result] == ["damaged_member", "bomb"]
    content = bytes(5 << 20) + LOCAL_ONLY
    assert [member.name for member in listed(content, "zip", max_member_bytes=1 << 20)] == [""]
    assert len(listed(content, "zip")) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_containers_that_change_or_fail_after_the_listing(kind):
    content = packed(kind)
    wanted = listed(content, kind)
    cut = content[: len(content) // 3]
    result = contents(cut, kind, wanted)
    assert result["folder/deep/c.png"] == "damaged_member"
    assert set(result.values()) <= {A, B, "damaged_member"}

    class Failing(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        list(containers.list_members(Failing(packed(kind)), kind))
    with pytest.raises(OSError, match="gone"):
        list(containers.read_members(Failing(packed(kind)), kind, listed(packed(kind), kind)))


def test_members_of_tar_gz_are_read_in_order_up_to_a_cut():
    wanted = listed(GZ, "tar.gz")
    assert contents(GZ, "tar.gz", wanted[1:2]) == {"folder/b.jpg": B}
    with pytest.raises(ValueError, match="order"):
        contents(GZ, "tar.gz", wanted[::-1])
    assert contents(packed("tar"), "tar", listed(packed("tar"), "tar")[::-1]) == dict(reversed(PLAIN.items()))
    # A cut must not cost what zlib still held back, nor an error what it had made in the same call.
    complete = tarred(MANY)
    content = gzip.compress(complete)
    for cut in range(20, len(content), 97):
        inflated = zlib.decompressobj(31).decompress(content[:cut])
        expected = sum(member.offset + member.size <= len(inflated) for member in listed(complete, "tar"))
        assert len(listed(content[:cut], "tar.gz")) - 1 == expected
    bad = content[:-8] + bytes(8)
    assert [member.reason for member in listed(bad, "tar.gz")] == [None] * len(MANY) + ["damaged_archive"]


def test_zip64_in_all_its_places():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in PLAIN.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    content = file.getvalue()
    assert contents(content, "zip") == PLAIN
    assert contents(content[: central(content)], "zip") == {**PLAIN, "": "damaged_archive"}
    # ... and with the numbers of the first member, and of the end, in zip64's fields alone
    start = central(content)
    entry = content[start : central(content, 1)]
    size, stored, offset = len(A), len(A), 0
    wide = struct.pack("<HHQQQ", 1, 24, size, stored, offset)
    entry = changed(changed(changed(entry, 20, b"\xff" * 8), 42, b"\xff" * 4), 30, struct.pack("<H", len(wide)))
    entries = entry[: 46 + len("a.jpg")] + wide + content[central(content, 1) : -22]
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, len(entries), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(entries), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    complete = content[:start] + entries + end64 + locator + end
    with zipfile.ZipFile(io.BytesIO(complete)) as archive:
        assert archive.testzip() is None
    assert contents(complete, "zip") == PLAIN
    assert contents(b"MZ" + C + complete, "zip") == PLAIN


# over the limit of one test: it takes so many members
def test_more_than_65535_members_of_a_writer_that_counts_in_16_bits():
    one = zipped({"00000.jpg": b"x"}, zipfile.ZIP_STORED)
    local, entry = one[: central(one)], one[central(one) : -22]
    names = [b"%05d.jpg" % number for number in range(65600)]
    places = [struct.pack("<L", number * len(local)) for number in range(len(names))]
    files = b"".join(local[:30] + name + local[39:] for name in names)
    entries = b"".join(entry[:42] + place + name for place, name in zip(places, names, strict=True))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 64, 64, len(entries), len(files), 0)
    reasons = [member.reason for member in containers.list_members(io.BytesIO(files + entries + end), "zip")]
    assert reasons == [None] * 65600


def test_extension_headers_of_tar_give_size_and_name():
    content = bytearray(tarred([(item("x.jpg", pax_headers={"path": "p/x.jpg", "size": "900"}), A)]))
    content[1024 + 124 : 1024 + 136] = b"00000000000\0"  # what a tar of over 8 GiB has there
    content[1024:1536] = signed(content[1024:1536])
    assert contents(bytes(content), "tar") == {"p/x.jpg": A}
    link = item("x", tarfile.GNUTYPE_LONGNAME, size=5).tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")
    assert contents(link * 5000 + tarred({"a.jpg": A}), "tar") == {"name": A}  # tarfile recurses


@pytest.mark.parametrize(
    "lines",
    [b"0 path=x\n", b"-5 path=x\n", b"99999 path=x\n", b"path=x\n", b"6 path\n", b"11 size=-1\n", b"9" * 5000, b" =\n"],
)
def test_damaged_attributes_of_pax(lines):
    header = item("x", tarfile.XHDTYPE, size=len(lines)).tobuf(tarfile.USTAR_FORMAT)
    content = tarred({"a.jpg": A})[:1536] + header + lines.ljust(-len(lines) // 512 * -512, b"\0")
    assert contents(content + tarred({"b.jpg": B}), "tar") == {"a.jpg": A, "": "damaged_archive"}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_attributes_of_megabytes_are_not_read(kind):
    header = item("x", kind, size=8 << 20).tobuf(tarfile.GNU_FORMAT)
    file = io.BytesIO(tarred({"a.jpg": A})[:1536] + header + bytes(8 << 20) + tarred({"b.jpg": B}))
    tracemalloc.start()
    assert [member.reason for member in containers.list_members(file, "tar")] == [None, "damaged_archive"]
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def noise() -> Iterator[tuple[str, bytes]]:
    rng = random.Random(7)
    for number in range(8):
        length = rng.choice((1, 300, 511, 512, 513, 3000))
        yield f"f{number % 3}/{'long' * 30 * (number == 4)}{number}.jpg", rng.randbytes(length)
    yield "text.jpg", b"lesion " * 900


MANY = dict(noise())
WHOLE = {
    "zip": ("zip", zipped(MANY)),
    "streamed": ("zip", zipped(MANY, zipfile.ZIP_DEFLATED, True)),
    "stored": ("zip", zipped(MANY, zipfile.ZIP_STORED)),
    "mixed": ("zip", zipped([(name, MANY[name]) for name in MANY], zipfile.ZIP_LZMA)),
    "pax": ("tar", tarred(MANY)),
    "gnu": ("tar", tarred(MANY, form=tarfile.GNU_FORMAT)),
    "tar.gz": ("tar.gz", tarred(MANY, "w:gz")),
    "gzips": ("tar.gz", b"".join(gzip.compress(tarred(MANY)[at : at + 2000]) for at in range(0, 20480, 2000))),
}
TAR_ENDS = {name: len(complete.rstrip(b"\0")) for name, (kind, complete) in WHOLE.items() if kind == "tar"}


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
def test_cut_anywhere(name, part):
    kind, complete = WHOLE[name]
    length = int(part * len(complete))
    cut = complete[:length]
    result = listed(cut, kind)
    damaged = [member for member in result if member.reason]
    if name in TAR_ENDS:  # of a tar's end one block of zeros is enough, and the rest is padding
        blocks = -(-TAR_ENDS[name] // 512) * 512
        something_missing = length < blocks + 512
    else:
        something_missing = length < len(complete)
    assert [member.reason for member in damaged] == ["damaged_archive"] * something_missing
    assert result[len(result) - len(damaged) :] == damaged
    got = contents(cut, kind, result[: len(result) - len(damaged)])
    assert list(got.items()) == list(MANY.items())[: len(got)]
    if not something_missing:
        assert len(got) == len(MANY)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_cut_containers_give_every_complete_member(kind):
    content = packed(kind)
    # random bytes do not deflate, so they stand there as they are
    ends = {content.index(own) + len(own): count for count, own in enumerate((A, B, C), 1)}
    for cut in range(0, len(content) - 22, 7):
        rows = [member for member in listed(content[:cut], kind) if member.name]
        assert len(rows) >= max((count for end, count in ends.items() if end + 8 <= cut), default=0), cut


@examples(4)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    st.booleans(),
)
def test_changed_anywhere(name, changes, at_end):
    kind, complete = WHOLE[name]
    spoilt = bytearray(complete)
    for place, new in changes:
        place = place % len(complete)
        if at_end:  # where a zip's central directory is
            place = len(complete) - 1 - place % min(len(complete), 1200)
        spoilt[place : place + len(new)] = new[: len(complete) - place]
    check_sane(bytes(spoilt), kind)


@given(st.sampled_from(["pax", "gnu"]), st.integers(0, 40), st.integers(0, 511), st.binary(min_size=1, max_size=12))
def test_changed_header_whose_checksum_is_put_right(name, block, place, new):
    # What a random change hardly meets: the checksum stands before all the rest.
    _, complete = WHOLE[name]
    at = block * 512 % (len(complete) - 512)
    header = changed(complete[at : at + 512], place, new)[:512]
    check_sane(complete[:at] + signed(header) + complete[at + 512 :], "tar")


@given(st.sampled_from(KINDS), st.binary(max_size=2000), st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08"]))
def test_any_bytes_at_all(kind, content, head):
    check_sane(head + content, kind)


def check_sane(content: bytes, kind: str) -> None:
    """Rows of a kind, whatever the bytes; what is read is of the size that was listed."""
    limits = Limits(max_members=100, max_member_bytes=1 << 20, max_total_bytes=8 << 20)
    result = list(itertools.islice(containers.list_members(io.BytesIO(content), kind, limits), 200))
    assert len(result) <= 101
    assert len({member.name for member in result}) == len(result)
    assert {member.reason for member in result} <= {None, *containers.REASONS, *REASONS}
    assert all(member.name and printable(member.name) for member in result[:-1])
    for member, got in containers.read_members(io.BytesIO(content), kind, result):
        assert min(member.offset, member.stored, member.size) >= 0
        assert max(member.offset, member.stored, member.size) < 1 << 63
        if isinstance(got, bytes):
            assert member.reason is None
            assert len(got) == member.size
        else:
            assert got.reason == (member.reason or got.reason)
            assert got.reason in {*containers.REASONS, *REASONS}


def long_tar(count: int) -> bytes:
    """A tar of many small members."""
    headers = (item(f"folder/lesion_{number:07d}.jpg", size=500).tobuf(tarfile.USTAR_FORMAT) for number in range(count))
    return b"".join(header + bytes(512) for header in headers) + bytes(1024)


def peak(file: Any, kind: str) -> tuple[int, int]:
    """(members, bytes held at most) of listing."""
    tracemalloc.start()
    count = sum(1 for _ in containers.list_members(file, kind))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, held


@pytest.mark.parametrize(
    ("kind", "few", "pack"),
    [("tar", 200, bytes), ("tar.gz", 1500, lambda content: gzip.compress(content, 1))],
    ids=["tar", "tar.gz"],
)
def test_listing_a_tar_holds_no_more_of_a_long_one(kind, few, pack):
    (one, held), (other, of_more) = (peak(io.BytesIO(pack(long_tar(count))), kind) for count in (few, 4 * few))
    assert (one, other) == (few, 4 * few)
    assert of_more < min(1.1 * held + 30 * few, 1 << 20), "a name takes more than ten bytes"


def test_listing_and_reading_a_zip_hold_little():
    content = zipped({f"lesion_{number:07d}.jpg": b"x" for number in range(8000)}, zipfile.ZIP_STORED)
    count, held = peak(io.BytesIO(content), "zip")
    assert count == 8000
    assert held < 1_000_000, "its directory, and some 20 bytes for each"

    content = zipped({f"{number}.jpg": random.Random(number).randbytes(1 << 20) for number in range(8)})
    wanted = listed(content, "zip")
    file = io.BytesIO(content)
    tracemalloc.start()
    sizes = [len(got) for _, got in containers.read_members(file, "zip", wanted)]
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()
    assert sizes == [1 << 20] * 8
