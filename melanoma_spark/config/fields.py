"""The base class of settings sections, and the types that several sections use."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def setting(default: Any, description: str) -> Any:
    """Declare a setting with its default, and with the description that --help and the documentation show."""
    return Field(default=default, description=description)


Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0)]
Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Symmetries = Literal[1, 2, 4, 8]  # of a square: how many of `network.symmetries`

Precision = Literal["float32", "bfloat16"]
PRECISION = "of the arithmetic; bfloat16 is faster where the processor supports it, to about three digits"

Engine = Literal["auto", "ncnn", "onnxruntime", "tensorflow"]
ENGINE = (
    "what computes the network, in float32: ncnn (vgg16 only, the fastest), onnxruntime (every backbone), tensorflow "
    "(the reference, also for GPUs and bfloat16); auto: the first of these that can"
)
