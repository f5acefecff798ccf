"""Tables beside images: what their columns mean, told from the head; and their rows as records, streamed.

Whatever bytes a table is made of, only `DataError` is raised, and memory stays within a few MiB.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from melanoma_spark.archives import diagnoses
from melanoma_spark.errors import DataError

MAX_COLUMNS = 1000
MAX_ROW = 1 << 20  # characters of a row with all its cells
MAX_WORD = 200  # characters of a label or a number; what is longer is cut
MAX_NAME = 255  # characters of an image's name, as file systems have it; the end counts
MAX_PATH = 4096  # characters of its path; the end counts
MAX_AGE = 120  # years
HEAD = 1 << 16  # bytes of a table that a `TableHead` holds, if there are as many
SAMPLE = 50  # rows of a head that are looked at

FOLDER = r"[/\\]"
NO_IDS = "has no column of image ids"  # how the reason of a table begins that is not about images
SUFFIX = r"\.(jpe?g|jpe|jfif|png|bmp|tiff?|gif|webp|dcm|dicom)"

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MISSING = {"", "na", "n/a", "nan", "none", "null", "unknown", "missing", "not available", "none selected", "-", "?"}
NO_WORD = MISSING - {"unknown"}  # an unknown diagnosis is a diagnosis: the third state
SEXES = {**dict.fromkeys(("f", "female", "w", "woman"), "female"), **dict.fromkeys(("m", "male", "man"), "male")}
SKIN_TYPES = ("I", "II", "III", "IV", "V", "VI")  # Fitzpatrick's

# Our field -> the names its column goes by, the first that is there counts. All of them lower case.
NAMES: Mapping[str, tuple[str, ...]] = {
    "image_id": ("image_id", "isic_id", "image_name", "image", "filename", "file_name", "image_path", "path"),
    "patient_id": ("patient_id", "patient"),
    "lesion_id": ("lesion_id", "lesion"),
    "split": ("split", "subset", "partition"),
    "age": ("age_approx", "age", "age_approximate"),
    "sex": ("sex", "gender"),
    "site": ("anatom_site_general", "anatom_site_general_challenge", "localization", "anatom_site", "site"),
    "skin_type": ("fitzpatrick_skin_type", "fitzpatrick", "skin_type"),
    "image_type": ("image_type",),
    "source": ("dataset", "attribution", "source"),
    "licence": ("copyright_license", "license", "licence"),
}
# All of these that are there are read: `diagnoses` knows which of several words is the most specific.
LABELS = ("label", "diagnosis", "dx", "class", "benign_malignant", "target")
HIERARCHIES = tuple(tuple(f"{name}_{level}" for level in range(1, 6)) for name in ("diagnosis", "iddx"))
SITES = tuple(f"anatom_site_{level}" for level in range(1, 6))
PAIR = ("image_name_1", "image_name_2")
FIELDS = (*NAMES, "label")  # what `columns` may name


@dataclass(frozen=True)
class TableHead:
    """The first bytes of a table, 64 KiB or all of it, and its path below the archive."""

    path: str
    head: bytes


@dataclass(frozen=True)
class Table:
    """A table that is understood: what is needed to read it elsewhere.

    `columns` maps a field of `Record` to the places of its columns: one, but of labels several; `one_hot` maps places
    to the word that a 1 there means, `neither` is the word when all are 0; `words` says what this table means by a
    word. `role` is text for people: truth (it has labels), metadata, lesions or pairs. `layout` is the one it is
    typical of.
    """

    path: str
    role: str
    layout: str
    header: tuple[str, ...]
    columns: Mapping[str, tuple[int, ...]]
    hierarchies: tuple[tuple[int, ...], ...] = ()
    one_hot: Mapping[int, str] = field(default_factory=dict)
    neither: str = "unknown"
    words: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    encoding: str = "utf-8-sig"
    has_header: bool = True
    split: str | None = None
    paths: tuple[int, ...] = ()  # places of more columns that may name an image, and its folders with it

    @property
    def has_labels(self) -> bool:
        return bool(self.columns.get("label") or self.hierarchies or self.one_hot)

    def without_labels(self) -> Table:
        columns = {name: places for name, places in self.columns.items() if name != "label"}
        return replace(self, role="metadata", columns=columns, hierarchies=(), one_hot={})


@dataclass(frozen=True)
class Record:
    """What one row of a table says of one image. Absent is None, or empty.

    `labels` are all the words for its diagnosis, for `diagnoses.target_of`; `pairs` are names of groups of images of
    one lesion. `age` is in years, `sex` female or male, `skin_type` Fitzpatrick's I to VI.
    """

    image_id: str
    labels: tuple[str, ...] = ()
    patient_id: str | None = None
    lesion_id: str | None = None
    pairs: tuple[str, ...] = ()
    split: str | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None
    skin_type: str | None = None
    image_type: str | None = None
    source: str | None = None
    licence: str | None = None
    # Where it says so: the cell that names the image (an id, a file's name or a path), and the table's path.
    reference: str = field(default="", compare=False)
    table: str = field(default="", compare=False)


def image_id(path: str) -> str:
    """The id of an image, the same for its file and in tables: the name without folders, image suffixes and the
    `_downsampled` of ISIC 2019. ISIC's own ids are upper case.
    """
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", path.strip())[-1]).strip()[-MAX_NAME:].strip()
    short = re.sub(rf"(?i)(?<=\S)\s*(({SUFFIX}|_downsampled)\s*)+$", "", name)
    return short.upper() if re.fullmatch(r"(?i)isic_\d+", short) else short


def stem(name: str) -> str:
    """A file's name without the suffixes of images."""
    return re.sub(rf"(?i)(?<=\S)\s*({SUFFIX}\s*)+$", "", name)


