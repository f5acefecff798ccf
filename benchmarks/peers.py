"""Other ways to score a folder of JPEG files on Spark, each as its documentation shows it: for benchmarks/score.py.

naive: a pandas UDF that loads the model in the function and calls it row by row. iterator: an iterator pandas UDF that
loads it once for each task and takes batches from tf.data, as in Databricks' reference solution for image inference.
mlflow: `mlflow.pyfunc.spark_udf` on the registered model. All decode with this package's decoder, write path and
probability as Parquet, and get the same tuning: one TensorFlow thread for each core, batches of 16.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as f
from pyspark.sql.pandas.functions import pandas_udf
from side_by_side import start_spark

from melanoma_spark.images import decoding
from melanoma_spark.models import network
from melanoma_spark.spark import session
from melanoma_spark.storage.tensors import unpack_tensors

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("naive", "iterator", "mlflow"))
    parser.add_argument("archive")
    parser.add_argument("target")
    parser.add_argument("--weights", help="an npz of the network's tensors")
    parser.add_argument("--model", help="the registered model's URI, of mlflow")
    parser.add_argument("--tracking", help="MLflow's address")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    spark = start_spark(options.slots)
    session.set_arrow_batch_rows(spark, BATCH if options.way == "mlflow" else 10_000)
    images = spark.read.format("binaryFile").option("pathGlobFilter", "*.jpg").load(options.archive)
    images = images.repartition(4 * options.slots)
    if options.way == "mlflow":
        import mlflow

        mlflow.set_tracking_uri(options.tracking)
        udf = mlflow.pyfunc.spark_udf(spark, options.model, result_type="probability double", env_manager="local")
        scores = images.select("path", udf(f.struct(f.col("content").alias("image"))).alias("score"))
        scores = scores.select("path", "score.probability")
    else:
        spec = network.Spec(backbone="vgg16", image_size=options.size, hidden=256, dropout=0.5)
        udf = (naive if options.way == "naive" else iterator)(spec, options.weights)
        scores = images.select("path", udf("content").alias("probability"))
    scores.write.parquet(options.target)
    spark.stop()


def naive(spec: network.Spec, weights: str) -> Any:
    """Return a pandas UDF that calls the network row by row."""

    @pandas_udf("double")  # type: ignore[call-overload,untyped-decorator]
    def predict(contents: pd.Series) -> pd.Series:
        network.use_threads(1)
        with open(weights, "rb") as file:
            model = network.build(spec, unpack_tensors(file.read()))
        return contents.map(lambda c: float(model(decoding.decode(c, spec.image_size)[None], training=False)[0, 0]))

    return predict


def iterator(spec: network.Spec, weights: str) -> Any:
    """Return an iterator pandas UDF that calls the network on batches from tf.data."""

    @pandas_udf("double")  # type: ignore[call-overload,untyped-decorator]
    def predict(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import tensorflow as tf

        network.use_threads(1)
        with open(weights, "rb") as file:
            model = network.build(spec, unpack_tensors(file.read()))
        shape = (spec.image_size, spec.image_size, 3)

        def decoded(content: Any) -> Any:
            pixels = tf.numpy_function(lambda c: decoding.decode(c, spec.image_size), [content], tf.uint8)
            return tf.ensure_shape(pixels, shape)

        for contents in batches:
            pixels = tf.data.Dataset.from_tensor_slices(contents.to_numpy()).map(decoded).batch(BATCH).prefetch(1)
            yield pd.Series(np.asarray(model.predict(pixels, verbose=0))[:, 0].astype(float))

    return predict


if __name__ == "__main__":
    main()
