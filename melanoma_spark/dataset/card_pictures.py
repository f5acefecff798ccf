"""The pictures of a data card: thumbnails inside the page, and contact sheets as PNG files.

A picture is shown only if its bytes are a JPEG or PNG file of thumbnail size. Anything else becomes a gray tile.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from melanoma_spark import pages
from melanoma_spark.dataset.card_facts import THUMBNAIL_SIDE, Thumbnail
from melanoma_spark.errors import DataError

SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
# Of all pictures together, in base64; the text around them takes some 100 kB. 80 JPEG thumbnails take about 0.4 MB.
PICTURE_CHARACTERS = 1_800_000
PAGE_CHARACTERS = 1_950_000  # of a page with more pictures than it began with


class Tile(NamedTuple):
    """A thumbnail ready to be shown. Without `uri` it is a gray tile."""

    digits: str
    uri: str | None
    note: str = ""


class Pictures:
    """Thumbnails as data URIs, as many as the page has room for."""

    def __init__(self, room: int = PICTURE_CHARACTERS) -> None:
        self.room = room
        self.left_out = 0

    def tile(self, thumbnail: Thumbnail, note: str = "") -> Tile:
        """The tile of a thumbnail, gray where it is no picture or the page has no room left."""
        digits, content = hash_digits(thumbnail), thumbnail["image"]
        kind = _media_type(content)
        if content is None or kind is None:
            return Tile(digits, None, note)
        if len(content) * 4 / 3 > self.room:
            self.left_out += 1
            return Tile(digits, None, note)
        encoded = base64.b64encode(content).decode("ascii")
        self.room -= len(encoded)
        return Tile(digits, f"data:{kind};base64,{encoded}", note)


def hash_digits(thumbnail: Thumbnail) -> str:
    """The first 8 digits of the file's hash. Raises `DataError`, without the text, for anything else: a file's name."""
    if thumbnail["sha256"] is None:
        return "not read"
    if not re.fullmatch("[0-9a-fA-F]{64}", thumbnail["sha256"]):
        raise DataError("a thumbnail of the data card is named by something else than the SHA-256 of a file")
    return thumbnail["sha256"][:8].lower()


def contact_sheet(thumbnails: Sequence[bytes | None], captions: Sequence[str], columns: int) -> bytes:
    """Draw a PNG grid of thumbnails with their captions beneath, from left to right. Equal arguments give equal bytes.

    Args:
        thumbnails: JPEG or PNG files, no side over 96 px; anything else becomes a gray tile.
        captions: One for each thumbnail, two lines at most.
        columns: Of the grid.

    Raises:
        DataError: Where the numbers of thumbnails and captions differ or columns is below 1.
    """
    if len(thumbnails) != len(captions) or columns < 1:
        raise DataError(f"{len(thumbnails)} thumbnails, {len(captions)} captions and {columns} columns make no sheet")
    gap, line = 8, 13  # pixels
    cell = (THUMBNAIL_SIDE + gap, THUMBNAIL_SIDE + 2 * line + gap)
    columns = min(columns, max(len(thumbnails), 1))
    rows = max(math.ceil(len(thumbnails) / columns), 1)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (content, caption) in enumerate(zip(thumbnails, captions, strict=True)):
        x, y = gap + number % columns * cell[0], gap + number // columns * cell[1]
        picture = _decode(content)
        if picture is None:
            draw.rectangle((x, y, x + THUMBNAIL_SIDE - 1, y + THUMBNAIL_SIDE - 1), "#d5d9df")
        else:
            corner = (x + (THUMBNAIL_SIDE - picture.width) // 2, y + (THUMBNAIL_SIDE - picture.height) // 2)
            sheet.paste(picture, corner)
        for place, text in enumerate(caption.splitlines()[:2]):
            shown = pages.short(text, 40)
            while draw.textlength(shown, font) > THUMBNAIL_SIDE:
                shown = shown[:-2] + "\N{HORIZONTAL ELLIPSIS}"
            draw.text((x, y + THUMBNAIL_SIDE + 1 + place * line), shown, "#1b1f23", font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _media_type(content: bytes | None) -> str | None:
    """The media type of a thumbnail by its signature; None for what is no JPEG or PNG file, or is larger."""
    kind = next((kind for start, kind in SIGNATURES.items() if content and content.startswith(start)), None)
    if content is None or kind is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs; anything over 96 pixels is refused
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                return kind if max(image.size) <= THUMBNAIL_SIDE else None
        except Exception:
            return None


def _decode(content: bytes | None) -> Image.Image | None:
    if content is None or _media_type(content) is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            return image.convert("RGB")
    except Exception:  # cut short, or broken behind its header
        return None