def split_of(name: str) -> str | None:
    """The split that the words of a file's or folder's name tell, if it is one: `ISIC-2017_Test_v2_Data` is test."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def understand(head: TableHead, columns: Mapping[str, str]) -> Table | str:
    """What the columns of a table mean, or why it is not understood. `columns` are the user's names by our field."""
    try:
        text, encoding = _decoded(head.head)
        whole = len(head.head) < HEAD
        if not whole:  # then the last line may be cut
            text = text[: len(text) - len(re.split(r"[\r\n]", text)[-1])] or text
        delimiter = _delimiter(text, columns)
        rows, problem = _sample(text, delimiter)
    except DataError as error:
        return str(error)
    if problem and (whole or len(rows) < 2):  # else it may be a quoted cell that the head's end cuts
        return problem
    if not rows:
        return "is empty"
    folder_split = next(filter(None, map(split_of, reversed(PurePosixPath(head.path).parts))), None)
    table = Table(
        head.path, "metadata", "table", tuple(rows[0]), {}, delimiter=delimiter, encoding=encoding, split=folder_split
    )
    names = [name.strip().lower() for name in rows[0]]
    if not set(names) & _known(columns):
        return _without_header(table, rows)
    return _with_header(table, names, rows[1:], columns)


def read_table(lines: Iterable[str] | BinaryIO, table: Table) -> Iterator[Record]:
    """The rows of a table as records, streamed: from its file opened in binary, or from its lines as text.

    Rows without an id are left out. Raises `DataError` naming the table: not text, a row over 1 MiB or over 1,000
    cells, quotes that are never closed.
    """
    one_hot, labels = tuple(table.one_hot.items()), table.columns.get("label", ())
    ids = table.columns["image_id"]
    plain: list[tuple[str, int, Callable[[str], Any]]] = [
        (name, table.columns[name][0], CLEAN.get(name, _text))
        for name in NAMES
        if name != "image_id" and name in table.columns
    ]
    try:
        binary = hasattr(lines, "read") and not isinstance(lines, io.TextIOBase)
        text = _text_lines(cast(BinaryIO, lines), table.encoding) if binary else cast(Iterable[str], lines)
        for number, cells in enumerate(_rows(text, table.delimiter)):
            if number == 0 and table.has_header:
                continue
            cells += [""] * (len(table.header) - len(cells))
            found = [(name, cells[place].strip()[-MAX_PATH:]) for place in ids if (name := image_id(cells[place]))]
            if not found:
                continue
            if table.role == "pairs":
                if len({name for name, _ in found}) == 2:
                    pair = "+".join(sorted(name for name, _ in found))
                    for name, cell in found:
                        yield Record(name, pairs=(pair,), split=table.split, reference=cell, table=table.path)
                continue
            words = [_word(cells[place], table.words) for place in labels]
            words += [":".join(filter(None, (_word(cells[n], {}) for n in places))) for places in table.hierarchies]
            if one_hot:
                words.append(_hot(cells, one_hot, table.neither))
            values = {name: clean(cells[place]) for name, place, clean in plain}
            values["split"] = values.get("split") or table.split
            name, cell = found[0]
            if not re.search(FOLDER, cell):  # an id; another column may have the path of the same image
                paths = (cells[place].strip()[-MAX_PATH:] for place in table.paths)
                cell = next((path for path in paths if re.search(FOLDER, path) and image_id(path) == name), cell)
            labels_of = tuple(dict.fromkeys(filter(None, words)))
            yield Record(name, labels_of, **values, reference=cell, table=table.path)
    except DataError as error:
        raise DataError(f"{table.path} {error}") from None


