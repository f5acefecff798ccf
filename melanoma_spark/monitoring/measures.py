"""The measures by which drift compares a batch with the training images.

To add a measure, add a row to `MEASURES`. It is then part of the reference of models registered from now on, it is
compared for each batch, and the setting `score.drift.ignore` knows its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.attributes import ATTRIBUTES, PIXEL_MEASURES

Values = NDArray[np.floating[Any]]
Kind = Literal["number", "category", "share"]
UNLIKE = "unlike"  # the share of images that are farther from the training images than `score.quality.distance`


@dataclass(frozen=True)
class Measure:
    """One measure: a number or a category of each image, or the share of images that are unlike.

    `batch` and `training` compute a number that is no column; by default it is the column `name` on both sides.
    """

    name: str  # in settings, references, metrics and worklists
    label: str  # in reports and verdicts
    kind: Kind = "number"
    batch: str = ""  # SQL expression of columns of `scores/`
    # The same of training images: (n,) of their columns `raw_probability`, `distance`, `side` and the pixel measures.
    # The first two are of validation images alone.
    training: Callable[[Mapping[str, Values]], Values] | None = None

    @property
    def batch_column(self) -> str:
        """The SQL expression of its value in `scores/`."""
        return self.batch or self.name

    def of_training(self, columns: Mapping[str, Values]) -> Values:
        """Its values for the training images."""
        return self.training(columns) if self.training else columns[self.name]


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("raw_probability", "the network's probability"),
        Measure("distance", "distance in feature space"),
        *(Measure(name, label) for name, label in PIXEL_MEASURES.items()),
        Measure("side", "shorter side of the file"),
        *(Measure(name, row.label, "category") for name, row in ATTRIBUTES.items() if row.drift),
        Measure(UNLIKE, "share of images that are unlike", "share"),
    )
}


def of_kind(kind: Kind) -> list[str]:
    """The names of the measures of a kind."""
    return [name for name, measure in MEASURES.items() if measure.kind == kind]
