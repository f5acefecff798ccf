"""Which row of a table belongs to which image: the one place that decides it, for ingest and for score.

A row names its image by a file's name, with or without folders. The rules, and why they are so, are in
docs/decisions/rows-and-images.md:

1. Of the images of that name, the one that shares the longest end of its path with the row has the row.
2. Of several that share as much those in the table's own folder, zip or tar come first. Where several are left, the row
   is ambiguous and no image has it: it would be a guess about a person.
3. A row that names other folders than its image's is about another image, if anything shows that the folders matter.
4. An image's rows that contradict each other leave that field empty.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.archives import tables
from melanoma_spark.schemas import ABSENT, AMBIGUOUS, CONTRADICTORY, OTHER_FOLDER

ATTACHED = "attached"  # what becomes of a row, if not one of the reasons of `schemas`
NAMED = 5  # images named in a detail, and details named in a summary
REGISTERED = re.compile(r"isic_\d{7}")  # an id that one registry gives out: the same one is the same image anywhere
# What a row says once of an image; of labels and pairs an image may have several.
FIELDS = (*schemas.STATED, *schemas.ATTRIBUTES)
# A part of the body -> the region of the ISIC Archive that it lies in: HAM10000's table names the one, ISIC 2019's the
# other, of the same images.
REGIONS = {
    **dict.fromkeys(("abdomen", "chest"), "anterior torso"),
    "back": "posterior torso",
    **dict.fromkeys(("ear", "face", "neck", "scalp"), "head/neck"),
    "hand": "upper extremity",
    "foot": "lower extremity",
    "acral": "palms/soles",
}
BATCH = 10_000  # rows of a data frame for Spark

MATCHES = t.StructType(  # a row of a table, and what becomes of it
    [
        *schemas.RECORDS.fields,
        t.StructField("key", t.StringType()),  # folders and id of the image that it names
        t.StructField("state", t.StringType()),
        t.StructField("paths", t.ArrayType(t.StringType())),  # of the images that it fits
        t.StructField("detail", t.StringType()),  # for people, of a row that is not attached
        t.StructField("common", t.IntegerType()),  # as `Fit` has them, from here on
        *(t.StructField(name, t.StringType()) for name in ("row_folder", "image_folder")),
        *(t.StructField(name, t.BooleanType()) for name in ("outside", "owned", "elsewhere")),
    ]
)

SAID = t.StructType(  # what rows say of an image; see `Matched`
    [
        t.StructField("path", t.StringType()),
        *(schemas.RECORDS[name] for name in ("labels", "pairs", *FIELDS)),
        t.StructField("contradictions", t.ArrayType(t.StringType())),
        t.StructField("ambiguity", t.StringType()),
        t.StructField("ambiguous_label", t.BooleanType()),
        t.StructField("in_table", t.BooleanType()),
    ]
)


Folders = tuple[str, ...]


class Image(NamedTuple):
    """An image that rows may be about. `shown` is what people are told of it, `content` is equal of copies."""

    path: str
    shown: str = ""
    content: str | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """Images between which a row cannot tell."""

    images: tuple[Image, ...] = ()
    registered: bool = False  # under an id that is one image wherever it lies
    elsewhere: bool = False  # whether images of that id are outside of the table's folder, too

    @cached_property
    def paths(self) -> list[str]:
        return [image.path for image in self.images]

    @cached_property
    def state(self) -> str:
        if not self.images:
            return ABSENT
        contents = {image.content for image in self.images}
        copies = len(contents) == 1 and None not in contents
        return ATTACHED if len(self.images) == 1 or self.registered or copies else AMBIGUOUS

    @cached_property
    def names(self) -> str:
        """For people."""
        some = [image.shown for image in self.images[:NAMED]]
        return ", ".join(some) + (f", and {len(self.images) - NAMED} more" if len(self.images) > NAMED else "")


NOBODY = Candidates()


@dataclass(frozen=True)
class Fit:
    """The images that a row fits, and how well."""

    candidates: Candidates = NOBODY
    common: int | None = None  # parts of the path that row and images share at its end; None where they do not matter
    row_folder: str | None = None  # where row and image name different folders before these: the row's ...
    image_folder: str | None = None  # ... and the image's
    outside: bool = False  # whether the images lie outside of the table's folder, and the row names none of theirs
    owned: bool = False  # ... and theirs, or one above it, has a table of its own

    @property
    def differs(self) -> bool:
        return self.row_folder is not None


def parts(path: str) -> Folders:
    """Folders and name of a path as they are compared: lower case, without `.` and what `..` takes back."""
    found: list[str] = []
    for part in re.split(r"[/\\]+", unicodedata.normalize("NFC", path).lower()):
        part = part.strip()
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return tuple(found)


def folders_of(path: str) -> Folders:
    """The folders above a table or an image."""
    return parts(path)[:-1]


class Group:
    """The images of one id, found by the rows that name it. Costs as much as there are folders above the images."""

    def __init__(self, identifier: str, images: Iterable[Image], tables_above: Iterable[str], all_tables: set[Folders]):
        self.images = tuple(images)
        self.registered = bool(REGISTERED.fullmatch(identifier))
        self.folders = [folders_of(image.path) for image in self.images]
        self.all_tables = all_tables
        scopes = {scope for path in tables_above for scope in _upwards(folders_of(path))}
        # The images below a folder whose path ends in some folders, and those in these folders and no others
        self.ends: dict[tuple[Folders, Folders], list[int]] = {}
        self.exact: dict[Folders, list[int]] = {}
        for place, folders in enumerate(self.folders):
            self.exact.setdefault(folders, []).append(place)
            within = [scope for scope in _upwards(folders) if scope in scopes]
            for count in range(len(folders) + 1):
                for scope in within:
                    self.ends.setdefault((scope, folders[len(folders) - count :]), []).append(place)
        self.known: dict[Any, Candidates] = {}

    def fit(self, table: str, reference: str) -> Fit:
        """The images that a table's row is about, by the cell that names them."""
        if self.registered or not self.images:
            return Fit(self._candidates(None, range(len(self.images)), False))
        *above, name = parts(reference) or ("",)
        folders, own = tuple(above), folders_of(table)
        for exact in (own + folders, folders) if folders else ():
            if exact in self.exact:
                return Fit(self._named((own, exact, name), self.exact[exact], name, own), 1 + len(exact))
        ends = (folders[len(folders) - count :] for count in range(len(folders), -1, -1))
        end = next(end for end in ends if ((), end) in self.ends)
        scope = next(scope for scope in _upwards(own) if (scope, end) in self.ends)
        found = self._named((own, scope, end, name), self.ends[scope, end], name, own)
        image = folders_of(found.images[0].path)
        outside = not end and image[: len(own)] != own
        owned = outside and any(one in self.all_tables and own[: len(one)] != one for one in _upwards(image))
        if len(end) == len(folders) or len(end) == len(image):
            return Fit(found, 1 + len(end), outside=outside, owned=owned)
        return Fit(found, 1 + len(end), folders[-len(end) - 1], image[-len(end) - 1], outside, owned)

    def _named(self, key: Any, places: list[int], name: str, own: Folders) -> Candidates:
        """Of several images of one id those whose file has the very name, or the very name but for its suffix."""
        if key in self.known:
            return self.known[key]
        if len(places) > 1:
            names = [_file_name(self.images[place]) for place in places]
            for same in (str, tables.stem):
                found = [place for place, file in zip(places, names, strict=True) if same(file) == same(name)]
                if found:
                    places = found
                    break
        elsewhere = any(self.folders[place][: len(own)] == own for place in places) and (
            len(self.ends.get((own, ()), ())) < len(self.images)
        )
        return self._candidates(key, places, elsewhere)

    def _candidates(self, key: Any, places: Iterable[int], elsewhere: bool) -> Candidates:
        if key not in self.known:
            images = tuple(self.images[place] for place in places)
            self.known[key] = Candidates(images, self.registered, elsewhere)
        return self.known[key]


