"""A real HDFS for tests: a NameNode and a DataNode of Hadoop, on ports of their own of the loopback address."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until a DataNode must have joined

# What Hadoop 3.4 reaches into on Java 17 and 21.
OPENS = ("java.base/java.lang", "java.base/java.util", "java.base/java.nio", "java.base/sun.nio.ch")
LOGGED = """log4j.rootLogger=WARN,err
log4j.appender.err=org.apache.log4j.ConsoleAppender
log4j.appender.err.layout=org.apache.log4j.SimpleLayout
"""


class Missing(Exception):
    """What this machine lacks to run Hadoop, in a line."""


@dataclass(frozen=True)
class Hdfs:
    """A running HDFS. `url` is its root without a slash at the end; `folder` holds its logs and configuration."""

    url: str
    folder: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def die_with_parent() -> None:
    """For `preexec_fn`: Linux kills the process when these tests end, be it by a signal."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def classpath(folder: Path) -> str:
    """Hadoop's jars, out of Maven's own repository, where the first run puts them. Raises `Missing`."""
    if not shutil.which("mvn"):
        raise Missing("no Maven on PATH, which brings Hadoop's jars: install maven")
    told = folder / "classpath"
    command = ["mvn", "-q", "-B", "-f", str(HERE / "hadoop-pom.xml"), "dependency:build-classpath"]
    for offline in (["-o"], []):  # most runs have all jars, and need not ask whether there are newer ones
        done = subprocess.run(
            [*command, *offline, f"-Dmdep.outputFile={told}"], capture_output=True, text=True, timeout=600
        )
        if done.returncode == 0:
            return told.read_text().strip()
    why = next(iter((done.stdout + done.stderr).splitlines()), "no reason told")
    raise Missing(f"Maven cannot get Hadoop's jars: {why}")


def configure(folder: Path, **files: Mapping[str, object]) -> None:
    """Writes Hadoop's configuration: core_site={"fs.defaultFS": ...} as core-site.xml, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        rows = "".join(f"<property><name>{key}</name><value>{values[key]}</value></property>" for key in values)
        (folder / f"{name.replace('_', '-')}.xml").write_text(f"<configuration>{rows}</configuration>")


@contextlib.contextmanager
def hdfs(folder: Path, java_home: str) -> Iterator[Hdfs]:
    """A NameNode and a DataNode, until the end of the block. Raises `Missing` where Hadoop cannot be had."""
    jars = classpath(folder)
    port = free_port()
    here = "127.0.0.1:0"
    configure(
        folder / "conf",
        core_site={"fs.defaultFS": f"hdfs://127.0.0.1:{port}", "hadoop.tmp.dir": folder / "tmp"},
        hdfs_site={
            "dfs.replication": 1,
            "dfs.namenode.rpc-address": f"127.0.0.1:{port}",
            "dfs.namenode.http-address": here,
            "dfs.namenode.name.dir": folder / "name",
            "dfs.namenode.fs-limits.min-block-size": 1024,
            "dfs.datanode.address": here,
            "dfs.datanode.http.address": here,
            "dfs.datanode.ipc.address": here,
            "dfs.datanode.data.dir": folder / "data",
        },
    )
    (folder / "conf/log4j.properties").write_text(LOGGED)
    for pages in ("hdfs", "datanode"):  # they do not start without; Hadoop's own are in no jar
        (folder / "conf/webapps" / pages).mkdir(parents=True)
    opens = [f"--add-opens={module}=ALL-UNNAMED" for module in OPENS]
    small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]
    java = [f"{java_home}/bin/java", *opens, *small, "-cp", f"{folder / 'conf'}:{jars}"]
    daemons: list[subprocess.Popen[bytes]] = []

    def start(name: str, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            command = [*java, f"org.apache.hadoop.hdfs.server.{main}", *arguments]
            return subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
            )

    try:
        formatted = start("format", "namenode.NameNode", "-format", "-nonInteractive")
        assert formatted.wait(PATIENCE) == 0, (folder / "format.log").read_text()[-2000:]
        daemons += [start("namenode", "namenode.NameNode"), start("datanode", "datanode.DataNode")]
        running = Hdfs(f"hdfs://127.0.0.1:{port}", folder)
        _wait(running, daemons)
        yield running
    finally:
        for process in daemons:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(running: Hdfs, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Until a file can be written."""
    until = time.monotonic() + PATIENCE
    why = _not_ready(running)
    while why:
        logs = "".join((running.folder / f"{name}.log").read_text()[-2000:] for name in ("namenode", "datanode"))
        assert all(process.poll() is None for process in daemons), logs
        assert time.monotonic() < until, f"{why}\n{logs}"
        time.sleep(0.2)
        why = _not_ready(running)


def _not_ready(running: Hdfs) -> str:
    import hdfs_native

    try:
        with socket.create_connection(("127.0.0.1", running.port), 1):  # else hdfs-native would wait by itself
            client = hdfs_native.Client(running.url)
        with client.create("/.ready", hdfs_native.WriteOptions(overwrite=True)) as file:
            file.write(b"ready")
        client.delete("/.ready")
    except Exception as error:
        return str(error) or type(error).__name__
    return ""
