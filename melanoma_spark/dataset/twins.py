"""Twins: photographs of one lesion that share no id and no hash, found by their thumbnails.

Two images are twins where their gray thumbnails correlate by `least_correlation` or more in the best of eight
orientations. Not all pairs are compared: candidates share a bucket of a locality-sensitive hash (Datar et al. 2004) of
features that are the same in all orientations.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as f

from melanoma_spark import config
from melanoma_spark.dataset import groups
from melanoma_spark.images.hashes import THUMBNAIL_SIDE as SIDE
from melanoma_spark.spark import session

# Measured on 2,637 real lesions: of 95 pairs from 0.97 on, 93 are of one lesion. The number of false pairs grows with
# the 8th power of 1 - correlation, so that 1/8 keeps it in proportion to the images.
LEAST, MEASURED_ON, POWER = 0.97, 2_500, 1 / 8
FLAT = 2.0  # gray levels, standard deviation below which a thumbnail is noise
WAVES = 8  # cosines along each side that hashes are made of
# Of the hash: tables, the width of a bucket, projections for each bucket of `MEASURED_ON` images
TABLES, WIDTH, PROJECTIONS = 8, 0.6, 6
NEIGHBORS = 200  # that an image of a crowded bucket is compared with, in each table
ROWS_OF_A_TASK = 50_000
ROWS_AT_ONCE = 10_000  # that one task compares, so that crowded buckets fit into memory
FEW = 25_000  # images whose buckets one task sorts, in 150 MB: a shuffle would take longer

PAIRS = "first string, second string, correlation float"
ENDS = ("first", "second")

Floats = NDArray[np.float32]


def least_correlation(images: int) -> float:
    """The correlation from which two of so many images are twins, 0.97 or more."""
    return 1 - (1 - LEAST) * math.pow(min(1.0, MEASURED_ON / max(images, 1)), POWER)


def standardize(thumbnails: NDArray[np.uint8]) -> Floats:
    """Thumbnails (n, 1024) with mean 0 and length 1; flat ones are 0, and correlate with nothing."""
    centered = thumbnails.astype(np.float32)
    centered -= centered.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.where(lengths >= FLAT * SIDE, centered / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def orientations(pictures: Floats) -> Iterator[Floats]:
    """Each of the eight orientations of pictures (n, 1024)."""
    squares = pictures.reshape(-1, SIDE, SIDE)
    for turned in (squares, squares.swapaxes(1, 2)):
        for view in (turned, turned[:, ::-1], turned[:, :, ::-1], turned[:, ::-1, ::-1]):
            yield view.reshape(-1, SIDE * SIDE)


def correlate(ones: Floats, others: Floats) -> Floats:
    """The correlation of each pair of standardized thumbnails (n, 1024) in its best orientation, (n,)."""
    return np.max([np.einsum("ij,ij->i", view, others) for view in orientations(ones)], axis=0)  # type: ignore[no-any-return]


def invariants(pictures: Floats) -> Floats:
    """Features of standardized thumbnails (n, 1024) that are the same in all orientations, (n, 47).

    They are lengths of the parts of a cosine transform that turns and mirroring map onto themselves, so that the
    distance of two images' features is at most that of the thumbnails in any orientation.
    """
    cosines = _cosines()
    waves = cosines @ pictures.reshape(-1, SIDE, SIDE) @ cosines.T
    columns = []
    for u in range(WAVES):
        for v in range(u, WAVES):
            one, other = waves[:, u, v], waves[:, v, u]
            if u == v:
                columns += [one if u % 2 == 0 else np.abs(one)]
            elif u % 2 == v % 2:
                total = (one + other) / math.sqrt(2)
                columns += [total if u % 2 == 0 else np.abs(total), np.abs(one - other) / math.sqrt(2)]
            else:
                columns += [np.hypot(one, other)]
    return np.stack(columns[1:], axis=1)  # the first is the mean, 0


@functools.cache
def _cosines() -> Floats:
    """The first waves of the orthonormal cosine transform (DCT-II), (8, 32)."""
    angles = np.pi * np.arange(WAVES)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE)
    scale = np.where(np.arange(WAVES) == 0, 1 / SIDE, 2 / SIDE)[:, None]
    return np.asarray(np.sqrt(scale) * np.cos(angles), np.float32)


def hash_codes(features: Floats, table: int, images: int) -> tuple[NDArray[np.int64], Floats]:
    """The bucket of each row of `invariants` in one hash table, int64 (n,), and its place in the bucket, (n,).

    More images get more projections, so that buckets stay small. All but the number of them is fixed: the bucket of an
    image depends on no other image.
    """
    rng = np.random.default_rng(table)
    count = PROJECTIONS + round(0.75 * math.log2(max(images / MEASURED_ON, 1)))
    offsets, mix = rng.random(40), rng.integers(2**62, size=40) * 2 + 1
    axes = rng.normal(size=(count + 1, features.shape[1])).astype(np.float32)
    projected = features @ axes.T
    cells = np.floor(projected[:, 1:] / WIDTH + offsets[:count]).astype(np.int64)
    return cells @ mix[:count] + table, projected[:, 0]


def find_twins(thumbnails: DataFrame, images: int) -> DataFrame:
    """The pairs of twins, each once: columns of `PAIRS`.

    An image has at most `groups.MOST_TWINS` pairs, its best ones: no group takes more.

    Args:
        thumbnails: `pixel_sha256` and `thumbnail`, 1,024 gray levels; the same pixels may stand there more than once.
        images: About how many there are; threshold and hash depend on it.
    """
    least = least_correlation(images)

    def hash_rows(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            pictures = standardize(_pixels(batch))
            told = pictures.any(axis=1)
            features = invariants(pictures[told])
            rows = batch[told].assign(features=[row.tobytes() for row in features])
            for table in range(TABLES):
                code, place = hash_codes(features, table, images)
                yield rows.assign(code=code, place=place)

    def compare(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        carried: pd.DataFrame | None = None
        for batch in batches:
            known = 0 if carried is None else len(carried)
            rows = pd.concat([carried, batch]).drop_duplicates(["code", "pixel_sha256"], ignore_index=True)
            yield compare_neighbors(rows, known, least)
            carried = rows.tail(NEIGHBORS)

    def compare_all(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        if hashed := [rows for rows in hash_rows(batches) if len(rows)]:
            rows = pd.concat(hashed).sort_values(["code", "place"])
            yield from compare(rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE))

    thumbnails = thumbnails.select("pixel_sha256", "thumbnail")
    if images <= FEW:
        pairs = thumbnails.coalesce(1).mapInPandas(compare_all, PAIRS)  # type: ignore[arg-type]
    else:
        hashed = thumbnails.mapInPandas(
            hash_rows,  # type: ignore[arg-type]
            "pixel_sha256 string, thumbnail binary, features binary, code long, place float",
        )
        slots = session.slots(thumbnails.sparkSession)
        tasks = slots * max(-(-images * TABLES // (ROWS_OF_A_TASK * slots)), 1)  # the same number for each slot
        buckets = hashed.repartition(tasks, "code").sortWithinPartitions("code", "place")
        pairs = buckets.mapInPandas(compare, PAIRS).repartition("first")  # type: ignore[arg-type]
    once = pairs.groupBy("first", "second").agg(f.max("correlation").alias("correlation"))
    best = f.row_number().over(Window.partitionBy("first").orderBy(f.desc("correlation"), "second"))
    return once.withColumn("place", best).where(f.col("place") <= groups.MOST_TWINS).drop("place")


@dataclass(frozen=True)
class Twins:
    """What was found of twins.

    Attributes:
        record: mode, least correlation, number of pairs, outcome -> pairs, and how many groups lost their name to
            another one; empty where they were not looked for.
        pairs: `first_sha256`, `second_sha256`, `correlation` and `outcome` of the pairs, most alike first.
    """

    record: Mapping[str, str | int | float | Mapping[str, int]]
    pairs: pd.DataFrame

    def __str__(self) -> str:
        if not self.record.get("pairs"):
            return ""
        pairs = f"; {self.record['pairs']} pairs of twins (correlation {self.record['least_correlation']:.3f} or more)"
        return f"{pairs} joined {self.record['groups_joined']} groups to others"


def join_twins(
    grouped: DataFrame,
    thumbnails: DataFrame,
    images: int,
    settings: config.Settings,
    store: Callable[[str, DataFrame], DataFrame],
) -> tuple[DataFrame, Twins]:
    """Give twins the same group, where `ingest.twins` says so.

    Args:
        grouped: Of `selection.assign_groups`, not yet computed.
        thumbnails: `pixel_sha256` and `thumbnail` of these images.
        images: About how many images there are.
        settings: Of the job.
        store: Writes a table under a name, and reads it again.

    Returns:
        The rows with their groups now, and what was found.
    """
    mode, spark = settings.ingest.twins, grouped.sparkSession
    if mode == "off":
        return grouped, Twins({}, pd.DataFrame())
    with session.at_once(spark, "ingest: find twins", find_twins(thumbnails, images).toPandas) as search:
        grouped = store("grouped", grouped)
    pairs = pd.DataFrame(search.result())
    pairs = pairs.sort_values(["correlation", *ENDS], ascending=[False, True, True], ignore_index=True)
    found = {"mode": mode, "least_correlation": round(least_correlation(images), 4), "pairs": len(pairs)}
    if pairs.empty:
        return grouped, Twins({**found, "groups_joined": 0, "outcomes": {}}, pairs)
    judged, names = judge_pairs(pairs, grouped, settings.split == "from_layout")
    if mode == "report":
        judged["outcome"], names = judged["outcome"].replace("joined", "shown only"), {}
    renamed = [(group, name) for group, name in names.items() if group != name]
    outcomes = judged["outcome"].value_counts().sort_index().to_dict()
    if renamed:
        table = spark.createDataFrame(renamed, "group string, name string")
        grouped = grouped.join(table, "group", "left").withColumn("group", f.coalesce("name", "group")).drop("name")
    return grouped, Twins({**found, "groups_joined": len(renamed), "outcomes": outcomes}, judged)


def judge_pairs(pairs: pd.DataFrame, grouped: DataFrame, shipped: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """What comes of each pair: see `groups.join_twins`.

    The driver holds the pairs: they are few beside the images, and joining them needs all of them in order.

    Args:
        pairs: Of `find_twins`, most alike first.
        grouped: Of `selection.assign_groups`.
        shipped: Whether the archive's split is used: no image is moved in it.

    Returns:
        `Twins.pairs`, and the name of each of their groups -> its name after joining.
    """
    spark, group = grouped.sparkSession, Window.partitionBy("group")
    side = f.coalesce("shipped", f.lit("train")) if shipped else f.lit("")
    sides = f.array_join(f.array_sort(f.collect_set(side).over(group)), " ")
    images = grouped.select(
        *("pixel_sha256", "sha256", "group"), f.count(f.lit(1)).over(group).alias("images"), sides.alias("side")
    )
    ends = pd.DataFrame({"pixel_sha256": pd.unique(pairs[[*ENDS]].to_numpy().ravel())})
    wanted = spark.createDataFrame(ends, "pixel_sha256 string")
    known = pd.DataFrame(images.join(wanted, "pixel_sha256", "left_semi").toPandas())
    known = known.sort_values("sha256").drop_duplicates("pixel_sha256").set_index("pixel_sha256")
    found = {
        pixels: groups.Group(*row)
        for pixels, row in zip(known.index, known[["group", "images", "side"]].to_numpy(), strict=True)
    }
    names, outcomes = groups.join_twins([(found[one], found[other]) for one, other in pairs[[*ENDS]].to_numpy()])
    shas = {f"{end}_sha256": pairs[end].map(known["sha256"]) for end in ENDS}
    return pairs[["correlation"]].assign(**shas, outcome=outcomes), names


def compare_neighbors(rows: pd.DataFrame, known: int, least: float) -> pd.DataFrame:
    """The twins, as `PAIRS`, among rows of one bucket that follow each other; the first `known` rows were compared."""
    codes, names = rows["code"].to_numpy(), rows["pixel_sha256"].to_numpy()
    features = np.frombuffer(b"".join(rows["features"]), np.float32).reshape(len(rows), -1)
    candidates: list[NDArray[np.int64]] = []
    for step in range(1, min(NEIGHBORS, len(rows) - 1) + 1):
        start = max(known - step, 0)
        ones = start + np.flatnonzero(codes[start : len(codes) - step] == codes[start + step :])
        if not known and not len(ones):
            break
        # No two thumbnails are nearer than their features, so this leaves out no twin, and nearly all others.
        near = ((features[ones] - features[ones + step]) ** 2).sum(axis=1) <= 2 * (1 - least) + 1e-5
        candidates.append(np.stack([ones[near], ones[near] + step], axis=1))
    ends = np.concatenate([np.empty((0, 2), np.int64), *candidates])
    found: list[tuple[NDArray[np.int64], Floats]] = []
    for part in np.array_split(ends, -(-len(ends) // 2_000) or 1):
        correlation = correlate(*(standardize(_pixels(rows.iloc[end])) for end in part.T))
        twin = correlation >= least
        found.append((part[twin], correlation[twin]))
    pairs = np.sort(names[np.concatenate([ends for ends, _ in found])], axis=1)
    correlations = np.concatenate([values for _, values in found])
    return pd.DataFrame({"first": pairs[:, 0], "second": pairs[:, 1], "correlation": correlations})


def _pixels(rows: pd.DataFrame) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows["thumbnail"]), np.uint8).reshape(-1, SIDE * SIDE)
