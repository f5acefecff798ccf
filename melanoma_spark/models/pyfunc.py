"""The model as it is registered: image bytes in, probability and decision out, with all that this needs inside.

MLflow reads this file as the model's code; batch scoring uses the same `bundle.Scorer`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, Schema

from melanoma_spark.errors import ImageError
from melanoma_spark.models import network
from melanoma_spark.models.bundle import NUMBERS, OUTPUTS, from_files


def signature() -> ModelSignature:
    """`image`: the bytes of a JPEG or PNG file -> the columns of `OUTPUTS`."""
    texts = dict.fromkeys(OUTPUTS, DataType.string)
    kinds = texts | dict.fromkeys(NUMBERS, DataType.double)
    missing = ("probability", "raw_probability", "spread", "distance", "reason", "detail", "flags")
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kinds[name], name, required=name not in missing) for name in OUTPUTS]),
    )


def requirements() -> list[str]:
    """What a server of this model needs, at the versions it was made with."""
    import tensorflow as tf

    names = ("keras", "numpy", "pandas", "pillow", "pydantic", "pydicom", "pyyaml", "fsspec", "simplejpeg")
    return [f"tensorflow-cpu=={tf.__version__}", *(f"{name}=={version(name)}" for name in names)]


class LesionScorer(PythonModel):
    """MLflow's view of a `Scorer`: a table with a column `image` of bytes -> a table of `OUTPUTS`."""

    def load_context(self, context: Any) -> None:
        self.scorer = from_files(context.artifacts)
        self.forward = network.classifier(self.scorer.spec, self.scorer.tensors)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        inputs: list[np.ndarray] = []
        damaged: list[bool] = []
        errors: list[ImageError | None] = []
        for content in model_input["image"]:
            try:
                prepared = self.scorer.prepare_sized(bytes(content))
                inputs.append(prepared["pixels"])
                damaged.append(bool(prepared["damaged"]))
                errors.append(None)
            except ImageError as error:
                damaged.append(False)
                errors.append(error)
        outputs: list[np.ndarray | None] = []
        if inputs:
            good = [place for place, error in enumerate(errors) if error is None]
            for found in self.forward(np.stack(inputs)):
                every = np.full((len(errors), *found.shape[1:]), np.nan, np.float32)
                every[good] = found
                outputs.append(every)
        return self.scorer.finish(outputs, errors, damaged)


set_model(LesionScorer())
