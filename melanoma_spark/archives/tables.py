"""Tables beside images: what their columns mean, by the head; and their rows as records, streamed.

Whatever bytes a table consists of, only `DataError` is raised, and memory stays within a few MiB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from melanoma_spark.archives import cells as cell_values
from melanoma_spark.archives import diagnoses, table_text
from melanoma_spark.archives.ids import FOLDER, image_id, parse_id
from melanoma_spark.attributes import ATTRIBUTES, MAX_WORD, MISSING, MUJER, parse_sex
from melanoma_spark.errors import DataError
from melanoma_spark.words import key

MAX_PATH = 4096  # characters of its path; its end is kept
HEAD = 1 << 16  # bytes of a table in a `TableHead`, if it has as many

NO_IDS = "has no column of image ids"  # the start of the reason of a table that is not about images

# Field -> the names of its column in lower case; the first that the table has counts
NAMES: Mapping[str, tuple[str, ...]] = {
    "image_id": ("image_id", "isic_id", "image_name", "image", "filename", "file_name", "image_path", "path"),
    "patient_id": ("patient_id", "patient"),
    "lesion_id": ("lesion_id", "lesion"),
    "split": ("split", "subset", "partition"),
    **{name: attribute.columns for name, attribute in ATTRIBUTES.items()},
}
# All of these that the table has are read: `diagnoses` knows which of several words is the most specific
LABELS = ("label", "diagnosis", "dx", "class", "benign_malignant", "target")
HIERARCHIES = tuple(tuple(f"{name}_{level}" for level in range(1, 6)) for name in ("diagnosis", "iddx"))
PAIR = ("image_name_1", "image_name_2")
FIELDS = (*NAMES, "label")  # what the setting `columns` may name


@dataclass(frozen=True)
class TableHead:
    """The first `HEAD` bytes of a table, and its path below the archive."""

    path: str
    head: bytes


@dataclass(frozen=True)
class Table:
    """A table whose columns are understood: all that executors need to read it.

    Attributes:
        path: below the archive.
        role: for people: truth (it has labels), metadata, lesions or pairs.
        layout: of `layouts.LAYOUTS`, of which it is typical.
        header: the names of its columns as they are written.
        columns: field of `Record` -> places of its columns: one, but several of labels.
        hierarchies: places of the levels of a diagnosis, the topmost first.
        one_hot: place -> the diagnosis that a 1 in it means.
        neither: the diagnosis of a row whose one-hot columns are all 0.
        words: a label by its `key` -> what it means in this table.
        sexes: a letter, or another word by its `key` -> the sex that it means in this table.
        paths: places of more columns that may name an image, and its folders with it.
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
    sexes: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    encoding: str = "utf-8-sig"
    has_header: bool = True
    split: str | None = None
    paths: tuple[int, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether it has columns of labels."""
        return bool(self.columns.get("label") or self.hierarchies or self.one_hot)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of its columns in lower case."""
        return frozenset(name.strip().lower() for name in self.header)

    @cached_property
    def hot(self) -> frozenset[str]:
        """The diagnoses of its one-hot columns in lower case."""
        return frozenset(word.lower() for word in self.one_hot.values())

    def without_labels(self) -> Table:
        """The same table, read as metadata."""
        columns = {name: places for name, places in self.columns.items() if name != "label"}
        return replace(self, role="metadata", columns=columns, hierarchies=(), one_hot={})


@dataclass(frozen=True)
class Record:
    """What one row of a table says of one image. Missing values are None, or empty.

    `labels` are all words for its diagnosis, for `diagnoses.target_of`; `pairs` are names of groups of images of one
    lesion. `attributes` has those of `ATTRIBUTES` that the row states. `reference` is the cell that names the image (an
    id, a file name or a path), `table` the path of the table.
    """

    image_id: str
    labels: tuple[str, ...] = ()
    patient_id: str | None = None
    lesion_id: str | None = None
    pairs: tuple[str, ...] = ()
    split: str | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    reference: str = field(default="", compare=False)
    table: str = field(default="", compare=False)

    def values(self) -> tuple[Any, ...]:
        """The values in the order of `schemas.RECORDS`."""
        first = (self.image_id, self.labels, self.patient_id, self.lesion_id, self.pairs, self.split)
        return (*first, *map(self.attributes.get, ATTRIBUTES), self.reference, self.table)


def split_of(name: str) -> str | None:
    """The split that the words of a file or folder name agree on: `ISIC-2017_Test_v2_Data` is test."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = {cell_values.SPLITS[word] for word in words if word in cell_values.SPLITS}
    return splits.pop() if len(splits) == 1 else None


def split_of_path(path: str) -> str | None:
    """The split of the last part of a path that names one."""
    return next(filter(None, map(split_of, reversed(PurePosixPath(path).parts))), None)


def understand(head: TableHead, columns: Mapping[str, str]) -> Table | str:
    """What the columns of a table mean, or why that is unknown. `columns` are names of columns by field."""
    try:
        text, encoding = table_text.decode_head(head.head)
        complete = len(head.head) < HEAD
        if not complete:  # then the last line may be cut
            text = text[: len(text) - len(re.split(r"[\r\n]", text)[-1])] or text
        known_names = {name for names in NAMES.values() for name in names} | {*PAIR, *LABELS}
        known_names |= {name.strip().lower() for name in columns.values()}
        delimiter = table_text.find_delimiter(text, known_names)
        rows, problem = table_text.sample_rows(text, delimiter)
    except DataError as error:
        return str(error)
    if problem and (complete or len(rows) < 2):  # else it may be a quoted cell that the end of the head cuts
        return problem
    if not rows:
        return "is empty"
    format_of = {"delimiter": delimiter, "encoding": encoding, "split": split_of_path(head.path)}
    table = Table(head.path, "metadata", "table", tuple(rows[0]), {}, **format_of)  # type: ignore[arg-type]
    return _with_header(table, rows[1:], columns) if table.names & known_names else _without_header(table, rows)


def read_table(lines: Iterable[str] | BinaryIO, table: Table) -> Iterator[Record]:
    """The rows of a table as records, streamed from a binary file or from lines of text.

    Rows without an id are left out. Raises `DataError` that begins with the path of the table: it is not text, a row is
    over 1 MiB or over 1,000 cells, a quote is never closed, or it takes too much processor time.
    """
    one_hot, labels = tuple(table.one_hot.items()), table.columns.get("label", ())
    ids = table.columns["image_id"]
    parsers = {name: attribute.parse for name, attribute in ATTRIBUTES.items()}
    parsers["sex"] = lambda cell: table.sexes.get(key(cell[:MAX_WORD])) or parse_sex(cell)
    plain: list[tuple[str, int, Callable[[str], Any]]] = [
        (name, table.columns[name][0], parsers.get(name, parse_id))
        for name in NAMES
        if name != "image_id" and name in table.columns
    ]
    try:
        binary = hasattr(lines, "read") and not isinstance(lines, io.TextIOBase)
        text = table_text.read_lines(cast(BinaryIO, lines), table.encoding) if binary else cast(Iterable[str], lines)
        for number, cells in enumerate(table_text.read_rows(text, table.delimiter)):
            if number == 0 and table.has_header:
                continue
            cells += [""] * (len(table.header) - len(cells))
            images = [(name, cells[place].strip()[-MAX_PATH:]) for place in ids if (name := image_id(cells[place]))]
            if not images:
                continue
            if table.role == "pairs":
                if len({name for name, _ in images}) == 2:
                    pair = "+".join(sorted(name for name, _ in images))
                    for name, cell in images:
                        yield Record(name, pairs=(pair,), split=table.split, reference=cell, table=table.path)
                continue
            words = [cell_values.label(cells[place], table.words) for place in labels]
            for levels in table.hierarchies:
                words.append(":".join(filter(None, (cell_values.label(cells[place], {}) for place in levels))))
            if one_hot:
                words.append(cell_values.label_of_one_hot(cells, one_hot, table.neither))
            values = {name: value_of(cells[place]) for name, place, value_of in plain}
            attributes = {key: values[key] for key in ATTRIBUTES if values.get(key) is not None}
            split = cell_values.SPLITS.get((values.get("split") or "").lower(), table.split)
            name, cell = images[0]
            if not re.search(FOLDER, cell):  # an id; another column may have the path of the same image
                paths = (cells[place].strip()[-MAX_PATH:] for place in table.paths)
                cell = next((path for path in paths if re.search(FOLDER, path) and image_id(path) == name), cell)
            distinct = tuple(dict.fromkeys(filter(None, words)))
            yield Record(
                name,
                distinct,
                values.get("patient_id"),
                values.get("lesion_id"),
                split=split,
                attributes=attributes,
                reference=cell,
                table=table.path,
            )
    except DataError as error:
        raise DataError(f"{table.path} {error}") from None


def _with_header(table: Table, rows: list[list[str]], user_columns: Mapping[str, str]) -> Table | str:
    """The table with the meaning of its columns. `user_columns`, names by field, come before `NAMES`."""
    header = [name.strip().lower() for name in table.header]

    def places(*wanted: str) -> tuple[int, ...]:
        """Of equal names the first counts."""
        return tuple(header.index(name) for name in wanted if name in header)

    if set(PAIR) <= table.names:
        return replace(table, role="pairs", columns={"image_id": places(*PAIR)})
    columns = {name: places(*names)[:1] for name, names in NAMES.items()}
    columns |= {name: places(column.strip().lower()) or columns.get(name, ()) for name, column in user_columns.items()}
    if not columns["image_id"]:
        return _no_ids(table)
    paths = tuple(place for place in places(*NAMES["image_id"]) if place not in columns["image_id"])
    if "label" not in user_columns:  # else it is the only one
        columns["label"] = places(*LABELS)
        hierarchies = tuple(filter(None, (places(*levels) for levels in HIERARCHIES)))
        table = replace(table, hierarchies=hierarchies, one_hot=_one_hot(table.header, rows))
    table = replace(table, paths=paths, columns={name: value for name, value in columns.items() if value})
    sexes = {cells[place].strip().lower() for place in columns.get("sex", ()) for cells in rows if len(cells) > place}
    if "h" in sexes:
        table = replace(table, sexes=MUJER)
    lesions = "diagnosis_confirm_type" in header and len(header) == 3
    return replace(table, role="lesions" if lesions else "truth" if table.has_labels else "metadata")


def _without_header(table: Table, rows: list[list[str]]) -> Table | str:
    """A table of two columns, ids of ISIC and labels, without their names."""
    if all(len(row) == 2 and re.fullmatch(r"(?i)isic_\d+", image_id(row[0])) for row in rows):
        columns = {"image_id": (0,), "label": (1,)}
        return replace(table, role="truth", header=("", ""), columns=columns, has_header=False)
    return _no_ids(table)


def _no_ids(table: Table) -> str:
    return f"{NO_IDS}: expected one of {', '.join(NAMES['image_id'])}; found {describe_columns(table)}"


def _one_hot(names: tuple[str, ...], rows: list[list[str]]) -> dict[int, str]:
    """Place -> name of columns that are named like diagnoses and hold numbers alone, if there are two or more."""
    columns: dict[int, str] = {}
    for place, name in enumerate(name.strip() for name in names):
        row = diagnoses.find(name[:MAX_WORD])
        if row is None or row.kind == "answer" or name in columns.values():
            continue
        column = (cells[place].strip() for cells in rows if len(cells) > place)
        if all(cell_values.is_share(cell) for cell in column if cell.lower() not in MISSING):
            columns[place] = name
    return columns if len(columns) > 1 else {}


def describe_columns(table: Table, most: int = 20) -> str:
    """The columns of a table for a message."""
    names = [name.strip()[:40] for name in table.header]
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
