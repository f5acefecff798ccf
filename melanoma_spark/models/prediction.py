"""Networks on executors: how a worker loads one, and predictions for stored images."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark import Broadcast
from pyspark.sql import DataFrame
from pyspark.sql import types as t

from melanoma_spark import schemas
from melanoma_spark.errors import ImageError
from melanoma_spark.models import engines, network
from melanoma_spark.spark import inference, session

PROBABILITY = t.StructType([t.StructField("raw_probability", t.DoubleType())])
FEATURES = t.StructField("features", t.ArrayType(t.FloatType()))


def predict_images(
    rows: DataFrame,
    spec: network.Spec,
    tensors: list[NDArray[np.float32]],
    model_id: str,
    batch_size: int,
    *,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = np.asarray,
    with_features: bool = False,
    meter: session.Meter | None = None,
) -> DataFrame:
    """Add a column `predicted` of `PROBABILITY` to rows of images/: the network's probabilities for their pixels.

    Sorted by split and hash over as many tasks as there are slots. `change` is applied to the pixels first.
    `with_features` adds the averaged features of the image as it is, `FEATURES`.
    """
    spark = rows.sparkSession
    decode = schemas.image_decoder(spec.image_size)
    udf = inference.column_udf(
        model_id,
        network_loader(spec, session.broadcast(spark, tensors), session.task_threads(spark)),
        lambda content: change(decode(content)),
        probabilities_and_features if with_features else probabilities,
        t.StructType([*PROBABILITY, FEATURES]) if with_features else PROBABILITY,
        batch_size=batch_size,
        meter=meter,
    )
    sorted_rows = rows.repartitionByRange(session.partitions_for(spark, rows.count()), "split", "sha256")
    return sorted_rows.select("*", udf("image").alias("predicted"))


def probabilities(outputs: list[NDArray[np.float32]], errors: Sequence[ImageError | None]) -> pd.DataFrame:
    """Make rows of `PROBABILITY` from a network's outputs for stored images, which always decode."""
    return pd.DataFrame({"raw_probability": outputs[0].reshape(-1).astype(np.float64)})


def probabilities_and_features(outputs: list[NDArray[np.float32]], errors: Sequence[ImageError | None]) -> pd.DataFrame:
    """Make rows of `PROBABILITY` and `FEATURES`."""
    return probabilities(outputs, errors).assign(features=list(outputs[2]))


def network_loader(spec: network.Spec, tensors: Broadcast[list[NDArray[np.float32]]], threads: int) -> inference.Load:
    """Return what loads the classifier of a spec on a worker."""

    def load() -> inference.Predict:
        network.use_threads(threads)
        return network.classifier(spec, tensors.value)

    return load


def exported_loader(engine: str, content: Broadcast[bytes], threads: int, tta: int | None = None) -> inference.Load:
    """Return what loads a network exported for an engine, without TensorFlow.

    With `tta` it is an exported `network.scoring_model` that is applied to so many views of an image.
    """

    def load() -> inference.Predict:
        forward = engines.predictor(content.value, threads, engine)
        return forward if tta is None else network.average_over_views(forward, tta)

    return load
