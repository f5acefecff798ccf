"""A real S3 server for tests: moto's, in a separate process on a free port of the loopback address."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hadoop import DIES_WITH_US, free_port

PATIENCE = 60  # seconds until it must answer


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that makes a client one of this server, until the end of the block."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Nothing of the person or the machine that runs the tests.
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [*DIES_WITH_US, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
            config=Config(retries={"total_max_attempts": 1}),
        )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                client.list_buckets()
                break
            except BotoCoreError:
                assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield environment
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
