"""Matches all rows of an archive's tables with its images, in Spark, by the rules of `records`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import groupby
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.archives import records
from melanoma_spark.archives.plan import StoredName
from melanoma_spark.archives.records import ATTACHED, MOST_NAMES, Fit, Folders, folders_of
from melanoma_spark.archives.rows import in_frames
from melanoma_spark.attributes import ATTRIBUTES
from melanoma_spark.schemas import ABSENT, AMBIGUOUS, CONTRADICTORY, LEADING_ZEROS, OTHER_FOLDER

# What an image has one value of; of labels and pairs it may have several
FIELDS = (*schemas.STATED, *ATTRIBUTES)
# A part of the body -> its region in the ISIC Archive: of the same images HAM10000 names the part, ISIC 2019 the region
REGIONS = {
    **dict.fromkeys(("abdomen", "chest"), "anterior torso"),
    "back": "posterior torso",
    **dict.fromkeys(("ear", "face", "neck", "scalp"), "head/neck"),
    "hand": "upper extremity",
    "foot": "lower extremity",
    "acral": "palms/soles",
}
MATCHES = t.StructType(  # a row of a table with its state
    [
        *schemas.RECORDS.fields,
        # Folders and id of the image that the row names, state, text for people; then as in `records.Fit`
        *(t.StructField(name, t.StringType()) for name in ("key", "state", "detail", "row_folder", "image_folder")),
        t.StructField("paths", t.ArrayType(t.StringType())),  # of the images that the row fits
        t.StructField("common", t.IntegerType()),  # from here on as in `records.Fit`
        *(t.StructField(name, t.BooleanType()) for name in ("outside", "owned", "elsewhere")),
    ]
)
IMAGE_METADATA = t.StructType(  # of an image, see `MatchedTables`
    [
        *(t.StructField(name, t.StringType()) for name in ("path", "ambiguity")),
        *(schemas.RECORDS[name] for name in ("labels", "pairs", *FIELDS)),
        t.StructField("contradictions", t.ArrayType(t.StringType())),
        *(t.StructField(name, t.BooleanType()) for name in ("ambiguous_label", "in_table")),
    ]
)

Store = Callable[[str, DataFrame], DataFrame]  # (name, table) -> the table, computed once


@dataclass(frozen=True)
class MatchedTables:
    """What the tables of an archive say of its images.

    `images` has a row of `IMAGE_METADATA` for each image that a row is attached to (`in_table`), or that an ambiguous
    row fits. `contradictions` are names of fields; `ambiguity` is, for people, a row that fits the image and others;
    `ambiguous_label` is whether such a row has a label. `unmatched` has rows of `schemas.UNMATCHED`, with the `paths`
    of the images that they concern.
    """

    images: DataFrame
    unmatched: DataFrame


# Rows without an image, and images whose rows disagree -> the text for one, and for several
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
    LEADING_ZEROS: ("id differs from another one by leading zeros alone", "ids differ by leading zeros alone"),
}


@dataclass(frozen=True)
class Notes:
    """The numbers of each of `REPORTED`, with a few examples."""

    ambiguous: int = 0
    other_folder: int = 0
    contradictory: int = 0
    leading_zeros: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, most: int = MOST_NAMES) -> list[str]:
        """A line for each kind that there is, with up to `most` examples."""
        lines = []
        for kind, texts in REPORTED.items():
            count, examples = getattr(self, kind), self.examples.get(kind, [])[:most]
            if count:
                more = "; ..." if count > len(examples) else ""
                lines.append(f"{count} {texts[count > 1]} ({'; '.join(examples)}{more})")
        return lines

    def __str__(self) -> str:
        """The end of a summary line; empty if there is nothing to report."""
        return "".join(f"; {line}" for line in self.lines(2))

    def as_record(self) -> dict[str, int | dict[str, list[str]]]:
        """The fields for a JSON file."""
        return asdict(self)


def match_rows(
    images: DataFrame,
    rows: DataFrame,
    all_tables: Iterable[str],
    name: StoredName,
    store: Store,
    *,
    contents: DataFrame | None = None,
) -> MatchedTables:
    """Match rows of tables with the images of an archive.

    Args:
        images: with `path` (relative to the archive), `image_id` and `shown` (the name for people).
        rows: of `schemas.RECORDS`.
        all_tables: the paths of the archive's tables, unreadable ones included.
        name: returns what may be stored of a name.
        store: stores a table that is read more than once.
        contents: with `path` and `content`, which is the same for copies.
    """
    sides = images.select(f.lower("image_id").alias("id"), "path", "shown")
    unknown = f.lit(None).cast("string")
    known = sides.withColumn("content", unknown) if contents is None else sides.join(contents, "path", "left")
    matches = store("matches", _fit_rows(known, rows, {folders_of(path) for path in all_tables}, name))
    decided = store("matched", _refuse_other_folders(matches, images))
    attached = _merge_rows(decided.where(f.col("state") == ATTACHED))
    fits = decided.where(f.col("state") == AMBIGUOUS).withColumn("path", f.explode("paths")).groupBy("path")
    ambiguous = fits.agg(f.min("detail").alias("ambiguity"), f.max(f.size("labels") > 0).alias("ambiguous_label"))
    both = attached.join(ambiguous, "path", "full").withColumn("in_table", f.col("labels").isNotNull())
    metadata = both.select(*IMAGE_METADATA.names)
    unmatched = _unmatched(decided, metadata, images, name)
    return MatchedTables(metadata, unmatched.unionByName(_find_leading_zeros(decided, metadata, images, name)))


def match_no_rows(spark: SparkSession) -> MatchedTables:
    """The result for an archive without tables."""
    unmatched = t.StructType([*schemas.UNMATCHED, MATCHES["paths"]])
    return MatchedTables(spark.createDataFrame([], IMAGE_METADATA), spark.createDataFrame([], unmatched))


def summarize_unmatched(unmatched: DataFrame) -> Notes:
    """A summary of `MatchedTables.unmatched`, or of a part of it."""
    examples = f.slice(f.array_sort(f.collect_set("detail")), 1, MOST_NAMES).alias("examples")
    counted = unmatched.where(f.col("reason") != ABSENT).groupBy("reason").agg(f.count("*").alias("n"), examples)
    rows = {row.reason: row for row in counted.collect()}
    counts = {reason: row.n for reason, row in rows.items()}
    return Notes(examples={reason: list(row.examples) for reason, row in rows.items()}, **counts)


def _fit_rows(images: DataFrame, rows: DataFrame, all_tables: set[Folders], name: StoredName) -> DataFrame:
    """Rows of `MATCHES`. One shuffle by id; a task holds the images and rows of one id at a time."""
    sides = images.unionByName(rows.withColumn("id", f.lower("image_id")), allowMissingColumns=True)

    def fit(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        members = (row for batch in batches for row in batch.itertuples(index=False))
        groups = groupby(members, key=lambda member: member.id)
        fitted = (row for identifier, group in groups for row in _fit_group(identifier, group, all_tables, name))
        yield from in_frames(fitted, MATCHES)

    spread = sides.repartition("id").sortWithinPartitions("id", "path", "table", "reference")
    return spread.mapInPandas(fit, MATCHES)  # type: ignore[arg-type]


def _fit_group(
    identifier: str, group: Iterable[Any], all_tables: set[Folders], name: StoredName
) -> Iterator[tuple[Any, ...]]:
    """Rows of `MATCHES` for the images of one id (with a `path`) and the rows that name it."""
    images: list[records.Image] = []
    rows = []
    for member in group:
        if member.path is None:
            rows.append(member)
        elif not images or images[-1].path != member.path:
            images.append(records.Image(member.path, member.shown, member.content))
    by_id = records.Group(identifier, images, {row.table for row in rows}, all_tables)
    fits = [by_id.fit(row.table, row.reference) for row in rows]
    refused = _refused_rows(rows, fits)
    complete = set()  # kinds of ambiguous rows whose images are all reported
    for place, (row, fit) in enumerate(zip(rows, fits, strict=True)):
        candidates = fit.candidates
        state = OTHER_FOLDER if place in refused else candidates.state
        paths, detail = candidates.paths, None
        if state != ABSENT:
            verb = "fits" if state == AMBIGUOUS else "is not"
            row_name = f"{name(printable(row.reference))} of {name(printable(row.table))}"
            detail = f"{row_name} {verb} {printable(candidates.names)}"
        if state == AMBIGUOUS:
            # The first such row has all images: a thousand rows that fit a thousand images must not make a million.
            kind = (row.table, len(row.labels) > 0, id(candidates))
            paths = paths[:MOST_NAMES] if kind in complete else paths
            complete.add(kind)
        record = (getattr(row, column) for column in schemas.RECORDS.names)
        key = "/".join((*folders_of(row.reference), identifier))
        flags = fit.outside, fit.owned, candidates.elsewhere
        yield (*record, key, state, detail, fit.row_folder, fit.image_folder, paths, fit.common, *flags)


def _refused_rows(rows: Sequence[Any], fits: Sequence[Fit]) -> set[int]:
    """The places of rows of one id that cannot be about the image that they fit, by `refuse_claims`."""
    claims: dict[tuple[str, str], list[int]] = {}
    for place, (row, fit) in enumerate(zip(rows, fits, strict=True)):
        if fit.common is not None and fit.candidates.state == ATTACHED:
            claims.setdefault((row.table, fit.candidates.paths[0]), []).append(place)
    return {
        places[refused]
        for places in claims.values()
        if len(places) > 1
        for refused in records.refuse_claims([(rows[place].reference, fits[place]) for place in places])
    }


def printable(text: str) -> str:
    """Text of an archive for one line of a log, with escapes for line ends and control characters."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text.strip())


