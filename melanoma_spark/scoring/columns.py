"""The columns of `scores/` and `worklist.csv`. To add a column, add an entry at the end of `COLUMNS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import types as t

from melanoma_spark.attributes import PIXEL_MEASURES

BATCH_ID = "batch_id"  # not in the files of scores/: the name of a batch's folder has it

TEXT, NUMBER, MEASURE, WHOLE, TIME = t.StringType(), t.DoubleType(), t.FloatType(), t.LongType(), t.TimestampType()


@dataclass(frozen=True)
class ScoreColumn:
    """A column of `scores/`.

    Attributes:
        name: Its name.
        kind: Its type in Spark.
        meaning: Its explanation in the documentation, in Markdown.
        worklist: Its position in `worklist.csv`, or None where the worklist does not have it.
        value: Computes it from a frame with the scored rows of some images. Without it, the frame has this column:
            one of `schemas.SOURCE`, of `bundle.OUTPUTS`, of `PIXEL_MEASURES`, or of `compute.compute_rows`.
    """

    name: str
    kind: t.DataType
    meaning: str
    worklist: int | None = None
    value: Callable[[pd.DataFrame], pd.Series] | None = None


COLUMNS = (
    ScoreColumn("image_id", TEXT, "as in the archive's tables and file names", 2),
    ScoreColumn("patient_id", TEXT, "as in the archive's tables", 1),
    ScoreColumn("source_uri", TEXT, "name of the file in the archive; `CONTAINER!/MEMBER` in a zip or tar", 15),
    ScoreColumn("source_bytes", WHOLE, "size of the file", None, lambda rows: rows["length"]),
    ScoreColumn("source_modified", TIME, "time of modification of the file", None, lambda rows: rows["modified"]),
    ScoreColumn("sha256", TEXT, "SHA-256 of the file", 14),
    ScoreColumn("probability", NUMBER, "probability of the target, calibrated", 5),
    ScoreColumn("raw_probability", NUMBER, "probability of the network before calibration", 6),
    ScoreColumn(
        "spread", NUMBER, "standard deviation of the raw probability over test-time views; null with one view", 8
    ),
    ScoreColumn("decision", TEXT, "`positive` or `negative`; empty if the image was rejected or abstained", 4),
    ScoreColumn("operating_point", TEXT, "name of the operating point", 10),
    ScoreColumn("threshold", NUMBER, "threshold of the operating point, on `probability`", 7),
    ScoreColumn("status", TEXT, "`scored`, `abstained` or `rejected`", 3),
    ScoreColumn("reason", TEXT, "why an image was rejected or abstained, see [reject reasons](#reject-reasons)", 12),
    ScoreColumn("detail", TEXT, "details of the reason", 13),
    ScoreColumn("flags", TEXT, "quality flags, separated by commas; null if there are none", 11),
    *(
        ScoreColumn(name, MEASURE, f"{label}, see [quality](decisions/quality.md)")
        for name, label in PIXEL_MEASURES.items()
    ),
    ScoreColumn("side", t.IntegerType(), "shorter side of the file, in pixels"),
    ScoreColumn(
        "distance",
        NUMBER,
        "distance from the training images in feature space; above 1 is farther than 99 % of the validation images; "
        "null if the model has no reference",
        9,
    ),
    ScoreColumn("dataset_id", TEXT, "dataset that the model was trained on"),
    ScoreColumn("model_name", TEXT, "registered model", 16),
    ScoreColumn("model_version", TEXT, "version of the registered model", 17),
    ScoreColumn("run_id", TEXT, "MLflow run"),
    ScoreColumn(BATCH_ID, TEXT, "the batch: the folder's name"),
    ScoreColumn("scored_at", TIME, "time of scoring, UTC", 18),
    ScoreColumn("profile", TEXT, "ICC profile: `converted`, or `broken` where sRGB is assumed, else null"),
)


def schema(batch_id: bool = False) -> t.StructType:
    """Return the schema of the files of `scores/`; with `batch_id`, of `scores/` as a table of all batches."""
    return t.StructType(
        [t.StructField(column.name, column.kind) for column in COLUMNS if batch_id or column.name != BATCH_ID]
    )


def of_worklist() -> list[str]:
    """Return the names of the columns of `worklist.csv`, in their order."""
    positions = {column.name: column.worklist for column in COLUMNS if column.worklist is not None}
    return ["rank", *sorted(positions, key=lambda name: positions[name])]


def to_scores(rows: pd.DataFrame, columns: Sequence[ScoreColumn]) -> pd.DataFrame:
    """Return the frame of these columns, without `batch_id`, from a frame with what they are computed from."""
    wanted = [column for column in columns if column.name != BATCH_ID]
    return pd.DataFrame({column.name: column.value(rows) if column.value else rows[column.name] for column in wanted})
