"""Leases: one job of a kind runs on a warehouse at a time. A file says which, and that it is alive."""

import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psutil

from melanoma_spark.background import periodic
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import BusyError, ClusterError, MelanomaError
from melanoma_spark.storage import files

BEAT = 10.0  # seconds between renewals
STALE = 120.0  # seconds after which a lease from another machine is void; clocks may differ by less
RETRY = 2.0  # seconds between attempts of a job that waits
SETTLE = 0.2  # seconds within which, of two jobs that start at once, the later one has written


@dataclass(frozen=True)
class Lease:
    """The right of a job to run on a warehouse."""

    url: str
    job: str
    owner: str
    clock: Clock = REAL

    def check(self) -> None:
        """Raise `BusyError` when another job has the lease, which may happen when a machine stands still for minutes.

        Raises `ClusterError` when it is gone: another job had it since, or the warehouse is another one than before.
        """
        _refuse(self.url, self.job, self.owner, self.clock)
        try:
            owner = (files.read_json(self.url) or {}).get("owner")
        except MelanomaError:
            owner = None
        if owner != self.owner:
            raise ClusterError(
                f"{self.url} is not this job's any more: the warehouse was away, or the job stood still and another "
                f"one ran meanwhile; nothing more is changed, run {self.job} again"
            )


@contextmanager
def acquire(warehouse: str, job: str, wait: float = 0, by: str = "", clock: Clock = REAL) -> Iterator[Lease]:
    """Hold the lease of a job until the end, so that no other process gets it.

    Raises `BusyError` naming the other job, after `wait` seconds. The lease of a job that was killed on this machine is
    void at once, that of one on another machine after `STALE` seconds. `by` is the name to show where it is not `job`.
    """
    url = files.join(warehouse, "running", f"{job}.json")
    until = clock.monotonic() + wait
    while True:
        try:
            with _write_lease(url, job, by or job, clock) as lease:
                yield lease
                return
        except _RefusedError as refused:
            if clock.monotonic() >= until:
                raise BusyError(str(refused)) from None
        clock.sleep(min(RETRY, max(0.0, until - clock.monotonic())))


@contextmanager
def block_jobs(warehouse: str, jobs: Collection[str], by: str, wait: float = 0) -> Iterator[Callable[[], None]]:
    """Keep all of these jobs from running until the end. Yields a function that does `Lease.check` for each of them.

    Raises `BusyError` naming one of these that runs, after `wait` seconds, or any other job.
    """
    with ExitStack() as stack:
        leases = [stack.enter_context(acquire(warehouse, job, wait, by)) for job in jobs]
        check_idle(warehouse, but=jobs)

        def check() -> None:
            for lease in leases:
                lease.check()

        yield check


def check_idle(warehouse: str, but: Collection[str] = (), clock: Clock = REAL) -> None:
    """Raise `BusyError` naming a job that runs on the warehouse, except those of some names."""
    folder = files.join(warehouse, "running")
    for name in sorted(files.list_names(folder, "*.json")):
        job = name.removesuffix(".json")
        if job not in but:
            _refuse(files.join(folder, name), job, "", clock)


@contextmanager
def _write_lease(url: str, job: str, by: str, clock: Clock) -> Iterator[Lease]:
    _refuse(url, job, "", clock, _RefusedError)
    owner = uuid.uuid4().hex
    values = {
        "owner": owner,
        "by": by,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files.write_json(url, {**values, "beat": clock.now()})
    clock.sleep(SETTLE)
    _refuse(url, job, owner, clock, _RefusedError)
    lease = Lease(url, job, owner, clock)

    def renew() -> None:
        with suppress(MelanomaError):  # the warehouse may be away for a moment; the job itself will report it
            lease.check()  # the lease of another job is not overwritten
            files.write_json(url, {**values, "beat": clock.now()})

    try:
        with periodic(BEAT, renew):
            yield lease
    finally:
        with suppress(MelanomaError, OSError):  # a lease that cannot be removed ends with the process
            lease.check()
            files.remove(url)


class _RefusedError(BusyError):
    """Another job has the lease that `acquire` tries to get."""


def _refuse(url: str, job: str, owner: str, clock: Clock, kind: type[BusyError] = BusyError) -> None:
    """Raise an error where a job other than `owner` holds the lease and is alive."""
    try:
        values = files.read_json(url) or {}
    except MelanomaError:  # torn; it is written again
        return
    if not values or values.get("owner") == owner or not _is_alive(values, clock):
        return
    left = STALE - (clock.now() - float(values["beat"]))
    raise kind(
        f"{values.get('by', job)} is already running on this warehouse, since {values['since']} on {values['host']} "
        f"(process {values['process']}); wait for it, or stop it: if it is dead, the lease ends in {max(left, 0):.0f} s"
    )


def _is_alive(values: Mapping[str, Any], clock: Clock) -> bool:
    if values["host"] == socket.gethostname():
        with suppress(psutil.Error):
            process = psutil.Process(values["process"])
            same = process.create_time() == values["process_started"]
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        return False
    return clock.now() - float(values["beat"]) < STALE
