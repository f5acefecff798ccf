"""Whether the executors are fit for ranks: asked in a second, before anything that takes minutes to fail is started."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import socket
from collections.abc import Iterator
from typing import Any

from melanoma_spark import __version__, files, session
from melanoma_spark.errors import ClusterError

PACKAGES = ("horovod", "keras", "numpy", "petastorm", "tensorflow", "tensorflow-cpu")


def check(spark: Any, size: int) -> None:
    """Return when `size` tasks can run at once, with the driver's versions, and reach it and each other.

    Takes a second or two. Raises `ClusterError` with the executor and what is wrong with it.
    """
    session.wait_for_slots(spark, size)
    here = versions()
    with socket.create_server(("", 0), backlog=1024) as listening:
        driver = (str(spark.conf.get("spark.driver.host")), str(listening.getsockname()[1]))
        tasks = spark.sparkContext.parallelize(range(size), size).barrier()
        for host, found, unreachable in tasks.mapPartitions(functools.partial(_probe, driver)).collect():
            other = {name for name in here | found if here.get(name) != found.get(name)}
            if other:
                told = ", ".join(
                    f"{name} {found.get(name, 'none')} (driver: {here.get(name, 'none')})" for name in sorted(other)
                )
                raise ClusterError(f"executor on {host} has {told}; install the driver's versions there")
            if unreachable:
                raise ClusterError(
                    f"executor on {host} cannot reach {unreachable}; ranks talk to each other and to the "
                    "driver on ports that the system gives them: open those between the machines of the cluster"
                )


def versions() -> dict[str, str]:
    """Of Python and the packages that ranks share with the driver, as far as they are installed."""
    found = {"Python": platform.python_version(), "melanoma_spark": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _probe(driver: tuple[str, str], _: Iterator[int]) -> Iterator[tuple[str, dict[str, str], str]]:
    """In a barrier task: (host, versions, what cannot be reached)."""
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    host = socket.gethostname()
    unreachable = []
    with socket.create_server(("", 0), backlog=1024) as listening:
        address = context.getTaskInfos()[context.partitionId()].address.rpartition(":")[0] or host
        others = context.allGather(f"{address} {listening.getsockname()[1]}")
        for name, port in [driver, *(other.split() for other in others)]:
            try:
                socket.create_connection((name, int(port)), timeout=5).close()
            except OSError as error:
                unreachable.append(f"{name}:{port} ({files.reason(error)})")
        context.barrier()  # listening until all have tried
    yield host, versions(), ", ".join(unreachable)
