"""Content ids: the same thing made from the same things has the same id, wherever and whenever it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LENGTH = 16  # hexadecimal digits: 64 bits, enough to tell the datasets and models of one warehouse apart


def content_id(facts: Mapping[str, Any] | Sequence[Any]) -> str:
    """An id of JSON-like facts; the order of keys does not matter."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def rows_id(rows: Iterable[Sequence[Any]]) -> str:
    """An id of a table's rows, whatever their order."""
    digest = hashlib.sha256()
    for line in sorted(json.dumps(list(row)) for row in rows):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:LENGTH]


def tensors_id(tensors: Iterable[np.ndarray]) -> str:
    """An id of weights by shape, dtype and value, in order; the file that held them does not matter."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype.str}{tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()[:LENGTH]
