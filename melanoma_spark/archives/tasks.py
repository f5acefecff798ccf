"""Stages of Spark over the files of an archive: executors decode, hash, or score them; the driver holds no image."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import types as t

from melanoma_spark import config, schemas
from melanoma_spark.archives import plan
from melanoma_spark.archives.contents import Content, prefetch_contents, read_contents
from melanoma_spark.archives.ids import parse_header_id
from melanoma_spark.archives.rows import ROWS_IN_MEMORY, ListedFile, from_microseconds, in_chunks, in_frames
from melanoma_spark.background import TimedIterator
from melanoma_spark.errors import ImageError
from melanoma_spark.images import decoding, hashes, quality
from melanoma_spark.images.child import DecodedImage
from melanoma_spark.images.limits import ImageLimits
from melanoma_spark.spark import session

if TYPE_CHECKING:
    from petastorm.unischema import UnischemaField

BYTES_IN_MEMORY = 16 * 1024 * 1024  # of decoded images, before a task hands them on
IMAGE = schemas.DECODED.names.index("image")

Frames = Iterator[pd.DataFrame]
Write = Callable[[Frames], Frames]
Compute = Callable[[Iterator[list[Content]]], Frames]


def decode_files(
    listed: DataFrame,
    count: int,
    settings: config.Settings,
    write: Write = iter,
    *,
    result: t.StructType | str = schemas.DECODED,
    meter: session.Meter | None = None,
) -> DataFrame:
    """Each of `count` rows of a listing as a row of `schemas.DECODED`: pixels and hashes, or why there are none.

    The task hands its rows to `write`, and returns the rows of schema `result` that `write` yields. Each task adds its
    numbers to `meter`.
    """
    ingest, size = settings.ingest, settings.image_size
    limits = ImageLimits(
        *(ingest.min_side, ingest.max_pixels, ingest.allow_recognisable),
        accept_damaged=ingest.damaged == "accept",
        max_seconds=ingest.max_seconds,
    )
    decode_image = partial(decoding.decode_with_hashes, size=size, limits=limits, version=ingest.pixels_version)
    root, _ = plan.locate(settings.archive)
    name = plan.stored_name(settings)

    def decode(batches: Frames) -> Frames:
        field = schemas.images_schema(size).fields["image"]
        contents = TimedIterator(prefetch_contents(read_contents(root, batches, ingest.max_bytes)))
        began, done, read = time.monotonic(), 0, 0

        def decoded() -> Iterator[tuple[Any, ...]]:
            nonlocal done, read
            for row, content in contents:
                done, read = done + 1, read + (0 if isinstance(content, ImageError) else len(content))
                file = row.source_uri, row.length, from_microseconds(row.modified)
                yield *file, *_decode(content, decode_image, field, name)

        for chunk in in_chunks(decoded(), ROWS_IN_MEMORY, lambda row: len(row[IMAGE] or b""), BYTES_IN_MEMORY):
            yield pd.DataFrame(chunk, columns=schemas.DECODED.names, dtype=object)
        if meter is not None:
            meter.add(done, read, contents.seconds, time.monotonic() - began - contents.seconds)

    return plan.in_reading_order(listed, count).mapInPandas(lambda batches: write(decode(batches)), result)  # type: ignore[arg-type]


def hash_files(listed: DataFrame, count: int, settings: config.Settings) -> DataFrame:
    """Each of `count` rows of a listing, with `source_key`, as a row of `schemas.READ`: the SHA-256 of its content."""
    root, _ = plan.locate(settings.archive)
    max_bytes, name = settings.ingest.max_bytes, plan.stored_name(settings)

    def hashed(row: ListedFile, content: Content) -> tuple[Any, ...]:
        key = row.source_key  # type: ignore[attr-defined]  # a column that the caller has added
        if isinstance(content, ImageError):
            return (key, name(row.image_id), None, content.reason, content.detail)
        return (key, name(row.image_id), hashes.sha256(content), None, None)

    def task(batches: Frames) -> Frames:
        contents = prefetch_contents(read_contents(root, batches, max_bytes))
        yield from in_frames((hashed(row, content) for row, content in contents), schemas.READ)

    return plan.in_reading_order(listed, count).mapInPandas(task, schemas.READ)  # type: ignore[arg-type]


def compute_files(
    listed: DataFrame,
    count: int,
    settings: config.Settings,
    compute: Compute,
    *,
    batch_size: int,
    result: t.StructType | str,
    write: Write = iter,
) -> DataFrame:
    """Hand the contents of `count` files to `compute`, and its results with `schemas.SOURCE` to `write`.

    `compute` gets the bytes of `batch_size` files at a time, or why there are none, and yields a frame for each batch.
    All of it is one stage: images do not travel to the JVM and back, and a slot has one worker. Returns the rows of
    schema `result` that `write` yields.
    """
    root, _ = plan.locate(settings.archive)
    max_bytes, name = settings.ingest.max_bytes, plan.stored_name(settings)

    def rows(batches: Frames) -> Frames:
        places: deque[tuple[Any, ...]] = deque()  # of the files that `compute` has got

        def contents() -> Iterator[list[Content]]:
            read = read_contents(root, batches, max_bytes)
            while batch := list(islice(read, batch_size)):
                for row, content in batch:
                    sha256 = None if isinstance(content, ImageError) else hashes.sha256(content)
                    ids = name(row.image_id), name(getattr(row, "patient_id", None))
                    places.append((row.source_uri, row.length, from_microseconds(row.modified), *ids, sha256))
                yield [content for _, content in batch]

        for frame in compute(contents()):
            files = [places.popleft() for _ in range(len(frame))]
            yield pd.concat([pd.DataFrame(files, columns=schemas.SOURCE.names, dtype=object), frame], axis=1)

    # Tasks that take seconds each, so that no slot waits long for the last one of another
    tasks = session.partitions_for(listed.sparkSession, count)
    ordered = plan.in_reading_order(listed, count, tasks, batch_size)
    return ordered.mapInPandas(lambda batches: write(rows(batches)), result)  # type: ignore[arg-type]


def _decode(
    content: Content,
    decode_image: Callable[[bytes], DecodedImage],
    field: UnischemaField,
    name: plan.StoredName,
) -> tuple[Any, ...]:
    """The columns of `schemas.DECODED` after the file's: sha256 to profile."""
    sha256 = None
    try:
        if isinstance(content, ImageError):
            raise content
        sha256 = hashes.sha256(content)
        image = decode_image(content)
    except ImageError as error:
        return (sha256, *[None] * 6, error.reason, error.detail, *[None] * 5)
    stored = bytes(field.codec.encode(field, image.pixels))
    content_hashes = hashes.pixel_hash(image.hash_pixels), hashes.perceptual_hash(image.hash_pixels)
    facts = image.width, image.height, image.format, stored
    flag = quality.DAMAGED if image.damage else None
    identity = name(parse_header_id(image.patient)), name(image.study)
    thumbnail = hashes.gray_thumbnail(image.hash_pixels).tobytes()
    return (sha256, *content_hashes, *facts, None, None, flag, *identity, thumbnail, image.profile)
