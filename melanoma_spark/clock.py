"""The time, as an argument: what waits is given a clock, and tests give it one that does not wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """`now` is in seconds since 1970, `monotonic` in seconds since any moment; `sleep` takes seconds."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


REAL = Clock()
