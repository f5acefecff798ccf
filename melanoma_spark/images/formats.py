"""Formats of images by content, as a suffix may be wrong, and files of images that this package makes."""

import io
import re
from typing import Any

from PIL import Image

from melanoma_spark.images.reasons import UNSUPPORTED_FORMAT

# No other decoder is used, which keeps the bugs of the others out of reach.
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "JPEG2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "AVIF": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
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

CONVERT, UNPACK = "save it as JPEG or PNG", "unpack it, or pack it as zip or tar"
# Name -> signature, and what to do
UNSUPPORTED = {
    "HEIC": (re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), CONVERT),
    "JPEG XL": (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), CONVERT),
    "Photoshop document": (re.compile(rb"8BPS\0[\1\2]"), CONVERT),
    "raw photograph of a camera": (re.compile(rb".{4}ftypcrx |FUJIFILMCCD-RAW|FOVb|IIU\0|IIRO", re.DOTALL), CONVERT),
    "video": (re.compile(rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3", re.DOTALL), "save the picture to use as JPEG or PNG"),
    "PDF": (re.compile(rb"%PDF-"), "save its pictures as JPEG or PNG"),
    "7z archive": (re.compile(rb"7z\xbc\xaf\x27\x1c"), UNPACK),
    "rar archive": (re.compile(rb"Rar!\x1a\x07"), UNPACK),
    "xz archive": (re.compile(rb"\xfd7zXZ\0"), UNPACK),
    "bzip2 archive": (re.compile(rb"BZh[1-9]1AY&SY"), UNPACK),
    "zstd archive": (re.compile(rb"\x28\xb5\x2f\xfd"), UNPACK),
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
    for name, (signature, remedy) in UNSUPPORTED.items():
        if signature.match(content):
            return UNSUPPORTED_FORMAT, f"{name}: {remedy}"
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
