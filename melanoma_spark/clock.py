"""The time, as an argument: what waits is given a clock, and tests give it one that does not wait."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Clock:
    """`now` is in seconds since 1970, `monotonic` in seconds since any moment; `sleep` takes seconds."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


REAL = Clock()


@dataclass
class Backoff:
    """When to try again what failed: after `first` seconds, then each time after twice as long, at most `longest`."""

    first: float
    longest: float
    clock: Clock = field(default=REAL)
    failures: int = 0
    again: float = 0.0  # the next attempt's time, by `clock.monotonic`

    def failed(self) -> float:
        """Seconds until the next attempt."""
        wait = min(self.first * 2.0 ** min(self.failures, 60), self.longest)  # 2.0**1024 is no float
        self.failures += 1
        self.again = self.clock.monotonic() + wait
        return wait

    def succeeded(self) -> None:
        """Start with the first wait again."""
        self.failures = 0

    @property
    def over(self) -> bool:
        """Whether the wait is over."""
        return self.clock.monotonic() >= self.again
