"""The data card: one dataset as one HTML page, with what came in, what was kept, its distributions and its limits.

Facts come aggregated; nothing here knows Spark. Text from outside is escaped and cut short.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from melanoma_spark import pages
from melanoma_spark.attributes import ATTRIBUTES, Attribute
from melanoma_spark.dataset import card_facts as card
from melanoma_spark.dataset.card_facts import CardFacts, FeatureTwins, Pair, Row, all_images, share
from melanoma_spark.dataset.card_limits import limits
from melanoma_spark.dataset.card_pictures import PAGE_CHARACTERS, Pictures, Tile, hash_digits
from melanoma_spark.errors import DataError

FILE = "_datacard.html"  # in the folder of the dataset
FEATURE_TWINS = re.compile('<section id="feature-twins">.*?</section>\n', re.DOTALL)
SHOWN = {name: attribute for name, attribute in ATTRIBUTES.items() if attribute.card}
KINDS = 10  # rows of a distribution; what is rarer is folded into "other"
NOT_STATED = "not stated"
SIDES = (256, 512, 1024, 2048, 4096)  # pixels, upper bounds of the size histogram's bins


def render(facts: CardFacts) -> str:
    """Render the card as one HTML document under 2 MB, with its thumbnails; those that would exceed it are gray tiles.

    Raises:
        DataError: Where a fact is missing, counts do not add up, or a thumbnail is not named by a SHA-256.
    """
    _check(facts)
    pictures = Pictures()
    # The most important pictures come first, in case that room runs out.
    sheets = [sheet[: card.CONTACTS] for sheet in facts["contacts"]]
    contacts = [[pictures.tile(image, pages.short(image["split"])) for image in sheet] for sheet in sheets]
    duplicates = facts["duplicates"]
    largest = [] if duplicates is None else duplicates["largest"][: card.SETS_LISTED]
    members = [files["members"][: card.MEMBERS_SHOWN] for files in largest]
    strips = [[pictures.tile(member) for member in images] for images in members[: card.SETS_SHOWN]]
    alike = facts["twins"]["shown"][: card.TWINS] if facts["twins"] else []
    twins = [(pair, [pictures.tile(member) for member in pair["members"]]) for pair in alike]
    rejects = [
        (
            Row(pages.short(reason), reject["count"]),
            reject["meaning"],
            [pictures.tile(t) for t in reject["thumbnails"][: card.REJECTS_SHOWN]] or [Tile("", None)],
        )
        for reason, reject in sorted(facts["rejects"].items(), key=lambda item: (-item[1]["count"], item[0]))
    ]
    tables = {row.label: _distribution(row, facts["distributions"][name]) for name, row in SHOWN.items()}
    set_sizes = {} if duplicates is None else duplicates["sizes"]
    return pages.render(
        "datacard.html",
        facts=facts,
        total=all_images(facts),
        limits=limits(facts),
        distributions={name: rows for name, rows in tables.items() if rows},
        absent=[name for name, rows in tables.items() if not rows],
        kinds=list(dict.fromkeys(kind for split in facts["splits"].values() for kind in split["groups"])),
        sizes=_sizes(facts),
        rejects=rejects,
        largest=list(zip(largest, [list(map(hash_digits, images)) for images in members], strict=True)),
        strips=strips,
        twins=twins,
        feature_twins=None,
        set_sizes=_fold([Row(f"{size:,} files", sets) for size, sets in sorted(set_sizes.items()) if sets], "sizes"),
        contacts=contacts,
        unmatched=card.UNMATCHED,
        words=sorted(facts["label_words"], key=lambda word: (-word["count"], word["word"])),
        left_out=pictures.left_out,
        most={"twins": card.TWINS, "words": card.WORDS, "examples": card.EXAMPLES},
        share=share,
    )


def show_feature_twins(page: str, twins: FeatureTwins) -> str:
    """The page of a data card with the section on twins by features, in place of the one that it has."""
    rest = FEATURE_TWINS.sub("", page)
    pictures = Pictures(PAGE_CHARACTERS - len(rest))
    shown = [
        (pair, [pictures.tile(member, f"{member['split']} {member['label']}") for member in pair["members"]])
        for pair in twins["shown"][: card.TWINS]
    ]
    section = pages.render(
        "feature_twins.html", feature_twins=twins, shown=shown, left_out=pictures.left_out, most=card.TWINS
    )
    if rest == page:  # a card of release 0.2 has no such section
        return page.replace("</main>", f"{section}\n</main>", 1)
    return FEATURE_TWINS.sub(lambda _: f"{section}\n", page, count=1)


def _check(facts: CardFacts) -> None:
    pages.check_keys("the data card", facts, CardFacts.__required_keys__)
    pages.check_keys("the data card's distributions", facts["distributions"], frozenset(SHOWN))
    pages.check_keys("the data card's unmatched rows", facts["unmatched"], frozenset(card.UNMATCHED))
    listed, accepted, rejected, skipped = facts["listed"], facts["accepted"], facts["rejected"], facts["skipped"]
    if listed != accepted + rejected + skipped or min(listed, accepted, rejected, skipped) < 0:
        raise DataError(f"{listed} files listed are not {accepted} accepted + {rejected} rejected + {skipped} skipped")
    total = all_images(facts)
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
    for count, kind in ((facts["with_patient"], "patient"), (facts["with_lesion"], "lesion")):
        if not 0 <= count <= accepted:
            raise DataError(f"{count} of {accepted} images are counted with a {kind} id")


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
    return [*_fold(stated, "kinds"), *([not_stated] if stated and not_stated.total else [])]


def _fold(rows: list[Row], what: str) -> list[Row]:
    """The rows with the long tail as one row."""
    if len(rows) <= KINDS:
        return rows
    head, tail = rows[: KINDS - 1], rows[KINDS - 1 :]
    return [*head, Row(f"other ({len(tail):,} {what})", sum(r.negative for r in tail), sum(r.positive for r in tail))]


class _Sizes(NamedTuple):
    longer_side: list[Row]
    commonest: list[Row]
    squashed: int  # images that are no squares
    enlarged: int  # images with a side shorter than the stored square's


def _sizes(facts: CardFacts) -> _Sizes:
    sizes, side = facts["sizes"], facts["image_size"]
    bounds = list(zip((0, *SIDES), (*SIDES, math.inf), strict=True))
    between = (f"{low:,}\N{EN DASH}{high - 1:,}" for low, high in bounds[1:-1])
    names = [f"under {SIDES[0]}", *between, f"{SIDES[-1]:,} or more"]
    images = [sum(n for size, n in sizes.items() if low <= max(size) < high) for low, high in bounds]
    commonest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return _Sizes(
        [Row(f"{name} px", n) for name, n in zip(names, images, strict=True)],
        _fold([Row(f"{width:,} \N{MULTIPLICATION SIGN} {height:,}", n) for (width, height), n in commonest], "sizes"),
        sum(n for (width, height), n in sizes.items() if width != height),
        sum(n for size, n in sizes.items() if min(size) < side),
    )
