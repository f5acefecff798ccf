"""Weights: they come back as they were, and nothing in a file of them can run code."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from melanoma_spark.errors import DataError
from melanoma_spark.storage.tensors import pack_tensors, unpack_tensors


@given(
    st.lists(
        st.sampled_from([np.float32, np.float16, np.int64]).flatmap(
            lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, max_side=4))
        ),
        max_size=12,
    )
)
@example([np.array(place) for place in range(1005)])
def test_tensors_come_back_in_order_with_dtype_and_shape(tensors):
    result = unpack_tensors(pack_tensors(tensors))
    assert [(t.dtype, t.shape, t.tobytes()) for t in result] == [(t.dtype, t.shape, t.tobytes()) for t in tensors]


class Bomb:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickle_in_the_archive_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "executed"
    buffer = io.BytesIO()
    np.savez(buffer, w000=np.ones(2), w001=np.array([Bomb(proof)], dtype=object))
    with pytest.raises(DataError, match="weights are damaged or hold something that is no array"):
        unpack_tensors(buffer.getvalue())
    assert not proof.exists()


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def single(tensor):
    buffer = io.BytesIO()
    np.save(buffer, tensor)
    return buffer.getvalue()


WHOLE = pack_tensors([np.arange(100.0), np.ones((3, 3))])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        pickle.dumps([1.0, 2.0]),
        single(np.zeros(3)),
        zipped("w000.npy", b"no array"),
        zipped("readme.txt", b"no array"),
        WHOLE[: len(WHOLE) // 2],
        WHOLE.replace(b"NUMPY", b"LUMPY", 1),
    ],
    ids=["empty", "text", "pickle", "one array", "text as npy", "text beside", "truncated", "damaged"],
)
def test_anything_but_an_archive_of_arrays_is_refused(content):
    with pytest.raises(DataError, match="weights are damaged or hold something that is no array"):
        unpack_tensors(content)


@given(st.integers(0, WHOLE.index(b"PK\1\2") - 1), st.integers(1, 255))
def test_damaged_members_are_never_read_as_other_weights(place, change):
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    try:
        result = unpack_tensors(bytes(damaged))
    except DataError:
        result = None
    if result is not None:  # a byte that says nothing of the content, such as a member's date
        assert [tensor.tobytes() for tensor in result] == [np.arange(100.0).tobytes(), np.ones((3, 3)).tobytes()]


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_archive_is_refused_wherever_it_ends(end):
    with pytest.raises(DataError):
        unpack_tensors(WHOLE[:end])
