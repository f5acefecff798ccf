"""What of a warehouse nobody needs any more: decided from a listing of its files, manifests and registered versions.

What a manifest or a registered version names stays, and so does every file whose name no job gives. `scores/`,
`ledger/` and `registry/` have no part in it. Removing what goes, in the order that is told, may end anywhere: at no
moment does a manifest name what is gone.
"""

from __future__ import annotations

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
# The folders in which there is anything to decide; nobody need look into others.
PLACES = frozenset({"batches", "external", "scoring", *(place.partition("/")[0] for place in NAMED)})
OF_DATASET = ("images", "rejects", "unmatched")  # under one name
OF_EXTERNAL = (*OF_DATASET, "decoded")  # what goes of an external set; its reports stay
CHECKPOINT = "checkpoint.npz"  # of training that has not ended

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
    """Of a warehouse: its path below it, bytes, and when it was changed last, in seconds since 1970."""

    path: str
    size: int
    changed: float


@dataclass(frozen=True)
class Needed:
    """Manifests by their place; and of registered versions: ids of datasets and reports, paths of exported networks."""

    manifests: Mapping[str, Mapping[str, Any]]
    datasets: frozenset[str] = frozenset()
    reports: frozenset[str] = frozenset()
    exported: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Item:
    """What may go: `paths` are files and folders, to be removed in this order."""

    what: str
    paths: tuple[str, ...]
    files: int
    size: int
    why: str


@dataclass(frozen=True)
class _Folder:
    """Files that go or stay together."""

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
    """The places of the manifests that `decide` must know."""
    places = "|".join(sorted({place for place, _ in NAMED.values()}))
    known = re.compile(rf"({places}|{SET}/images)/{MANIFEST}")
    return sorted(match[1] for file in listing if (match := known.fullmatch(file.path)))


def decide(listing: Sequence[File], needed: Needed, chosen: Prune, now: float) -> list[Item]:
    """What may go, by path."""
    published = {file.path: file.changed for file in listing}
    found = _external(listing, chosen, now)
    whole = tuple(f"{path}/" for item in found for path in item.paths)
    for folder in _folders(listing):
        why = _why(folder, needed, published, chosen, now)
        if why and not folder.path.startswith(whole):
            # what says that a folder is complete goes before the rest of it
            marks = (f"{folder.path}/_SUCCESS",) if folder.has("_SUCCESS") else ()
            found.append(_item(folder.path, (*marks, folder.path), folder.files, why))
    return sorted(found, key=lambda item: item.what)


def told(items: Sequence[Item]) -> str:
    """How much that is."""
    files, size = sum(item.files for item in items), sum(item.size for item in items)
    return f"{len(items)} entries, {files:,} files, {megabytes(size)} MB"


def megabytes(size: int) -> str:
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


def _why(folder: _Folder, needed: Needed, published: Mapping[str, float], chosen: Prune, now: float) -> str | None:
    """Why it may go; None where it stays."""
    if folder.kind in ("dataset", "made"):
        return _unnamed(folder, needed, published, chosen, now)
    if folder.kind == "waiting":
        return _old(folder.newest, now, chosen.unfinished_days, "rows of a batch that was not finished")
    if folder.kind == "symmetries":
        return _old(folder.newest, now, chosen.unfinished_days, "of search, made anew when it is asked for")
    if folder.kind == "pictures":
        begun = _begun(folder.parts["name"]) or folder.newest
        return _old(begun, now, chosen.worklists_days, "pictures of a worklist")
    if folder.kind == "ingest":
        return "left by an ingest that was killed"
    return None if folder.path in needed.exported else "of no registered version, made anew when it is asked for"


def _unnamed(folder: _Folder, needed: Needed, published: Mapping[str, float], chosen: Prune, now: float) -> str | None:
    """The same of a folder that a manifest would name."""
    top, place, name = (folder.parts[key] for key in ("top", "place", "name"))
    of, key = top + NAMED[place][0], NAMED[place][1]
    facts = needed.manifests.get(of)
    if facts is not None and facts.get(key, name) == name:  # `decoded` is not told by those of before version 0.2
        return None
    dataset = name.partition("-")[0]
    if place in OF_DATASET and not top and dataset in needed.datasets and dataset != (facts or {}).get("id"):
        return None  # scores lead to it, by the version that made them
    if place == "reports" and name in needed.reports:
        return None
    manifest = f"{of}/{MANIFEST}"
    if folder.has(CHECKPOINT) or folder.newest > published.get(manifest, 0.0):
        return _old(folder.newest, now, chosen.unfinished_days, "unfinished")
    return f"superseded: {manifest} names another"


def _external(listing: Iterable[File], chosen: Prune, now: float) -> list[Item]:
    """The external sets that may go whole."""
    sets: dict[str, list[File]] = defaultdict(list)
    for file in listing:
        if match := re.match(rf"{SET}(?=/)", file.path):
            sets[match[0]].append(file)
    found = []
    for top, files in sets.items():
        why = _old(max(file.changed for file in files), now, chosen.external_days, "an external set")
        folders = [f"{top}/{place}" for place in OF_EXTERNAL]
        own = [file for file in files if file.path.startswith(tuple(f"{folder}/" for folder in folders))]
        if why and own:
            found.append(_item(top, (f"{folders[0]}/{MANIFEST}", *folders), own, why))
    return found


def _old(since: float, now: float, days: float | None, what: str) -> str | None:
    age = (now - since) / DAY
    return f"{what}, {age:.0f} days old" if days is not None and age > days else None


def _begun(batch: str) -> float | None:
    """When a batch was begun, by its id."""
    try:
        return datetime.strptime(batch.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _item(what: str, paths: tuple[str, ...], files: Sequence[File], why: str) -> Item:
    return Item(what, paths, len(files), sum(file.size for file in files), why)
