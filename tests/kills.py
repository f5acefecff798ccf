"""Jobs that are killed, by SIGKILL and all at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

PATIENCE = 300  # seconds until a job must have come half-way


def kill(started: subprocess.Popen[str]) -> None:
    """Everything that spark-submit.sh has started dies at once: JVM, driver and Python workers."""
    own = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in own:
        try:
            if os.getsid(pid) == started.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    started.wait()


def wait_until(started: subprocess.Popen[str], half_way: Callable[[], object]) -> None:
    """Waits for `half_way` to be true of a running job."""
    until = time.monotonic() + PATIENCE
    while not half_way():
        assert time.monotonic() < until, "the job did not come half-way"
        assert started.poll() is None, f"the job ended before it was half-way: {started.communicate()}"
        time.sleep(0.02)


def killed_when(started: subprocess.Popen[str], half_way: Callable[[], object]) -> None:
    """Waits for `half_way` to be true of a running job, and kills it."""
    try:
        wait_until(started, half_way)
    finally:
        kill(started)
    assert started.returncode == -signal.SIGKILL
