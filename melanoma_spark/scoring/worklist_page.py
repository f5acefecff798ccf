"""The page a person opens in the morning: a batch of scores by patient and risk, with what each decision rests on.

What the model abstained from or could not read is never at the bottom: it comes first, because nobody has looked at it.
"""

from __future__ import annotations

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
COLUMNS = (
    *("rank", "patient_id", "image_id", "status", "decision", "probability", "raw_probability", "threshold", "spread"),
    *("distance", "operating_point", "flags", "reason", "detail", "sha256", "source_uri"),
    *("model_name", "model_version", "scored_at"),
)
# Blue to yellow to red would say "traffic light"; magma is even in lightness and read by the colour-blind
# (Smith and van der Walt, 2015). Five of its colours, from nothing to most.
MAGMA = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], np.float32)
STRENGTH = 0.7  # of the colours over the picture where it rests most


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
    """All that the page says."""

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
    """One HTML page; its pictures lie beside it and are loaded when they come into view. No script, no network."""
    pages.check_keys("a worklist", facts, Facts.__required_keys__)
    notable = facts["drift"].state in (
        statistics.DRIFTING,
        statistics.BEYOND,
    )  # what a person should see without asking
    return pages.render(
        "worklist.html", facts=facts, flags=quality.FLAGS, measures=MEASURES, notable=notable, side=THUMBNAIL
    )


def picture(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 RGB (size, size, 3), the crop that the model saw -> a small JPEG without metadata."""
    found = io.BytesIO()
    Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(found, "JPEG", quality=80)
    return found.getvalue()


def overlaid(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """`picture` under a map (h, w) in [0, 1] of what the decision rests on; a map of zeros leaves it as it is."""
    size = (pixels.shape[1], pixels.shape[0])
    wide = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    places = np.clip(wide, 0, 1) * (len(MAGMA) - 1)
    low = np.minimum(places.astype(int), len(MAGMA) - 2)
    part = (places - low)[..., None]
    colours = MAGMA[low] * (1 - part) + MAGMA[low + 1] * part
    weight = STRENGTH * np.clip(wide, 0, 1)[..., None]
    return picture((pixels * (1 - weight) + colours * weight).round().astype(np.uint8))


def row(found: Any, rank: int, shown: Mapping[str, tuple[str, str]]) -> Row:
    """A line for a row of `scores/`, as a mapping; `shown` are the pictures by SHA-256."""
    image, heat = shown.get(found["sha256"] or "", ("", ""))
    return Row(
        rank=rank,
        patient=found["patient_id"] or "",
        image_id=found["image_id"],
        status=found["status"],
        decision=found["decision"],
        probability=_number(found["probability"]),
        spread=_number(found["spread"]),
        flags=tuple((found["flags"] or "").split(",")) if found["flags"] else (),
        reason=f"{found['reason']}: {found['detail']}" if found["reason"] else "",
        image=image,
        heat=heat,
    )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
