"""Formats of images by content, as a suffix may be wrong, and files of images that this package makes."""

import io
import re
from typing import Any

from PIL import Image

# No other decoder is used, which keeps the bugs of the others out of reach.
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    # BM alone starts many a text; then come the file's length, two zeros, an offset and the length of the next header
    "BMP": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    # With the preamble; with the meta information alone; a dataset of group 8, explicit or implicit
    "DICOM": re.compile(
        rb".{128}DICM|\x02\0\0\0UL\x04\0|\x08\0[\0\x01\x05\x08\x12-\x16\x18]\0(?:(?:UL|CS|UI|DA|TM)..|.\0\0\0)",
        re.DOTALL,
    ),
}
ARCHIVES = {
    "zip": re.compile(rb"PK\x03\x04"),
    "gzip": re.compile(rb"\x1f\x8b"),
    "tar": re.compile(rb".{257}ustar", re.DOTALL),
}


def find_format(content: bytes) -> str | None:
    """The key of SIGNATURES that the content begins as."""
    return next((kind for kind, signature in SIGNATURES.items() if signature.match(content)), None)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of a format of Pillow, with options of it, such as `quality`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def describe_content(content: bytes) -> tuple[str, str]:
    """Reason and detail for bytes that are not an image; the detail does not quote them."""
    archive = next((name for name, signature in ARCHIVES.items() if signature.match(content)), None)
    if archive:
        return "archive_by_another_name", f"the content is a {archive} archive"
    start = content[:12].lstrip().lower()
    if start.startswith((b"<!doc", b"<html")):
        return "not_an_image", "the content is an HTML page"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in content[:64]):
        return "not_an_image", "the content is text"
    return "not_an_image", f"unknown content, starting with bytes {content[:4].hex()}"


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels by the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        raise ValueError("the header of a WebP file is cut")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
