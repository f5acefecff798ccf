"""A registered model as files: network, calibration, operating point and training reference; and its scores of images.

It does not import MLflow, which takes a worker longer than loading the network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from melanoma_spark import __version__, lineage
from melanoma_spark.errors import DataError, ImageError
from melanoma_spark.images import color, decoding, hashes, quality
from melanoma_spark.images.limits import ImageLimits
from melanoma_spark.models import network
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.models.training_reference import FILES as OPTIONAL
from melanoma_spark.models.training_reference import Reference
from melanoma_spark.models.training_reference import unpack as unpack_reference
from melanoma_spark.storage.tensors import pack_tensors, unpack_tensors

CONTENTS = ("model.json", "weights.npz")
MANIFEST = "manifest.json"  # the SHA-256 of each of CONTENTS, and of the reference where there is one
ARTIFACTS = (*CONTENTS, *OPTIONAL, MANIFEST)
NUMBERS = ("probability", "raw_probability", "spread", "distance", "threshold")  # of OUTPUTS; the others are text
OUTPUTS = (
    *("probability", "raw_probability", "spread", "distance", "decision", "operating_point", "threshold"),
    *("status", "reason", "detail", "flags"),
)


@dataclass(frozen=True)
class Scorer:
    """A network's spec and tensors with its calibration and its operating point.

    `reference` describes the training images; a model that was registered without it has no distances.
    """

    spec: network.Spec
    tensors: list[NDArray[np.float32]]
    calibration: Calibration
    operating_point: OperatingPoint
    min_side: int
    max_pixels: int
    facts: Mapping[str, str]  # ids: of the model, its tensors, weights, dataset, features and run
    reference: Reference | None = None
    damaged: str = "reject"  # or "accept": for damaged images, as ingest.damaged
    pixels_version: int = decoding.UNMANAGED  # of the images that it was trained on

    @property
    def model_id(self) -> str:
        """An id that covers the views: others give other probabilities."""
        return f"{self.facts['id']} tta {self.spec.tta}"

    @property
    def limits(self) -> ImageLimits:
        """Which images it accepts."""
        return ImageLimits(self.min_side, self.max_pixels, accept_damaged=self.damaged == "accept")

    def prepare(self, content: bytes) -> NDArray[np.uint8]:
        """Decode a file to the pixels that ingest stores, at the model's size. Raises `ImageError`."""
        return decoding.decode(content, self.spec.image_size, self.limits, self.pixels_version)

    def prepare_sized(self, content: bytes) -> NDArray[np.void]:
        """Decode a file to a record: `pixels` of `prepare`, `side`, the shorter one of the file, `damaged`, `profile`.

        `profile` is a place in `color.STATES`. Raises `ImageError`.
        """
        size = self.spec.image_size
        image = decoding.decode_described(content, size, self.limits, self.pixels_version)
        fields = [("pixels", np.uint8, (size, size, 3)), ("side", np.float32), ("damaged", bool), ("profile", np.uint8)]
        facts = min(image.width, image.height), image.damage is not None, color.STATES.index(image.profile)
        return np.array((image.pixels, *facts), np.dtype(fields))

    def finish(
        self,
        outputs: list[NDArray[np.float32]],
        errors: Sequence[ImageError | None],
        damaged: Sequence[bool] | None = None,
    ) -> pd.DataFrame:
        """Make one row of `OUTPUTS` for each image; probabilities are float64, NaN where the image was rejected.

        `raw_probability` is the network's, `probability` the calibrated one, which decides. `spread` is the standard
        deviation over several views, NaN of one. `distance` is that of `training_reference.FeatureSpace`, NaN without a
        reference.

        Args:
            outputs: Those of `network.average_over_views`, empty where no image could be decoded.
            errors: For each image why it was rejected, or None.
            damaged: For each image whether it gets that flag.
        """
        raw = spread = distance = np.full(len(errors), np.nan)
        if outputs:
            raw, spread = (each.reshape(-1).astype(np.float64) for each in outputs[:2])
        if outputs and self.reference is not None:
            distance = self.reference.space.distances(outputs[2])
        probability = self.calibration.apply(raw)
        point = self.operating_point
        scored = np.asarray([error is None for error in errors], dtype=bool)
        positive = np.nan_to_num(probability, nan=-1.0) >= point.threshold
        return pd.DataFrame(
            {
                "probability": probability,
                "raw_probability": raw,
                "spread": spread,
                "distance": distance,
                "decision": np.where(scored, np.where(positive, "positive", "negative"), ""),
                "operating_point": point.name,
                "threshold": point.threshold,
                "status": np.where(scored, "scored", "rejected"),
                "reason": [error.reason if error else None for error in errors],
                "detail": [error.detail if error else None for error in errors],
                "flags": [quality.DAMAGED if flag else None for flag in damaged or [False] * len(errors)],
            }
        )


