"""One job of a kind at a time on a warehouse: a file says who is at it, and that it is still alive."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psutil

from melanoma_spark.background import every
from melanoma_spark.clock import REAL, Clock
from melanoma_spark.errors import BusyError, ClusterError, MelanomaError
from melanoma_spark.storage import files

BEAT = 10.0  # seconds between signs of life
STALE = 120.0  # seconds without one, after which a job on another machine counts as dead; clocks may differ by less
AGAIN = 2.0  # seconds after which one that waits looks again
SETTLE = 0.2  # seconds in which of two that start at once the later one has written


@dataclass(frozen=True)
class Lease:
    """What a job holds."""

    url: str
    job: str
    owner: str
    clock: Clock = REAL

    def check(self) -> None:
        """Raises `BusyError` when another job has it, which a machine that stood still for minutes allows.

        Raises `ClusterError` when it is gone: another job has had it, or the warehouse is another one than it was.
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
def held(warehouse: str, job: str, wait: float = 0, by: str = "", clock: Clock = REAL) -> Iterator[Lease]:
    """While in here, no other process gets in with the same names.

    Raises `BusyError` with who is at it, after `wait` seconds. A job that was killed on this machine holds nothing any
    more; one on another machine nothing after `STALE` seconds. `by` is who is told to be at it, where not the job.
    """
    url = files.join(warehouse, "running", f"{job}.json")
    until = clock.monotonic() + wait
    while True:
        try:
            with _taken(url, job, by or job, clock) as lease:
                yield lease
                return
        except _Refused as refused:
            if clock.monotonic() >= until:
                raise BusyError(str(refused)) from None
        clock.sleep(min(AGAIN, max(0.0, until - clock.monotonic())))


@contextmanager
def at_rest(warehouse: str, jobs: Collection[str], by: str, wait: float = 0) -> Iterator[Callable[[], None]]:
    """While in here, none of these jobs is at work, or starts. Yields a check that is `Lease.check` for each of them.

    Raises `BusyError` with who is at it: one of these, after `wait` seconds, or any other job.
    """
    with ExitStack() as stack:
        leases = [stack.enter_context(held(warehouse, job, wait, by)) for job in jobs]
        refuse_any(warehouse, but=jobs)

        def check() -> None:
            for lease in leases:
                lease.check()

        yield check


def refuse_any(warehouse: str, but: Collection[str] = (), clock: Clock = REAL) -> None:
    """Raises `BusyError` with who is at it where any job is, but for those of some names."""
    folder = files.join(warehouse, "running")
    for name in sorted(files.matches(folder, "*.json")):
        job = name.removesuffix(".json")
        if job not in but:
            _refuse(files.join(folder, name), job, "", clock)


@contextmanager
def _taken(url: str, job: str, by: str, clock: Clock) -> Iterator[Lease]:
    _refuse(url, job, "", clock, _Refused)
    own = uuid.uuid4().hex
    facts = {
        "owner": own,
        "by": by,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files.write_json(url, {**facts, "beat": clock.now()})
    clock.sleep(SETTLE)
    _refuse(url, job, own, clock, _Refused)
    lease = Lease(url, job, own, clock)

    def beat() -> None:
        with suppress(MelanomaError):  # the warehouse may be away for a moment; the job itself will say so
            lease.check()  # what another one holds is not taken back
            files.write_json(url, {**facts, "beat": clock.now()})

    try:
        with every(BEAT, beat):
            yield lease
    finally:
        with suppress(MelanomaError, OSError):  # where it cannot be given back it ends with the process
            lease.check()
            files.remove(url)


class _Refused(BusyError):
    """Of `held` alone: somebody was there first."""


def _refuse(url: str, job: str, own: str, clock: Clock, kind: type[BusyError] = BusyError) -> None:
    try:
        found = files.read_json(url) or {}
    except MelanomaError:  # torn; it is written anew
        return
    if not found or found.get("owner") == own or not _alive(found, clock):
        return
    left = STALE - (clock.now() - float(found["beat"]))
    raise kind(
        f"{found.get('by', job)} is already running on this warehouse, since {found['since']} on {found['host']} "
        f"(process {found['process']}); wait for it, or stop it: should it be dead, the way is free in "
        f"{max(left, 0):.0f} s"
    )


def _alive(found: dict[str, Any], clock: Clock) -> bool:
    if found["host"] == socket.gethostname():
        with suppress(psutil.Error):
            process = psutil.Process(found["process"])
            return bool(process.create_time() == found["process_started"] and process.status() != psutil.STATUS_ZOMBIE)
        return False
    return clock.now() - float(found["beat"]) < STALE
