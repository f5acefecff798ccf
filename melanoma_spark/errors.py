"""Exit statuses of jobs, and the errors behind them. Each message is one line: what was found, and what would work."""

import re
import shutil
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Self

# What file systems, databases on them and Spark report of a place that is full, or away.
FULL = r"No space left on device|database or disk is full|[Qq]uota ?[Ee]xceeded"
AWAY = (
    r"Input/output error|Stale file handle|Transport endpoint is not connected|Host is down|No such device"
    r"|disk I/O error|unable to open database file|readonly database"
)
MISSING = r"No such file or directory|[Dd]oes not exist|FileNotFoundException|cannot find"


class ExitStatus(IntEnum):
    """The exit statuses of jobs: number, meaning, and what to do. --help and docs/exit-statuses.md show this table."""

    meaning: str
    action: str

    def __new__(cls, number: int, meaning: str, action: str) -> Self:
        """Make a member of its row."""
        status = int.__new__(cls, number)
        status._value_, status.meaning, status.action = number, meaning, action
        return status

    DONE = 0, "done, or nothing to do", "nothing"
    INTERNAL = 1, "internal error, or an error in Spark", "retry; MELANOMA_TRACEBACK=1 shows the traceback"
    SETTING = 2, "a setting is wrong: the line names it, and what is valid", "correct it; a retry does not help"
    CLUSTER = 3, "Java, Spark, the warehouse or MLflow cannot be used", "retry later, then check what the line names"
    DATA = 4, "the archive or the model cannot be used, or no batch is recent", "do what the line says; do not retry"
    BUSY = 5, "another job of the same kind runs on the warehouse", "nothing; wait=600 waits for it"
    ATTENTION = 6, "done, but drift is beyond its limits or a table was set aside", "do not retry; look at the worklist"


class MelanomaError(Exception):
    """Base of all errors that a job reports in one line. `exit_status` is the job's exit status."""

    exit_status = ExitStatus.INTERNAL


class ConfigError(MelanomaError):
    """A setting is unknown, ill-typed or contradicts another one."""

    exit_status = ExitStatus.SETTING


class ClusterError(MelanomaError):
    """Java, Spark slots, a warehouse or a server is not as the job needs it."""

    exit_status = ExitStatus.CLUSTER


class BusyError(ClusterError):
    """Another job of the same kind runs on the warehouse. A schedule may ignore it."""

    exit_status = ExitStatus.BUSY


class DataError(MelanomaError):
    """The archive or a dataset made from it is not usable as it is."""

    exit_status = ExitStatus.DATA


class ImageError(DataError):
    """One image cannot be used. It becomes a row in `rejects`, never the end of a job.

    `reason` is a code of `images.reasons.REASONS`, `detail` a short text without the file's name.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        # Two arguments do not survive pickle's default for exceptions, and Spark pickles them.
        return (type(self), (self.reason, self.detail))


def error_of_task(error: object) -> MelanomaError | None:
    """Find the error of this package that a Spark task ended with, in the text of Spark's own error."""
    found = re.search(r"^melanoma_spark\.errors\.(\w+Error): (.+)$", str(error), re.MULTILINE)
    kinds = {kind.__name__: kind for kind in (ConfigError, ClusterError, BusyError, DataError)}
    return kinds[found[1]](found[2]) if found and found[1] in kinds else None


def explain_storage_error(error: BaseException, places: Mapping[str, str]) -> MelanomaError | None:
    """Translate an error of a file system that is full, or was away. Returns None for any other error.

    `places` maps what a folder is to where it is, the warehouse first. The message shows the free space of those on
    this machine.
    """
    chain = list(_chain(error))
    text = "\n".join(f"{one} {getattr(one, 'java_exception', None) or ''}" for one in chain)
    own_errors = [one for one in chain if isinstance(one, MelanomaError)]
    if own := own_errors[-1] if own_errors else error_of_task(text):
        return own
    if found := re.search(FULL, text):
        free = ", ".join(f"{name} {place} has {_free(place)}" for name, place in places.items())
        return ClusterError(f"{found[0]}: {free}; free space and run the job again, finished work is kept")
    warehouse = next(iter(places.values()))
    found = re.search(AWAY, text) or (re.search(MISSING, text) if warehouse in text else None)
    if found:
        return ClusterError(
            f"{found[0]}: the warehouse {warehouse} was away while the job ran, or something in it was removed; check "
            "that it is there and run the job again, finished work is kept"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free(place: str) -> str:
    try:
        return f"{shutil.disk_usage(place).free / 1e6:.0f} MB free"
    except OSError:
        return "unknown space"


def root_cause(error: object) -> str:
    """Extract the root cause of a Java exception, in one line."""
    if found := re.search(r"Python worker exited unexpectedly.*", str(error)):  # its cause does not help
        return found[0][:400]
    text = str(getattr(error, "java_exception", None) or error)
    causes = [line for line in text.splitlines() if line.startswith("Caused by: ")] or text.splitlines()
    return (causes[-1] if causes else type(error).__name__).removeprefix("Caused by: ").strip()[:400]


def java_message(error: object) -> str:
    """Extract why a call of Java through Py4J failed, or the Python of a task that it ran, in one line."""
    text = str(error)
    kinds = (
        r"^(?:: |Caused by: |.*\(TID \d+\) \(.*?\): )?([A-Za-z][\w.$]*(?:Error|Exception): (?!Traceback|Job aborted).+)"
    )
    found = re.search(kinds, text, re.MULTILINE)
    return (found[1] if found else text.splitlines()[0] if text else type(error).__name__).strip()[:300]
