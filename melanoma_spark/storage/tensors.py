"""Network weights as .npz files: arrays only, nothing in them can run code."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import DataError

WEIGHTS = "weights.npz"  # in the folder of a model


def pack_tensors(tensors: list[NDArray[Any]]) -> bytes:
    """Write tensors as one .npz, in their order."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"w{place:03d}": tensor for place, tensor in enumerate(tensors)})
    return buffer.getvalue()


def unpack_tensors(content: bytes) -> list[NDArray[Any]]:
    """Read the tensors of an .npz in their order. Raises `DataError` when the content is anything but plain arrays."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            tensors = [archive[name] for name in archive.files]
    except Exception as error:
        raise DataError(f"weights are damaged or hold something that is no array: {error}") from None
    if not all(isinstance(tensor, np.ndarray) for tensor in tensors):  # numpy returns other members as bytes
        raise DataError("weights are damaged or hold something that is no array")
    return tensors
