"""A real PostgreSQL for tests, on a free port of the loopback address, with a password."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hadoop import DIES_WITH_US, Missing, free_port

PATIENCE = 60  # seconds until it must answer
DEBIAN = Path("/usr/lib/postgresql")  # has a folder a version, whose programs are on no PATH
# What is stored is thrown away: it need not survive a power cut.
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def programs() -> Path:
    """Where `initdb` and `postgres` lie. Raises `Missing`."""
    result = shutil.which("initdb")
    places = [Path(result).resolve().parent] if result else []
    places += sorted(DEBIAN.glob("*/bin"), key=lambda place: -float(place.parent.name))
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise Missing("no PostgreSQL here: install the package postgresql")


def owner() -> dict[str, Any]:
    """For `subprocess`: PostgreSQL does not run as root, so root starts it as the user of Debian's package."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise Missing("PostgreSQL does not run as root, and there is no user postgres") from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, until the end of the block, as SQLAlchemy takes it. Raises `Missing`."""
    place, user = programs(), owner()
    # pytest's folders are for this user alone
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder, password, port = Path(name), secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if user:
                os.chown(path, user["user"], user["group"])
        data = ["-D", str(folder / "data")]
        initdb = [
            str(place / "initdb"),
            *data,
            "-U",
            "tests",
            "--auth=scram-sha-256",
            "-E",
            "UTF8",
            "--no-locale",
            "-N",
        ]
        run([*initdb, f"--pwfile={folder / 'password'}"], folder, user)
        settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", *QUICK]
        command = [
            *DIES_WITH_US,
            str(place / "postgres"),
            *data,
            *(word for setting in settings for word in ("-c", setting)),
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, **user)
        try:
            address = f"tests:{password}@127.0.0.1:{port}/postgres"
            _wait(f"postgresql://{address}", process, folder / "log")
            yield f"postgresql+psycopg2://{address}"  # SQLAlchemy would else take psycopg, or psycopg2, by its version
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: open sessions are ended
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(command: Sequence[str], folder: Path, user: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **user)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    import psycopg2

    until = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg2.connect(address, connect_timeout=5).close()
            return
        except psycopg2.OperationalError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)