def _refuse_other_folders(matches: DataFrame, images: DataFrame) -> DataFrame:
    """Rows of `MATCHES`; those whose images cannot be theirs, by the rest of the archive, have the state OTHER_FOLDER.

    A row gets images outside its table's folder only if the table names no id that has images inside and outside; and,
    if that folder has images, only those without a table of their own. A row that names another folder than its image's
    gets it only if nothing shows that the folders matter: no row of its table shares a longer path, its table does not
    name the image's folder, and the archive does not have the row's.
    """
    grouped = matches.where(f.col("common").isNotNull()).groupBy("table")
    by_table = grouped.agg(f.max("common").alias("most"), f.max("elsewhere").alias("also_elsewhere"))
    rows = matches.join(f.broadcast(by_table), "table", "left")
    differing = matches.where(f.col("row_folder").isNotNull())
    shared = f.col("common") < f.col("most")
    if differing.head(1):  # seldom true, and what follows reads the folders of all images
        split = f.udf(lambda path: list(folders_of(path)), "array<string>")
        image_folders = differing.select("table", "image_folder").distinct()
        named = matches.select("table", f.explode(split("reference")).alias("image_folder")).distinct()
        of_table = image_folders.join(named, ["table", "image_folder"], "left_semi")
        there = images.select(f.explode(split("path")).alias("row_folder")).distinct()
        of_archive = differing.select("row_folder").distinct().join(there, "row_folder", "left_semi")
        rows = rows.join(of_table.withColumn("table_names_it", f.lit(True)), ["table", "image_folder"], "left")
        rows = rows.join(of_archive.withColumn("archive_has_it", f.lit(True)), "row_folder", "left")
        shared = shared | f.col("table_names_it") | f.col("archive_has_it")
    beyond = f.col("also_elsewhere")
    if matches.where("owned").head(1):  # seldom true, too
        upward = f.udf(lambda path: list(map("/".join, records.folders_upward(folders_of(path)))), "array<string>")
        folder_of = f.udf(lambda path: "/".join(folders_of(path)), "string")
        there = images.select(f.explode(upward("path")).alias("folder")).distinct()
        tables = matches.where("owned").select("table", folder_of("table").alias("folder")).distinct()
        occupied = tables.join(there, "folder", "left_semi").select("table", f.lit(True).alias("occupied"))
        rows = rows.join(f.broadcast(occupied), "table", "left")
        beyond = beyond | (f.col("owned") & f.col("occupied"))
    beyond = f.col("outside") & beyond
    other = f.col("row_folder").isNotNull() & f.coalesce(shared, f.lit(False))
    refused = f.col("state").isin(ATTACHED, AMBIGUOUS) & f.coalesce(beyond | other, f.lit(False))
    is_not = f.regexp_replace("detail", " fits ", " is not ")
    state = f.when(refused, f.lit(OTHER_FOLDER)).otherwise(f.col("state"))
    detail = f.when(refused, is_not).otherwise(f.col("detail"))
    return rows.withColumns({"state": state, "detail": detail}).select(*MATCHES.names)


