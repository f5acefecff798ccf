"""What the files of an archive are: images with labels, ids and splits, tables that hold these, or something else.

A layout is told from the heads of the tables and the names of the folders, on the driver; the rows of the tables and
the names of the files are then read by it on executors (`read_table`, `folder_record`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath

from melanoma_spark.archives import diagnoses
from melanoma_spark.archives.tables import (
    FIELDS,
    NAMES,
    NO_IDS,
    Record,
    Table,
    TableHead,
    found_columns,
    image_id,
    read_table,
    split_of,
    understand,
)
from melanoma_spark.errors import ConfigError, DataError

__all__ = [
    "FIELDS",
    "LAYOUTS",
    "LICENCES",
    "NO_IDS",
    "Layout",
    "Record",
    "Table",
    "TableHead",
    "folder_record",
    "image_id",
    "read_table",
    "recognise",
    "some",
    "unread",
]

# What each layout needs, in plain words; in the order in which they are told apart.
LAYOUTS: Mapping[str, str] = {
    "isic_2016": "a truth table without header, rows like ISIC_0000000,benign",
    "isic_2017": "a truth table image_id,melanoma,seborrheic_keratosis",
    "isic_2018": "a truth table image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
    "isic_2019": "a truth table image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK",
    "isic_2020": "a table image_name,patient_id,...,diagnosis,benign_malignant,target",
    "ham10000": "the table HAM10000_metadata with lesion_id,image_id,dx",
    "isic_cli": "a metadata.csv with isic_id and either diagnosis_1 or benign_malignant or diagnosis",
    "table": f"a table with a column of image ids ({', '.join(NAMES['image_id'][:4])}) and one of labels (label, "
    "diagnosis, dx, class, benign_malignant, target), or with columns named in `columns`",
    "folders": "folders named like diagnoses (benign, malignant, melanoma, nevus, ...)",
    "plain": "nothing but images",
}
# Of images in these layouts, as ISIC and Harvard publish them, where the archive itself tells none.
LICENCES: Mapping[str, str] = dict.fromkeys(("isic_2018", "isic_2019", "isic_2020", "ham10000"), "CC BY-NC 4.0")
MASK = r"(?i)[_-](segmentation|superpixels?|attribute_\w+|([a-z0-9]+_)?mask)$"
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
OTHER_SUFFIXES = (
    *(".txt", ".json", ".md", ".rst", ".pdf", ".xlsx", ".xls", ".ods", ".doc", ".docx", ".html", ".htm", ".xml"),
    *(".yaml", ".yml", ".log", ".py", ".ipynb", ".sh"),
)
OTHER_NAMES = {"license", "licence", "readme", "attribution", "copying", "notice", "checksums", "md5sums", "sha256sums"}
CONTAINERS = {
    *("images", "image", "imgs", "img", "jpegs", "jpeg", "jpg", "png", "photos", "pictures"),
    *("data", "dataset", "archive", "input", "lesions", "/", "."),
}
TABLE = ("skipped", "a table")
NEVER = 4  # the rank of a folder's name that is no class


@dataclass(frozen=True)
class Layout:
    """How an archive is to be read. `ignored` are tables that are not, each with why; `summary` is for people."""

    name: str
    summary: str
    tables: tuple[Table, ...] = ()
    folder_labels: bool = False
    folder_splits: bool = False
    ignored: tuple[tuple[str, str], ...] = ()

    @property
    def has_labels(self) -> bool:
        return self.folder_labels or any(table.has_labels for table in self.tables)


def recognise(
    tables: Iterable[TableHead],
    folders: Mapping[str, int],
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    words: Iterable[str] = (),
    needs_labels: bool = True,
) -> Layout:
    """The layout of an archive: of the heads of its tables, and its folders of images with how many each holds.

    `layout` is one of `LAYOUTS` to insist on, `columns` maps our names to those of the user's table, `words` are labels
    of the user's own, which may be names of folders. Labels come from tables where any table has some, else from
    folders; scoring does not need them (`needs_labels`). A split counts where at least training and test are told
    apart. Raises `ConfigError` for an unknown name in `layout` or `columns`, `DataError` where what is named is not
    there, or where tables have no labels and folders neither; the layout "plain" needs none and takes none.
    """
    own = {name: column for name, column in (columns or {}).items() if column and column.strip()}
    _check_names(layout, own)
    found = {head.path: understand(head, own) for head in sorted(tables, key=lambda head: head.path)}
    known = [table for table in found.values() if isinstance(table, Table)]
    ignored = [(path, why) for path, why in found.items() if isinstance(why, str)]
    missing = [name for name in own.values() if not any(_has_column(table, name) for table in known)]
    if missing:
        raise DataError(f"columns: no table has a column named {some(missing)}; {_told(known, ignored, folders)}")
    classes = _has_classes(folders, words)
    if layout == "folders":
        classes = any(_classes(folder) for folder in folders)  # named, so that any folder is a class
        known = [table.without_labels() for table in known]
    elif layout == "plain":
        classes = False
        known = [table.without_labels() for table in known]
    elif layout not in (None, "table"):
        ignored += [(t.path, f"is not of the layout {layout}") for t in known if t.layout not in (layout, "table")]
        known = [table for table in known if table.layout in (layout, "table")]
    labelled = [table for table in known if table.has_labels]
    if layout not in (None, "plain") and not _is_there(layout or "", labelled, classes):
        raise DataError(
            f"layout={layout} needs {LAYOUTS[layout or '']}; {_told(known, ignored, folders)}; without layout= it is "
            "recognised from what is there"
        )
    if needs_labels and layout is None and not labelled and not classes and found:
        raise DataError(
            f"no labels found: {_told(known, ignored, folders)}; name the column with columns.label=NAME, or read "
            "images without labels with layout=plain"
        )
    if not {"train", "test"} <= {table.split for table in labelled}:
        known = [replace(table, split=None) for table in known]
    name = layout or _name(labelled, classes)
    folder_labels = classes and not any(table.has_labels for table in known)
    folder_splits = {"train", "test"} <= {_folder_split(folder) for folder in folders}
    summary = _summary(name, known, folder_labels, folder_splits)
    return Layout(name, summary, tuple(known), folder_labels, folder_splits, tuple(sorted(ignored)))


def folder_record(path: str, layout: Layout, words: Iterable[str] = ()) -> tuple[str | None, str | None]:
    """Label and split of an image by the folders above it, `path` being relative to the archive; None where they tell
    none, or where the layout takes none from folders.

    The label is the nearest folder that is named like a diagnosis (or one of `words`), else the nearest named 0 or 1,
    else the nearest named unknown or other, else the nearest that is named like something: it is then an unknown label
    and not silently none.
    """
    folder = str(PurePosixPath(path).parent)
    label = next(iter(_classes(folder, words)), None) if layout.folder_labels else None
    return label, _folder_split(folder) if layout.folder_splits else None


def unread(path: str) -> tuple[str, str] | None:
    """The reason and detail for which a file below the archive is not read as an image, told from its relative path.

    `hidden` and `mask` are rejects, `skipped` are no images and never were meant to be. None where it may be one.
    """
    place = PurePosixPath(path)  # once: it costs more than all that is asked of it
    if any(part.startswith(".") or part.lower() in HIDDEN for part in place.parts):
        return "hidden", "made by an operating system, or its name starts with a dot"
    name = place.name.lower()
    if name.endswith(TABLE_SUFFIXES) or name == "ham10000_metadata":  # which Harvard ships without a suffix
        return TABLE
    if place.suffix.lower() in OTHER_SUFFIXES or name in OTHER_NAMES:
        return "skipped", "a text or a document"
    if re.search(MASK, place.stem):
        return "mask", "its name is that of a mask: which pixels are lesion, and no photograph"
    return None


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, in order, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def _check_names(layout: str | None, own: Mapping[str, str]) -> None:
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    unknown = [name for name in own if name not in FIELDS]
    if unknown:
        raise ConfigError(f"columns: unknown field {some(unknown)}; known: {', '.join(FIELDS)}")


def _is_there(layout: str, labelled: Iterable[Table], classes: bool) -> bool:
    if layout == "folders":
        return classes
    return any(layout in ("table", table.layout) for table in labelled)


def _has_column(table: Table, name: str) -> bool:
    return name.strip().lower() in (column.strip().lower() for column in table.header)


def _name(labelled: Iterable[Table], classes: bool) -> str:
    names = {table.layout for table in labelled}
    return "+".join(name for name in LAYOUTS if name in names) or ("folders" if classes else "plain")


# Folders


def _has_classes(folders: Mapping[str, int], words: Iterable[str]) -> bool:
    """Whether folders are named like diagnoses. 0 and 1 are only where both are there and no other number."""
    keys = {diagnoses.key(part) for folder in folders for part in PurePosixPath(folder).parts}
    if keys & {diagnoses.key(word) for word in words}:
        return True
    found = [row for name in keys if (row := diagnoses.find(name))]
    if any(row.kind != "answer" and (row.malignant, row.melanoma) != (None, None) for row in found):
        return True
    return {row.answer for row in found} >= {0, 1} and {name for name in keys if name.isdecimal()} <= {"0", "1"}


def _classes(folder: str, words: Iterable[str] = ()) -> list[str]:
    """The folders that may name a class, the likeliest first; of equally likely ones the nearest to the image."""
    own = {diagnoses.key(word) for word in words}
    parts = [unicodedata.normalize("NFC", part) for part in reversed(PurePosixPath(folder).parts)]
    ranks = {part: 0 if diagnoses.key(part) in own else _rank(part) for part in parts}
    return sorted((part for part in ranks if ranks[part] < NEVER), key=lambda part: ranks[part])


@lru_cache(maxsize=1 << 14)
def _rank(name: str) -> int:
    """How unlikely a folder's name is to name a class. `benign/1` is benign, and 1 some patient or shard; so is
    `benign/other`."""
    found = diagnoses.find(name)
    if found is None:
        return NEVER if split_of(name) or name.lower() in CONTAINERS else 3
    if found.kind == "answer":
        return 1
    return 2 if found.malignant is None and found.melanoma is None else 0


def _folder_split(folder: str) -> str | None:
    """The split of the nearest folder that names one."""
    return next(filter(None, map(split_of, reversed(PurePosixPath(folder).parts))), None)


# Words


def _told(known: list[Table], ignored: list[tuple[str, str]], folders: Mapping[str, int], most: int = 3) -> str:
    """What was found, for a message."""
    told = [f"{table.path} has the columns {found_columns(table)}" for table in known]
    told += [f"{path} {why}" for path, why in ignored]
    told = [*told[:most], *([f"{len(told) - most} more tables"] if len(told) > most else [])]
    return f"found {'; '.join(told) or 'no tables'}; folders of images: {some(folders) or 'none'}"


def _summary(name: str, tables: list[Table], folder_labels: bool, folder_splits: bool) -> str:
    truths = [table for table in tables if table.has_labels]
    others = [table for table in tables if not table.has_labels]
    labels = f"labels from {some(table.path for table in truths)}" if truths else "no labels"
    if folder_labels:
        labels = "labels from the names of folders"
    told = [labels]
    if others:
        told.append(f"more about the images from {some(table.path for table in others)}")
    if any(table.split for table in tables):
        told.append("splits from the names of tables")
    elif folder_splits:
        told.append("splits from the names of folders")
    return f"{name}: {'; '.join(told)}"
