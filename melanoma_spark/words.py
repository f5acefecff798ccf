"""Words as they are compared: case, white space and punctuation do not count."""

import re
import unicodedata
from functools import lru_cache


@lru_cache(maxsize=1 << 14)
def key(word: str) -> str:
    """A word as it is compared: lower case, without accents, any white space or punctuation as one space, `1.0` as `1`.

    Colons stay, single, between the levels of a hierarchy.
    """
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", word).casefold())
    folded = "".join(letter for letter in apart if not unicodedata.combining(letter))
    folded = folded.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    folded = re.sub(r"^\s*([01])\.0*\s*$", r"\1", folded)
    levels = (re.sub(r"[\W_]+", " ", level).strip() for level in folded.split(":"))
    return ":".join(level for level in levels if level)
