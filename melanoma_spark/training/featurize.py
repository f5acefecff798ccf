"""`images/` -> `features/`, the backbone's output at each cut, computed once for every image.

What users are told of it is in `jobs/featurize.py`, the text of --help.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import lineage, schemas
from melanoma_spark.images import augmentation
from melanoma_spark.images.decoding import PIXELS_VERSION
from melanoma_spark.models import backbones, engines, prediction, weights
from melanoma_spark.runner.context import StageContext, Summary, read_images, read_input, report_throughput
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.petastorm import petastorm_metadata

KEY = ["sha256", "view"]  # of a row; a part of the features' id, because they once had no views


def featurize(context: StageContext) -> Summary:
    spark, settings, warehouse = context.spark, context.settings, context.warehouse
    engine = engine_of(context)
    made_of = read_input(context, ImagesManifest)
    base = weights.resolve(settings.backbone, settings.seed)
    weights.announce(base)
    recipe: dict[str, Any] = {
        "backbone": settings.backbone.name,
        "weights": base.content_id,
        "cuts": list(backbones.cuts_read(settings)),
        "image_size": made_of.image_size,
        "pixels_version": PIXELS_VERSION,
        "dtype": settings.featurize.dtype,
        "precision": settings.featurize.precision,
        "key": KEY,
    }
    known = manifests.read(FeaturesManifest, warehouse)
    same = known is not None and all(getattr(known, key) == value for key, value in recipe.items() if key != "cuts")
    if known and same and set(recipe["cuts"]) < set(known.cuts):
        recipe["cuts"] = known.cuts  # what is there holds more than is asked for
    cuts, views = recipe["cuts"], settings.featurize.views
    if views > 1:  # how many is no part of it: the first two of four views are those of two
        drawn = settings.augment.model_dump(mode="json", exclude={"enabled"})
        recipe["augment"] = {**drawn, "seed": settings.seed, "version": augmentation.VERSION}
    features_id = lineage.content_id(recipe)
    target = files.join(warehouse, "features", features_id)
    images = read_images(context, made_of)
    images = images.select("sha256", "split", "image", views_of(views).alias("view"))
    rows = made_of.accepted + (views - 1) * sum(made_of.counts[f"train_{label}"] for label in (0, 1))
    keys = images.drop("image")
    if files.list_names(target, "*.parquet"):
        # With a schema given, Spark does not look for one in Petastorm's metadata, which a killed job may have torn.
        keys = keys.join(spark.read.schema("sha256 string, view int").parquet(target), KEY, "left_anti")
    keys = keys.persist()
    missing, told = keys.count(), ""
    if missing or not known or (known.id, known.made_from) != (features_id, made_of.id):
        schema = schemas.features_schema(
            backbones.cut_shapes(settings.backbone.name, made_of.image_size, cuts), recipe["dtype"]
        )
        # Also where no image is missing: a job killed after its last image has not come to the metadata.
        with petastorm_metadata(spark, target, schema, settings.ingest.row_group_mb):
            if missing and known and same and known.id != features_id and set(cuts) <= set(known.cuts):
                keys = taken_over(context, keys, missing, known.url(warehouse), cuts, target)
                missing = keys.count()
            if missing:
                todo = images
                if missing < rows:  # keys go to the pixels, not the pixels to the keys
                    todo = todo.join(f.broadcast(keys.select(KEY)), KEY, "left_semi")
                told = compute(context, todo, missing, base, recipe, target)
    keys.unpersist()
    manifest = FeaturesManifest(
        id=features_id,
        path=features_id,
        made_from=made_of.id,
        weights_origin=base.origin,
        images=made_of.accepted,
        views=views,
        # that computed last; no part of the id: docs/decisions/engine.md
        engine=engine if missing or not known else known.engine,
        **{"augment": None, **recipe},
    )
    manifests.publish(manifest, warehouse)
    context.tracker.set_tags({"features_id": features_id, "weights_id": base.content_id, "weights_origin": base.origin})
    context.tracker.log_metrics({"computed": missing, "reused": rows - missing})
    what = f"{rows} images" if views == 1 else f"{rows} rows ({views} views of each train image, 1 of the others)"
    return Summary(
        f"{what} = {missing} computed + {rows - missing} computed before, "
        f"at {', '.join(cuts)} of {settings.backbone.name} ({base.origin} weights {base.content_id}){told}"
    )


def engine_of(context: StageContext) -> str:
    """Raises `ConfigError` where the chosen one cannot compute this backbone at this precision."""
    chosen, gpus = context.settings.featurize, session.task_gpus(context.spark)
    return engines.engine_for(chosen.engine, context.settings.backbone.name, chosen.precision, gpus)


def views_of(views: int) -> Column:
    """The views of an image: 0 to `views` - 1 of a train image, 0 of another one; makes a row of each."""
    train = f.sequence(f.lit(0), f.lit(views - 1))
    return f.explode(f.when(f.col("split") == "train", train).otherwise(f.array(f.lit(0))))


def taken_over(
    context: StageContext, keys: DataFrame, rows: int, other: str, cuts: list[str], target: str
) -> DataFrame:
    """Add the rows of view 0 that stand at `other`, of the same recipe but for augmentation; the keys of the rest."""
    session.describe_jobs(context.spark, "featurize: plain views that stand already")
    plain = context.spark.read.parquet(other).where("view = 0").select(*KEY, *cuts)
    append(in_order(context, plain.join(f.broadcast(keys), KEY), rows).select(*KEY, *cuts), target)
    rest = keys.join(plain.select(KEY), KEY, "left_anti").persist()
    rest.count()  # before the keys are let go, of which it is made
    keys.unpersist()
    return rest


def in_order(context: StageContext, rows: DataFrame, count: int) -> DataFrame:
    """Rows sorted by view, split and hash, so that a reader of one view of one split passes over the rest."""
    order = ("view", "split", "sha256")
    return rows.repartitionByRange(session.partitions_for(context.spark, count), *order).sortWithinPartitions(*order)


def append(rows: DataFrame, target: str) -> None:
    """Add rows to the features. Each finished task's file stays when the job is killed."""
    # Version 2 moves each finished task's file in place at once; rows are keyed by image and view, so they stay valid.
    rows.write.mode("append").option("mapreduce.fileoutputcommitter.algorithm.version", "2").parquet(target)