def refuse_claims(claims: Sequence[tuple[str, Fit]]) -> set[int]:
    """Of the rows of one table that are attached to one image, by the cells that name it: the places of those that
    cannot be about it, since others are. All of them, where they name different folders and none fits better.
    """
    names = [parts(reference) or ("",) for reference, _ in claims]
    left = set(range(len(claims)))
    for weak in (
        lambda place: claims[place][1].differs,
        lambda place: _other_suffix(names[place][-1], claims[place][1].candidates.images[0]),
    ):
        strong = {place for place in left if not weak(place)}
        left = strong or left
    folders = sorted({names[place][:-1] for place in left}, key=len)
    apart = any(longer[len(longer) - len(shorter) :] != shorter for shorter, longer in pairwise(folders))
    suffixes = {names[place][-1].removeprefix(tables.stem(names[place][-1])) for place in left} - {""}
    return set(range(len(claims))) - (set() if apart or len(suffixes) > 1 else left)


def _upwards(folders: Folders) -> list[Folders]:
    """A folder and those above it, the archive last."""
    return [folders[:count] for count in range(len(folders), -1, -1)]


def _file_name(image: Image) -> str:
    """A member's name that came twice in a container carries a number behind it, which is not of the name."""
    return re.sub(r"#\d+$", "", parts(image.path)[-1])


