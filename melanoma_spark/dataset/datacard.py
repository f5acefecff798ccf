"""One dataset as one self-contained HTML page: what came in, what was kept, how it is spread, and what to mind.

The card is what people look at before they read. Facts come aggregated; nothing here knows Spark. Text from outside
is escaped and cut short, and a picture is embedded only if its bytes are a JPEG or PNG file of thumbnail size.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from PIL import Image, ImageDraw, ImageFont

from melanoma_spark import pages
from melanoma_spark.attributes import ATTRIBUTES, Attribute
from melanoma_spark.errors import DataError

SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
THUMBNAIL_SIDE = 96  # pixels
# Of all pictures together, in base64; the text around them takes some 100 kB. 80 JPEG thumbnails take about 0.4 MB.
PICTURE_CHARACTERS = 1_800_000
CONTACTS = 40  # thumbnails of a class
REJECTS_SHOWN = 6  # thumbnails of a reason
SETS_LISTED, SETS_SHOWN, MEMBERS_SHOWN = 10, 5, 8  # sets of duplicates, and images of a set
KINDS = 10  # rows of a distribution; what is rarer is folded into "other"
WORDS = 60  # rows of the label mapping
EXAMPLES = 10

FEW_POSITIVES = 30  # in a split: one image more or less moves sensitivity by over 3 points
RARE_CLASS = 0.2
NEARLY_ALL = 0.9
# Cohen's h of two shares, 2 asin sqrt p - 2 asin sqrt q: 0.5 is his medium effect (Cohen 1988, chapter 6). It tells
# 2 % from 18 % as well as 40 % from 65 %.
DIFFERENT_RATE = 0.5
SMALL_SOURCE = 30  # images, below which a source's positive rate says little

Pair = tuple[int, int]  # images of the negative and of the positive class
# Attribute -> accepted images by category; None counts images without one. None, or None alone: no image states it.
Distributions = Mapping[str, Mapping[str | None, Pair] | None]


class Thumbnail(TypedDict):
    """An image as it is shown."""

    sha256: str | None  # of the file, 64 hexadecimal digits; None where it was not read
    image: bytes | None  # JPEG or PNG, no side over 96 px; None where there are no pixels


class Contact(Thumbnail):
    """An image of the contact sheet."""

    split: str


class Split(TypedDict):
    """One side of the split."""

    images: Pair
    groups: Mapping[str, int]  # "patient", "lesion", "image" -> groups held together by that; empty where not known
    asked: float | None  # share of all images that was asked for, 0 to 1; None where the archive brought its split


class FileBytes(TypedDict):
    """Lengths of the accepted files in bytes."""

    median: float
    p95: float
    max: float


class Reject(TypedDict):
    """The files set aside for one reason."""

    count: int
    meaning: str
    thumbnails: Sequence[Thumbnail]  # 6 are shown


class DuplicateSet(TypedDict):
    """Files that are one picture."""

    kind: str  # "same bytes", "same pixels" or "same look"
    count: int  # files
    members: Sequence[Thumbnail]  # 8 are shown


class Duplicates(TypedDict):
    """Sets of two files or more that are one picture."""

    same_bytes: int  # sets
    same_pixels: int  # sets with differing bytes
    same_look: int  # sets with differing pixels and equal perceptual hash
    sizes: Mapping[int, int]  # files in a set -> sets
    conflicting: int  # sets whose files carry both labels
    largest: Sequence[DuplicateSet]  # largest first; 10 are listed, 5 are shown


class Unmatched(TypedDict):
    """Rows without an image, or images without a row. Examples are shown as given: hash what may name a person."""

    count: int
    examples: Sequence[str]  # 10 are shown


class LabelWord(TypedDict):
    """What one word of the archive's labels was taken for."""

    word: str
    diagnosis: str
    target: str  # one of the two labels, or why the images are not used
    count: int  # images


class CardFacts(TypedDict):
    """All that a data card says. `Pair`s count images of the negative and of the positive class."""

    dataset_id: str
    grew_from: str | None  # id of the version before it; None for the first
    created_at: str  # ISO 8601, UTC
    image_size: int  # side in pixels of the stored square
    target: str  # "malignant" or "melanoma"
    labels: tuple[str, str]  # the names of label 0 and label 1, e.g. ("benign", "malignant")
    layout: str  # the archive's layout as it was recognised, one line
    listed: int  # files; the three below add up to it
    accepted: int
    rejected: int
    skipped: int  # files that are no images: tables, notes
    splits: Mapping[str, Split]  # in the order to show; their images add up to `accepted`
    with_patient: int  # accepted images that carry a patient id
    with_lesion: int  # ... a lesion id
    distributions: Distributions
    sizes: Mapping[tuple[int, int], int]  # (width, height) in pixels of the accepted files as they came -> images
    file_bytes: FileBytes | None
    rejects: Mapping[str, Reject]  # by reason; their counts add up to `rejected`
    duplicates: Duplicates | None  # None where they were not looked for
    contacts: tuple[Sequence[Contact], Sequence[Contact]]  # of the negative and the positive class; 40 each are shown
    rows_without_image: Unmatched | None  # None where the archive has no table
    images_without_row: Unmatched | None
    ambiguous_rows: Unmatched | None  # that fit several images, and are attached to none
    contradictory_images: Unmatched | None  # whose rows give a field two values, so that it is empty
    label_words: Sequence[LabelWord]
    settings: Mapping[str, str]
    licences: Sequence[str]  # one sentence each


