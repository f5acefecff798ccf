"""What the files of an archive are: images with labels, ids and splits, tables that hold these, or something else.

`LAYOUTS` is the one table of layouts; a new layout is an entry in it. The driver recognizes a layout by the heads of
the tables and the names of the folders. Executors then read the rows of the tables (`tables.read_table`) and labels
in the names of folders (`label_from_folders`) by it.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath

from melanoma_spark.archives import diagnoses, tables
from melanoma_spark.archives.tables import FIELDS, NAMES, Table, TableHead, split_of, split_of_path
from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.words import key

NON_COMMERCIAL = "CC BY-NC 4.0"  # of ISIC and of Harvard's Dataverse
ISIC_2019_METADATA = {"age_approx", "anatom_site_general"}
ISIC_2020_COLUMNS = {"patient_id", "benign_malignant", "target"}  # any of these


@dataclass(frozen=True)
class KnownLayout:
    """An entry of `LAYOUTS`: how a layout is recognized, and what its tables mean.

    Attributes:
        needs: what an archive of this layout has, for people.
        fits: whether a table is typical of the layout.
        columns: field of `tables.FIELDS` -> the name of its column, where `tables.NAMES` does not have it.
        words: label, as `words.key` makes it -> what it means in this layout.
        neither: the diagnosis of a row whose one-hot columns are all 0.
        license: of the images as published, where the archive names none.
    """

    needs: str
    fits: Callable[[Table], bool] = lambda table: False
    columns: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    neither: str = "unknown"
    license: str | None = None


# The first entry that fits a table `t` counts. `t.names` are its columns, `t.hot` its one-hot columns of diagnoses.
LAYOUTS: dict[str, KnownLayout] = {
    "isic_2016": KnownLayout(
        "a truth table without header, rows like ISIC_0000000,benign",
        fits=lambda t: not t.has_header,
        # "malignant (melanoma) or non-malignant (non-melanoma)": challenge.isic-archive.com/landing/2016/39
        words={"malignant": "melanoma", "1": "melanoma", "0": "benign"},
    ),
    "isic_2017": KnownLayout(
        "a truth table image_id,melanoma,seborrheic_keratosis",
        fits=lambda t: t.hot == {"melanoma", "seborrheic_keratosis"} or t.names >= {"image_id", "age_approximate"},
        neither="nevus",  # the challenge has three diagnoses and columns for two
    ),
    "isic_2018": KnownLayout(
        "a truth table image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
        fits=lambda t: "image" in t.names and (t.hot >= {"mel", "nv", "akiec"} or "diagnosis_confirm_type" in t.names),
        license=NON_COMMERCIAL,
    ),
    "isic_2019": KnownLayout(
        "a truth table image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK",
        fits=lambda t: "image" in t.names and (t.hot >= {"mel", "nv", "ak"} or t.names >= ISIC_2019_METADATA),
        license=NON_COMMERCIAL,
    ),
    "isic_2020": KnownLayout(
        "a table image_name,patient_id,...,diagnosis,benign_malignant,target",
        fits=lambda t: t.role == "pairs" or ("image_name" in t.names and bool(t.names & ISIC_2020_COLUMNS)),
        license=NON_COMMERCIAL,
    ),
    "ham10000": KnownLayout(
        "the table HAM10000_metadata with lesion_id,image_id,dx",
        fits=lambda t: t.names >= {"image_id", "dx"},
        license=NON_COMMERCIAL,
    ),
    "isic_cli": KnownLayout(
        "a metadata.csv with isic_id and either diagnosis_1 or benign_malignant or diagnosis",
        fits=lambda t: "isic_id" in t.names,
    ),
    "table": KnownLayout(
        f"a table with a column of image ids ({', '.join(NAMES['image_id'][:4])}) and one of labels (label, diagnosis, "
        "dx, class, benign_malignant, target), or with columns named in `columns`"
    ),
    "folders": KnownLayout("folders named like diagnoses (benign, malignant, melanoma, nevus, ...)"),
    "plain": KnownLayout("nothing but images"),
}
MASK = r"(?i)[_-](segmentation|superpixels?|attribute_\w+|([a-z0-9]+_)?mask)$"
SYSTEM = "system"  # the reason of files in these folders, or of these names; they are skipped, not rejected
HIDDEN = "hidden"
SYSTEM_NAMES = {  # in lower case
    *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".fseventsd", ".temporaryitems"),
    *(".trashes", ".trash"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", ".snapshot", ".@__thumb", "@tmp", ".zfs"),
    *(".thumbnails", ".thumbs", ".xvpics", ".picasaoriginals", ".picasa.ini", "picasa.ini", "lost+found"),
    *(".directory", ".ipynb_checkpoints", ".dropbox.cache", ".stfolder"),
}
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
OTHER_SUFFIXES = (
    *(".txt", ".json", ".md", ".rst", ".pdf", ".xlsx", ".xls", ".ods", ".doc", ".docx", ".html", ".htm", ".xml"),
    *(".yaml", ".yml", ".log", ".py", ".ipynb", ".sh"),
)
OTHER_NAMES = {"license", "licence", "readme", "attribution", "copying", "notice", "checksums", "md5sums", "sha256sums"}
NO_CLASSES = {  # names of folders
    *("images", "image", "imgs", "img", "jpegs", "jpeg", "jpg", "png", "photos", "pictures"),
    *("data", "dataset", "archive", "input", "lesions", "/", "."),
}
NEVER = 4  # the rank of a folder's name that is not a class


@dataclass(frozen=True)
class Layout:
    """How to read an archive. `ignored` are the tables that are not read, each with why; `summary` is for people."""

    name: str
    summary: str
    tables: tuple[Table, ...] = ()
    folder_labels: bool = False
    folder_splits: bool = False
    ignored: tuple[tuple[str, str], ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether folders or tables have labels."""
        return self.folder_labels or any(table.has_labels for table in self.tables)


