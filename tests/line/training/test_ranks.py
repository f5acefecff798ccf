"""Ranks: two real ones of Horovod, started by Spark, and the error when one fails."""

import io
import os
import threading
import time

import numpy as np
import pytest

from melanoma_spark.errors import ClusterError
from melanoma_spark.training import horovod, loop


def work(ragged):
    """What each rank does: a function made here, since the ranks cannot import a test."""

    def on_rank(rank):
        import os
        import sys
        import time

        import keras

        result = {"rank": rank.rank, "size": rank.size, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}
        result["secret"] = os.environ.get("MELANOMA_TEST_SECRET")
        result["printed_at"] = time.time()
        print(f"rank {rank.rank} is here")
        time.sleep(3)
        print("\u00e9" * 40_000)  # more than a block, of letters that are two bytes long
        print(f"rank {rank.rank} warns", file=sys.stderr)
        result["gathered"] = [rank.gather(values[rank.rank]) for values in ragged]

        keras.utils.set_random_seed(rank.rank)
        variables = [keras.Variable(np.full((2, 3), 10.0 + rank.rank)), keras.Variable(np.float32(rank.rank))]
        rank.broadcast(variables)
        result["broadcast"] = [variable.numpy() for variable in variables]

        optimizer = rank.optimizer(0.1)
        optimizer.build(variables)
        for step in range(3):
            optimizer.apply([np.full((2, 3), rank.rank * 4.0 - 1, "float32"), np.float32(step - rank.rank)], variables)
        result["stepped"] = [variable.numpy() for variable in variables]

        return result

    return on_rank


RAGGED = [
    [np.arange(3, dtype=np.float64), np.arange(5, dtype=np.float64) + 10],
    [np.zeros((0, 2), np.float32), np.ones((2, 2), np.float32)],
    [np.asarray([2**40, -1], np.int64), np.asarray([7], np.int64)],
]


class Stream(io.StringIO):
    """Remembers when it was first written to."""

    first = float("inf")

    def write(self, text):
        self.first = min(self.first, time.time())
        return super().write(text)


@pytest.fixture(scope="module")
def two(spark):
    """What two ranks found, and all that they printed."""
    with pytest.MonkeyPatch.context() as only_here:
        out, err = Stream(), Stream()
        only_here.setattr("sys.stdout", out)
        only_here.setattr("sys.stderr", err)
        only_here.setenv("MELANOMA_TEST_SECRET", "stays on the driver")
        result = horovod.run_on_spark(spark, 2, 120, work(RAGGED))
    return result, out, err


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as only_here:
        only_here.setenv("OMP_NUM_THREADS", "1")
        return work([[values[0]] for values in RAGGED])(loop.Rank())


def test_two_ranks_run_in_own_processes_and_print_to_the_driver(two):
    result = two[0]
    assert [(one["rank"], one["size"]) for one in result] == [(0, 2), (1, 2)]
    assert len({os.getpid(), *(one["pid"] for one in result)}) == 3
    assert {one["threads"] for one in result} == {"1"}
    assert [one["secret"] for one in two[0]] == [None, None]

    result, out, err = two
    long = "\u00e9" * 40_000
    expected = ["rank 0 is here", long, "rank 1: rank 1 is here", f"rank 1: {long}"]
    assert sorted(out.getvalue().splitlines()) == sorted(expected)
    assert "rank 0 warns" in err.getvalue().splitlines()
    assert "rank 1: rank 1 warns" in err.getvalue().splitlines()
    assert out.first - min(one["printed_at"] for one in result) < 2


def test_ranks_gather_broadcast_and_average(two):
    for one in two[0]:
        for gathered, parts in zip(one["gathered"], RAGGED, strict=True):
            np.testing.assert_array_equal(gathered, np.concatenate(parts), strict=True)
    for one in two[0]:
        np.testing.assert_array_equal(one["broadcast"][0], np.full((2, 3), 10.0))
        assert one["broadcast"][1] == 0.0

    import keras

    variables = [keras.Variable(np.full((2, 3), 10.0)), keras.Variable(np.float32(0))]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    for step in range(3):
        optimizer.apply([np.full((2, 3), 1.0, "float32"), np.float32(step - 0.5)], variables)
    for one in two[0]:
        for result, expected in zip(one["stepped"], variables, strict=True):
            np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_one_rank_in_this_process(alone):
    assert (alone["rank"], alone["size"], alone["pid"]) == (0, 1, os.getpid())
    for gathered, parts in zip(alone["gathered"], RAGGED, strict=True):
        np.testing.assert_array_equal(gathered, parts[0], strict=True)


def test_a_rank_that_fails_ends_them_all_in_one_line(spark, monkeypatch):
    def on_rank(rank):
        if rank.rank == 1:
            raise ZeroDivisionError("the second rank's own message")
        return rank.gather(np.zeros(1))  # waits for the other

    out, hook = io.StringIO(), threading.excepthook
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", out)
    with pytest.raises(ClusterError, match="training on 2 ranks ended early: a rank failed") as caught:
        horovod.run_on_spark(spark, 2, 120, on_rank)
    assert "\n" not in str(caught.value)
    assert "rank 1: ZeroDivisionError: the second rank's own message" in out.getvalue().splitlines()
    assert threading.excepthook is hook
    assert spark.range(10).count() == 10  # the session goes on
