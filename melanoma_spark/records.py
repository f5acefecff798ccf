"""Which row of a table belongs to which image: the one place that decides it, for ingest and for score.

A row names its image by a file's name, with or without folders. The rules, and why they are so, are in
docs/decisions/rows-and-images.md:

1. A table is about the images in its own folder, zip or tar. Only a row that finds none there is about others.
2. Of the images of that name, the one that shares the longest end of its path with the row has the row. Where several
   share as much, the row is ambiguous and no image has it: it would be a guess about a person.
3. A row that names other folders than its image's is about another image, if a row of its table agrees further.
4. An image's rows that contradict each other leave that field empty.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas, tables
from melanoma_spark.schemas import ABSENT, AMBIGUOUS, CONTRADICTORY

ATTACHED = "attached"  # what becomes of a row, if not one of the reasons of `schemas`
NAMED = 5  # images named in a detail, and details named in a summary
REGISTERED = re.compile(r"isic_\d+")  # an id that one registry gives out: the same one is the same image anywhere
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
        t.StructField("detail", t.StringType()),  # for people, of an ambiguous row
        *(t.StructField(name, t.IntegerType()) for name in ("scope", "common")),  # as `Match` has them
        *(t.StructField(name, t.BooleanType()) for name in ("differs", "elsewhere")),
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


class Image(NamedTuple):
    """An image that rows may be about. `shown` is what people are told of it, `content` is equal of copies."""

    path: str
    shown: str = ""
    content: str | None = None


@dataclass(frozen=True)
class Match:
    """The images that a row fits, and how well. No image: the archive has none of that name."""

    images: tuple[Image, ...] = ()
    scope: int | None = None  # folders up from the table's own; None where the folder does not matter
    common: int | None = None  # parts of the path that row and images share at its end
    differs: bool = False  # whether both go on before these, and name other folders
    elsewhere: bool = False  # whether images of that name are out of the scope, too

    @property
    def state(self) -> str:
        if not self.images:
            return ABSENT
        contents = {image.content for image in self.images}
        same = len(self.images) == 1 or self.common is None or (len(contents) == 1 and None not in contents)
        return ATTACHED if same else AMBIGUOUS


def parts(path: str) -> tuple[str, ...]:
    """Folders and name of a path as they are compared: lower case, without `.` and what `..` takes back."""
    found: list[str] = []
    for part in re.split(r"[/\\]+", unicodedata.normalize("NFC", path).lower()):
        part = part.strip()
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return tuple(found)


class Group:
    """The images of one id, found by the rows that name it. Costs as much as there are folders above the images."""

    def __init__(self, identifier: str, images: Iterable[Image], tables_above: Iterable[str]):
        self.registered = bool(REGISTERED.fullmatch(identifier))
        self.images = tuple(images)
        self.folders = [parts(image.path)[:-1] for image in self.images]
        self.scopes = {scope for path in tables_above for scope in _scopes(path)}
        self.ends: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for place, folders in enumerate(self.folders):
            within = [folders[:count] for count in range(len(folders) + 1) if folders[:count] in self.scopes]
            for count in range(len(folders) + 1):
                for scope in within:
                    self.ends.setdefault((scope, folders[len(folders) - count :]), []).append(place)
        self.known: dict[Any, Match] = {}

    def find(self, table: str, reference: str) -> Match:
        """The images that a table's row is about, by the cell that names them."""
        if self.registered or not self.images:
            return Match(self.images)
        *above, name = parts(reference) or ("",)
        folders, scopes = tuple(above), _scopes(table)
        key = (scopes, folders, name)
        if key not in self.known:
            self.known[key] = self._find(scopes, folders, name)
        return self.known[key]

    def _find(self, scopes: tuple[tuple[str, ...], ...], folders: tuple[str, ...], name: str) -> Match:
        level, scope = next((at, scope) for at, scope in enumerate(scopes) if (scope, ()) in self.ends)
        ends = (folders[len(folders) - count :] for count in range(len(folders), -1, -1))
        end, places = next((end, found) for end in ends if (found := self.ends.get((scope, end))))
        if len(places) > 1:
            places = self._by_name(places, name)
        below = len(self.folders[places[0]]) - len(scope)
        return Match(
            tuple(self.images[place] for place in places),
            level,
            1 + len(end),
            len(end) < len(folders) and len(end) < below,
            len(self.ends[scope, ()]) < len(self.images),
        )

    def _by_name(self, places: list[int], name: str) -> list[int]:
        """Of several images of one id those whose file has the very name, or the very name but for its suffix."""
        names = [_file_name(self.images[place]) for place in places]
        for same in (str, tables.stem):
            found = [place for place, own in zip(places, names, strict=True) if same(own) == same(name)]
            if found:
                return found
        return places


def _scopes(table: str) -> tuple[tuple[str, ...], ...]:
    """The folders above a table, its own first, the archive last."""
    folders = parts(table)[:-1]
    return tuple(folders[:count] for count in range(len(folders), -1, -1))


def _file_name(image: Image) -> str:
    """A member's name that came twice in a container carries a number behind it, which is not of the name."""
    name = parts(image.path)[-1]
    return re.sub(r"#\d+$", "", name)


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


