"""Ids of images, patients and lesions: the same text for one id, whoever wrote it. Tables and file names use it alike.

docs/matching.md has the rules for users.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from melanoma_spark.attributes import parse_text

MAX_NAME = 255  # characters of an image's name, as in file systems; its end is kept
FOLDER = r"[/\\]"
SPACES = r"\s\u200b-\u200f\u2060\ufeff"  # white space, and what nobody sees


def _endings(pattern: str) -> re.Pattern[str]:
    """One or more of a pattern at the end of a name, with any spaces around each."""
    return re.compile(rf"(?i)(?<=[^{SPACES}])[{SPACES}]*(({pattern})[{SPACES}]*)+$")


SUFFIX = r"\.(jpe?g|jpe|jfif|png|bmp|tiff?|gif|webp|dcm|dicom)"
SUFFIXES, SUFFIXES_OF_IDS = _endings(SUFFIX), _endings(rf"{SUFFIX}|_downsampled")
BLANKS = "".join(filter(re.compile(f"[{SPACES}]").match, map(chr, range(1 << 16))))
LONGEST = 1_000  # characters of an id; the forms of longer text stay, as some take Unicode's rules minutes
# A whole number as a spreadsheet writes it once its column has an empty cell. Three zeros may be thousands.
FLOAT = re.compile(r"(0|[1-9]\d*)[.,](?!0{3}$)0+", re.ASCII)
SCIENTIFIC = re.compile(r"[1-9](?:[.,](\d+))?([eE])\+(\d{1,2})", re.ASCII)
# What de-identification writes into DICOM headers: one patient of that name would be everybody
PLACEHOLDERS = re.compile(r"(?i)(anon|de-?ident|removed|redacted|patient|test|default|dummy|x+$|0+$|\W*$)")
EXACT = 2**53  # whole numbers below it survive as floats


@lru_cache(maxsize=1 << 10)
def normalize_id(text: str) -> str:
    """An id as it is compared and stored.

    Spaces and invisible characters around it are removed, forms of Unicode become one (NFKC), and a whole number that
    became a float is that number again: `101.0`, `101,00` and `1.01E+02` are `101`. Everything else stays, leading
    zeros above all.
    """
    text = _clean(text)
    if whole := FLOAT.fullmatch(text):
        return whole[1]
    found = SCIENTIFIC.fullmatch(text)
    if found is None:
        return text
    decimals, letter, exponent = found.groups(default="")
    number = Decimal(text.replace(",", "."))
    # A spreadsheet rounds, so all digits must be there. R and Python (`e`) write as many as the number has.
    exact = letter == "e" or len(decimals) >= int(exponent)
    return str(int(number)) if exact and number == int(number) < EXACT else text


def parse_id(cell: str) -> str | None:
    """The id in a cell of a table; None where it stands for a missing value."""
    return parse_text(normalize_id(cell))


def parse_header_id(value: str | None) -> str | None:
    """The id in a header of DICOM; None where it is empty, or stands for a patient whose id was removed."""
    found = parse_id(value or "")
    return None if found and PLACEHOLDERS.match(found) and not re.search(r"[1-9]", found) else found


def image_id(path: str) -> str:
    """The id of an image, the same for its file and in tables.

    That is the name without folders, image suffixes and the `_downsampled` of ISIC 2019. Ids of ISIC are upper case.
    """
    name = _clean(_clean(re.split(FOLDER, path.strip())[-1])[-MAX_NAME:])
    short = normalize_id(SUFFIXES_OF_IDS.sub("", name))
    return short.upper() if re.fullmatch(r"(?i)isic_\d+", short) else short


def stem(name: str) -> str:
    """A file name without the suffixes of images."""
    return SUFFIXES.sub("", name)


def _clean(text: str) -> str:
    text = text.strip(BLANKS)
    if len(text) > LONGEST:
        return text
    compatible = unicodedata.normalize("NFKC", text)
    if re.search(FOLDER, compatible) and not re.search(FOLDER, text):  # some characters become `/`
        compatible = unicodedata.normalize("NFC", text)
    return compatible.strip(BLANKS)
