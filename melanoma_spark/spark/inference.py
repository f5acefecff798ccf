"""A model over bytes, on executors: over a column, as an iterator pandas UDF, or over batches of any source.

The model is loaded once per Python worker and kept for later tasks; the next batch is read and decoded while the model
computes this one; a task uses as many threads as it has cores.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import types as t
from pyspark.sql.functions import pandas_udf

from melanoma_spark.background import Waits, ahead
from melanoma_spark.errors import ImageError
from melanoma_spark.spark import session

Predict = Callable[[np.ndarray], list[np.ndarray]]
Load = Callable[[], Predict]
Prepare = Callable[..., np.ndarray]
Finish = Callable[[list[np.ndarray | None], Sequence[ImageError | None]], pd.DataFrame]

_LOADED: dict[str, Predict] = {}  # of this worker process; one model at a time


def over_column(
    model_id: str,
    load: Load,
    prepare: Prepare,
    finish: Finish,
    result: t.StructType,
    batch_size: int,
    meter: session.Meter | None = None,
) -> Any:
    """A UDF: binary column -> struct column `result`; what the rest means is told at `over_batches`.

    Of further columns that it is called with, `prepare` gets the row's values behind the bytes.
    """
    through = over_batches(model_id, load, prepare, finish, batch_size, meter)

    def compute(columns: Iterator[Any]) -> Iterator[pd.DataFrame]:
        return through(zip(*batch, strict=True) if isinstance(batch, tuple) else batch for batch in columns)

    # The types are given by hand: annotations kept as text do not tell pandas_udf its kind.
    compute.__annotations__ = {"columns": Iterator[tuple[pd.Series, ...]], "return": Iterator[pd.DataFrame]}
    return pandas_udf(compute, returnType=result)  # type: ignore[call-overload]


def over_batches(
    model_id: str,
    load: Load,
    prepare: Prepare,
    finish: Finish,
    batch_size: int,
    meter: session.Meter | None = None,
) -> Callable[[Iterator[Any]], Iterator[pd.DataFrame]]:
    """Batches of bytes, or of the `ImageError` for which there are none -> a frame for each.

    `load()` makes the model's forward pass; `model_id` names it among those a worker has met. `prepare(bytes)` gives
    one model input or raises `ImageError`; where an item is a tuple of bytes and more, it gets all of that.
    `finish(outputs, errors)` gets, for each model output, an array with a row for every item (None when nothing in the
    batch could be prepared), and for every item its error or None; it returns one row an item.
    `meter` is told of every batch.
    """

    def prepared(items: Iterable[Any]) -> tuple[list[np.ndarray | ImageError], int]:
        found: list[np.ndarray | ImageError] = []
        size = 0
        for item in items:
            content, *more = item if isinstance(item, tuple) else (item,)
            try:
                if content is None:
                    raise ImageError("unreadable", "there are no bytes")
                size += 0 if isinstance(content, ImageError) else len(content)
                found.append(content if isinstance(content, ImageError) else prepare(bytes(content), *more))
            except ImageError as error:
                found.append(error)
        return found, size

    def computed(predict: Predict, items: list[np.ndarray | ImageError]) -> pd.DataFrame:
        good = [place for place, item in enumerate(items) if not isinstance(item, ImageError)]
        arrays = [item for item in items if not isinstance(item, ImageError)]
        errors = [item if isinstance(item, ImageError) else None for item in items]
        outputs: list[np.ndarray | None] = [None]
        if arrays:
            inputs = np.stack(arrays)
            parts = [predict(inputs[at : at + batch_size]) for at in range(0, len(good), batch_size)]
            outputs = []
            for place in range(len(parts[0])):
                values = np.concatenate([part[place] for part in parts])
                spread = np.full((len(items), *values.shape[1:]), np.nan, values.dtype)
                spread[good] = values
                outputs.append(spread)
        return finish(outputs, errors)

    def through(batches: Iterator[Any]) -> Iterator[pd.DataFrame]:
        predict: Predict | None = None
        waiting = Waits(ahead(batches, prepared))
        for items, size in waiting:
            predict = predict or loaded(model_id, load)
            began = time.monotonic()
            frame = computed(predict, items)
            if meter is not None:
                meter.add(len(items), size, waiting.seconds, time.monotonic() - began)
                waiting.seconds = 0.0
            yield frame

    return through


def loaded(model_id: str, load: Load) -> Predict:
    """This process's model of that id; loaded the first time, another one is let go."""
    if model_id not in _LOADED:
        _LOADED.clear()
        gc.unfreeze()
        _LOADED[model_id] = load()
        # pyspark collects garbage after each task, which takes half a second through TensorFlow's million objects
        gc.collect()
        gc.freeze()
    return _LOADED[model_id]
