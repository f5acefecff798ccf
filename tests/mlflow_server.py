"""A real MLflow server for tests, which stores artifacts too, on a free port of the loopback address."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from hadoop import DIES_WITH_US, free_port

PATIENCE = 120  # seconds until it must answer


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    """The address of a server whose runs are in a database, whose artifacts and log in a folder."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = ["--artifacts-destination", str(folder / "art"), "--port", str(port), "--workers", "1"]
    command = [*DIES_WITH_US, sys.executable, "-m", "mlflow", "server", *words]
    # the database's address is not among the words: it holds a password; and without seven processes for jobs of MLflow
    known = os.environ | {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=known) as process:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < until
                time.sleep(0.5)
        try:
            yield address
        finally:
            process.terminate()
