"""Runs a function on each rank, by Horovod on Spark."""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import cloudpickle
import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from melanoma_spark import config, logs
from melanoma_spark.errors import ClusterError, ConfigError, MelanomaError, error_of_task
from melanoma_spark.spark import checks, session
from melanoma_spark.training import loop

if TYPE_CHECKING:
    import keras


Result = TypeVar("Result")


class HorovodRank(loop.Rank):
    """A rank of Horovod, which is initialized here. Made on the rank itself."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd
        from horovod.spark.task import get_available_devices

        hvd.init()
        self.gpus = get_available_devices()  # that Spark gave the rank's task
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()

    def optimizer(self, learning_rate: float, float16: bool = False) -> keras.Optimizer:
        """Return an Adam, see `loop.Rank`."""
        import keras

        hvd = self._hvd
        compression = hvd.Compression.fp16 if float16 else hvd.Compression.none

        class AveragedAdam(keras.optimizers.Adam):  # type: ignore[misc]
            # Horovod's own Keras wrappers call `var.ref()`, which Keras 3 variables do not have.
            def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
                averaged = hvd.grouped_allreduce(list(grads), op=hvd.Average, compression=compression)
                return super().apply(averaged, trainable_variables)

        return AveragedAdam(learning_rate)

    def broadcast(self, variables: list[keras.Variable]) -> None:
        """Set variables to rank 0's values."""
        self._hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the concatenation of the ranks' arrays."""
        return np.asarray(self._hvd.allgather(values))


def is_installed() -> bool:
    """Return whether Horovod can be imported here."""
    return importlib.util.find_spec("horovod") is not None


def required_ranks(settings: config.Settings) -> int:
    """Return the number of ranks that the settings name; one where they leave it at its default."""
    return settings.ranks if "ranks" in settings.model_fields_set else 1


def choose_ranks(settings: config.Settings) -> int:
    """Return the number of ranks: one where Horovod is not installed and the settings name no number.

    Raises `ConfigError` if the settings ask for several ranks and Horovod is not installed.
    """
    if is_installed():
        return settings.ranks
    if required_ranks(settings) > 1:
        raise ConfigError(
            f"ranks={settings.ranks}, but Horovod is not installed; install it by `{checks.INSTALL_HOROVOD}`, or set "
            "ranks=1"
        )
    return 1


def run_on_spark(
    spark: SparkSession, size: int, start_timeout: int, work: Callable[..., Result], *arguments: Any, retries: int = 0
) -> list[Result]:
    """Run `work(rank, *arguments)` on `size` Horovod ranks, each in a Spark task; return the results in rank order.

    When a rank is lost, all of them start again, up to `retries` times: `work` resumes from its last checkpoint.

    Raises:
        MelanomaError: What a rank raised. It is not tried again, because it would fail again.
        ClusterError: The ranks did not start, or one was lost, and no retry is left.
    """
    for left in range(retries, -1, -1):
        session.wait_for_slots(spark, size, lost=left < retries)  # Horovod does not say what it waits for
        try:
            return _run_once(spark, size, start_timeout, work, arguments)
        except ClusterError as error:
            if not left:
                raise
            tries = "the last try" if left == 1 else f"{left} tries are left"
            logs.warning(f"{error}; starting again from the last checkpoint, {tries}", "ranks_lost")
    raise AssertionError("range(retries, -1, -1) is not empty")


def _run_once(
    spark: SparkSession, size: int, start_timeout: int, work: Callable[..., Result], arguments: tuple[Any, ...]
) -> list[Result]:
    import horovod.spark

    threads = spark.conf.get("spark.task.cpus", "1")
    py_files = str(spark.conf.get("spark.submit.pyFiles", "")).split(",")
    environment = {  # added to the executor's own; nothing of the driver's environment travels
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HOROVOD_LOG_LEVEL": "error",
        "PYTHONUNBUFFERED": "1",
    }
    # Horovod's Spark thread ends with an exception when a rank fails; this module reports it in one line. An exception
    # in another of its threads leaves the ranks waiting until they time out, so it belongs in the error.
    thread_errors: list[threading.ExceptHookArgs] = []
    hook, threading.excepthook = threading.excepthook, thread_errors.append
    errors = _RankOutput(sys.stderr)
    try:
        with _forward_lines():
            results: list[Result] = horovod.spark.run(
                _function_of_rank([path.removeprefix("file:") for path in py_files if path], work, arguments),
                num_proc=size,
                start_timeout=start_timeout,
                use_gloo=True,
                env=environment,
                stdout=_RankOutput(sys.stdout),
                stderr=errors,
                verbose=0,
                executable=os.environ.get("PYSPARK_PYTHON") or sys.executable,
            )
    except Exception as error:  # Horovod raises the bare class for a failed rank and for a slow start
        if errors.error:
            raise errors.error from error
        if "Timed out" not in str(error):
            message = "ended early: a rank failed; its own message, if it had one, stands above"
        else:
            why = "".join(f"; {one.thread and one.thread.name}: {one.exc_value!r}"[:300] for one in thread_errors)
            message = f"did not start within {start_timeout} s: {str(error).splitlines()[0]}{why}"
        raise ClusterError(f"training on {size} ranks {message}") from error
    finally:
        threading.excepthook = hook
    return results


def _function_of_rank(
    py_files: list[str], work: Callable[..., Result], arguments: tuple[Any, ...]
) -> Callable[[], Result]:
    """Return what Horovod runs on each rank.

    Spark puts shipped files on the path of its own Python workers only. So the function travels by value, and the rest
    as bytes that are read once the path is set. Executors have shipped files in their working folder, a local master
    where the driver has them.
    """
    packed = cloudpickle.dumps((work, arguments))

    def start() -> Result:
        import os
        import sys

        import cloudpickle

        sys.path[:0] = [place for path in py_files for place in (os.path.abspath(os.path.basename(path)), path)]
        work, arguments = cloudpickle.loads(packed)
        from melanoma_spark.training.horovod import HorovodRank

        result: Result = work(HorovodRank(), *arguments)
        return result

    return start


@contextlib.contextmanager
def _forward_lines() -> Iterator[None]:
    """Forward each line that a rank prints at once while Horovod runs.

    Horovod 0.28.1 copies the ranks' output from their sockets in blocks of 64 KiB. A shorter output appears only when
    the rank ends, and a block may end within a line.
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


class _RankOutput:
    """Writes the ranks' output to the driver's log: rank 0's lines as they are, the others' with their number."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: MelanomaError | None = None  # the first error of this package in the output

    def write(self, text: str) -> None:
        for rank, line in _PREFIXED.findall(text):
            self.error = self.error or error_of_task(line)
            self._stream.write(line if rank == "0" else f"rank {rank}: {line}")
        if not _PREFIXED.match(text):
            self._stream.write(text)
        self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()


_PREFIXED = re.compile(r"\[(\d+)\]<std(?:out|err)>:([^\n]*\n?)")