def _merge_rows(attached: DataFrame) -> DataFrame:
    """One row of `IMAGE_METADATA` for each image, of all rows that are attached to it."""
    by_image = attached.withColumn("path", f.explode("paths")).groupBy("path")
    sets = by_image.agg(
        f.array_sort(f.array_distinct(f.flatten(f.collect_list("labels")))).alias("labels"),
        f.array_sort(f.array_distinct(f.flatten(f.collect_list("pairs")))).alias("pairs"),
        *(f.collect_set(name).alias(name) for name in FIELDS),
    )
    regions = f.create_map(*(f.lit(text) for pair in REGIONS.items() for text in pair))
    narrow = f.array_except("site", f.transform("site", lambda site: regions[site]))
    sets = sets.withColumn("site", narrow)  # a region does not contradict a part of it
    differ = [f.when(f.size(name) > 1, f.lit(name)) for name in FIELDS]
    # Of rows of two patients, or of two lesions, nothing shows which one is right about the image.
    one = (f.size("patient_id") < 2) & (f.size("lesion_id") < 2)
    return sets.select(
        "path",
        "labels",
        "pairs",
        *(f.when((f.size(name) == 1) & one, f.col(name)[0]).alias(name) for name in FIELDS),
        f.array_compact(f.array(*differ)).alias("contradictions"),
    )


