"""Archives within the archive: zip, tar and tar.gz files, listed once and then read in parallel, never unpacked.

`members` lists a container in one pass over what describes it; `read` gives the bytes of chosen members. Both take
seekable binary files opened elsewhere and hold at most one member at a time. Nothing that a container holds can raise
here: what is wrong with a member, or with the container, stands in a row. An `OSError` of the file itself goes through.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from melanoma_spark.archives.containers import tars, zips
from melanoma_spark.archives.containers.parts import Entry, Limits, Member, Stop, UniqueNames
from melanoma_spark.errors import ImageError

__all__ = ["REASONS", "SUFFIXES", "Limits", "Member", "is_container", "kind_of", "members", "read"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_NAME = 1024  # characters
RATIO_FROM = 1 << 20  # bytes: below, a high ratio is a small picture of one colour rather than a bomb

REASONS = {
    "unsafe_name": "its name is absolute, has '..', a backslash, control characters or over 1024; pack it again",
    "link": "a link within an archive; pack the file itself",
    "special_file": "a device, pipe or sparse file within an archive; pack plain files",
    "nested_archive": "an archive within an archive; unpack the outer one",
    "encrypted": "it needs a password; pack it again without one",
    "unsupported_compression": "its compression is not stored, deflate, bzip2 or lzma; pack it again with deflate",
    "bomb": "it unpacks to far more than it takes, or shares bytes with another; raise ingest.max_ratio if it is right",
    "too_many_members": "the archive has more members than ingest.max_members; raise it or split the archive",
    "archive_too_large": "its members are together over ingest.max_container_bytes; raise it or split the archive",
    "damaged_member": "its bytes are not what the archive says of them; copy or pack the archive again",
    "damaged_archive": "the archive is cut or damaged, members may be missing; copy or pack it again",
}

_FIRST = r"[ !-\-0-9;-\[\]-~]"  # printable ASCII without . / : and backslash
_ORDINARY = re.compile(rf"{_FIRST}(?:{_FIRST}|\.)*(?:/{_FIRST}(?:{_FIRST}|\.)*)*")


def is_container(name: str) -> bool:
    """Whether a file is to be looked into, by its name."""
    return name.lower().endswith(SUFFIXES)


def kind_of(head: bytes, name: str = "") -> str | None:
    """`zip`, `tar`, `tar.gz` or None, from a file's first 512 bytes; where they tell nothing, by its suffix.

    The suffix is for zips with something before them (self-extracting ones) and for damaged files, which `members`
    then tells about.
    """
    if head[:4] in zips.SIGNATURES:
        return "zip"
    if head.startswith(tars.GZIP):
        return "tar.gz"
    if tars.starts(head):
        return "tar"
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    return {".zip": "zip", ".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz"}.get(suffix or "")


def members(file: BinaryIO, kind: str, limits: Limits | None = None) -> Iterator[Member]:
    """All members of a container in its order, without directories: those to read, and those not, with a reason.

    Where the container is damaged, or over a limit as a whole, one last member without a name says so. Memory
    does not grow with a tar's members, and by some 60 bytes with each of a zip's; telling names apart takes up to 6
    bytes for each of `limits.max_members`.
    """
    limits = limits or Limits()
    names = UniqueNames(limits.max_members)
    index = total = 0
    try:
        for entry in _entries(file, kind, limits):
            if index >= limits.max_members:
                raise Stop("too_many_members", f"more than {limits.max_members}, the rest is not listed", entry.offset)
            name, reason, detail = _judge(entry, limits)
            if reason is None:
                total += entry.size
                if total > limits.max_total_bytes:
                    detail = f"over {limits.max_total_bytes} bytes after {index} members, the rest is not listed"
                    raise Stop("archive_too_large", detail, entry.offset)
            _, offset, stored, size, method, crc, _, _ = entry
            yield Member(names.unique(name, index), index, offset, stored, size, method, crc, reason, detail)
            index += 1
    except Stop as stop:
        yield Member("", index, stop.offset, 0, 0, 0, None, stop.reason, stop.detail)


def read(file: BinaryIO, kind: str, wanted: Iterable[Member]) -> Iterator[tuple[Member, bytes | ImageError]]:
    """The content of members of this very file, as `members` listed it, or why there is none.

    Zip and tar seek to each member. A tar.gz is streamed through once, up to the last one; raises `ValueError` where
    its members do not come in order of their offset.
    """
    get = {"zip": zips.reader, "tar": tars.reader, "tar.gz": tars.gz_reader}[kind](file)
    for member in wanted:
        try:
            if member.reason is not None:
                raise ImageError(member.reason, member.detail or "")
            yield member, get(member)
        except ImageError as error:
            yield member, error


def _entries(file: BinaryIO, kind: str, limits: Limits) -> Iterator[Entry]:
    if kind == "zip":
        return zips.entries(file, limits)
    return tars.entries(tars.Gunzip(file, limits) if kind == "tar.gz" else tars.Plain(file))


def _judge(entry: Entry, limits: Limits) -> tuple[str, str | None, str | None]:
    """The name to show, and why the member is not read, if so."""
    name, reason, detail = entry.name, entry.reason, entry.detail
    parts = name.split("/")
    if not _ORDINARY.fullmatch(name) or len(name) > MAX_NAME:
        parts = [part for part in parts if part not in ("", ".")]
        unsafe = _unsafe(name, parts)
        if unsafe:
            name = "/".join(part.replace("..", "__") for part in re.split(r"[/\\]", name) if part not in ("", "."))
            return _printable(name.replace(":", "_"))[:MAX_NAME] or "_", "unsafe_name", unsafe
        name = _printable("/".join(parts))
    if any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].lower() == "thumbs.db":
        return name, "hidden", "what a desktop keeps for itself, or a name with a dot before it"
    if reason:
        return name, reason, detail
    if is_container(name):
        return name, "nested_archive", "not looked into"
    if entry.size == 0:
        return name, "empty", "0 bytes"
    if entry.size > RATIO_FROM and entry.size > limits.max_ratio * entry.stored:
        return name, "bomb", f"{entry.stored} bytes unpack to {entry.size}, the limit is {limits.max_ratio:g} times"
    if entry.size > limits.max_member_bytes:
        return name, "too_many_bytes", f"{entry.size} bytes, the limit is {limits.max_member_bytes}"
    return name, None, None


def _unsafe(name: str, parts: list[str]) -> str | None:
    if len(name) > MAX_NAME:
        return f"{len(name)} characters, the limit is {MAX_NAME}"
    if "\\" in name:
        return "a backslash"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    if ".." in parts or not parts:
        return "leads out of its folder" if parts else "no name"
    if re.search("[\x00-\x1f\x7f-\x9f]", name):
        return "a control character"
    return None


def _printable(name: str) -> str:
    """Escapes what does not print, first of all the bytes that are no text."""
    if name.isprintable():
        return name

    def escaped(character: str) -> str:
        code = ord(character)
        if character.isprintable() or unicodedata.category(character) == "Zs":  # the wide space of Japanese names
            return character
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")

    return "".join(map(escaped, name))
