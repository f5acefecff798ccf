"""Which row of a table belongs to which image: the rules for the rows and images of one id.

A row names its image by a file name, with or without folders. `matching` applies the rules to whole archives, for
ingest and for score. docs/decisions/rows-and-images.md gives their reasons:

1. Of the images of that name, the one that shares the longest end of its path with the row gets the row.
2. Of several that share as much, those in the table's own folder or container come first. If several are left, the row
   is ambiguous and no image gets it: it would be a guess about a person.
3. A row that names other folders than its image's is about another image, if anything shows that the folders matter.
4. Rows of one image that contradict each other leave that field empty.
"""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from melanoma_spark.archives import ids
from melanoma_spark.schemas import ABSENT, AMBIGUOUS

ATTACHED = "attached"  # the state of a row that an image gets; other states are reasons of `schemas`
MOST_NAMES = 5  # images in a detail, and details in a summary
REGISTERED = re.compile(r"isic_\d{7}")  # an id of one registry: it is the same image wherever it lies

Folders = tuple[str, ...]


class Image(NamedTuple):
    """An image that rows may be about. `shown` is its name for people, `content` is the same for copies."""

    path: str
    shown: str = ""
    content: str | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """Images that fit a row equally well."""

    images: tuple[Image, ...] = ()
    registered: bool = False  # whether their id is that of one image wherever it lies
    elsewhere: bool = False  # whether there are images of that id outside the table's folder, too

    @cached_property
    def paths(self) -> list[str]:
        """Their paths."""
        return [image.path for image in self.images]

    @cached_property
    def state(self) -> str:
        """ATTACHED, ABSENT or AMBIGUOUS."""
        if not self.images:
            return ABSENT
        contents = {image.content for image in self.images}
        copies = len(contents) == 1 and None not in contents
        return ATTACHED if len(self.images) == 1 or self.registered or copies else AMBIGUOUS

    @cached_property
    def names(self) -> str:
        """The first of their names, for people."""
        names = ", ".join(image.shown for image in self.images[:MOST_NAMES])
        return names + (f", and {len(self.images) - MOST_NAMES} more" if len(self.images) > MOST_NAMES else "")


@dataclass(frozen=True)
class Fit:
    """The images that a row fits, and how well."""

    candidates: Candidates = Candidates()
    common: int | None = None  # parts of the path that row and images share at its end; None if they do not matter
    row_folder: str | None = None  # the folder before these parts in the row, if it differs from ...
    image_folder: str | None = None  # ... the one in the image's path
    outside: bool = False  # whether the images are outside the table's folder, and the row names none of theirs
    owned: bool = False  # ... and their folder, or one above it, has a table of its own

    @property
    def differs(self) -> bool:
        """Whether the row names another folder than the image's."""
        return self.row_folder is not None


def split_path(path: str) -> Folders:
    """Folders and name of a path for comparison: in lower case, with `.` and `..` resolved."""
    parts: list[str] = []
    for part in map(str.strip, re.split(r"[/\\]+", unicodedata.normalize("NFC", path).lower())):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def folders_of(path: str) -> Folders:
    """The folders above a table or an image."""
    return split_path(path)[:-1]


