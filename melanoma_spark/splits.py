"""Group -> train, validation or test, by hash: the same group always stands on the same side."""

from __future__ import annotations

import hashlib

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


def split_of(group: str, seed: int, test_fraction: float, validation_fraction: float) -> str:
    """The side of a group. It depends on nothing else in the archive, so a grown archive moves no group."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_fraction:
        return TEST
    return VALIDATION if place < test_fraction + validation_fraction else TRAIN
