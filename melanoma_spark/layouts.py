"""What the files of an archive are: images, their labels and ids, or something else.

Known so far: a folder per class, and a `metadata.csv` beside the images which wins over the folders.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from melanoma_spark.errors import DataError

METADATA_NAME = "metadata.csv"
ID_COLUMNS = ("image_id", "isic_id", "image_name", "image")
TABLE_NAMES = r"\.csv$"  # of paths in lower case; Java and Python read it alike
UNREADABLE_NAME = "unreadable_name"
LABEL_COLUMNS = ("label", "benign_malignant")


@dataclass(frozen=True)
class Record:
    """What an archive says of one image. Absent ids are None."""

    image_id: str
    label: str | None
    patient_id: str | None = None
    lesion_id: str | None = None


def image_id(path: str) -> str:
    """The id of an image file: its name without folders and suffix."""
    name = PurePosixPath(path).name
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and stem and len(suffix) <= 5 else name


def folder_label(path: str, root: str) -> str | None:
    """The folder directly above an image, if that folder lies below the archive's root; else None."""
    parent = PurePosixPath(path).parent
    return parent.name if parent != PurePosixPath(root) and parent.name else None


def is_table(path: str) -> bool:
    """Whether a file is a table beside the images, by its name: no image, and no reject either."""
    return re.search(TABLE_NAMES, path.lower()) is not None


def unread(path: str, root: str, length: int, max_bytes: int) -> tuple[str, str] | None:
    """The reason and detail for which a file is rejected without being read, or None. Lengths are in bytes."""
    below = PurePosixPath(path.removeprefix(root)).parts
    if any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in below):
        return "hidden", "a name in its path starts with . or _, which Spark does not read"
    if path.startswith("file:") and below and ":" in below[-1]:
        # It makes the name of a file of checksums beside it, and takes what stands before the colon for a scheme.
        return UNREADABLE_NAME, "a colon in its name, which Hadoop does not read from a local disk; rename it"
    if length == 0:
        return "empty", "0 bytes"
    if length > max_bytes:
        return "too_many_bytes", f"{length} bytes, the limit is {max_bytes}"
    return None


def read_metadata(content: bytes, source: str = METADATA_NAME) -> list[Record]:
    """The rows of a metadata table. Column names are compared in lower case; empty cells are None.

    Raises `DataError` naming the table and the missing column, or the ids that occur twice with different values.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except csv.Error as error:
        raise DataError(f"{source} is not a table of comma-separated values: {error}") from None
    header = [name.strip().lower() for name in header]
    id_column = _column(header, ID_COLUMNS, source, "image id")
    label_column = _column(header, LABEL_COLUMNS, source, "label")
    places = {name: header.index(name) for name in ("patient_id", "lesion_id") if name in header}
    records: dict[str, Record] = {}
    contradicted: set[str] = set()
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        cells = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
        record = Record(
            image_id=cells[id_column],
            label=cells[label_column] or None,
            **{name: cells[place] or None for name, place in places.items()},
        )
        if records.setdefault(record.image_id, record) != record:
            contradicted.add(record.image_id)
    if contradicted:
        raise DataError(f"{source}: {len(contradicted)} image ids have rows that differ: {some(contradicted)}")
    if not records:
        raise DataError(f"{source} has a header and no rows; remove it to take labels from the folders")
    return list(records.values())


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, in order, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def _column(header: list[str], wanted: tuple[str, ...], source: str, what: str) -> int:
    for name in wanted:
        if name in header:
            return header.index(name)
    found = ", ".join(header[:20]) or "nothing"
    raise DataError(f"{source} has no {what} column: expected one of {', '.join(wanted)}; found {found}")
