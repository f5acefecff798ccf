"""What can go wrong, by who can mend it. Each message is one line: what was found, and what would work."""

import re


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

    `reason` is a code of `melanoma_spark.images.REASONS`, `detail` a short text without the file's name.
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


def root_cause(error: object) -> str:
    """The root cause of a Java exception in one line."""
    text = str(getattr(error, "java_exception", None) or error)
    causes = [line for line in text.splitlines() if line.startswith("Caused by: ")] or text.splitlines()
    return (causes[-1] if causes else type(error).__name__).removeprefix("Caused by: ").strip()[:400]