class Row(NamedTuple):
    """A row of a table with a bar. For bars without classes all images stand in `negative`."""

    name: str
    negative: int
    positive: int = 0

    @property
    def total(self) -> int:
        return self.negative + self.positive

    @property
    def rate(self) -> float:
        return _share(self.positive, self.total)


class Tile(NamedTuple):
    """A thumbnail ready to be shown. Without `uri` it is a grey tile."""

    digits: str
    uri: str | None
    note: str = ""


SHOWN = {name: attribute for name, attribute in ATTRIBUTES.items() if attribute.card}
NOT_STATED = "not stated"
SIDES = (256, 512, 1024, 2048, 4096)  # pixels, upper bounds of the size histogram's bins


def render(facts: CardFacts) -> str:
    """The card as one HTML document under 2 MB, thumbnails inside: what would exceed that is a grey tile.

    Raises DataError where a fact is missing, counts do not add up, or a thumbnail is named by something else than a
    SHA-256.
    """
    _check(facts)
    pictures = _Pictures()
    # What must not be missing comes first, should room run out.
    contacts = [[pictures.tile(t, pages.short(t["split"])) for t in sheet[:CONTACTS]] for sheet in facts["contacts"]]
    duplicates = facts["duplicates"]
    largest = [] if duplicates is None else list(duplicates["largest"][:SETS_LISTED])
    strips = [[pictures.tile(member) for member in found["members"][:MEMBERS_SHOWN]] for found in largest[:SETS_SHOWN]]
    rejects = [
        (
            Row(pages.short(reason), reject["count"]),
            reject["meaning"],
            [pictures.tile(t) for t in reject["thumbnails"][:REJECTS_SHOWN]] or [Tile("", None)],
        )
        for reason, reject in sorted(facts["rejects"].items(), key=lambda item: (-item[1]["count"], item[0]))
    ]
    tables = {row.label: _distribution(row, facts["distributions"][name]) for name, row in SHOWN.items()}
    return pages.render(
        "datacard.html",
        facts=facts,
        total=_total(facts),
        limits=limits(facts),
        distributions={name: rows for name, rows in tables.items() if rows},
        absent=[name for name, rows in tables.items() if not rows],
        kinds=list(dict.fromkeys(kind for split in facts["splits"].values() for kind in split["groups"])),
        sizes=_sizes(facts),
        rejects=rejects,
        largest=[(found, [_digits(member) for member in found["members"][:MEMBERS_SHOWN]]) for found in largest],
        strips=strips,
        set_sizes=[] if duplicates is None else _folded(_set_sizes(duplicates["sizes"]), "sizes"),
        contacts=contacts,
        words=sorted(facts["label_words"], key=lambda word: (-word["count"], word["word"])),
        left_out=pictures.left_out,
        most={"words": WORDS, "examples": EXAMPLES, "members": MEMBERS_SHOWN, "contacts": CONTACTS},
        share=_share,
        row=Row,
    )


def limits(facts: CardFacts) -> list[str]:
    """What to mind, one sentence each, computed from the facts; the licence notes stand last."""
    total, told = _total(facts), []
    accepted, positive = total.total, facts["labels"][1]
    if facts["with_patient"] < accepted:
        told.append(_without(facts["with_patient"], accepted, "patient", "lesions of one patient"))
        if facts["with_lesion"] < accepted:  # a lesion belongs to one patient, so where patients are known it is too
            told.append(_without(facts["with_lesion"], accepted, "lesion", "images of one lesion"))
    for name, split in facts["splits"].items():
        if split["images"][1] < FEW_POSITIVES:
            told.append(
                f"The {pages.short(name)} split has fewer than {FEW_POSITIVES} {pages.short(positive)} images "
                f"({split['images'][1]}): figures measured on it are rough."
            )
    rare = min(total.negative, total.positive)
    if accepted and rare / accepted < RARE_CLASS:
        name = facts["labels"][int(total.positive <= total.negative)]
        told.append(
            f"The classes are unbalanced: {pages.percent(rare / accepted)} of the images are {pages.short(name)}."
        )
    told += _of_sources(facts, total)
    skin = facts["distributions"]["skin_type"] or {}
    if accepted and not any(sum(pair) for name, pair in skin.items() if name):
        told.append("Skin types are not stated: how a model does on dark skin cannot be told from these images.")
    elif accepted and (dark := sum(sum(skin.get(name, (0, 0))) for name in ("V", "VI"))) < FEW_POSITIVES:
        told.append(
            f"Fewer than {FEW_POSITIVES} images are stated to be of skin type V or VI ({dark}): little can be "
            "told of dark skin."
        )
    return [*told, *(facts["licences"] or ["No licence is stated."])]


