"""Networks on executors: how a worker loads one, and what one says of stored images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.errors import ImageError
from melanoma_spark.models import engines, network
from melanoma_spark.spark import inference, session

PROBABILITY = t.StructType([t.StructField("raw_probability", t.DoubleType())])


def judged(
    rows: DataFrame,
    spec: Any,
    tensors: list[np.ndarray],
    model_id: str,
    batch_size: int,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
    meter: session.Meter | None = None,
) -> DataFrame:
    """Rows of images/ with a column `found` more, of `PROBABILITY`: what the network of a spec says of their pixels.

    Sorted by split and hash over as many tasks as there are slots. `change` is done to the pixels before.
    """
    spark = rows.sparkSession
    pixels = schemas.images_schema(spec.image_size).fields["image"]
    udf = inference.column_udf(
        model_id,
        network_loader(spec, session.broadcast(spark, tensors), session.task_threads(spark)),
        lambda content: change(pixels.codec.decode(pixels, content)),
        probabilities,
        PROBABILITY,
        batch_size=batch_size,
        meter=meter,
    )
    spread = rows.repartitionByRange(session.partitions_for(spark, rows.count()), "split", "sha256")
    return spread.select("*", udf("image").alias("found"))


def probabilities(outputs: list[np.ndarray | None], errors: Sequence[ImageError | None]) -> pd.DataFrame:
    """A `finish` for what is in the warehouse."""
    assert outputs[0] is not None, "stored pixels and features always decode"
    return pd.DataFrame({"raw_probability": outputs[0].reshape(-1).astype(np.float64)})


def network_loader(spec: Any, tensors: Any, threads: int) -> inference.Load:
    """Load the classifier of a spec; `tensors` is a Spark broadcast of its weights."""

    def load() -> inference.Predict:
        network.use_threads(threads)
        return network.classifier(spec, tensors.value)

    return load


def exported_loader(engine: str, content: Any, threads: int, tta: int | None = None) -> inference.Load:
    """Load what was exported for an engine, without TensorFlow; `content` is a Spark broadcast of it.

    With `tta` it is a judge that is asked for so many views of an image.
    """

    def load() -> inference.Predict:
        forward = engines.predictor(content.value, threads, engine)
        return forward if tta is None else network.over_views(forward, tta)

    return load