def _unmatched(decided: DataFrame, metadata: DataFrame, images: DataFrame, name: StoredName) -> DataFrame:
    """Rows of `schemas.UNMATCHED` with `paths`: rows without an image, and images whose rows disagree."""
    stored = f.udf(name, "string")
    rows = decided.where(f.col("state") != ATTACHED)
    first = rows.groupBy("key", f.col("state").alias("reason")).agg(
        f.min("table").alias("table"),
        f.min("detail").alias("detail"),
        f.array_distinct(f.flatten(f.collect_list("paths"))).alias("paths"),
    )
    contradictory = metadata.where(f.size("contradictions") > 0)
    contradictory = contradictory.join(images.select("path", "image_id", "shown"), "path")
    fields = f.concat(f.col("shown"), f.lit(": "), f.array_join("contradictions", ", "))
    values = {"table": f.lit(None).cast("string"), "reason": f.lit(CONTRADICTORY), "detail": fields}
    contradictory = contradictory.withColumns(values | {"key": f.col("image_id"), "paths": f.array("path")})
    columns = "key", "table", "reason", "detail", "paths"
    both = first.select(*columns).unionByName(contradictory.select(*columns))
    return both.select(stored("key").alias("image_id"), stored("table").alias("table"), *columns[2:])


def _find_leading_zeros(decided: DataFrame, metadata: DataFrame, images: DataFrame, name: StoredName) -> DataFrame:
    """Rows of `schemas.UNMATCHED` with `paths`: ids of digits that another one equals but for leading zeros.

    They stay apart, since 00101 may be somebody else than 101. A spreadsheet may have made two of one.
    """
    path, known = f.col("path"), metadata.select("path", "patient_id", "lesion_id")
    sides = [
        *(
            known.select(f.lit(field).alias("field"), f.col(field).alias("id"), path)
            for field in ("patient_id", "lesion_id")
        ),
        images.select(f.lit("image_id").alias("field"), f.col("image_id").alias("id"), path),
        decided.where(f.col("state") == ABSENT).select(f.lit("image_id"), "image_id", f.lit(None).cast("string")),
    ]
    numbers = reduce(DataFrame.union, sides).where(f.col("id").rlike("^[0-9]+$"))
    number = f.regexp_replace("id", "^0+(?=[0-9])", "")
    same = numbers.groupBy("field", number.alias("number")).agg(
        f.array_sort(f.collect_set("id")).alias("ids"), f.collect_set("path").alias("paths")
    )
    stored = f.udf(name, "string")
    both = f.udf(lambda ids: " beside ".join(name(one) for one in ids), "string")
    return same.where(f.size("ids") > 1).select(
        stored(f.col("ids")[0]).alias("image_id"),
        f.lit(None).cast("string").alias("table"),
        f.lit(LEADING_ZEROS).alias("reason"),
        f.concat("field", f.lit(" "), both("ids")).alias("detail"),
        "paths",
    )
