"""Decides which files of a warehouse are unreferenced, from a listing, its manifests and registered versions.

Files that a manifest or a registered version names stay, and so do files with names that no job gives. `scores/`,
`ledger/` and `registry/` are not considered. Removal in the order of `Item.paths` may end anywhere: a manifest never
names a removed file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from melanoma_spark.config import Prune
from melanoma_spark.lineage import LENGTH

DAY = 86400.0  # seconds
MANIFEST = "manifest.json"
INGEST = "_ingest-"  # before the name of a running ingest's folder
# A place of folders -> the place whose manifest names the one that counts, and the key under which it does.
NAMED = {
    "images": ("images", "path"),
    "rejects": ("images", "path"),
    "unmatched": ("images", "path"),
    "decoded": ("images", "decoded"),
    "features": ("features", "path"),
    "models/head": ("models/head", "path"),
    "models/finetuned": ("models/finetuned", "path"),
    "reports": ("reports", "path"),
}
# The folders that are considered.
PLACES = frozenset({"batches", "external", "scoring", *(place.partition("/")[0] for place in NAMED)})
OF_DATASET = ("images", "rejects", "unmatched")  # under one name
OF_EXTERNAL = (*OF_DATASET, "decoded")  # the removable folders of an external set; its reports stay
CHECKPOINT = "checkpoint.npz"  # of unfinished training

ID = rf"[0-9a-f]{{{LENGTH}}}"
SET = rf"external/{ID}"
PATHS = {
    "dataset": rf"(?P<top>{SET}/|)(?P<place>images|rejects|unmatched|decoded)/(?P<name>{ID}(-{ID})?)(?=/)",
    "made": rf"(?P<top>)(?P<place>features|models/head|models/finetuned|reports)/(?P<name>{ID})(?=/)",
    "waiting": rf"scoring/{ID}/{ID}(?=/)",
    "symmetries": rf"reports/search/symmetries/{ID}(?=/)",
    "exported": rf"models/exported/{ID}\.\w+$",
    "pictures": r"batches/(?P<name>[^/]+)/pictures(?=/)",
    "ingest": rf"({SET}/)?{INGEST}[0-9a-f]+(?=/)",
}


@dataclass(frozen=True)
class File:
    """A file of a warehouse: its path in it, bytes, and the time of its last change, in seconds since 1970."""

    path: str
    size: int
    changed: float


@dataclass(frozen=True)
class References:
    """Manifests by their place, and the datasets, reports and exported networks that registered versions name."""

    manifests: Mapping[str, Mapping[str, Any]]
    datasets: frozenset[str] = frozenset()
    reports: frozenset[str] = frozenset()
    exported: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Item:
    """Something that can be removed: `paths` are files and folders, to be removed in this order."""

    what: str
    paths: tuple[str, ...]
    files: int
    size: int
    why: str


@dataclass(frozen=True)
class _Folder:
    """Files that are removed together, or not at all."""

    kind: str
    path: str
    parts: Mapping[str, str]
    files: Sequence[File]

    @property
    def newest(self) -> float:
        return max(file.changed for file in self.files)

    def has(self, name: str) -> bool:
        return any(file.path == f"{self.path}/{name}" for file in self.files)


def manifests_in(listing: Iterable[File]) -> list[str]:
    """Return the places of the manifests that `decide` needs."""
    places = "|".join(sorted({place for place, _ in NAMED.values()}))
    known = re.compile(rf"({places}|{SET}/images)/{MANIFEST}")
    return sorted(match[1] for file in listing if (match := known.fullmatch(file.path)))


def decide(listing: Sequence[File], references: References, settings: Prune, now: float) -> list[Item]:
    """Return what can be removed, by path; `now` is in seconds since 1970."""
    published = {file.path: file.changed for file in listing}
    items = _external_sets(listing, settings, now)
    sets = tuple(f"{path}/" for item in items for path in item.paths)
    for folder in _folders(listing):
        why = _why(folder, references, published, settings, now)
        if why and not folder.path.startswith(sets):
            # the file that marks a folder as complete is removed first
            marks = (f"{folder.path}/_SUCCESS",) if folder.has("_SUCCESS") else ()
            items.append(_item(folder.path, (*marks, folder.path), folder.files, why))
    return sorted(items, key=lambda item: item.what)


def describe(items: Sequence[Item]) -> str:
    """Return the number of items and files and their size as text."""
    files, size = sum(item.files for item in items), sum(item.size for item in items)
    return f"{len(items)} entries, {files:,} files, {megabytes(size)} MB"


def megabytes(size: int) -> str:
    """Return bytes as text in megabytes."""
    return f"{size / 1e6:,.1f}"


def _folders(listing: Iterable[File]) -> list[_Folder]:
    parts: dict[tuple[str, str], Mapping[str, str]] = {}
    files: dict[tuple[str, str], list[File]] = defaultdict(list)
    for file in listing:
        for kind, pattern in PATHS.items():
            if match := re.match(pattern, file.path):
                parts[kind, match[0]] = match.groupdict()
                files[kind, match[0]].append(file)
    return [_Folder(*key, parts[key], files[key]) for key in files]


def _why(
    folder: _Folder, references: References, published: Mapping[str, float], settings: Prune, now: float
) -> str | None:
    """Return why a folder can be removed; None if it stays."""
    if folder.kind in ("dataset", "made"):
        return _unnamed(folder, references, published, settings, now)
    if folder.kind == "waiting":
        return _old(folder.newest, now, settings.unfinished_days, "rows of a batch that was not finished")
    if folder.kind == "symmetries":
        return _old(folder.newest, now, settings.unfinished_days, "of search, made again when needed")
    if folder.kind == "pictures":
        started = _start_time(folder.parts["name"]) or folder.newest
        return _old(started, now, settings.worklists_days, "pictures of a worklist")
    if folder.kind == "ingest":
        return "left by an ingest that was killed"
    return None if folder.path in references.exported else "of no registered version, made again when needed"


def _unnamed(
    folder: _Folder, references: References, published: Mapping[str, float], settings: Prune, now: float
) -> str | None:
    """Return the same for a folder of a kind that manifests name."""
    top, place, name = (folder.parts[key] for key in ("top", "place", "name"))
    of, key = top + NAMED[place][0], NAMED[place][1]
    facts = references.manifests.get(of)
    if facts is not None and facts.get(key, name) == name:  # manifests before version 0.2 lack `decoded`
        return None
    dataset = name.partition("-")[0]
    if place in OF_DATASET and not top and dataset in references.datasets and dataset != (facts or {}).get("id"):
        return None  # scores refer to it, by the version that made them
    if place == "reports" and name in references.reports:
        return None
    manifest = f"{of}/{MANIFEST}"
    if folder.has(CHECKPOINT) or folder.newest > published.get(manifest, 0.0):
        return _old(folder.newest, now, settings.unfinished_days, "unfinished")
    return f"superseded: {manifest} names another"


def _external_sets(listing: Iterable[File], settings: Prune, now: float) -> list[Item]:
    """Return the external sets that can be removed."""
    sets: dict[str, list[File]] = defaultdict(list)
    for file in listing:
        if match := re.match(rf"{SET}(?=/)", file.path):
            sets[match[0]].append(file)
    items = []
    for top, files in sets.items():
        why = _old(max(file.changed for file in files), now, settings.external_days, "an external set")
        folders = [f"{top}/{place}" for place in OF_EXTERNAL]
        removable = [file for file in files if file.path.startswith(tuple(f"{folder}/" for folder in folders))]
        if why and removable:
            items.append(_item(top, (f"{folders[0]}/{MANIFEST}", *folders), removable, why))
    return items


def _old(since: float, now: float, days: float | None, what: str) -> str | None:
    age = (now - since) / DAY
    return f"{what}, {age:.0f} days old" if days is not None and age > days else None


def _start_time(batch: str) -> float | None:
    """Return when a batch was started, from its id."""
    try:
        return datetime.strptime(batch.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _item(what: str, paths: tuple[str, ...], files: Sequence[File], why: str) -> Item:
    return Item(what, paths, len(files), sum(file.size for file in files), why)
