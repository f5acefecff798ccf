"""Renders the page of a worklist: a batch of scores by patient and risk, with what each decision rests on."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from melanoma_spark import pages
from melanoma_spark.images import formats, quality
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import MEASURES

THUMBNAIL = 160  # pixels, the side


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
    rows: Sequence[Mapping[str, Any]]  # of `scores/`, with their rank
    pictures: Mapping[str, tuple[str, str]]  # SHA-256 -> two files beside the page: the image, and with its heat map
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
    small = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return formats.encode(small, "JPEG", quality=80)