def recognize_layout(
    heads: Iterable[TableHead],
    folders: Mapping[str, int],
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    words: Iterable[str] = (),
    *,
    needs_labels: bool = True,
) -> Layout:
    """Recognize the layout of an archive.

    Labels come from tables if any table has some, else from folders; the layout "plain" has none. A split counts if
    there are at least training and test.

    Args:
        heads: the first bytes of its tables.
        folders: its folders of images, relative to the archive -> the number of images.
        layout: one of `LAYOUTS` that the archive must have.
        columns: field of `tables.FIELDS` -> the user's name of its column.
        words: the user's own labels, which may be names of folders.
        needs_labels: False for scoring, where tables without labels, and without a column of `columns`, are fine.

    Raises:
        ConfigError: an unknown name in `layout` or `columns`.
        DataError: a named layout or column is not there, or tables and folders have no labels.
    """
    user_columns = {name: column for name, column in (columns or {}).items() if column and column.strip()}
    _check_names(layout, user_columns)
    understood = {head.path: understand_table(head, user_columns) for head in sorted(heads, key=lambda head: head.path)}
    usable = [table for table in understood.values() if isinstance(table, Table)]
    ignored = [(path, why) for path, why in understood.items() if isinstance(why, str)]

    def files() -> str:
        return _describe_archive(usable, ignored, folders)

    missing = {
        name: column
        for name, column in user_columns.items()
        if not any(column.strip().lower() in table.names for table in usable)
    }
    if missing and needs_labels:
        names = first_few(f"ingest.columns.{name}={column}" for name, column in missing.items())
        change = " and ".join(f"ingest.columns.{name}=NAME" for name in sorted(missing))
        raise DataError(f"{names}: no table has a column of this name; {files()}; name one of these with {change}")
    # Tables of new images need not have all columns of those that a model was trained on, labels least of all.
    if absent := first_few(column for name, column in missing.items() if name != "label"):
        ignored.append(("ingest.columns", f"names columns that no table has: {absent}"))
    classes = _has_classes(folders, words)
    if layout in ("folders", "plain"):
        # The user names the layout, so any folder is a class, or none.
        classes = layout == "folders" and any(map(_classes, folders))
        usable = [table.without_labels() for table in usable]
    elif layout not in (None, "table") and needs_labels:
        ignored += [(t.path, f"is not of the layout {layout}") for t in usable if t.layout not in (layout, "table")]
        usable = [table for table in usable if table.layout in (layout, "table")]
    labeled = [table for table in usable if table.has_labels]
    there = classes if layout == "folders" else any(layout in ("table", table.layout) for table in labeled)
    if needs_labels and layout not in (None, "plain") and not there:
        raise DataError(
            f"layout={layout} needs {LAYOUTS[layout or ''].needs}; {files()}; layout=null recognizes the layout by "
            "tables and folders"
        )
    if needs_labels and layout is None and not labeled and not classes and understood:
        raise DataError(
            f"no labels found: {files()}; name the column of labels with ingest.columns.label=NAME"
            f"{' or take the names of folders as labels with layout=folders' if any(map(_classes, folders)) else ''}"
        )
    if not {"train", "test"} <= {table.split for table in labeled}:
        usable = [replace(table, split=None) for table in usable]
    name = layout or _layout_name(labeled, classes)
    folder_labels = classes and not any(table.has_labels for table in usable)
    folder_splits = {"train", "test"} <= {split_of_path(folder) for folder in folders}
    summary = _summary(name, usable, folder_labels, folder_splits)
    return Layout(name, summary, tuple(usable), folder_labels, folder_splits, tuple(sorted(ignored)))


def understand_table(head: TableHead, columns: Mapping[str, str]) -> Table | str:
    """A table by its columns and by the first of `LAYOUTS` that fits it, or why it is not understood.

    `columns` are the user's names of columns by field.
    """
    table = tables.understand(head, columns)
    for name, known in LAYOUTS.items():
        candidate = tables.understand(head, {**known.columns, **columns}) if known.columns else table
        if isinstance(candidate, Table) and known.fits(candidate):
            return replace(candidate, layout=name, words=known.words, neither=known.neither)
    return table


