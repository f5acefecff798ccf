"""Container formats of an archive (zip, tar, tar.gz): listed once, then read in parallel, never unpacked.

`FORMATS` is the one table of them. A new format is a module with a `Format` and an entry here.

`list_members` lists a container in one pass. `read_members` gives the bytes of some members. Both take seekable binary
files, and hold one member at a time. Damaged or hostile content raises nothing: a member has a reason instead. An
`OSError` of the file itself is raised.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from melanoma_spark.archives.containers import tars, zips
from melanoma_spark.archives.containers.common import Entry, Format, Limits, Member, Stop, UniqueNames
from melanoma_spark.errors import ImageError

__all__ = ["FORMATS", "REASONS", "Limits", "Member", "detect_format", "is_container", "list_members", "read_members"]

FORMATS: dict[str, Format] = {"zip": zips.FORMAT, "tar.gz": tars.GZIPPED, "tar": tars.PLAIN}

MAX_NAME = 1024  # characters
RATIO_FROM = 1 << 20  # bytes: below, a high ratio is a small picture of one color rather than a bomb

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
    "damaged_member": "its bytes differ from what the archive says of them; copy or pack the archive again",
    "damaged_archive": "the archive is cut or damaged, members may be missing; copy or pack it again",
}

_FIRST = r"[ !-\-0-9;-\[\]-~]"  # printable ASCII without . / : and backslash
_ORDINARY = re.compile(rf"{_FIRST}(?:{_FIRST}|\.)*(?:/{_FIRST}(?:{_FIRST}|\.)*)*")


def is_container(name: str) -> bool:
    """Whether a file's name has the suffix of a container."""
    return any(name.lower().endswith(form.suffixes) for form in FORMATS.values())


def detect_format(head: bytes, name: str = "") -> str | None:
    """The key of `FORMATS` by a file's first 512 bytes, else by its suffix; None for no container.

    The suffix serves zip files with something before them (self-extracting ones) and damaged files, whose damage
    `list_members` reports.
    """
    by_head = (kind for kind, form in FORMATS.items() if form.starts(head))
    by_name = (kind for kind, form in FORMATS.items() if name.lower().endswith(form.suffixes))
    return next(by_head, None) or next(by_name, None)


def list_members(file: BinaryIO, kind: str, limits: Limits | None = None) -> Iterator[Member]:
    """All members of a container in its order, without folders; those that cannot be read have a reason.

    If the container is damaged, or over a limit, the last member has no name and the reason. Memory does not grow with
    the members of a tar, and grows by some 60 bytes with each member of a zip. Telling names apart takes up to 6 bytes
    for each of `limits.max_members`.
    """
    limits = limits or Limits()
    names = UniqueNames(limits.max_members)
    index = total = 0
    try:
        for entry in FORMATS[kind].entries(file, limits):
            if index >= limits.max_members:
                raise Stop("too_many_members", f"more than {limits.max_members}, the rest is not listed", entry.offset)
            name, reason, detail = _check_entry(entry, limits)
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


def read_members(file: BinaryIO, kind: str, wanted: Iterable[Member]) -> Iterator[tuple[Member, bytes | ImageError]]:
    """The content of members of this file, as `list_members` listed them, or the error that says why there is none.

    A streamed format (tar.gz) is read in one pass up to the last member; raises `ValueError` if its members do not come
    in order of their offset.
    """
    get = FORMATS[kind].reader(file)
    for member in wanted:
        try:
            if member.reason is not None:
                raise ImageError(member.reason, member.detail or "")
            yield member, get(member)
        except ImageError as error:
            yield member, error


def _check_entry(entry: Entry, limits: Limits) -> tuple[str, str | None, str | None]:
    """The name to show, and the reason and detail if the member is not read."""
    name, reason, detail = entry.name, entry.reason, entry.detail
    parts = name.split("/")
    if not _ORDINARY.fullmatch(name) or len(name) > MAX_NAME:
        parts = [part for part in parts if part not in ("", ".")]
        unsafe = _unsafe(name, parts)
        if unsafe:
            name = "/".join(part.replace("..", "__") for part in re.split(r"[/\\]", name) if part not in ("", "."))
            return _printable(name.replace(":", "_"))[:MAX_NAME] or "_", "unsafe_name", unsafe
        name = _printable("/".join(parts))
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
    """Why a name is unsafe, or None. `parts` are its non-empty parts."""
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
    """The name with escapes for what does not print, above all for undecodable bytes."""
    if name.isprintable():
        return name

    def escape(character: str) -> str:
        code = ord(character)
        if character.isprintable() or unicodedata.category(character) == "Zs":  # the wide space of Japanese names
            return character
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")

    return "".join(map(escape, name))