def contact_sheet(thumbnails: Sequence[bytes | None], captions: Sequence[str], columns: int) -> bytes:
    """A PNG grid of thumbnails with their captions beneath, in `columns` columns from left to right.

    thumbnails: JPEG or PNG files, no side over 96 px; anything else becomes a grey tile. captions: one for each, two
    lines at most, divided by a line feed. Equal arguments give equal bytes. Raises DataError where the numbers of
    thumbnails and captions differ or columns is below 1.
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
        picture = _decoded(content)
        if picture is None:
            draw.rectangle((x, y, x + THUMBNAIL_SIDE - 1, y + THUMBNAIL_SIDE - 1), "#d5d9df")
        else:
            sheet.paste(
                picture, (x + (THUMBNAIL_SIDE - picture.width) // 2, y + (THUMBNAIL_SIDE - picture.height) // 2)
            )
        for place, text in enumerate(caption.splitlines()[:2]):
            shown = pages.short(text, 40)
            while draw.textlength(shown, font) > THUMBNAIL_SIDE:
                shown = shown[:-2] + "\N{HORIZONTAL ELLIPSIS}"
            draw.text((x, y + THUMBNAIL_SIDE + 1 + place * line), shown, "#1b1f23", font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _check(facts: CardFacts) -> None:
    pages.check_keys("the data card", facts, CardFacts.__required_keys__)
    pages.check_keys("the data card's distributions", facts["distributions"], frozenset(SHOWN))
    listed, accepted, rejected, skipped = facts["listed"], facts["accepted"], facts["rejected"], facts["skipped"]
    if listed != accepted + rejected + skipped or min(listed, accepted, rejected, skipped) < 0:
        raise DataError(f"{listed} files listed are not {accepted} accepted + {rejected} rejected + {skipped} skipped")
    total = _total(facts)
    if total.total != accepted:
        raise DataError(f"the splits hold {total.total} images, {accepted} were accepted")
    if (counted := sum(reject["count"] for reject in facts["rejects"].values())) != rejected:
        raise DataError(f"the reasons of rejects count {counted} files, {rejected} were rejected")
    for name, values in facts["distributions"].items():
        pair = tuple(sum(pair[label] for pair in (values or {}).values()) for label in (0, 1))
        if values and pair != (total.negative, total.positive):
            raise DataError(f"{name} counts {pair} images by class, the splits hold {total[1:]}")
    if facts["sizes"] and (counted := sum(facts["sizes"].values())) != accepted:
        raise DataError(f"the sizes count {counted} images, {accepted} were accepted")
    for held, what in ((facts["with_patient"], "patient"), (facts["with_lesion"], "lesion")):
        if not 0 <= held <= accepted:
            raise DataError(f"{held} of {accepted} images are said to carry a {what} id")


def _total(facts: CardFacts) -> Row:
    images = [split["images"] for split in facts["splits"].values()]
    return Row("all", sum(pair[0] for pair in images), sum(pair[1] for pair in images))


def _without(held: int, accepted: int, what: str, together: str) -> str:
    none = f"{accepted - held:,} of {accepted:,} images carry no {what} id" if held else f"There are no {what} ids"
    return f"{none}: {together} may stand on both sides of the split."


def _of_sources(facts: CardFacts, total: Row) -> list[str]:
    """Where a model could learn the source instead of the lesion."""
    rows = [Row(pages.short(name), *pair) for name, pair in (facts["distributions"]["source"] or {}).items() if name]
    if len(rows) < 2 or not total.positive or not total.negative:
        return []
    told, positive = [], pages.short(facts["labels"][1])
    top = max(rows, key=lambda row: row.positive)
    if top.positive / total.positive >= NEARLY_ALL:
        told.append(
            f"Source {top.name} holds {pages.percent(top.positive / total.positive)} of the {positive} images and "
            f"{pages.percent(top.negative / total.negative)} of the others: what is measured says "
            "little of other sources."
        )

    def difference(row: Row) -> float:
        others = _share(total.positive - row.positive, total.total - row.total)
        return 0 if math.isnan(others) else abs(2 * math.asin(math.sqrt(row.rate)) - 2 * math.asin(math.sqrt(others)))

    # The small are left out first: rates of nothing are undefined.
    sized = [row for row in rows if SMALL_SOURCE <= row.total <= total.total - SMALL_SOURCE]
    odd = [row for row in sized if difference(row) >= DIFFERENT_RATE]
    odd.sort(key=lambda row: (-round(difference(row), 6), row.name))
    if len(odd) == 2 and odd[0].total + odd[1].total == total.total:
        odd.pop()  # the other half of the same sentence
    told += [
        f"Of source {row.name} {pages.percent(row.rate)} are {positive}, of all other images "
        f"{pages.percent(_share(total.positive - row.positive, total.total - row.total))}: a model may learn to "
        "tell the source instead of the lesion."
        for row in odd[:3]
    ]
    return [*told, f"The same holds for {len(odd) - 3} sources more."] if len(odd) > 3 else told


def _distribution(attribute: Attribute, images: Mapping[str | None, Pair] | None) -> list[Row]:
    """The rows to show; none where no image states the attribute."""
    rows: dict[str, Row] = {}
    for category, (negative, positive) in (images or {}).items():
        name = pages.short(category) if category else NOT_STATED
        before = rows.get(name, Row(name, 0))
        rows[name] = Row(name, before.negative + negative, before.positive + positive)
    not_stated = rows.pop(NOT_STATED, Row(NOT_STATED, 0))
    order = attribute.categories
    stated = sorted((row for row in rows.values() if row.total), key=lambda row: (-row.total, row.name))
    if len(stated) <= KINDS:
        stated.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    return [*_folded(stated, "kinds"), *([not_stated] if stated and not_stated.total else [])]


def _folded(rows: list[Row], what: str) -> list[Row]:
    """The long tail as one row."""
    if len(rows) <= KINDS:
        return rows
    head, tail = rows[: KINDS - 1], rows[KINDS - 1 :]
    return [*head, Row(f"other ({len(tail):,} {what})", sum(r.negative for r in tail), sum(r.positive for r in tail))]


def _set_sizes(sizes: Mapping[int, int]) -> list[Row]:
    return [Row(f"{size:,} files", sets) for size, sets in sorted(sizes.items()) if sets]


class _Sizes(NamedTuple):
    longer_side: list[Row]
    commonest: list[Row]
    squashed: int  # images that are no squares
    enlarged: int  # images with a side shorter than the stored square's


def _sizes(facts: CardFacts) -> _Sizes:
    sizes, side = facts["sizes"], facts["image_size"]
    bounds = list(zip((0, *SIDES), (*SIDES, math.inf), strict=True))
    names = [
        f"under {SIDES[0]}",
        *(f"{low:,}\N{EN DASH}{high - 1:,}" for low, high in bounds[1:-1]),
        f"{SIDES[-1]:,} or more",
    ]
    binned = [sum(n for size, n in sizes.items() if low <= max(size) < high) for low, high in bounds]
    commonest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return _Sizes(
        [Row(f"{name} px", n) for name, n in zip(names, binned, strict=True)],
        _folded([Row(f"{width:,} \N{MULTIPLICATION SIGN} {height:,}", n) for (width, height), n in commonest], "sizes"),
        sum(n for (width, height), n in sizes.items() if width != height),
        sum(n for size, n in sizes.items() if min(size) < side),
    )


class _Pictures:
    """Thumbnails as data URIs, as many as the page has room for."""

    def __init__(self) -> None:
        self.room = PICTURE_CHARACTERS
        self.left_out = 0

    def tile(self, thumbnail: Thumbnail, note: str = "") -> Tile:
        digits, content = _digits(thumbnail), thumbnail["image"]
        kind = _kind(content)
        if content is None or kind is None:
            return Tile(digits, None, note)
        if len(content) * 4 / 3 > self.room:
            self.left_out += 1
            return Tile(digits, None, note)
        encoded = base64.b64encode(content).decode("ascii")
        self.room -= len(encoded)
        return Tile(digits, f"data:{kind};base64,{encoded}", note)


def _digits(thumbnail: Thumbnail) -> str:
    """The first 8 digits; whatever is no hash, a file's name for example, is not shown and not told."""
    if thumbnail["sha256"] is None:
        return "not read"
    if not re.fullmatch("[0-9a-fA-F]{64}", thumbnail["sha256"]):
        raise DataError("a thumbnail of the data card is named by something else than the SHA-256 of a file")
    return thumbnail["sha256"][:8].lower()


def _kind(content: bytes | None) -> str | None:
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


def _decoded(content: bytes | None) -> Image.Image | None:
    if content is None or _kind(content) is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            return image.convert("RGB")
    except Exception:  # cut short, or broken behind its header
        return None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
