"""Log lines of a job on stdout: text for people, or JSON for log collectors. Neither holds a password.

In text, a line at the left margin is a result, and an indented one is about work in progress.
A JSON line has `time` (UTC), `level`, `job`, `event` and `message`; `stage`, `run_id`, `batch_id` and `counts` where
there are any; and the fields of its event (`seconds`, `done`, `of`, `exit_status`, `error`).
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

RESULTS, PROGRESS = logging.getLogger("melanoma_spark.results"), logging.getLogger("melanoma_spark.progress")
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
QUERY = re.compile(r"(?<=\?)(?=[^\s'\",;]*=)[^\s'\",;]+")  # of a signed URL

_job = ""
_contexts: list[dict[str, object]] = [{}]  # shared by threads, such as those that report progress


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        indent = "  " if record.name == PROGRESS.name else ""
        return f"{indent}{kind}{record.msg['message']}"  # type: ignore[index]


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to what is stdout at that moment: `cli.invoke` and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


_handler = _StdoutHandler()
_handler.setFormatter(_TextFormatter())
for _logger in (RESULTS, PROGRESS):
    _logger.addHandler(_handler)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def configure(job: str, form: str) -> None:
    """Write the lines of a job from here on, as `text` or `json`."""
    global _job
    _job = job
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter  # executors and served models write text, and start without it

        _handler.setFormatter(JsonFormatter([], json_ensure_ascii=False, json_default=str))
    else:
        _handler.setFormatter(_TextFormatter())


@contextmanager
def preserve_configuration() -> Iterator[None]:
    """Restore the job and the form at the end of the block."""
    global _job
    before = _job, _handler.formatter
    try:
        yield
    finally:
        _job = before[0]
        _handler.setFormatter(before[1])


def in_json() -> bool:
    """Return whether lines are written as JSON."""
    return not isinstance(_handler.formatter, _TextFormatter)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Add fields to all JSON lines in here, and those that `add_context` adds."""
    _contexts.append(fields)
    try:
        yield
    finally:
        _contexts.pop()


def add_context(**fields: object) -> None:
    """Add fields to all JSON lines until the end of the innermost `context`."""
    _contexts[-1].update(fields)


def result(text: str, event: str = "note", level: int = logging.INFO, **fields: object) -> None:
    """Log what a stage has done, or what was asked for."""
    if text or not in_json():
        RESULTS.log(level, _values(text, event, level, fields))


def info(text: str, event: str = "note", **fields: object) -> None:
    """Log a line about work in progress."""
    PROGRESS.info(_values(text, event, logging.INFO, fields))


def warning(text: str, event: str = "note", **fields: object) -> None:
    """Log something about work in progress that somebody should look at."""
    PROGRESS.warning(_values(text, event, logging.WARNING, fields))


def event(name: str, **fields: object) -> None:
    """Log a line for machines alone."""
    if in_json():
        RESULTS.info(_values(name, name, logging.INFO, fields))


def failure_line(message: str, status: int, **fields: object) -> str:
    """Format the last line of a job that fails, which the caller writes to stderr."""
    values = _values(message, "failed", logging.ERROR, {"exit_status": status, **fields})
    return _handler.format(RESULTS.makeRecord(RESULTS.name, logging.ERROR, "", 0, values, (), None))


def without_passwords(text: str) -> str:
    """Return `s3a://***@bucket/x?***` for a URL with a user and a password, or with a signature."""
    return QUERY.sub("***", CREDENTIALS.sub("***@", text)) if "://" in text else text


def _values(message: str, event: str, level: int, fields: Mapping[str, object]) -> object:
    """Collect the fields of a line, without passwords."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values: dict[str, object] = {"time": now, "level": logging.getLevelName(level).lower(), "job": _job, "event": event}
    for known in _contexts:
        values |= known
    return _mask({**values, **fields, "message": message})


def _mask(value: object) -> object:
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, dict):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(inner) for inner in value]
    return value
