"""The next item is fetched in a thread while the last one is used: reading beside computing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def ahead(items: Iterator[Item], prepare: Callable[[Item], Ready]) -> Iterator[Ready]:
    """`map(prepare, items)` with the next item fetched and prepared in a thread while the last one is used."""
    end = object()

    def following() -> Any:
        item = next(items, end)
        return end if item is end else prepare(item)  # type: ignore[arg-type]

    with ThreadPoolExecutor(max_workers=1) as thread:
        future = thread.submit(following)
        while (ready := future.result()) is not end:
            future = thread.submit(following)
            yield ready
