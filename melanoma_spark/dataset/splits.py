"""Group -> train, validation or test, or a fold, by hash: the same group always stands on the same side."""

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


def fold_of(group: str, folds: int, seed: int) -> int:
    """The fold of a group in cross-validation, 0 to folds - 1, each as likely. It depends on nothing else either.

    It uses another hash than `split_of`, whose lowest values are the test split.
    """
    digest = hashlib.sha256(f"fold:{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % folds
