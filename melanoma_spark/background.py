"""Threads beside the work: they fetch items while earlier ones are used, or do something every few seconds."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def prefetch(items: Iterator[Item], prepare: Callable[[Item], Ready], count: int = 1) -> Generator[Ready]:
    """Return `map(prepare, items)`; a thread fetches and prepares the next `count` items while the last one is used."""
    end = object()

    def next_item() -> Any:
        item = next(items, end)
        return end if item is end else prepare(item)  # type: ignore[arg-type]

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(next_item) for _ in range(count))
        try:
            while (ready := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next_item))
                yield ready
        finally:
            thread.shutdown(wait=True, cancel_futures=True)  # a user that stops early does not wait for the rest
            if hasattr(items, "close"):
                items.close()


class TimedIterator(Iterator[Item]):
    """An iterator over items; `seconds` is how long its user has waited for them so far."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> Item:
        started = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - started


@contextmanager
def periodic(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """Call `do()` every so many seconds until the end, for the first time after the first of them."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            do()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
