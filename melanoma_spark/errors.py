"""What can go wrong, by who can mend it. Each message is one line: what was found, and what would work."""

import re
import shutil
from collections.abc import Iterator, Mapping

# What file systems, databases on them and Spark say of a place that is full, or away.
FULL = r"No space left on device|database or disk is full|[Qq]uota ?[Ee]xceeded"
AWAY = (
    r"Input/output error|Stale file handle|Transport endpoint is not connected|Host is down|No such device"
    r"|disk I/O error|unable to open database file|readonly database"
)
MISSING = r"No such file or directory|[Dd]oes not exist|FileNotFoundException|cannot find"


class MelanomaError(Exception):
    """Base of all errors a job reports in one line. `exit_status` is the job's exit status."""

    exit_status = 1


class ConfigError(MelanomaError):
    """A setting is unknown, ill-typed or contradicts another one."""

    exit_status = 2


class ClusterError(MelanomaError):
    """Java, Spark slots, a warehouse or a server is not as the job needs it."""

    exit_status = 3


class BusyError(ClusterError):
    """Another job of the kind is at work on the warehouse. A schedule may leave it at that."""

    exit_status = 5


class DataError(MelanomaError):
    """The archive or a dataset made from it is not usable as it is."""

    exit_status = 4


class ImageError(DataError):
    """One image cannot be used. It becomes a row in `rejects`, never the end of a job.

    `reason` is a code of `images.reasons.REASONS`, `detail` a short text without the file's name.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        # Two arguments do not survive pickle's default for exceptions, and Spark pickles them.
        return (ImageError, (self.reason, self.detail))


def of_executor(error: object) -> MelanomaError | None:
    """The error of this package that a Spark task ended with, by the text of Spark's own; None where it was another."""
    found = re.search(r"^melanoma_spark\.errors\.(\w+Error): (.+)$", str(error), re.MULTILINE)
    kinds = {kind.__name__: kind for kind in (ConfigError, ClusterError, BusyError, DataError)}
    return kinds[found[1]](found[2]) if found and found[1] in kinds else None


def of_storage(error: BaseException, places: Mapping[str, str]) -> MelanomaError | None:
    """What an error tells of a full file system, or of one that was away; None where it tells of something else.

    `places` are folders by what they are, the warehouse first; those on this machine are told with what is free there.
    """
    chain = list(_chain(error))
    ours = [one for one in chain if isinstance(one, MelanomaError)]
    text = "\n".join(f"{one} {getattr(one, 'java_exception', None) or ''}" for one in chain)
    if ours or of_executor(text):
        return ours[-1] if ours else of_executor(text)
    if found := re.search(FULL, text):
        free = ", ".join(f"{name} {place} has {_free(place)}" for name, place in places.items())
        return ClusterError(f"{found[0]}: {free}; make room and run the job again, what was finished is kept")
    warehouse = next(iter(places.values()))
    found = re.search(AWAY, text) or (re.search(MISSING, text) if warehouse in text else None)
    if found:
        return ClusterError(
            f"{found[0]}: the warehouse {warehouse} was away while the job ran, or something in it was removed; see "
            "that it is there and run the job again, what was finished is kept"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free(place: str) -> str:
    try:
        return f"{shutil.disk_usage(place).free / 1e6:.0f} MB free"
    except OSError:
        return "unknown space"


def root_cause(error: object) -> str:
    """The root cause of a Java exception in one line."""
    if found := re.search(r"Python worker exited unexpectedly.*", str(error)):  # which has a cause of no use
        return found[0][:400]
    text = str(getattr(error, "java_exception", None) or error)
    causes = [line for line in text.splitlines() if line.startswith("Caused by: ")] or text.splitlines()
    return (causes[-1] if causes else type(error).__name__).removeprefix("Caused by: ").strip()[:400]


def of_java(error: object) -> str:
    """What a call of Java through Py4J failed for, or the Python of a task that it ran, in one line."""
    text = str(error)
    kinds = (
        r"^(?:: |Caused by: |.*\(TID \d+\) \(.*?\): )?([A-Za-z][\w.$]*(?:Error|Exception): (?!Traceback|Job aborted).+)"
    )
    found = re.search(kinds, text, re.MULTILINE)
    return (found[1] if found else text.splitlines()[0] if text else type(error).__name__).strip()[:300]