class Group:
    """The images of one id, which the rows that name the id are compared with.

    Time and memory grow with the number of folders above the images.
    """

    def __init__(self, identifier: str, images: Iterable[Image], tables_above: Iterable[str], all_tables: set[Folders]):
        self.images = tuple(images)
        self.registered = bool(REGISTERED.fullmatch(identifier))
        self.folders = [folders_of(image.path) for image in self.images]
        self.all_tables = all_tables
        scopes = {scope for path in tables_above for scope in folders_upward(folders_of(path))}
        # (folder, end) -> images below that folder whose folders have that end; folders -> images in exactly these
        self.ends: dict[tuple[Folders, Folders], list[int]] = {}
        self.exact: dict[Folders, list[int]] = {}
        for place, folders in enumerate(self.folders):
            self.exact.setdefault(folders, []).append(place)
            within = [scope for scope in folders_upward(folders) if scope in scopes]
            for count in range(len(folders) + 1):
                for scope in within:
                    self.ends.setdefault((scope, folders[len(folders) - count :]), []).append(place)
        self.cache: dict[Hashable, Candidates] = {}

    def fit(self, table: str, reference: str) -> Fit:
        """The images that a row of a table may be about, by the cell that names them."""
        if self.registered or not self.images:
            return Fit(self._candidates(None, range(len(self.images)), False))
        *above, name = split_path(reference) or ("",)
        folders, table_folder = tuple(above), folders_of(table)
        for exact in (table_folder + folders, folders) if folders else ():
            if exact in self.exact:
                candidates = self._by_name((table_folder, exact, name), self.exact[exact], name, table_folder)
                return Fit(candidates, 1 + len(exact))
        ends = (folders[len(folders) - count :] for count in range(len(folders), -1, -1))
        end = next(end for end in ends if ((), end) in self.ends)
        scope = next(scope for scope in folders_upward(table_folder) if (scope, end) in self.ends)
        candidates = self._by_name((table_folder, scope, end, name), self.ends[scope, end], name, table_folder)
        image = folders_of(candidates.images[0].path)
        outside = not end and image[: len(table_folder)] != table_folder
        with_tables = (folder for folder in folders_upward(image) if folder in self.all_tables)
        owned = outside and any(table_folder[: len(folder)] != folder for folder in with_tables)
        if len(end) == len(folders) or len(end) == len(image):
            return Fit(candidates, 1 + len(end), outside=outside, owned=owned)
        return Fit(candidates, 1 + len(end), folders[-len(end) - 1], image[-len(end) - 1], outside, owned)

    def _by_name(self, key: Hashable, places: list[int], name: str, table_folder: Folders) -> Candidates:
        """Of several images those whose file has exactly this name, else this name without its suffix."""
        if key in self.cache:
            return self.cache[key]
        if len(places) > 1:
            names = [_file_name(self.images[place]) for place in places]
            for same in (str, ids.stem):
                equal = [place for place, file in zip(places, names, strict=True) if same(file) == same(name)]
                if equal:
                    places = equal
                    break
        inside = any(self.folders[place][: len(table_folder)] == table_folder for place in places)
        elsewhere = inside and len(self.ends.get((table_folder, ()), ())) < len(self.images)
        return self._candidates(key, places, elsewhere)

    def _candidates(self, key: Hashable, places: Iterable[int], elsewhere: bool) -> Candidates:
        if key not in self.cache:
            images = tuple(self.images[place] for place in places)
            self.cache[key] = Candidates(images, self.registered, elsewhere)
        return self.cache[key]


def refuse_claims(claims: Sequence[tuple[str, Fit]]) -> set[int]:
    """Find the rows that cannot be about an image, since other rows of the same table are.

    `claims` are the rows of one table that are attached to one image: the cell that names it, and how well it fits.
    Returns their places: all of them if they name different folders and none fits better.
    """
    names = [split_path(reference) or ("",) for reference, _ in claims]
    left = set(range(len(claims)))
    left = {place for place in left if not claims[place][1].differs} or left
    images = [fit.candidates.images[0] for _, fit in claims]
    left = {place for place in left if not _other_suffix(names[place][-1], images[place])} or left
    folders = sorted({names[place][:-1] for place in left}, key=len)
    apart = any(longer[len(longer) - len(shorter) :] != shorter for shorter, longer in pairwise(folders))
    suffixes = {names[place][-1].removeprefix(ids.stem(names[place][-1])) for place in left} - {""}
    return set(range(len(claims))) - (set() if apart or len(suffixes) > 1 else left)


def folders_upward(folders: Folders) -> list[Folders]:
    """A folder and those above it, the archive last."""
    return [folders[:count] for count in range(len(folders), -1, -1)]


def _file_name(image: Image) -> str:
    """The file name, without the number that a member gets whose name comes twice in a container."""
    return re.sub(r"#\d+$", "", split_path(image.path)[-1])


def _other_suffix(name: str, image: Image) -> bool:
    """Whether a row names a file of another suffix than the image's."""
    file = _file_name(image)
    suffix = name.removeprefix(ids.stem(name))
    return bool(suffix) and suffix != file.removeprefix(ids.stem(file))
