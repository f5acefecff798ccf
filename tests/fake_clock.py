"""A clock without waiting: `sleep` returns at once, and the time has passed."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class FakeClock:
    """A `clock.Clock`; `passed` is called with the time whenever somebody has slept."""

    seconds: float = 1e9
    passed: Callable[[float], object] = lambda now: None

    def now(self) -> float:
        return self.seconds

    monotonic = now

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.passed(self.seconds)
