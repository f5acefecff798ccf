"""Applies a model to bytes on executors: to a column, as an iterator pandas UDF, or to batches of any source.

A Python worker loads the model once and keeps it for later tasks. It reads and decodes the next batch while the model
computes this one. A task uses as many threads as it has cores.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column
from pyspark.sql import types as t
from pyspark.sql.pandas.functions import pandas_udf

from melanoma_spark.background import TimedIterator, prefetch
from melanoma_spark.errors import ImageError
from melanoma_spark.spark import session

Predict = Callable[[NDArray[Any]], list[NDArray[Any]]]
Load = Callable[[], Predict]
Prepare = Callable[..., NDArray[Any]]
Finish = Callable[[list[NDArray[Any]], Sequence[ImageError | None]], pd.DataFrame]

_LOADED: dict[str, Predict] = {}  # of this worker process; one model at a time


def column_udf(
    model_id: str,
    load: Load,
    prepare: Prepare,
    finish: Finish,
    result: t.StructType,
    *,
    batch_size: int,
    meter: session.Meter | None = None,
) -> Callable[..., Column]:
    """Return a UDF from a binary column to a struct column `result`; see `batch_function` for the other arguments.

    `prepare` gets the row's values of further columns after the bytes.
    """
    apply = batch_function(model_id, load, prepare, finish, batch_size=batch_size, meter=meter)

    def compute(columns: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        return apply(zip(*batch, strict=True) if isinstance(batch, tuple) else batch for batch in columns)

    return pandas_udf(compute, returnType=result)  # type: ignore[call-overload,no-any-return]


def batch_function(
    model_id: str,
    load: Load,
    prepare: Prepare,
    finish: Finish,
    *,
    batch_size: int,
    meter: session.Meter | None = None,
) -> Callable[[Iterator[Any]], Iterator[pd.DataFrame]]:
    """Return a function from batches of bytes, or of the `ImageError` for a file without bytes, to frames.

    Args:
        model_id: the key under which a worker keeps the model.
        load: builds the model's forward pass.
        prepare: returns one model input or raises `ImageError`. It gets all values of an item that is a tuple.
        finish: returns one row for each item. It gets an array for each model output with a row for each item, or no
            arrays when nothing in the batch could be prepared; and for each item its error or None.
        batch_size: inputs of one forward pass.
        meter: counts every batch.
    """

    def prepare_batch(items: Iterable[Any]) -> tuple[list[NDArray[Any] | ImageError], int]:
        inputs: list[NDArray[Any] | ImageError] = []
        size = 0
        for item in items:
            content, *more = item if isinstance(item, tuple) else (item,)
            try:
                if content is None:
                    raise ImageError("unreadable", "there are no bytes")
                size += 0 if isinstance(content, ImageError) else len(content)
                inputs.append(content if isinstance(content, ImageError) else prepare(bytes(content), *more))
            except ImageError as error:
                inputs.append(error)
        return inputs, size

    def compute_batch(predict: Predict, items: list[NDArray[Any] | ImageError]) -> pd.DataFrame:
        good = [place for place, item in enumerate(items) if not isinstance(item, ImageError)]
        arrays = [item for item in items if not isinstance(item, ImageError)]
        errors = [item if isinstance(item, ImageError) else None for item in items]
        outputs: list[NDArray[Any]] = []
        if arrays:
            inputs = np.stack(arrays)
            parts = [predict(inputs[at : at + batch_size]) for at in range(0, len(good), batch_size)]
            for values in map(np.concatenate, zip(*parts, strict=True)):
                spread = np.full((len(items), *values.shape[1:]), np.nan, values.dtype)
                spread[good] = values
                outputs.append(spread)
        return finish(outputs, errors)

    def apply(batches: Iterator[Any]) -> Iterator[pd.DataFrame]:
        predict: Predict | None = None
        waiting = TimedIterator(prefetch(batches, prepare_batch))
        for items, size in waiting:
            predict = predict or load_once(model_id, load)
            began = time.monotonic()
            frame = compute_batch(predict, items)
            if meter is not None:
                meter.add(len(items), size, waiting.seconds, time.monotonic() - began)
                waiting.seconds = 0.0
            yield frame

    return apply


def load_once(model_id: str, load: Load) -> Predict:
    """Return this process's model of an id. Loads it the first time, and releases another one."""
    if model_id not in _LOADED:
        _LOADED.clear()
        gc.unfreeze()
        _LOADED[model_id] = load()
        # pyspark collects garbage after each task, which takes half a second with TensorFlow's million objects
        gc.collect()
        gc.freeze()
    return _LOADED[model_id]
