"""The attributes of an image: what the tables of an archive state about it, and what is measured on its pixels.

To add an attribute, add a row to `ATTRIBUTES`. Its column is then read in tables and stored in `images/`. The data
card, the subgroups of a report and drift use it as the row sets.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from melanoma_spark.words import key

UNKNOWN = "unknown"  # the category of an image without a value
MISSING = {"", "na", "n/a", "nan", "none", "null", "unknown", "missing", "not available", "none selected", "-", "?"}
MAX_WORD = 200  # characters of a number or a word; longer text is cut
MAX_AGE = 120  # years
SEXES = {  # English, German, Spanish, French, Portuguese, Italian, Dutch
    **dict.fromkeys(("f", "female", "w", "woman", "weiblich", "frau", "mujer", "femenino", "femenina"), "female"),
    **dict.fromkeys(("hembra", "femme", "feminin", "feminine", "feminino", "feminina", "mulher"), "female"),
    **dict.fromkeys(("femmina", "femminile", "donna", "vrouw", "vrouwelijk"), "female"),
    **dict.fromkeys(("m", "male", "man", "mannlich", "maennlich", "mann", "hombre", "masculino", "varon"), "male"),
    **dict.fromkeys(("homme", "masculin", "homem", "maschio", "maschile", "uomo", "mannelijk"), "male"),
}
MUJER = {"h": "male", "m": "female"}  # where a table has an H: hombre, homem; mujer, mulher
SKIN_TYPES = ("I", "II", "III", "IV", "V", "VI")  # Fitzpatrick's


def parse_text(cell: str) -> str | None:
    """The text of a cell; None where it stands for a missing value."""
    cell = cell.strip()
    return None if cell.lower() in MISSING else cell


def parse_lower_text(cell: str) -> str | None:
    """`parse_text` in lower case."""
    return (parse_text(cell) or "").lower() or None


def parse_age(cell: str) -> float | None:
    """Years. `85+` is 85."""
    match = re.fullmatch(
        r"[>≥]?\s*(\d{1,3}(?:[.,]\d{1,6})?)\s*\+?\s*(y|yrs?|years?)?", cell.strip()[:MAX_WORD], re.I | re.A
    )
    years = float(match[1].replace(",", ".")) if match else math.inf
    return years if years <= MAX_AGE else None


def parse_sex(cell: str) -> str | None:
    """`female`, `male` or None."""
    return SEXES.get(key(cell[:MAX_WORD]))


def parse_skin_type(cell: str) -> str | None:
    """One of `SKIN_TYPES`, of texts such as `3`, `FST III` or `Fitzpatrick skin type 3`; None for other text."""
    name = re.sub(r"(?i)^((fitzpatrick|fst|skin|type)[\s_:-]*)*", "", cell.strip()[:MAX_WORD]).upper()
    if re.fullmatch(r"[1-6](\.0*)?", name, re.A):
        return SKIN_TYPES[int(name[0]) - 1]
    return name if name in SKIN_TYPES else None


@dataclass(frozen=True)
class Attribute:
    """One attribute that tables state.

    `bins` makes it a number: rising whole numbers where its bands begin, and the upper limit of its values.
    """

    name: str  # its column in `images/`, and the field of the setting `ingest.columns`
    label: str  # in reports, data cards and worklists
    columns: tuple[str, ...]  # names of its column in tables, lower case; the first that a table has is read
    parse: Callable[[str], str | float | None] = parse_text  # text of a cell -> value, None where it has none
    bins: tuple[int, ...] = ()
    values: tuple[str, ...] = ()  # in the order of tables; of none the most frequent come first
    subgroup: bool = True  # whether evaluation reports the figures of a model for each category
    drift: bool = True  # whether drift compares its categories with those of the training images
    card: bool = True  # whether the data card shows its categories

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in the order of tables; empty where they are not known beforehand."""
        if not self.bins:
            return self.values
        starts = self.bins[1:-1]
        between = (f"{low}-{high - 1}" for low, high in pairwise(starts))
        return (f"under {starts[0]}", *between, f"{starts[-1]} and over")

    def category(self, value: str | None) -> str:
        """The category of a stored value: a band of numbers, or the text itself; `UNKNOWN` where there is none.

        `45.0` is in `40-49`; an interval such as `[45, 55)` counts as its middle.
        """
        text = (value or "").strip()
        if not self.bins or not text:
            return text or UNKNOWN
        ends = text.replace("\N{EN DASH}", "-").strip("[]()+ ").replace(",", "-").split("-")
        try:
            middle = sum(map(float, ends)) / len(ends)
        except ValueError:
            return UNKNOWN
        inside = self.bins[0] <= middle < self.bins[-1]
        return self.categories[bisect_right(self.bins, middle) - 1] if inside else UNKNOWN


ATTRIBUTES: Mapping[str, Attribute] = {
    attribute.name: attribute
    for attribute in (
        Attribute(
            "age", "age", ("age_approx", "age", "age_approximate"), parse_age, bins=(0, 30, 40, 50, 60, 70, 80, 150)
        ),
        Attribute("sex", "sex", ("sex", "gender"), parse_sex),
        Attribute(
            "site",
            "site",
            (
                *("anatom_site_general", "anatom_site_general_challenge", "localization", "anatom_site", "site"),
                *(f"anatom_site_{level}" for level in range(1, 6)),  # the coarsest: deeper levels are seldom filled in
            ),
            parse_lower_text,
        ),
        Attribute(
            "skin_type",
            "skin type (Fitzpatrick)",
            ("fitzpatrick_skin_type", "fitzpatrick", "skin_type"),
            parse_skin_type,
            values=SKIN_TYPES,
        ),
        Attribute("image_type", "image type", ("image_type",), parse_lower_text),
        Attribute("source", "source", ("dataset", "attribution", "source"), drift=False),  # dataset or institution
        Attribute(
            "licence",
            "license",
            ("copyright_license", "license", "licence"),
            subgroup=False,
            drift=False,
            card=False,  # the data card names licenses among its limits
        ),
    )
}

# Those of release 0.1: each dataset has them, see `dataset.ingest`.
FIRST_ATTRIBUTES = ("age", "sex", "site", "skin_type", "image_type", "source", "licence")

# What `images.quality` measures on the pixels -> its label. Each is a column of `scores/`.
PIXEL_MEASURES = {
    "sharpness": "sharpness",
    "brightness": "brightness",
    "clipped": "white pixels",
    "dark_border": "black border",
    "warm": "pixels redder than blue",
}