def _other_suffix(name: str, image: Image) -> bool:
    """Whether a row names a file of another suffix than the image's."""
    file = _file_name(image)
    suffix = name.removeprefix(tables.stem(name))
    return bool(suffix) and suffix != file.removeprefix(tables.stem(file))


# In Spark

Keep = Callable[[str, DataFrame], DataFrame]  # (name, table) -> the table, computed once


@dataclass(frozen=True)
class Matched:
    """What the tables of an archive say of its images.

    `images` has a row of `SAID` for each image that a row is attached to or an ambiguous row fits: `in_table` where one
    is attached, `contradictions` are names of fields, `ambiguity` is for people which row fits it and others, and
    `ambiguous_label` whether that row has a label. `unmatched` has rows of `schemas.UNMATCHED`, with the `paths` of the
    images that they concern.
    """

    images: DataFrame
    unmatched: DataFrame


# What is reported of rows that no image has, and of images whose rows disagree -> the words for one, and for several
REPORTED = {
    AMBIGUOUS: (
        "name in a table fits several images, and none has its rows",
        "names in tables fit several images, and none has their rows",
    ),
    OTHER_FOLDER: (
        "row of a table names another folder than the image of that name, which does not have it",
        "rows of tables name another folder than the image of that name, which does not have them",
    ),
    CONTRADICTORY: ("image has rows that disagree", "images have rows that disagree"),
}


@dataclass(frozen=True)
class Notes:
    """How many of each of `REPORTED`, and a few of them by name."""

    ambiguous: int = 0
    other_folder: int = 0
    contradictory: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, most: int = NAMED) -> list[str]:
        """One for each kind that there is."""
        found = []
        for kind, (one, several) in REPORTED.items():
            count, some = getattr(self, kind), self.examples.get(kind, [])[:most]
            if count:
                what = one if count == 1 else several
                found.append(f"{count} {what} ({'; '.join(some)}{'; ...' if count > len(some) else ''})")
        return found

    def __str__(self) -> str:
        """For the end of a summary line; empty where there is nothing to say."""
        return "".join(f"; {line}" for line in self.lines(2))

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def match(
    images: DataFrame,
    rows: DataFrame,
    all_tables: Iterable[str],
    name: Any,
    keep: Keep,
    contents: DataFrame | None = None,
) -> Matched:
    """What rows of `schemas.RECORDS` say of an archive's images.

    `images` has `path` (relative to the archive), `image_id` and `shown` (what people are told of it), `contents` has
    `path` and `content`, equal of copies. `all_tables` are the paths of the archive's tables, of those that cannot be
    read, too. `name` makes of a name what may be told of it. `keep` is called for what is read more than once.
    """
    nothing_known = f.lit(None).cast("string")
    sides = images.select(f.lower("image_id").alias("id"), "path", "shown")
    known = sides.withColumn("content", nothing_known) if contents is None else sides.join(contents, "path", "left")
    found = keep("matches", _fit(known, rows, {folders_of(path) for path in all_tables}, name))
    decided = keep("matched", _refuse_other_folders(found, images))
    said = _merge(decided.where(f.col("state") == ATTACHED))
    fits = decided.where(f.col("state") == AMBIGUOUS).select(
        f.explode("paths").alias("path"), "detail", (f.size("labels") > 0).alias("label")
    )
    fits = fits.groupBy("path").agg(f.min("detail").alias("ambiguity"), f.max("label").alias("ambiguous_label"))
    both = said.join(fits, "path", "full").withColumn("in_table", f.col("labels").isNotNull())
    told = both.select(*SAID.names)
    return Matched(told, _unmatched(decided, told, images, name))


def nothing(spark: SparkSession) -> Matched:
    """What an archive without tables says of its images."""
    unmatched = t.StructType([*schemas.UNMATCHED, MATCHES["paths"]])
    return Matched(spark.createDataFrame([], SAID), spark.createDataFrame([], unmatched))