def compute(
    context: StageContext, todo: DataFrame, rows: int, base: weights.Weights, recipe: dict[str, Any], target: str
) -> str:
    """Add the features of these views of images (`sha256`, `split`, `view`, `image`) to `target`; tells how fast."""
    spark, chosen, augment, seed = (
        context.spark,
        context.settings.featurize,
        context.settings.augment,
        context.settings.seed,
    )
    size, name, cuts = recipe["image_size"], recipe["backbone"], recipe["cuts"]
    pixels = schemas.images_schema(size).fields["image"]
    threads, engine = session.task_threads(spark), engine_of(context)

    def by_tensorflow() -> inference.Predict:
        from melanoma_spark.models import network

        network.use_threads(threads)
        with backbones.precision(chosen.precision):
            return network.predictor(backbones.features(backbones.build_base(name, size, sent.value), cuts))

    if engine == "tensorflow":
        sent, load = session.broadcast(spark, list(base.tensors)), by_tensorflow
    else:
        model = backbones.features(backbones.build_base(name, size, base.tensors), cuts)
        exported = session.broadcast(spark, engines.export(model, engine))
        load = prediction.exported_loader(engine, exported, threads)

    def prepare(content: bytes, sha256: str, view: int) -> np.ndarray:
        image = np.asarray(pixels.codec.decode(pixels, content))
        if not view:
            return image
        return augmentation.augment(image, augment, augmentation.generator(seed, int(view), sha256))

    def finish(outputs: list[np.ndarray | None], errors: Any) -> pd.DataFrame:
        return pd.DataFrame({cut: stored(values, chosen.dtype) for cut, values in zip(cuts, outputs, strict=True)})

    session.set_arrow_batch_rows(spark, chosen.batch_size)
    kind = t.StructType([t.StructField(cut, t.BinaryType()) for cut in cuts])
    model_id = f"{name} {size} {base.content_id} {cuts} {chosen.precision} {engine}"
    meter = session.Meter(spark)
    udf = inference.column_udf(model_id, load, prepare, finish, kind, batch_size=chosen.batch_size, meter=meter)
    session.describe_jobs(spark, f"featurize: {name} over {rows} images")
    computed = in_order(context, todo, rows).select(*KEY, udf("image", *KEY).alias("features"))
    append(computed.select(*KEY, *(f.col(f"features.{cut}") for cut in cuts)), target)
    return report_throughput(context, meter)


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
