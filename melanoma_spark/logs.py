"""What a job tells: lines for people, or JSON lines for what collects logs. Neither holds a password.

A JSON line has `time` (UTC), `level`, `job`, `event` and `message`; `stage`, `run_id`, `batch_id` and `counts` where
there are any; and what belongs to its event (`seconds`, `done`, `of`, `exit_status`, `error`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
QUERY = re.compile(r"(?<=\?)(?=[^\s'\",;]*=)[^\s'\",;]+")  # of a signed URL


@dataclass
class _State:
    """Of this process: which lines are written, and what the next ones are about."""

    form: str = "text"
    job: str = ""
    about: list[dict[str, Any]] = field(default_factory=lambda: [{}])


_NOW = _State()


def set_up(job: str, form: str) -> None:
    """From here on lines are of a `job`, in a `form`: `text` or `json`."""
    _NOW.job, _NOW.form = job, form


@contextmanager
def restored() -> Iterator[None]:
    """Lines after it are of the job, and in the form, of those before it."""
    before = _NOW.job, _NOW.form
    try:
        yield
    finally:
        _NOW.job, _NOW.form = before


def in_json() -> bool:
    return _NOW.form == "json"


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """JSON lines in here have these fields, and those that `add` adds."""
    _NOW.about.append(fields)
    try:
        yield
    finally:
        _NOW.about.pop()


def add(**fields: Any) -> None:
    """JSON lines have these fields until the end of the innermost `about`."""
    _NOW.about[-1].update(fields)


def say(text: str, event: str = "note", level: str = "info", **fields: Any) -> None:
    """A line, at once: one that the job tells while it runs."""
    if _NOW.form == "json":
        if text.strip():
            print(line(text.strip(), event, level, **fields), flush=True)
    else:
        print(without_passwords(text), flush=True)


def mark(event: str, **fields: Any) -> None:
    """A line for machines alone, which says nothing to people."""
    if _NOW.form == "json":
        print(line(event, event, "info", **fields), flush=True)


def failure(message: str, status: int, **fields: Any) -> str:
    """The last line of a job that fails, which the caller writes."""
    if _NOW.form == "json":
        return line(message, "failed", "error", exit_status=status, **fields)
    return without_passwords(f"error: {message}")


def line(message: str, event: str, level: str, **fields: Any) -> str:
    """One line of JSON."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told: dict[str, Any] = {"time": now, "level": level, "job": _NOW.job, "event": event}
    for known in _NOW.about:
        told |= known
    told |= fields | {"message": message}
    return json.dumps(_clean(told), ensure_ascii=False, default=str)


def without_passwords(text: str) -> str:
    """`s3a://***@bucket/x?***` for a URL with a user and a password, or with a signature."""
    return QUERY.sub("***", CREDENTIALS.sub("***@", text)) if "://" in text else text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value
