"""Computes `features/` from `images/`: the backbone's output at each cut, once for each image.

`jobs/featurize.py` has the text for users.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql import types as t

from melanoma_spark import lineage, schemas
from melanoma_spark.images import augmentation
from melanoma_spark.models import backbones, engines, prediction, weights
from melanoma_spark.runner.context import StageContext, Summary, read_images, read_input, report_throughput
from melanoma_spark.spark import inference, session
from melanoma_spark.storage import files, manifests
from melanoma_spark.storage.manifests import FeaturesManifest, ImagesManifest
from melanoma_spark.storage.petastorm import petastorm_metadata

KEY = ["sha256", "view"]  # of a row; a part of the features' id, because early releases had no views


def featurize(context: StageContext) -> Summary:
    """Compute the features that are missing, and publish them all."""
    spark, settings, warehouse = context.spark, context.settings, context.warehouse
    engine = choose_engine(context)
    source = read_input(context, ImagesManifest)
    base = weights.resolve(settings.backbone, settings.seed)
    weights.announce(base)
    recipe: dict[str, Any] = {
        "backbone": settings.backbone.name,
        "weights": base.content_id,
        "cuts": list(backbones.cuts_read(settings)),
        "image_size": source.image_size,
        "pixels_version": source.pixels_version,
        "dtype": settings.featurize.dtype,
        "precision": settings.featurize.precision,
        "key": KEY,
    }
    known = manifests.read(FeaturesManifest, warehouse)
    same = known is not None and all(getattr(known, key) == value for key, value in recipe.items() if key != "cuts")
    if known and same and set(recipe["cuts"]) < set(known.cuts):
        recipe["cuts"] = known.cuts  # the existing features have more than is asked for
    cuts, views = recipe["cuts"], settings.featurize.views
    if views > 1:  # their number is not part of the id: the first two of four views are those of two
        augment = settings.augment.model_dump(mode="json", exclude={"enabled"})
        recipe["augment"] = {**augment, "seed": settings.seed, "version": augmentation.VERSION}
    features_id = lineage.content_id(recipe)
    target = files.join(warehouse, "features", features_id)
    images = read_images(context, source)
    images = images.select("sha256", "split", "image", explode_views(views).alias("view"))
    rows = source.accepted + (views - 1) * sum(source.counts[f"train_{label}"] for label in (0, 1))
    keys = images.drop("image")
    if files.list_names(target, "*.parquet"):
        # With a schema, Spark does not read Petastorm's metadata, which a killed job may have left incomplete.
        keys = keys.join(spark.read.schema("sha256 string, view int").parquet(target), KEY, "left_anti")
    keys = keys.persist()
    missing, throughput = keys.count(), ""
    if missing or not known or (known.id, known.made_from) != (features_id, source.id):
        schema = schemas.features_schema(
            backbones.cut_shapes(settings.backbone.name, source.image_size, cuts), recipe["dtype"]
        )
        # Also if no image is missing: a job killed after its last image has not written the metadata.
        with petastorm_metadata(spark, target, schema, settings.ingest.row_group_mb):
            if missing and known and same and known.id != features_id and set(cuts) <= set(known.cuts):
                keys = copy_plain_views(context, keys, missing, known.url(warehouse), cuts, target)
                missing = keys.count()
            if missing:
                todo = images
                if missing < rows:  # broadcast the keys rather than shuffle the pixels
                    todo = todo.join(f.broadcast(keys.select(KEY)), KEY, "left_semi")
                throughput = compute(context, todo, missing, base, source.image_size, cuts, target)
    keys.unpersist()
    manifest = FeaturesManifest(
        id=features_id,
        path=features_id,
        made_from=source.id,
        weights_origin=base.origin,
        images=source.accepted,
        views=views,
        # the last one that computed; not part of the id: docs/decisions/engine.md
        engine=engine if missing or not known else known.engine,
        **{"augment": None, **recipe},
    )
    manifests.publish(manifest, warehouse)
    context.tracker.set_tags({"features_id": features_id, "weights_id": base.content_id, "weights_origin": base.origin})
    context.tracker.log_metrics({"computed": missing, "reused": rows - missing})
    what = f"{rows} images" if views == 1 else f"{rows} rows ({views} views of each train image, 1 of the others)"
    return Summary(
        f"{what} = {missing} computed + {rows - missing} computed before, "
        f"at {', '.join(cuts)} of {settings.backbone.name} ({base.origin} weights {base.content_id}){throughput}"
    )


def choose_engine(context: StageContext) -> str:
    """Return the engine of the settings. Raise `ConfigError` if it cannot compute this backbone at this precision."""
    settings, gpus = context.settings.featurize, session.task_gpus(context.spark)
    return engines.engine_for(settings.engine, context.settings.backbone.name, settings.precision, gpus)


def explode_views(views: int) -> Column:
    """Return a row for each view of an image: 0 to `views` - 1 of a train image, 0 of another one."""
    train = f.sequence(f.lit(0), f.lit(views - 1))
    return f.explode(f.when(f.col("split") == "train", train).otherwise(f.array(f.lit(0))))


def copy_plain_views(
    context: StageContext, keys: DataFrame, rows: int, source: str, cuts: list[str], target: str
) -> DataFrame:
    """Copy view 0 of images from features whose recipe differs in augmentation alone; return the keys of the rest."""
    session.describe_jobs(context.spark, "featurize: plain views that exist already")
    plain = context.spark.read.parquet(source).where("view = 0").select(*KEY, *cuts)
    append(sort_rows(context, plain.join(f.broadcast(keys), KEY), rows).select(*KEY, *cuts), target)
    rest = keys.join(plain.select(KEY), KEY, "left_anti").persist()
    rest.count()  # before its source, the keys, is released
    keys.unpersist()
    return rest


def sort_rows(context: StageContext, rows: DataFrame, count: int) -> DataFrame:
    """Sort rows by view, split and hash, so that a reader of one view of one split skips the rest."""
    order = ("view", "split", "sha256")
    return rows.repartitionByRange(session.partitions_for(context.spark, count), *order).sortWithinPartitions(*order)


def append(rows: DataFrame, target: str) -> None:
    """Append rows to the features; the files of finished tasks stay if the job is killed."""
    # Version 2 moves each finished task's file in place at once; rows are keyed by image and view, so they are valid.
    rows.write.mode("append").option("mapreduce.fileoutputcommitter.algorithm.version", "2").parquet(target)


def compute(
    context: StageContext,
    todo: DataFrame,
    rows: int,
    base: weights.Weights,
    size: int,
    cuts: Sequence[str],
    target: str,
) -> str:
    """Append the features of views of images to `target`.

    Args:
        context: The job's context.
        todo: `sha256`, `split`, `view` and `image` of each view.
        rows: Their number.
        base: The weights of the backbone.
        size: The side of an image in pixels.
        cuts: The cuts of the backbone.
        target: The URL of the features.

    Returns:
        The throughput, for the summary.
    """
    spark, settings = context.spark, context.settings.featurize
    augment, seed, name = context.settings.augment, context.settings.seed, context.settings.backbone.name
    decode = schemas.image_decoder(size)
    threads, engine = session.task_threads(spark), choose_engine(context)

    def load_tensorflow() -> inference.Predict:
        from melanoma_spark.models import network

        network.use_threads(threads)
        with backbones.precision(settings.precision):
            return network.predictor(backbones.features(backbones.build_base(name, size, sent.value), cuts))

    if engine == "tensorflow":
        sent, load = session.broadcast(spark, list(base.tensors)), load_tensorflow
    else:
        model = backbones.features(backbones.build_base(name, size, base.tensors), cuts)
        exported = session.broadcast(spark, engines.export(model, engine))
        load = prediction.exported_loader(engine, exported, threads)

    def prepare(content: bytes, sha256: str, view: int) -> NDArray[Any]:
        image = decode(content)
        return augmentation.augment(image, augment, augmentation.generator(seed, int(view), sha256)) if view else image

    def finish(outputs: list[NDArray[Any]], errors: Any) -> pd.DataFrame:
        return pd.DataFrame({cut: serialize(values, settings.dtype) for cut, values in zip(cuts, outputs, strict=True)})

    session.set_arrow_batch_rows(spark, settings.batch_size)
    kind = t.StructType([t.StructField(cut, t.BinaryType()) for cut in cuts])
    model_id = f"{name} {size} {base.content_id} {cuts} {settings.precision} {engine}"
    meter = session.Meter(spark)
    udf = inference.column_udf(model_id, load, prepare, finish, kind, batch_size=settings.batch_size, meter=meter)
    session.describe_jobs(spark, f"featurize: {name} over {rows} images")
    computed = sort_rows(context, todo, rows).select(*KEY, udf("image", *KEY).alias("features"))
    append(computed.select(*KEY, *(f.col(f"features.{cut}") for cut in cuts)), target)
    return report_throughput(context, meter)


def serialize(values: NDArray[Any], dtype: str) -> list[bytes]:
    """Return each row as Petastorm's NdarrayCodec stores it; values beyond the range of float16 are clipped."""
    limit = np.finfo(dtype).max
    rows = []
    for row in np.clip(values, -limit, limit).astype(dtype):
        buffer = io.BytesIO()
        np.save(buffer, row)
        rows.append(buffer.getvalue())
    return rows