# Columns


def _with_header(table: Table, names: list[str], rows: list[list[str]], own: Mapping[str, str]) -> Table | str:
    def places(*wanted: str) -> tuple[int, ...]:
        """Of equal names the first counts."""
        return tuple(names.index(name) for name in wanted if name in names)

    if set(PAIR) <= set(names):
        return replace(table, role="pairs", layout="isic_2020", columns={"image_id": places(*PAIR)})
    columns = {name: places(*known)[:1] for name, known in NAMES.items()}
    columns["site"] = columns["site"] or places(*SITES)[:1]  # the coarsest: deeper levels are seldom filled in
    columns |= {name: places(column.strip().lower()) or columns.get(name, ()) for name, column in own.items()}
    columns = {name: found for name, found in columns.items() if found}
    if not columns.get("image_id"):
        return f"{NO_IDS}: expected one of {', '.join(NAMES['image_id'])}; found {found_columns(table)}"
    table = replace(
        table, paths=tuple(place for place in places(*NAMES["image_id"]) if place not in columns["image_id"])
    )
    if "label" in own:  # the user's column is the only one then
        table = replace(table, columns=columns)
    else:
        columns["label"] = places(*LABELS)
        hot = _one_hot(table.header, rows)
        kept = {name: found for name, found in columns.items() if found}
        hierarchies = tuple(found for levels in HIERARCHIES if (found := places(*levels)))
        table = replace(table, columns=kept, hierarchies=hierarchies, one_hot=hot)
    table = replace(table, role="truth" if table.has_labels else "metadata", layout=_layout(set(names), table))
    if table.layout == "isic_2017" and table.one_hot:
        table = replace(table, neither="nevus")  # the challenge has three diagnoses and columns for two
    return replace(table, role="lesions") if "diagnosis_confirm_type" in names and len(names) == 3 else table


def _without_header(table: Table, rows: list[list[str]]) -> Table | str:
    """ISIC 2016's truth has no header: `ISIC_0000000,benign` for training and `ISIC_0000003,0.0` for test."""
    first = rows[0]
    if len(first) == 2 and all(re.fullmatch(r"(?i)isic_\d+", image_id(row[0])) and len(row) == 2 for row in rows):
        # "malignant (melanoma) or non-malignant (non-melanoma)": challenge.isic-archive.com/landing/2016/39
        words = {"malignant": "melanoma", "1": "melanoma", "0": "benign"}
        columns = {"image_id": (0,), "label": (1,)}
        return replace(
            table, role="truth", layout="isic_2016", header=("", ""), columns=columns, words=words, has_header=False
        )
    return f"{NO_IDS}: expected one of {', '.join(NAMES['image_id'])}; found {found_columns(table)}"


def _one_hot(names: tuple[str, ...], rows: list[list[str]]) -> dict[int, str]:
    """Columns named like diagnoses that hold nothing but numbers, if there are two or more."""
    found: dict[int, str] = {}
    for place, name in enumerate(name.strip() for name in names):
        row = diagnoses.find(name[:MAX_WORD])
        cells = [cell for cells in rows if len(cells) > place and (cell := cells[place].strip()).lower() not in MISSING]
        if row and row.kind != "answer" and name not in found.values() and all(map(_is_share, cells)):
            found[place] = name
    return found if len(found) > 1 else {}


