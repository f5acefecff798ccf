"""Content ids: the same result of the same sources has the same id, wherever and whenever it was made."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import __version__

LENGTH = 16  # hexadecimal digits: 64 bits, enough to distinguish the datasets and models of one warehouse


def content_id(facts: Mapping[str, Any] | Sequence[Any]) -> str:
    """Compute an id of JSON-like facts; the order of keys does not matter."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def tensors_id(tensors: Iterable[NDArray[Any]]) -> str:
    """Compute an id of weights by shape, dtype and value, in order, whatever file held them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype.str}{tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()[:LENGTH]


def checkout() -> Path:
    """Return the folder this code was started from. Spark ships a zip, so this file may lie elsewhere."""
    here = Path(__file__).resolve().parents[1]
    return here if here.is_dir() else Path(sys.argv[0]).resolve().parents[1]


def commit() -> str:
    """Return the git commit of the code, or the package's version outside a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=checkout(), capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"release {__version__}"
