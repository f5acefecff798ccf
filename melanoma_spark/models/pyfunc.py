"""The registered model for MLflow: image bytes in, probability and decision out, with all that it needs inside.

MLflow reads this file as the model's code; batch scoring uses the same `bundle.Scorer`.
"""

from __future__ import annotations  # the documentation is made without MLflow, whose types have no `|` then

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from numpy.typing import NDArray

from melanoma_spark.errors import ImageError
from melanoma_spark.models import network
from melanoma_spark.models.bundle import NUMBERS, OUTPUTS, from_files


def signature() -> ModelSignature:
    """The signature: `image`, the bytes of a JPEG or PNG file -> the columns of `OUTPUTS`."""
    texts = dict.fromkeys(OUTPUTS, DataType.string)
    kinds = texts | dict.fromkeys(NUMBERS, DataType.double)
    missing = ("probability", "raw_probability", "spread", "distance", "reason", "detail", "flags")
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kinds[name], name, required=name not in missing) for name in OUTPUTS]),
    )


def requirements() -> list[str]:
    """The packages that a server of this model needs, at the versions it was made with."""
    import tensorflow as tf

    names = (
        *("keras", "numpy", "pandas", "pydantic", "pyyaml", "fsspec"),
        *("pillow", "simplejpeg", "pydicom", "python-gdcm"),
    )
    return [f"tensorflow-cpu=={tf.__version__}", *(f"{name}=={version(name)}" for name in names)]


class LesionScorer(PythonModel):
    """A `Scorer` for MLflow: a table with a column `image` of bytes -> a table of `OUTPUTS`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the scorer from the model's artifacts."""
        self.scorer = from_files(context.artifacts)
        self.forward = network.classifier(self.scorer.spec, self.scorer.tensors)

    def predict(
        self, context: PythonModelContext | None, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score the images of a table; `params` are not used."""
        inputs: list[NDArray[np.uint8]] = []
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
        outputs: list[NDArray[np.float32]] = []
        if inputs:
            good = [place for place, error in enumerate(errors) if error is None]
            for output in self.forward(np.stack(inputs)):
                filled = np.full((len(errors), *output.shape[1:]), np.nan, np.float32)
                filled[good] = output
                outputs.append(filled)
        return self.scorer.finish(outputs, errors, damaged)


set_model(LesionScorer())
