"""Three Horovod ranks, and one: they see every image once and take the same steps."""

import os
import subprocess
import sys
import textwrap

import cloudpickle
import numpy as np
import small_training

from melanoma_spark.training import loop

SCRIPT = """
    import sys

    import cloudpickle

    sys.path.insert(0, {tests!r})
    import small_training
    from melanoma_spark.training import horovod
    from melanoma_spark.spark import session

    cloudpickle.register_pickle_by_value(small_training)  # ranks do not have this file on their path
    spark = session.start("three ranks")
    results = horovod.run_on_spark(spark, 3, 120, small_training.train_on_rank, 41, 8, True)
    assert all(small_training.same(results[0][0][0], result[0][0]) for result in results[1:])
    open({out!r}, "wb").write(cloudpickle.dumps(results[0]))
    spark.stop()
"""


def test_one_rank_and_three_take_the_same_steps(tmp_path):
    """Three ranks need three slots, so they are started by a Spark of their own."""
    (alone,) = small_training.train_on_rank(loop.Rank(), 41, 8)
    out = tmp_path / "three"
    script = textwrap.dedent(SCRIPT).format(tests=os.path.dirname(small_training.__file__), out=str(out))
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": "--master local[3] pyspark-shell"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=300)
    (weights, log, losses), half = cloudpickle.loads(out.read_bytes())
    assert [len(steps) for steps in losses] == [len(steps) for steps in alone[2]]
    for result, expected in zip(losses, alone[2], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4)
    np.testing.assert_allclose(log, alone[1], rtol=1e-4)
    for result, expected in zip(weights, alone[0], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    # as float16: seen, and of little consequence
    assert not np.allclose(half[1], alone[1], rtol=1e-5)
    np.testing.assert_allclose(half[1], alone[1], rtol=0.05)
