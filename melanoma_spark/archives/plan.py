"""What the driver decides before it reads an archive: its place, which names are stored, which task reads what."""

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from melanoma_spark import config
from melanoma_spark.archives import containers
from melanoma_spark.archives.rows import with_microseconds
from melanoma_spark.errors import ConfigError, DataError
from melanoma_spark.spark import session
from melanoma_spark.storage import files

ROWS_OF_A_TASK = 256  # files or members that one task reads, one after the other
MOST_TASKS = 20_000
LEAST_KEY = 16  # characters

StoredName = Callable[[Any], Any]  # text -> the text that is stored, None -> None


class Location(NamedTuple):
    """The URL of an archive's folder, and the name of the only file of it that is read, or an empty one."""

    root: str
    only: str


def locate(url: str | None) -> Location:
    """Where an archive is: a folder, or a container.

    Raises:
        ConfigError: no archive is named.
        DataError: it does not exist, is empty, cannot be read, or is a file but not a container.
    """
    if not url:
        raise ConfigError("no archive named; add archive=URL, for example archive=/data/isic2019")
    try:
        filesystem, path = files.filesystem(url)
        if filesystem.info(path)["type"] == "directory":
            if not filesystem.ls(path, detail=False):
                raise DataError(f"archive {url} holds no files; expected a folder with images, or zip or tar files")
            return Location(files.hadoop_style_url(url), "")
        with filesystem.open(path, "rb") as file:
            kind = containers.detect_format(file.read(512), path)
    except FileNotFoundError:
        raise DataError(
            f"archive {url} does not exist; give the URL of a folder of images, or of a zip or tar file, with "
            "archive=URL"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"archive {url} cannot be read: {files.reason(error)}") from None
    if kind is None:
        formats = ", ".join(containers.FORMATS)
        raise DataError(f"archive {url} is a file, but not one of {formats}; name the folder that holds the images")
    return Location(*files.hadoop_style_url(url).rsplit("/", 1))


def is_empty_folder(url: str) -> bool:
    """Whether a folder exists and is empty. False for everything else, which `locate` checks."""
    try:
        filesystem, path = files.filesystem(url)
        return bool(filesystem.isdir(path)) and not filesystem.ls(path, detail=False)
    except (OSError, ValueError, ImportError):
        return False


def container_limits(limits: config.Ingest) -> containers.Limits:
    """The limits of a container by the settings."""
    return containers.Limits(limits.max_members, limits.max_bytes, limits.max_container_bytes, limits.max_ratio)


def stored_name(settings: config.Settings) -> StoredName:
    """A function of a name: the name itself, or its keyed hash (HMAC-SHA256, 32 digits) where names are private.

    Raises `ConfigError` if names are private and the key is missing or too short.
    """
    if settings.privacy.source_names == "keep":
        return lambda text: text
    key = os.environ.get(config.NAME_KEY, "").encode()
    if len(key) < LEAST_KEY:
        raise ConfigError(
            f"privacy.source_names=hash needs a key of at least {LEAST_KEY} characters in the environment variable "
            f"{config.NAME_KEY}; keep it: with another key every file counts as new"
        )

    def keyed_hash(text: str | None) -> str | None:
        return None if text is None else hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]

    return keyed_hash


def in_reading_order(rows: DataFrame, count: int, tasks: int = 0, run: int = ROWS_OF_A_TASK) -> DataFrame:
    """Rows of a listing spread over tasks, each with runs of neighbors; one task reads a streamed container.

    Without `tasks` there is a task for each `ROWS_OF_A_TASK` rows, but at least one a slot.
    """
    streamed = [kind for kind, form in containers.FORMATS.items() if form.streamed]
    chunk = (
        f.when(f.col("kind").isin(streamed), f.lit(0))
        .when(f.col("kind") == "file", f.abs(f.xxhash64("path")) % 1_000_000)
        .otherwise((f.col("index") / run).cast("int"))
    )
    spread = tasks or min(max(session.slots(rows.sparkSession), -(-count // ROWS_OF_A_TASK)), MOST_TASKS)
    rejected = f.col("reason").isNotNull()
    ordered = with_microseconds(rows).repartition(spread, "file", chunk)
    return ordered.sortWithinPartitions("file", rejected, "offset", "path")
