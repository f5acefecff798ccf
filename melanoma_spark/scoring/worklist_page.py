"""Renders the page of a worklist: a batch of scores by patient and risk, with what each decision rests on."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from melanoma_spark import pages
from melanoma_spark.images import quality
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import MEASURES

THUMBNAIL = 160  # pixels, the side
# Green to yellow to red would look like a traffic light; magma is even in lightness, and color-blind people can read it
# (Smith and van der Walt, 2015). Five of its colors, from nothing to most.
MAGMA = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], np.float32)
STRENGTH = 0.7  # of the colors over the picture, where the decision rests most


class Row(TypedDict):
    """A line of the list; `image` and `heat` are names of files beside the page, empty where there is none."""

    rank: int
    patient: str
    image_id: str
    status: str
    decision: str
    probability: float
    spread: float
    flags: tuple[str, ...]
    reason: str
    image: str
    heat: str


class Facts(TypedDict):
    """All that the page shows."""

    batch_id: str
    created_at: str  # ISO 8601, UTC
    model: str
    target: str
    operating_point: str
    threshold: float
    counts: Mapping[str, int]
    reasons: Mapping[str, int]  # of rejected and abstained images
    flags: Mapping[str, int]
    patients: int  # 0 where the archive names none
    rows: Sequence[Row]
    left_out: int  # rows that only the CSV holds
    expected: float  # positives among a hundred by the calibrated probabilities
    drift: statistics.Drift
    notes: Sequence[str]  # what the archive's tables leave unclear


def render(facts: Facts) -> str:
    """Render the HTML page. Its pictures are files beside it, loaded when they come into view; it has no script."""
    pages.check_keys("a worklist", facts, Facts.__required_keys__)
    notable = facts["drift"].state in (statistics.DRIFTING, statistics.BEYOND)  # a person should see it at once
    return pages.render(
        "worklist.html", facts=facts, flags=quality.FLAGS, measures=MEASURES, notable=notable, side=THUMBNAIL
    )


def picture(pixels: NDArray[np.uint8]) -> bytes:
    """Return the crop that the model saw, uint8 RGB (size, size, 3), as a small JPEG without metadata."""
    jpeg = io.BytesIO()
    Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """Return `picture` under a map (h, w) in [0, 1] of what the decision rests on; zeros leave it as it is."""
    size = (pixels.shape[1], pixels.shape[0])
    map_ = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    positions = np.clip(map_, 0, 1) * (len(MAGMA) - 1)
    low = np.minimum(positions.astype(int), len(MAGMA) - 2)
    part = (positions - low)[..., None]
    colors = MAGMA[low] * (1 - part) + MAGMA[low + 1] * part
    weight = STRENGTH * np.clip(map_, 0, 1)[..., None]
    return picture((pixels * (1 - weight) + colors * weight).round().astype(np.uint8))


def row(score: Mapping[str, Any], rank: int, pictures: Mapping[str, tuple[str, str]]) -> Row:
    """Return the line of a row of `scores/`; `pictures` are names of files by SHA-256."""
    image, heat = pictures.get(score["sha256"] or "", ("", ""))
    return Row(
        rank=rank,
        patient=score["patient_id"] or "",
        image_id=score["image_id"],
        status=score["status"],
        decision=score["decision"],
        probability=_number(score["probability"]),
        spread=_number(score["spread"]),
        flags=tuple((score["flags"] or "").split(",")) if score["flags"] else (),
        reason=f"{score['reason']}: {score['detail']}" if score["reason"] else "",
        image=image,
        heat=heat,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