@dataclass(frozen=True)
class Notes:
    """How many names in tables fit several images, and how many images have rows that disagree; a few of each."""

    ambiguous: int = 0
    contradictory: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """For the end of a summary line; empty where there is nothing to say."""
        counts = (
            (AMBIGUOUS, self.ambiguous, "names in tables fit several images, and none has their rows"),
            (CONTRADICTORY, self.contradictory, "images have rows that disagree"),
        )
        return "".join(
            f"; {count} {what} ({'; '.join(self.examples.get(kind, [])[:2])}{'; ...' if count > 2 else ''})"
            for kind, count, what in counts
            if count
        )

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def match(images: DataFrame, rows: DataFrame, name: Any, keep: Keep) -> Matched:
    """What rows of `schemas.RECORDS` say of an archive's images.

    `images` has `path` (relative to the archive), `image_id`, `shown` (what people are told of it) and `content` (equal
    of copies, or null). `name` makes of a name what may be told of it. `keep` is called for what is read twice.
    """
    found = keep("matches", _fit(images, rows, name))
    decided = keep("matched", _refuse_other_folders(found))
    said = _merge(decided.where(f.col("state") == ATTACHED))
    fits = decided.where(f.col("state") == AMBIGUOUS).select(
        f.explode("paths").alias("path"), "detail", (f.size("labels") > 0).alias("label")
    )
    fits = fits.groupBy("path").agg(f.min("detail").alias("ambiguity"), f.max("label").alias("ambiguous_label"))
    both = said.join(fits, "path", "full").withColumn("in_table", f.col("labels").isNotNull())
    told = keep("said", both.select(*SAID.names))
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


def _fit(images: DataFrame, rows: DataFrame, name: Any) -> DataFrame:
    """Rows of `MATCHES`. One shuffle by id; a task holds the images and rows of one id at a time."""
    sides = images.select(f.lower("image_id").alias("id"), "path", "shown", "content")
    sides = sides.unionByName(rows.withColumn("id", f.lower("image_id")), allowMissingColumns=True)

    def fitted(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        members = (row for batch in batches for row in batch.itertuples(index=False))
        held: list[tuple[Any, ...]] = []
        for identifier, group in groupby(members, key=lambda member: member.id):
            for row in _fit_group(identifier, group, name):
                held.append(row)
                if len(held) == BATCH:
                    yield pd.DataFrame(held, columns=MATCHES.names, dtype=object)
                    held = []
        yield pd.DataFrame(held, columns=MATCHES.names, dtype=object)

    spread = sides.repartition("id").sortWithinPartitions("id", "path", "table", "reference")
    return spread.mapInPandas(fitted, MATCHES)  # type: ignore[arg-type]


def _fit_group(identifier: str, group: Iterable[Any], name: Any) -> Iterator[tuple[Any, ...]]:
    images: list[Image] = []
    rows = []
    for member in group:
        if member.path is None:
            rows.append(member)
        elif not images or images[-1].path != member.path:
            images.append(Image(member.path, member.shown, member.content))
    by_id = Group(identifier, images, {row.table for row in rows})
    complete = set()
    for row in rows:
        found = by_id.find(row.table, row.reference)
        paths, detail = [image.path for image in found.images], None
        if found.state == AMBIGUOUS:
            detail = f"{name(row.reference.strip())} of {name(row.table)} fits {_names(found.images)}"
            # Each image learns of it by the first such row: a thousand rows that fit a thousand images are no million.
            kind = (row.table, len(row.labels) > 0, found)
            paths = paths[:NAMED] if kind in complete else paths
            complete.add(kind)
        key = "/".join((*parts(row.reference)[:-1], identifier))
        place = (found.scope, found.common, found.differs, found.elsewhere)
        yield (*(getattr(row, column) for column in schemas.RECORDS.names), key, found.state, paths, detail, *place)


def _names(images: tuple[Image, ...]) -> str:
    names = [image.shown for image in images[:NAMED]]
    return ", ".join(names) + (f", and {len(images) - NAMED} more" if len(images) > NAMED else "")


def _refuse_other_folders(found: DataFrame) -> DataFrame:
    """Rows of `MATCHES`, without the images that are not theirs by what the other rows of their table show.

    A row reaches beyond its table's folder only where the table's names are those of no image outside. A row that names
    other folders than its image's is taken only where no row of its table agrees further.
    """
    by_table = (
        found.where(f.col("common").isNotNull())
        .groupBy("table")
        .agg(f.min("scope").alias("own"), f.max("common").alias("most"), f.max("elsewhere").alias("again"))
    )
    beyond = (f.col("scope") > f.col("own")) & f.col("again")
    other = f.col("differs") & (f.col("common") < f.col("most"))
    refused = f.coalesce(beyond | other, f.lit(False))
    return found.join(f.broadcast(by_table), "table", "left").select(
        *(column for column in MATCHES.names if column not in ("state", "paths", "detail")),
        f.when(refused, f.lit(ABSENT)).otherwise(f.col("state")).alias("state"),
        f.when(refused, f.array().cast("array<string>")).otherwise(f.col("paths")).alias("paths"),
        f.when(~refused, f.col("detail")).alias("detail"),
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
    return sets.select(
        "path",
        "labels",
        "pairs",
        *(f.when(f.size(name) == 1, f.col(name)[0]).alias(name) for name in FIELDS),
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