def _layout(names: set[str], table: Table) -> str:
    """The published layout that a table is typical of, the first that fits; "table" for one of nobody's."""
    hot = {word.lower() for word in table.one_hot.values()}
    if hot == {"melanoma", "seborrheic_keratosis"} or {"image_id", "age_approximate"} <= names:
        return "isic_2017"
    if ("image" in names and {"mel", "nv", "akiec"} <= hot) or {"image", "diagnosis_confirm_type"} <= names:
        return "isic_2018"
    if "image" in names and ({"mel", "nv", "ak"} <= hot or {"age_approx", "anatom_site_general"} <= names):
        return "isic_2019"
    if {"image_id", "dx"} <= names:
        return "ham10000"
    if "isic_id" in names:
        return "isic_cli"
    return "isic_2020" if "image_name" in names and names & {"patient_id", "benign_malignant", "target"} else "table"


def found_columns(table: Table, most: int = 20) -> str:
    """The columns of a table for a message."""
    names = [name.strip()[:40] for name in table.header]
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _known(own: Mapping[str, str]) -> set[str]:
    """All the names that a header may be known by."""
    names = {name for known in NAMES.values() for name in known}
    return names | {*PAIR, *LABELS} | {name.strip().lower() for name in own.values()}


# Cells


def _text(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell.lower() in MISSING else cell


def _lower_text(cell: str) -> str | None:
    return (_text(cell) or "").lower() or None


def _word(cell: str, words: Mapping[str, str]) -> str:
    """A label, as this table means it; an empty one is none."""
    cell = cell.strip()[:MAX_WORD]
    return "" if cell.lower() in NO_WORD else words.get(diagnoses.key(cell), cell) if words else cell


def _age(cell: str) -> float | None:
    """Years. `85+` is 85."""
    found = re.fullmatch(
        r"[>≥]?\s*(\d{1,3}(?:[.,]\d{1,6})?)\s*\+?\s*(y|yrs?|years?)?", cell.strip()[:MAX_WORD], re.I | re.A
    )
    years = float(found[1].replace(",", ".")) if found else math.inf
    return years if years <= MAX_AGE else None


def _skin_type(cell: str) -> str | None:
    name = re.sub(r"(?i)^((fitzpatrick|fst|skin|type)[\s_:-]*)*", "", cell.strip()[:MAX_WORD]).upper()
    if re.fullmatch(r"[1-6](\.0*)?", name, re.A):
        return SKIN_TYPES[int(name[0]) - 1]
    return name if name in SKIN_TYPES else None


CLEAN: Mapping[str, Callable[[str], Any]] = {
    "age": _age,
    "sex": lambda cell: SEXES.get(cell.strip().lower()),
    "skin_type": _skin_type,
    "split": lambda cell: SPLITS.get(cell.strip().lower()),
    "site": _lower_text,
    "image_type": _lower_text,
}


def _share(cell: str) -> float:
    try:
        return float(cell[:MAX_WORD])
    except ValueError:
        return math.nan


def _is_share(cell: str) -> bool:
    return 0 <= _share(cell) <= 1


def _hot(cells: list[str], one_hot: Iterable[tuple[int, str]], neither: str) -> str:
    """The diagnosis whose column holds the highest value, if that is over 0.5 and no other column holds it too."""
    texts = [(cells[place].strip(), word) for place, word in one_hot]
    if all(text.lower() in MISSING for text, _ in texts):
        return ""
    ranked = sorted(((_share(text), word) for text, word in texts if _is_share(text)), reverse=True)
    if len(ranked) < len(texts):
        return "unknown"
    if ranked[0][0] <= 0.5:
        return neither if ranked[0][0] == 0 else "unknown"
    return "unknown" if ranked[1][0] == ranked[0][0] else ranked[0][1]


# Bytes


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are not UTF-8 as what Excel writes in the west, wherever they stand in a table."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    try:
        return wrong.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return wrong.decode("latin-1"), error.end


codecs.register_error("melanoma_spark.cp1252", _as_cp1252)


def _decoded(head: bytes) -> tuple[str, str]:
    """The text of a head and its encoding. Raises `DataError` where it is none."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError("is in UTF-32; save it as UTF-8")
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(head) > 3 and head[1::2].count(0) > 0.8 * len(head[1::2]) and not head[::2].count(0):
        encoding = "utf-16-le"
    elif len(head) > 3 and head[::2].count(0) > 0.8 * len(head[::2]) and not head[1::2].count(0):
        encoding = "utf-16-be"
    errors = "melanoma_spark.cp1252" if encoding == "utf-8-sig" else "replace"
    text = codecs.getincrementaldecoder(encoding)(errors).decode(head)
    return _checked(text), encoding


def _checked(text: str) -> str:
    found = re.search(r"[\x00-\x08\x0e-\x1f]", text)
    if found:
        raise DataError(f"is not text: it holds the byte 0x{ord(found[0]):02x}")
    return text


def _delimiter(text: str, own: Mapping[str, str]) -> str:
    """The one that parts the first line into the most names that are known, else the most cells; else a comma."""
    first = next((line for line in re.split(r"[\r\n]+", text) if line.strip()), "").lower()
    known = _known(own)

    def cells(delimiter: str) -> tuple[int, int]:
        parts = [part.strip().strip('"').strip() for part in first.split(delimiter)]
        return sum(part in known for part in parts), len(parts)

    return max(",;\t|", key=cells)


def _text_lines(binary: BinaryIO, encoding: str) -> Iterator[str]:
    errors = "melanoma_spark.cp1252" if encoding == "utf-8-sig" else "replace"
    wrapper = io.TextIOWrapper(binary, encoding=encoding, errors=errors, newline="")
    try:
        # A line that never ends comes in pieces, each of them too long for a row.
        for line in iter(lambda: wrapper.readline(MAX_ROW + 1), ""):
            if encoding.startswith("utf-16") and line.endswith("\ufffd"):
                raise DataError("ends in the middle of a character")
            yield line
    except UnicodeError:
        raise DataError(f"is not text in {encoding}") from None
    finally:
        if not binary.closed:
            wrapper.detach()  # else the caller's file is closed with the wrapper


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The rows that hold anything, each within the limits.

    Raises `DataError` at the end of a table that was cut: its last line has no end and, unlike all before it, too few
    cells. What stands in that line may be half of a name.
    """
    length = 0
    ended = True

    def measured() -> Iterator[str]:
        nonlocal length, ended
        for line in lines:
            length += len(line)
            ended = line.endswith(("\n", "\r"))
            if length > MAX_ROW:
                raise DataError(f"holds a row of more than {MAX_ROW} characters; or a quote is never closed")
            yield _checked(line)

    # Strict: else a quote that is never closed takes all the rows that follow into its cell, and nobody is told.
    reader = csv.reader(measured(), delimiter=delimiter, strict=True)
    width, whole, last = 0, True, 0  # of the first row; whether all rows but the last are as wide; of the last
    try:
        for cells in reader:
            length = 0
            if len(cells) > MAX_COLUMNS:
                raise DataError(f"has {len(cells)} columns, the limit is {MAX_COLUMNS}")
            if any(cell and not cell.isspace() for cell in cells):
                whole, last, width = whole and last >= width, len(cells), width or len(cells)
                yield cells
        if not ended and whole and last < width:
            raise DataError(f"ends in the middle of a row, its line {reader.line_num}; if it is whole, end that line")
    except csv.Error as error:
        raise DataError(f"is not a table: line {reader.line_num}: {error}") from None


def _sample(text: str, delimiter: str) -> tuple[list[list[str]], str | None]:
    """The first rows of a head, and what stopped the reading of more."""
    rows: list[list[str]] = []
    try:
        for row in _rows(io.StringIO(text, newline=""), delimiter):
            rows.append(row)
            if len(rows) > SAMPLE:
                break
    except DataError as error:
        return rows, str(error)
    return rows, None