def notes(unmatched: DataFrame) -> Notes:
    """A summary of `Matched.unmatched`, or of a part of it."""
    some = f.slice(f.array_sort(f.collect_set("detail")), 1, NAMED).alias("some")
    counted = unmatched.where(f.col("reason") != ABSENT).groupBy("reason").agg(f.count("*").alias("n"), some)
    rows = {row.reason: row for row in counted.collect()}
    counts = {reason: rows[reason].n for reason in rows}
    return Notes(examples={reason: list(rows[reason].some) for reason in rows}, **counts)


def _fit(images: DataFrame, rows: DataFrame, all_tables: set[Folders], name: Any) -> DataFrame:
    """Rows of `MATCHES`. One shuffle by id; a task holds the images and rows of one id at a time."""
    sides = images.unionByName(rows.withColumn("id", f.lower("image_id")), allowMissingColumns=True)

    def fitted(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        members = (row for batch in batches for row in batch.itertuples(index=False))
        held: list[tuple[Any, ...]] = []
        for identifier, group in groupby(members, key=lambda member: member.id):
            for row in _fit_group(identifier, group, all_tables, name):
                held.append(row)
                if len(held) == BATCH:
                    yield pd.DataFrame(held, columns=MATCHES.names, dtype=object)
                    held = []
        yield pd.DataFrame(held, columns=MATCHES.names, dtype=object)

    spread = sides.repartition("id").sortWithinPartitions("id", "path", "table", "reference")
    return spread.mapInPandas(fitted, MATCHES)  # type: ignore[arg-type]


def _fit_group(identifier: str, group: Iterable[Any], all_tables: set[Folders], name: Any) -> Iterator[tuple[Any, ...]]:
    images: list[Image] = []
    rows = []
    for member in group:
        if member.path is None:
            rows.append(member)
        elif not images or images[-1].path != member.path:
            images.append(Image(member.path, member.shown, member.content))
    by_id = Group(identifier, images, {row.table for row in rows}, all_tables)
    fits = [by_id.fit(row.table, row.reference) for row in rows]
    refused = _refused(rows, fits)
    complete = set()
    for place, (row, fit) in enumerate(zip(rows, fits, strict=True)):
        found = fit.candidates
        state = OTHER_FOLDER if place in refused else found.state
        paths, detail = found.paths, None
        if state != ABSENT:
            says = "fits" if state == AMBIGUOUS else "is not"
            detail = f"{name(visible(row.reference))} of {name(visible(row.table))} {says} {visible(found.names)}"
        if state == AMBIGUOUS:
            # Each image learns of it by the first such row: a thousand rows that fit a thousand images are no million.
            kind = (row.table, len(row.labels) > 0, id(found))
            paths = paths[:NAMED] if kind in complete else paths
            complete.add(kind)
        yield (
            *(getattr(row, column) for column in schemas.RECORDS.names),
            "/".join((*parts(row.reference)[:-1], identifier)),
            state,
            paths,
            detail,
            fit.common,
            fit.row_folder,
            fit.image_folder,
            fit.outside,
            fit.owned,
            found.elsewhere,
        )


def _refused(rows: Sequence[Any], fits: Sequence[Fit]) -> set[int]:
    """The places of rows of one id that cannot be about the image that they fit: `refuse_claims` of each."""
    claims: dict[tuple[str, str], list[int]] = {}
    for place, (row, fit) in enumerate(zip(rows, fits, strict=True)):
        if fit.common is not None and fit.candidates.state == ATTACHED:
            claims.setdefault((row.table, fit.candidates.paths[0]), []).append(place)
    return {
        places[refused]
        for places in claims.values()
        if len(places) > 1
        for refused in refuse_claims([(rows[place].reference, fits[place]) for place in places])
    }


def visible(text: str) -> str:
    """Text of an archive for one line of a log: what would end the line, or steer a terminal, is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text.strip())


def _refuse_other_folders(found: DataFrame, images: DataFrame) -> DataFrame:
    """Rows of `MATCHES`, without the images that are not theirs by what the rest of the archive shows.

    A row reaches beyond its table's folder only where the table's names are those of no image outside; and, where that
    folder has images itself, only to images that have no table of their own. A row that names another folder than its
    image's is taken only where the two share no folder: no row of its table agrees further, its table does not name the
    image's folder, and the archive has none of the row's.
    """
    by_table = (
        found.where(f.col("common").isNotNull())
        .groupBy("table")
        .agg(f.max("common").alias("most"), f.max("elsewhere").alias("again"))
    )
    told = found.join(f.broadcast(by_table), "table", "left")
    differing = found.where(f.col("row_folder").isNotNull())
    shared = f.col("common") < f.col("most")
    if differing.head(1):  # seldom, and the folders of all images are asked for
        split = f.udf(lambda path: list(folders_of(path)), "array<string>")
        asked = differing.select("table", "image_folder").distinct()
        named = found.select("table", f.explode(split("reference")).alias("image_folder")).distinct()
        of_table = asked.join(named, ["table", "image_folder"], "left_semi").withColumn("table_names_it", f.lit(True))
        there = images.select(f.explode(split("path")).alias("row_folder")).distinct()
        of_archive = differing.select("row_folder").distinct().join(there, "row_folder", "left_semi")
        told = told.join(of_table, ["table", "image_folder"], "left")
        told = told.join(of_archive.withColumn("archive_has_it", f.lit(True)), "row_folder", "left")
        shared = shared | f.col("table_names_it") | f.col("archive_has_it")
    beyond = f.col("again")
    if found.where("owned").head(1):  # seldom, too
        upwards = f.udf(lambda path: ["/".join(one) for one in _upwards(folders_of(path))], "array<string>")
        own = f.udf(lambda path: "/".join(folders_of(path)), "string")
        there = images.select(f.explode(upwards("path")).alias("own")).distinct()
        asked = found.where("owned").select("table", own("table").alias("own")).distinct()
        occupied = asked.join(there, "own", "left_semi").select("table", f.lit(True).alias("occupied"))
        told = told.join(f.broadcast(occupied), "table", "left")
        beyond = beyond | (f.col("owned") & f.col("occupied"))
    beyond = f.col("outside") & beyond
    other = f.col("row_folder").isNotNull() & f.coalesce(shared, f.lit(False))
    refused = f.col("state").isin(ATTACHED, AMBIGUOUS) & f.coalesce(beyond | other, f.lit(False))
    is_not = f.regexp_replace("detail", " fits ", " is not ")
    return told.select(
        *(column for column in MATCHES.names if column not in ("state", "detail")),
        f.when(refused, f.lit(OTHER_FOLDER)).otherwise(f.col("state")).alias("state"),
        f.when(refused, is_not).otherwise(f.col("detail")).alias("detail"),
    )


def _merge(attached: DataFrame) -> DataFrame:
    """One row an image of all the rows that are attached to it."""
    said = attached.withColumn("path", f.explode("paths")).groupBy("path")
    sets = said.agg(
        f.array_sort(f.array_distinct(f.flatten(f.collect_list("labels")))).alias("labels"),
        f.array_sort(f.array_distinct(f.flatten(f.collect_list("pairs")))).alias("pairs"),
        *(f.collect_set(name).alias(name) for name in FIELDS),
    )
    regions = f.create_map(*(f.lit(text) for pair in REGIONS.items() for text in pair))
    narrow = f.array_except("site", f.transform("site", lambda site: regions[site]))
    sets = sets.withColumn("site", narrow)  # a region is no other site than a part of it
    differ = [f.when(f.size(name) > 1, f.lit(name)) for name in FIELDS]
    # Rows of two patients, or of two lesions: what they say besides is of one of them, and nobody knows of which.
    one = (f.size("patient_id") < 2) & (f.size("lesion_id") < 2)
    return sets.select(
        "path",
        "labels",
        "pairs",
        *(f.when((f.size(name) == 1) & one, f.col(name)[0]).alias(name) for name in FIELDS),
        f.array_compact(f.array(*differ)).alias("contradictions"),
    )


def _unmatched(decided: DataFrame, told: DataFrame, images: DataFrame, name: Any) -> DataFrame:
    named = f.udf(name, "string")
    rows = decided.where(f.col("state") != ATTACHED)
    first = rows.groupBy("key", f.col("state").alias("reason")).agg(
        f.min("table").alias("table"),
        f.min("detail").alias("detail"),
        f.array_distinct(f.flatten(f.collect_list("paths"))).alias("paths"),
    )
    torn = told.where(f.size("contradictions") > 0).join(images.select("path", "image_id", "shown"), "path")
    what = f.concat(f.col("shown"), f.lit(": "), f.array_join("contradictions", ", "))
    return first.select(
        named("key").alias("image_id"), named("table").alias("table"), "reason", "detail", "paths"
    ).unionByName(
        torn.select(
            named("image_id").alias("image_id"),
            f.lit(None).cast("string").alias("table"),
            f.lit(CONTRADICTORY).alias("reason"),
            what.alias("detail"),
            f.array("path").alias("paths"),
        )
    )
