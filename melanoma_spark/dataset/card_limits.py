"""The limits of a dataset in sentences: what a reader of its data card must know before using it."""

import math

from melanoma_spark import pages
from melanoma_spark.dataset.card_facts import CardFacts, Row, all_images, share

FEW_POSITIVES = 30  # in a split: one image more or less moves sensitivity by over 3 points
RARE_CLASS = 0.2
NEARLY_ALL = 0.9
# Cohen's h of two shares, 2 asin sqrt p - 2 asin sqrt q: 0.5 is his medium effect (Cohen 1988, chapter 6). It
# separates 2 % from 18 % as well as 40 % from 65 %.
DIFFERENT_RATE = 0.5
SMALL_SOURCE = 30  # images, below which a source's positive rate says little


def limits(facts: CardFacts) -> list[str]:
    """The limits that follow from the facts, one sentence each; the notes on licenses stand last."""
    total = all_images(facts)
    sentences = []
    accepted, positive = total.total, facts["labels"][1]
    if facts["with_patient"] < accepted:
        sentences.append(_missing_ids(facts["with_patient"], accepted, "patient", "lesions of one patient"))
        if facts["with_lesion"] < accepted:  # a lesion belongs to one patient: images with a patient id need no other
            sentences.append(_missing_ids(facts["with_lesion"], accepted, "lesion", "images of one lesion"))
    for name, split in facts["splits"].items():
        if split["images"][1] < FEW_POSITIVES:
            sentences.append(
                f"The {pages.short(name)} split has fewer than {FEW_POSITIVES} {pages.short(positive)} images "
                f"({split['images'][1]}): figures measured on it are rough."
            )
    rare = min(total.negative, total.positive)
    if accepted and rare / accepted < RARE_CLASS:
        name = facts["labels"][int(total.positive <= total.negative)]
        sentences.append(
            f"The classes are unbalanced: {pages.percent(rare / accepted)} of the images are {pages.short(name)}."
        )
    sentences += _source_limits(facts, total)
    skin = facts["distributions"]["skin_type"] or {}
    dark = sum(sum(skin.get(name, (0, 0))) for name in ("V", "VI"))
    if accepted and not any(sum(pair) for name, pair in skin.items() if name):
        sentences.append("No skin types are stated: these images cannot show how well a model works on dark skin.")
    elif accepted and dark < FEW_POSITIVES:
        sentences.append(
            f"Fewer than {FEW_POSITIVES} images are stated to be of skin type V or VI ({dark}): they show little about "
            "dark skin."
        )
    return [*sentences, *(facts["licences"] or ["No license is stated."])]


def _missing_ids(count: int, accepted: int, kind: str, together: str) -> str:
    missing = f"{accepted - count:,} of {accepted:,} images carry no {kind} id" if count else f"There are no {kind} ids"
    return f"{missing}: {together} may stand on both sides of the split."


def _source_limits(facts: CardFacts, total: Row) -> list[str]:
    """Sentences on sources whose images a model could recognize instead of the lesion."""
    sources = facts["distributions"]["source"] or {}
    rows = [Row(pages.short(name), *pair) for name, pair in sources.items() if name]
    if len(rows) < 2 or not total.positive or not total.negative:
        return []
    sentences, positive = [], pages.short(facts["labels"][1])
    top = max(rows, key=lambda row: row.positive)
    if top.positive / total.positive >= NEARLY_ALL:
        sentences.append(
            f"Source {top.name} holds {pages.percent(top.positive / total.positive)} of the {positive} images and "
            f"{pages.percent(top.negative / total.negative)} of the others: figures say little about other sources."
        )

    def rate_of_others(row: Row) -> float:
        return share(total.positive - row.positive, total.total - row.total)

    def difference(row: Row) -> float:
        return abs(2 * math.asin(math.sqrt(row.rate)) - 2 * math.asin(math.sqrt(rate_of_others(row))))

    # Small sources are left out first: the rate of no images is undefined.
    large = [row for row in rows if SMALL_SOURCE <= row.total <= total.total - SMALL_SOURCE]
    different = [row for row in large if difference(row) >= DIFFERENT_RATE]
    different.sort(key=lambda row: (-round(difference(row), 6), row.name))
    if len(different) == 2 and different[0].total + different[1].total == total.total:
        different.pop()  # the other half of the same sentence
    sentences += [
        f"Of source {row.name} {pages.percent(row.rate)} are {positive}, of all other images "
        f"{pages.percent(rate_of_others(row))}: a model may learn to recognize the source instead of the lesion."
        for row in different[:3]
    ]
    more = [f"The same holds for {len(different) - 3} sources more."] if len(different) > 3 else []
    return sentences + more
