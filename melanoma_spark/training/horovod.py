"""Ranks: one function run on each of them, by Horovod on Spark or, with the same interface, in this process.

What a rank offers to training is `training.Rank`.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np

from melanoma_spark import logs
from melanoma_spark.errors import ClusterError, MelanomaError, error_of_task
from melanoma_spark.spark import session


class Alone:
    """The in-process twin: one rank and nobody to talk to."""

    rank, size = 0, 1
    gpus: Sequence[str] = ()

    def optimizer(self, learning_rate: float, float16: bool = False) -> Any:
        return adam()(learning_rate)

    def broadcast(self, variables: list[Any]) -> None:
        return None

    def gather(self, values: np.ndarray) -> np.ndarray:
        return values


class HorovodRank:
    """A rank of an initialised Horovod. Made on the rank itself."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd
        from horovod.spark.task import get_available_devices

        hvd.init()
        self.gpus = get_available_devices()  # that Spark gave the rank's task
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()

    def optimizer(self, learning_rate: float, float16: bool = False) -> Any:
        hvd = self._hvd
        compression = hvd.Compression.fp16 if float16 else hvd.Compression.none

        class AveragedAdam(adam()):  # type: ignore[misc]
            # Horovod's own Keras wrappers call `var.ref()`, which Keras 3 variables do not have.
            def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
                averaged = hvd.grouped_allreduce(list(grads), op=hvd.Average, compression=compression)
                return super().apply(averaged, trainable_variables)

        return AveragedAdam(learning_rate)

    def broadcast(self, variables: list[Any]) -> None:
        self._hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def gather(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._hvd.allgather(values))


def adam() -> Any:
    """Keras's Adam, a class, whose step is TensorFlow's own operation for it.

    Keras's is ten operations, each of which goes through the memory of all weights. Every rank updates all of them, at
    the same time as the others, so this was 5 % of a step of block 5.
    """
    import keras
    import tensorflow as tf

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            place = self._get_variable_index(variable)
            beta_1, beta_2, step = (tf.cast(n, variable.dtype) for n in (self.beta_1, self.beta_2, self.iterations + 1))
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[place].value.handle,
                v=self._velocities[place].value.handle,
                beta1_power=beta_1**step,
                beta2_power=beta_2**step,
                lr=tf.cast(learning_rate, variable.dtype),
                beta1=beta_1,
                beta2=beta_2,
                epsilon=tf.cast(self.epsilon, variable.dtype),
                grad=tf.cast(gradient, variable.dtype),
            )

    return Adam


def run_alone(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`[work(rank, *arguments)]` in this process."""
    return [work(Alone(), *arguments)]


def run_on_spark(
    spark: Any, size: int, start_timeout: int, work: Callable[..., Any], *arguments: Any, retries: int = 0
) -> list[Any]:
    """`work(rank, *arguments)` on `size` Horovod ranks, each in a Spark task; results in rank order.

    When a rank is lost, all of them are started again, `retries` times: `work` goes on from its last checkpoint.
    Raises the error of this package that a rank ended with, which another try would meet again; else `ClusterError`
    with the reason.
    """
    for left in range(retries, -1, -1):
        # Horovod would wait for them in vain, and so would another try
        session.wait_for_slots(spark, size, lost=left < retries)
        try:
            return _run(spark, size, start_timeout, work, arguments)
        except ClusterError as error:
            if not left:
                raise
            again = "the last one" if left == 1 else f"one of {left} more"
            logs.warning(f"{error}; starting again from the last checkpoint, {again}", "ranks_lost")
    raise AssertionError("range(retries, -1, -1) is not empty")


def _run(spark: Any, size: int, start_timeout: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    import horovod.spark

    threads = spark.conf.get("spark.task.cpus", "1")
    shipped = [path.removeprefix("file:") for path in spark.conf.get("spark.submit.pyFiles", "").split(",") if path]
    environment = {  # added to the executor's own; nothing of the driver's environment travels
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HOROVOD_LOG_LEVEL": "error",
        "PYTHONUNBUFFERED": "1",
    }
    # Horovod's Spark thread ends with an exception of its own when a rank fails; ours says it in one line. Others of
    # its threads take with them what went wrong, and leave the ranks to wait until they time out.
    fallen: list[Any] = []
    hook, threading.excepthook = threading.excepthook, fallen.append
    errors = _Relay(sys.stderr)
    try:
        with _output_by_line():
            results: list[Any] = horovod.spark.run(
                _on_rank(shipped, work, arguments),
                num_proc=size,
                start_timeout=start_timeout,
                use_gloo=True,
                env=environment,
                stdout=_Relay(sys.stdout),
                stderr=errors,
                verbose=0,
                executable=os.environ.get("PYSPARK_PYTHON") or sys.executable,
            )
    except Exception as error:
        # Horovod raises the bare class for all that can happen: a rank that failed, tasks that did not start in time
        if errors.ours:
            raise errors.ours from error
        started = "Timed out" not in str(error)
        why = "".join(f"; {one.thread.name}: {one.exc_value!r}"[:300] for one in fallen)
        raise ClusterError(
            f"training on {size} ranks ended early: a rank failed, its own message, if it had one, stands above"
            if started
            else f"training on {size} ranks did not start within {start_timeout} s: {str(error).splitlines()[0]}{why}"
        ) from error
    finally:
        threading.excepthook = hook
    return results


def _on_rank(shipped: list[str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """What Horovod runs on each rank. Spark puts shipped files on the path of its own Python workers only.

    So the function travels by value, and the rest as bytes that are read when the path is set. Executors have shipped
    files in their working folder, a local master where the driver has them.
    """
    packed = cloudpickle.dumps((work, arguments))

    def start() -> Any:
        import os
        import sys

        import cloudpickle

        sys.path[:0] = [place for path in shipped for place in (os.path.abspath(os.path.basename(path)), path)]
        work, arguments = cloudpickle.loads(packed)
        from melanoma_spark.training.horovod import HorovodRank

        return work(HorovodRank(), *arguments)

    return start


@contextlib.contextmanager
def _output_by_line() -> Iterator[None]:
    """While Horovod runs, hand on each line that a rank prints when it comes.

    Horovod 0.28.1 copies the ranks' output from their sockets in blocks of 64 KiB: what is shorter is seen when the
    rank has ended, and a block may end within a line.
    """
    from horovod.runner.common.util import network

    def copy(source: Any, target: Any) -> None:
        if not isinstance(source, codecs.StreamReader):  # the rank's side, which sends at once
            return shutil.copyfileobj(source, target)
        lines: Any = source.stream
        for line in lines:
            target.write(line.decode("utf-8", "replace"))

    network.shutil = SimpleNamespace(copyfileobj=copy)
    try:
        yield
    finally:
        network.shutil = shutil


class _Relay:
    """The ranks' output in the driver's log: rank 0's plain, the others' with their number."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.ours: MelanomaError | None = None  # the first error of this package among what went through

    def write(self, text: str) -> None:
        for rank, line in _PREFIXED.findall(text):
            self.ours = self.ours or error_of_task(line)
            self._stream.write(line if rank == "0" else f"rank {rank}: {line}")
        if not _PREFIXED.match(text):
            self._stream.write(text)
        self._stream.flush()  # progress is of use while it is news

    def flush(self) -> None:
        self._stream.flush()


_PREFIXED = re.compile(r"\[(\d+)\]<std(?:out|err)>:([^\n]*\n?)")
