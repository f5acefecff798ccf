"""What a thread does beside the work: fetch items while earlier ones are used, or something every few seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def ahead(items: Iterator[Item], prepare: Callable[[Item], Ready], count: int = 1) -> Generator[Ready]:
    """`map(prepare, items)` with the next `count` items fetched and prepared in a thread while the last one is used."""
    end = object()

    def following() -> Any:
        item = next(items, end)
        return end if item is end else prepare(item)  # type: ignore[arg-type]

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(following) for _ in range(count))
        try:
            while (ready := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(following))
                yield ready
        finally:
            thread.shutdown(wait=True, cancel_futures=True)  # whoever stops early does not wait for the rest
            if hasattr(items, "close"):
                items.close()


class Waits(Iterator[Item]):
    """Items one after another; `seconds` is how long their user has waited for them so far."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> Item:
        asked = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - asked


@contextmanager
def every(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """While in here, `do()` every so many seconds, for the first time after the first of them."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
