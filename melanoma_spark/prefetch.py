"""Items are fetched in a thread while earlier ones are used: reading beside computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
