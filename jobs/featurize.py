"""featurize: `images/` -> `features/`, the backbone's output at each cut, computed once for every image.

Rows that are there already, for the same pixels, weights and cuts, are not computed again; a killed job is taken up
where it stood.

example: ./spark-submit.sh featurize warehouse=/data/warehouse
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from jobs.job import Job, main
from melanoma_spark import backbones, files, inference, lineage, schemas, session, store, weights
from melanoma_spark.images import PIXELS_VERSION


def run(job: Job) -> str:
    spark, settings, warehouse = job.spark, job.settings, job.warehouse
    made_of = store.need(warehouse, "images", "ingest")
    base = weights.resolve(settings.backbone, settings.seed)
    weights.announce(base)
    recipe: dict[str, Any] = {
        "backbone": settings.backbone.name,
        "weights": base.content_id,
        "cuts": list(backbones.cuts_read(settings)),
        "image_size": made_of["image_size"],
        "pixels_version": PIXELS_VERSION,
        "dtype": settings.featurize.dtype,
    }
    known = store.manifest(warehouse, "features")
    same = known is not None and all(known[key] == value for key, value in recipe.items() if key != "cuts")
    if known and same and set(recipe["cuts"]) < set(known["cuts"]):
        recipe["cuts"] = known["cuts"]  # what is there holds more than is asked for
    cuts = recipe["cuts"]
    features_id = lineage.content_id(recipe)
    target = files.join(warehouse, "features", features_id)
    images = spark.read.parquet(store.data_url(warehouse, "images", made_of))
    keys = images.select("sha256")
    if files.matches(target, "*.parquet"):
        # With a schema given, Spark does not look for one in Petastorm's metadata, which a killed job may have torn.
        keys = keys.join(spark.read.schema("sha256 string").parquet(target), "sha256", "left_anti")
    keys = keys.persist()
    missing = keys.count()
    if missing or not known or (known["id"], known["made_from"]) != (features_id, made_of["id"]):
        schema = schemas.features_schema(
            backbones.cut_shapes(settings.backbone.name, made_of["image_size"], cuts), recipe["dtype"]
        )
        # Also where no image is missing: a job killed after its last image has not come to the metadata.
        with store.petastorm(spark, target, schema, settings.ingest.row_group_mb):
            if missing:
                todo = images.select("sha256", "split", "image")
                if missing < made_of["accepted"]:  # keys go to the pixels, not the pixels to the keys
                    todo = todo.join(f.broadcast(keys), "sha256", "left_semi")
                compute(job, todo, missing, base, recipe, target)
    keys.unpersist()
    facts = {
        "id": features_id,
        "path": features_id,
        "made_from": made_of["id"],
        "weights_origin": base.origin,
        "images": made_of["accepted"],
        **recipe,
    }
    store.publish(warehouse, "features", facts)
    job.tracker.tags({"features_id": features_id, "weights_id": base.content_id, "weights_origin": base.origin})
    job.tracker.metrics({"computed": missing, "reused": made_of["accepted"] - missing})
    return (
        f"{made_of['accepted']} images = {missing} computed + {made_of['accepted'] - missing} computed before, "
        f"at {', '.join(cuts)} of {settings.backbone.name} ({base.origin} weights {base.content_id})"
    )


def compute(job: Job, todo: DataFrame, rows: int, base: weights.Weights, recipe: dict[str, Any], target: str) -> None:
    """Add the features of these images to `target`. Each finished task's file stays when the job is killed."""
    spark, chosen = job.spark, job.settings.featurize
    size, name, cuts = recipe["image_size"], recipe["backbone"], recipe["cuts"]
    pixels = schemas.images_schema(size).fields["image"]
    tensors = spark.sparkContext.broadcast(list(base.tensors))
    threads = session.task_threads(spark)

    def load() -> inference.Predict:
        from melanoma_spark import network

        network.use_threads(threads)
        return network.predictor(backbones.features(backbones.build_base(name, size, tensors.value), cuts))

    def prepare(content: bytes) -> np.ndarray:
        return np.asarray(pixels.codec.decode(pixels, content))

    def finish(outputs: list[np.ndarray | None], errors: Any) -> pd.DataFrame:
        return pd.DataFrame({cut: stored(values, chosen.dtype) for cut, values in zip(cuts, outputs, strict=True)})

    session.batch_rows(spark, chosen.batch_size)
    kind = t.StructType([t.StructField(cut, t.BinaryType()) for cut in cuts])
    model_id = f"{name} {size} {base.content_id} {cuts}"
    udf = inference.over_column(model_id, load, prepare, finish, kind, chosen.batch_size)
    partitions = session.partitions_for(spark, rows)
    computed = (
        todo.repartitionByRange(partitions, "split", "sha256")
        .select("sha256", udf("image").alias("features"))
        .select("sha256", *(f.col(f"features.{cut}") for cut in cuts))
    )
    session.describe(spark, f"featurize: {name} over {rows} images")
    # Version 2 moves each finished task's file in place at once; rows are keyed by image, so they stay valid.
    computed.write.mode("append").option("mapreduce.fileoutputcommitter.algorithm.version", "2").parquet(target)
    tensors.unpersist()


def stored(values: np.ndarray | None, dtype: str) -> list[bytes]:
    """Each row as Petastorm's NdarrayCodec keeps it. What float16 cannot hold is clipped to its largest value."""
    assert values is not None, "stored pixels always decode"
    limit = np.finfo(dtype).max
    rows = []
    for row in np.clip(values, -limit, limit).astype(dtype):
        buffer = io.BytesIO()
        np.save(buffer, row)
        rows.append(buffer.getvalue())
    return rows


if __name__ == "__main__":
    main("featurize", __doc__, run)
