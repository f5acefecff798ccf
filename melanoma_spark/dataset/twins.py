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
from pyspark.sql import DataFrame
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

PAIRS = "first string, second string, correlation float"
ENDS = ("first", "second")
JUDGED_COLUMNS = [*(f"{end}_{what}" for end in ENDS for what in ("sha256", "group", "name")), "outcome", "correlation"]
JUDGED = " string, ".join(JUDGED_COLUMNS) + " float"

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

    Args:
        thumbnails: `pixel_sha256`, each once, and `thumbnail`, 1,024 gray levels.
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
            rows = batch if carried is None else pd.concat([carried, batch], ignore_index=True)
            yield compare_neighbors(rows, len(rows) - len(batch), least)
            carried = rows.tail(NEIGHBORS)

    hashed = thumbnails.select("pixel_sha256", "thumbnail").mapInPandas(
        hash_rows,  # type: ignore[arg-type]
        "pixel_sha256 string, thumbnail binary, features binary, code long, place float",
    )
    slots = session.slots(thumbnails.sparkSession)
    tasks = slots * max(-(-images * TABLES // (ROWS_OF_A_TASK * slots)), 1)  # the same number for each slot
    buckets = hashed.repartition(tasks, "code").sortWithinPartitions("code", "place")
    pairs = buckets.mapInPandas(compare, PAIRS)  # type: ignore[arg-type]
    return pairs.groupBy("first", "second").agg(f.max("correlation").alias("correlation"))


@dataclass(frozen=True)
class Twins:
    """What was found of twins.

    Attributes:
        record: mode, least correlation, number of pairs, outcome -> pairs, and how many groups lost their name to
            another one; empty where they were not looked for.
        pairs: the pairs with columns of `JUDGED`; None where there are none.
    """

    record: Mapping[str, str | int | float | Mapping[str, int]]
    pairs: DataFrame | None = None

    def __str__(self) -> str:
        if not self.record.get("pairs"):
            return ""
        pairs = f"; {self.record['pairs']} pairs of twins (correlation {self.record['least_correlation']:.3f} or more)"
        return f"{pairs} joined {self.record['groups_joined']} groups to others"


def join_twins(
    grouped: DataFrame,
    decoded: DataFrame,
    images: int,
    settings: config.Settings,
    store: Callable[[str, DataFrame], DataFrame],
) -> tuple[DataFrame, Twins]:
    """Give twins the same group, where `ingest.twins` says so.

    Args:
        grouped: Of `selection.assign_groups`.
        decoded: Rows of `schemas.DECODED`, of these images among others.
        images: About how many images there are.
        settings: Of the job.
        store: Writes a table under a name, and reads it again.

    Returns:
        The rows with their groups now, and what was found.
    """
    mode = settings.ingest.twins
    if mode == "off":
        return grouped, Twins({})
    session.describe_jobs(grouped.sparkSession, "ingest: twins")
    grouped = store("grouped", grouped)
    thumbnails = decoded.select("pixel_sha256", "thumbnail").join(grouped, "pixel_sha256", "left_semi")
    pairs = store("pairs", find_twins(thumbnails.dropDuplicates(["pixel_sha256"]), images))
    record = {"mode": mode, "least_correlation": round(least_correlation(images), 4)}
    if not pairs.head(1):
        return grouped, Twins({**record, "pairs": 0, "groups_joined": 0, "outcomes": {}})
    judged = store("judged", judge_pairs(pairs, grouped, settings.split == "from_layout", mode == "group"))
    outcomes = {row.outcome: row["count"] for row in judged.groupBy("outcome").count().orderBy("outcome").collect()}
    ends = (judged.selectExpr(f"{end}_group as group", f"{end}_name as name") for end in ENDS)
    renamed = next(ends).union(next(ends)).where("group != name").distinct()
    counts = {"pairs": sum(outcomes.values()), "groups_joined": renamed.count(), "outcomes": outcomes}
    now = grouped.join(renamed, "group", "left").withColumn("group", f.coalesce("name", "group")).drop("name")
    return now, Twins({**record, **counts}, judged)


def judge_pairs(pairs: DataFrame, grouped: DataFrame, shipped: bool, join: bool) -> DataFrame:
    """The pairs with the groups of both images before and after joining, and the outcome: columns of `JUDGED`.

    Args:
        pairs: Of `find_twins`.
        grouped: Of `selection.assign_groups`.
        shipped: Whether the archive's split is used: no image is moved in it.
        join: Whether groups are to be joined; else the outcome says "shown only".
    """
    side = f.coalesce("shipped", f.lit("train")) if shipped else f.lit("")
    sizes = grouped.groupBy("group").agg(
        f.count(f.lit(1)).alias("images"), f.array_join(f.array_sort(f.collect_set(side)), " ").alias("side")
    )
    members = grouped.groupBy("pixel_sha256").agg(f.min("sha256").alias("sha256"), f.first("group").alias("group"))
    for end in ENDS:
        known = members.join(sizes, "group")
        named = known.select(*(f.col(name).alias(f"{end}_{name}") for name in known.columns))
        pairs = pairs.join(named, f.col(end) == f.col(f"{end}_pixel_sha256"))

    def judge(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        rows = pd.concat(list(batches), ignore_index=True)
        rows = rows.sort_values(["correlation", *ENDS], ascending=[False, True, True])
        ones, others = (
            [groups.Group(*row) for row in rows[[f"{end}_{name}" for name in ("group", "images", "side")]].to_numpy()]
            for end in ENDS
        )
        names, outcomes = groups.join_twins(list(zip(ones, others, strict=True)))
        if not join:
            names, outcomes = {}, ["shown only" if outcome == "joined" else outcome for outcome in outcomes]
        for end in ENDS:
            rows[f"{end}_name"] = [names.get(group, group) for group in rows[f"{end}_group"]]
        yield rows.assign(outcome=outcomes)[JUDGED_COLUMNS]

    return pairs.coalesce(1).mapInPandas(judge, JUDGED)  # type: ignore[arg-type]


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