def label_from_folders(path: str, layout: Layout, words: Iterable[str] = ()) -> tuple[str | None, str | None]:
    """Label and split of an image by the folders above it; None where these or the layout have none.

    `path` is relative to the archive. The label is the nearest folder that is named like a diagnosis (or one of
    `words`), else the nearest named 0 or 1, else the nearest named unknown or other, else the nearest whose name may be
    a class: an unknown label then, so that it is reported.
    """
    folder = str(PurePosixPath(path).parent)
    label = next(iter(_classes(folder, words)), None) if layout.folder_labels else None
    return label, split_of_path(folder) if layout.folder_splits else None


def classify_file(path: str) -> tuple[str, str | None, str | None]:
    """The role of a file by its path below the archive; reason and detail if it is rejected by its name.

    Roles are `image`, `table` and `other`, which are texts and documents, and what is `SYSTEM`.
    """
    place = PurePosixPath(path)  # once, as it costs more than the rest
    for part in place.parts:
        if part.startswith("._") or part.lower() in SYSTEM_NAMES or part.lower().startswith(".trash-"):
            return "other", SYSTEM, "made by an operating system, a file server or a program"
    if any(part.startswith(".") for part in place.parts):
        return "image", HIDDEN, "its name, or a folder's, starts with a dot"
    name = place.name.lower()
    if name.endswith(TABLE_SUFFIXES) or name == "ham10000_metadata":  # which Harvard ships without a suffix
        return "table", None, None
    if place.suffix.lower() in OTHER_SUFFIXES or name in OTHER_NAMES:
        return "other", None, None
    if re.search(MASK, place.stem):
        return "image", "mask", "its name is that of a mask, which shows the pixels of a lesion, not a photograph"
    return "image", None, None


def first_few(names: Iterable[str], most: int = 5) -> str:
    """The first of many names, in order, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", and {len(ordered) - most} more" if len(ordered) > most else "")


def _check_names(layout: str | None, user_columns: Mapping[str, str]) -> None:
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    unknown = [name for name in user_columns if name not in FIELDS]
    if unknown:
        raise ConfigError(f"ingest.columns: unknown field {first_few(unknown)}; known: {', '.join(FIELDS)}")


def _layout_name(labeled: Iterable[Table], classes: bool) -> str:
    names = {table.layout for table in labeled}
    return "+".join(name for name in LAYOUTS if name in names) or ("folders" if classes else "plain")


def _has_classes(folders: Mapping[str, int], words: Iterable[str]) -> bool:
    """Whether folders are named like diagnoses. 0 and 1 count only if both are there and no other number is."""
    keys = {key(part) for folder in folders for part in PurePosixPath(folder).parts}
    if keys & {key(word) for word in words}:
        return True
    rows = [row for name in keys if (row := diagnoses.find(name))]
    if any(row.kind != "answer" and (row.malignant, row.melanoma) != (None, None) for row in rows):
        return True
    return {row.answer for row in rows} >= {0, 1} and {name for name in keys if name.isdecimal()} <= {"0", "1"}


def _classes(folder: str, words: Iterable[str] = ()) -> list[str]:
    """The folders that may name a class, the likeliest first, of equally likely ones the nearest to the image."""
    user_words = {key(word) for word in words}
    parts = [unicodedata.normalize("NFC", part) for part in reversed(PurePosixPath(folder).parts)]
    ranks = {part: 0 if key(part) in user_words else _rank(part) for part in parts}
    return sorted((part for part in ranks if ranks[part] < NEVER), key=lambda part: ranks[part])


@lru_cache(maxsize=1 << 14)
def _rank(name: str) -> int:
    """How unlikely a folder's name is to be a class, from 0: `benign/1` and `benign/other` are benign."""
    diagnosis = diagnoses.find(name)
    if diagnosis is None:
        return NEVER if split_of(name) or name.lower() in NO_CLASSES else 3
    if diagnosis.kind == "answer":
        return 1
    return 2 if diagnosis.malignant is None and diagnosis.melanoma is None else 0


def _describe_archive(
    usable: list[Table], ignored: list[tuple[str, str]], folders: Mapping[str, int], most: int = 3
) -> str:
    """The tables and folders of an archive, for a message."""
    lines = [f"{table.path} has the columns {tables.describe_columns(table)}" for table in usable]
    lines += [f"{path} {why}" for path, why in ignored]
    lines = [*lines[:most], *([f"{len(lines) - most} more tables"] if len(lines) > most else [])]
    return f"found {'; '.join(lines) or 'no tables'}; folders of images: {first_few(folders) or 'none'}"


def _summary(name: str, usable: list[Table], folder_labels: bool, folder_splits: bool) -> str:
    truths = [table for table in usable if table.has_labels]
    others = [table for table in usable if not table.has_labels]
    labels = f"labels from {first_few(table.path for table in truths)}" if truths else "no labels"
    if folder_labels:
        labels = "labels from the names of folders"
    parts = [labels]
    if others:
        parts.append(f"more about the images from {first_few(table.path for table in others)}")
    if any(table.split for table in usable):
        parts.append("splits from the names of tables")
    elif folder_splits:
        parts.append("splits from the names of folders")
    return f"{name}: {'; '.join(parts)}"