def pack(scorer: Scorer) -> dict[str, bytes]:
    """Pack the scorer into files of `ARTIFACTS`: JSON and plain arrays, and their SHA-256."""
    description = {
        "format": 1,
        "spec": scorer.spec.model_dump(),
        "calibration": vars(scorer.calibration),
        "operating_point": vars(scorer.operating_point),
        "min_side": scorer.min_side,
        "max_pixels": scorer.max_pixels,
        "damaged": scorer.damaged,
        "pixels_version": scorer.pixels_version,
        "facts": dict(scorer.facts),
        "package": __version__,
        "warning": "research software; not a diagnosis, not a medical device",
    }
    contents = {
        "model.json": json.dumps(description, indent=1, sort_keys=True).encode(),
        "weights.npz": pack_tensors(scorer.tensors),
        **(scorer.reference.pack() if scorer.reference else {}),
    }
    sums = {name: hashes.sha256(content) for name, content in contents.items()}
    return contents | {MANIFEST: json.dumps(sums, indent=1, sort_keys=True).encode()}


def unpack(artifacts: Mapping[str, bytes]) -> Scorer:
    """Read the scorer of packed files. Raises `DataError` where they do not belong together or were changed."""
    try:
        sums = json.loads(artifacts[MANIFEST])
        referenced = any(name in sums for name in OPTIONAL)
        for name in (*CONTENTS, *(OPTIONAL if referenced else ())):
            sha256 = hashes.sha256(artifacts[name])
            if sha256 != sums[name]:
                raise DataError(
                    f"the model's {name} was changed after it was registered: SHA-256 {sha256}, "
                    f"{MANIFEST} has {sums[name]}; register it again"
                )
        description = json.loads(artifacts["model.json"])
        scorer = Scorer(
            spec=network.Spec.model_validate(description["spec"]),
            tensors=unpack_tensors(artifacts["weights.npz"]),
            calibration=Calibration(**description.get("calibration", {})),  # version 0.1 had none
            operating_point=OperatingPoint(**description["operating_point"]),
            min_side=int(description["min_side"]),
            max_pixels=int(description["max_pixels"]),
            damaged=description.get("damaged", "reject"),  # version 0.1 did not see damage
            pixels_version=int(description.get("pixels_version", decoding.UNMANAGED)),  # 0.2 did not convert profiles
            facts=description["facts"],
            reference=unpack_reference(artifacts) if referenced else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]  # pydantic's errors have several lines
        raise DataError(f"the model's description is damaged: {reason}; register it again") from None
    tensors_id = lineage.tensors_id(scorer.tensors)
    if tensors_id != scorer.facts.get("tensors_id"):
        raise DataError(
            f"the model's weights were changed after it was registered: content id {tensors_id}, "
            f"expected {scorer.facts.get('tensors_id')}; register it again"
        )
    return scorer


def from_files(paths: Mapping[str, str]) -> Scorer:
    """Read the scorer of packed files, whose names are keys of `paths`. Raises as `unpack`."""
    return unpack({key: Path(paths[key]).read_bytes() for key in ARTIFACTS if key in paths})
