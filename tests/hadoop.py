"""A real Hadoop for tests, on free ports of the loopback address.

HDFS is a NameNode and a DataNode, YARN a ResourceManager and two NodeManagers. All end with the block they are used in,
or with the process of the tests.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until DataNode or NodeManagers must have joined
ANY_PORT = "127.0.0.1:0"
HDFS, YARN = "hdfs.server", "yarn.server"

# What Hadoop 3.4 reaches into on Java 17 and 21.
OPENS = ("java.base/java.lang", "java.base/java.util", "java.base/java.nio", "java.base/sun.nio.ch")
LOGGED = """log4j.rootLogger=WARN,err
log4j.appender.err=org.apache.log4j.ConsoleAppender
log4j.appender.err.layout=org.apache.log4j.SimpleLayout
"""


class Missing(Exception):
    """What this machine lacks to run Hadoop, in a line."""


@contextlib.contextmanager
def or_skipped() -> Iterator[None]:
    """What is `Missing` in here skips the tests that need it; CI shall have it."""
    try:
        yield
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


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


# Before a command: Linux kills its process when these tests end, be it by a signal. By util-linux, for Python's own
# `preexec_fn` may stand still for ever in a process of many threads, such as that of HDFS's client.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def classpath(folder: Path, pom: str = "hadoop-pom.xml") -> str:
    """The jars of a POM of this folder, from Maven's local repository, where the first run puts them.

    Raises `Missing`.
    """
    if not shutil.which("mvn"):
        raise Missing("no Maven on PATH, which brings Hadoop's jars: install maven")
    output = folder / "classpath"
    command = ["mvn", "-q", "-B", "-f", str(HERE / pom), "dependency:build-classpath"]
    for offline in (["-o"], []):  # most runs have all jars, and need not ask whether there are newer ones
        try:
            done = subprocess.run(
                [*command, *offline, f"-Dmdep.outputFile={output}"], capture_output=True, text=True, timeout=600
            )
        except subprocess.TimeoutExpired:
            raise Missing("Maven cannot get Hadoop's jars within ten minutes") from None
        if done.returncode == 0:
            return output.read_text().strip()
    why = next(iter((done.stdout + done.stderr).splitlines()), "no reason told")
    raise Missing(f"Maven cannot get Hadoop's jars: {why}")


def check() -> None:
    """Ends the process with a line and status 3 where no Hadoop can be had here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            classpath(Path(folder))
        except Missing as missing:
            print(missing)
            raise SystemExit(3) from None


def configure(folder: Path, **files: Mapping[str, object]) -> None:
    """Writes Hadoop's configuration: core_site={"fs.defaultFS": ...} as core-site.xml, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        rows = "".join(f"<property><name>{key}</name><value>{values[key]}</value></property>" for key in values)
        (folder / f"{name.replace('_', '-')}.xml").write_text(f"<configuration>{rows}</configuration>")


class Daemons:
    """Hadoop's processes, of one folder: each logs into `NAME.log` there."""

    def __init__(self, folder: Path, java_home: str) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._jars = classpath(folder)
        opens = [f"--add-opens={module}=ALL-UNNAMED" for module in OPENS]
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]
        self._java = [*DIES_WITH_US, f"{java_home}/bin/java", *opens, *small]
        self._environment = {**os.environ, "JAVA_HOME": java_home}

    def start(self, name: str, conf: Path, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        (conf / "log4j.properties").write_text(LOGGED)
        command = [*self._java, "-cp", f"{conf}:{self._jars}", f"org.apache.hadoop.{main}", *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        return self.running[name]

    def stop(self, name: str) -> None:
        """Kills one, as a machine that fails does."""
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait(self, not_ready: Callable[[], str]) -> None:
        """Wait until it names nothing that is missing."""
        until = time.monotonic() + PATIENCE
        while why := not_ready():
            logs = "".join(f"{name}: {self.log(name)[-2000:]}" for name in self.running)
            assert all(process.poll() is None for process in self.running.values()), logs
            assert time.monotonic() < until, f"{why}\n{logs}"
            time.sleep(0.2)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.running):
            self.stop(name)


@contextlib.contextmanager
def hdfs(folder: Path, java_home: str) -> Iterator[Hdfs]:
    """A NameNode and a DataNode, until the end of the block. Raises `Missing` where Hadoop cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    conf, port = folder / "conf", free_port()
    configure(
        conf,
        core_site={"fs.defaultFS": f"hdfs://127.0.0.1:{port}", "hadoop.tmp.dir": folder / "tmp"},
        hdfs_site={
            "dfs.replication": 1,
            "dfs.namenode.rpc-address": f"127.0.0.1:{port}",
            "dfs.namenode.http-address": ANY_PORT,
            "dfs.namenode.name.dir": folder / "name",
            "dfs.namenode.fs-limits.min-block-size": 1024,
            "dfs.datanode.address": ANY_PORT,
            "dfs.datanode.http.address": ANY_PORT,
            "dfs.datanode.ipc.address": ANY_PORT,
            "dfs.datanode.data.dir": folder / "data",
        },
    )
    for pages in ("hdfs", "datanode"):  # they do not start without; Hadoop's own are in no jar
        (conf / "webapps" / pages).mkdir(parents=True)
    with Daemons(folder, java_home) as daemons:
        formatted = daemons.start("format", conf, f"{HDFS}.namenode.NameNode", "-format", "-nonInteractive")
        assert formatted.wait(PATIENCE) == 0, daemons.log("format")[-2000:]
        del daemons.running["format"]
        daemons.start("namenode", conf, f"{HDFS}.namenode.NameNode")
        daemons.start("datanode", conf, f"{HDFS}.datanode.DataNode")
        daemons.wait(functools.partial(_not_ready, port))
        yield Hdfs(f"hdfs://127.0.0.1:{port}", folder)


def _not_ready(port: int) -> str:
    """Until a file can be written."""
    import hdfs_native

    try:
        with socket.create_connection(("127.0.0.1", port), 1):  # else hdfs-native would wait by itself
            client = hdfs_native.Client(f"hdfs://127.0.0.1:{port}")
        with client.create("/.ready", hdfs_native.WriteOptions(overwrite=True)) as file:
            file.write(b"ready")
        client.delete("/.ready")
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@dataclass(frozen=True)
class Yarn:
    """A running YARN. `conf` is its HADOOP_CONF_DIR; `url` has the ResourceManager's REST interface."""

    url: str
    conf: Path
    nodes: tuple[Path, ...]  # each NodeManager's folder: `logs/APPLICATION/CONTAINER/` has what its containers wrote
    daemons: Daemons

    def asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/ws/v1/cluster/{path}", timeout=10) as answer:
            return json.load(answer)

    def end(self, application: str) -> None:
        """As `yarn application -kill` does it."""
        url = f"{self.url}/ws/v1/cluster/apps/{application}/state?user.name={getpass.getuser()}"
        kill = urllib.request.Request(
            url, json.dumps({"state": "KILLED"}).encode(), {"Content-Type": "application/json"}, method="PUT"
        )
        urllib.request.urlopen(kill, timeout=60).close()

    def containers(self, node: Path) -> list[Path]:
        """The folders of logs of the containers that a node has run, by application and number."""
        return sorted(node.glob("logs/application_*/container_*"))

    def start(self, node: Path) -> None:
        self.daemons.start(node.name, node / "conf", f"{YARN}.nodemanager.NodeManager")

    def wait(self) -> None:
        """Until all nodes have joined."""
        self.daemons.wait(functools.partial(_too_few, self))

    def kill(self, node: Path) -> None:
        """The NodeManager and all that runs in its containers, as by a machine that fails."""
        self.daemons.stop(node.name)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(node) in f"{process.cwd()} {process.cmdline()}" and process.pid != os.getpid():
                    process.kill()


@contextlib.contextmanager
def yarn(folder: Path, java_home: str, store: Hdfs) -> Iterator[Yarn]:
    """A ResourceManager and two NodeManagers over an HDFS, until the end of the block. Raises `Missing`."""
    folder.mkdir(parents=True, exist_ok=True)
    conf, here = folder / "conf", "127.0.0.1"
    core = {"fs.defaultFS": store.url, "hadoop.tmp.dir": folder / "tmp"}
    parts = ("", ".scheduler", ".resource-tracker", ".admin", ".webapp")
    manager = {f"yarn.resourcemanager{part}.address": f"{here}:{free_port()}" for part in parts}
    manager |= {"yarn.scheduler.minimum-allocation-mb": 128, "yarn.nm.liveness-monitor.expiry-interval-ms": 20_000}
    top = "yarn.scheduler.capacity"
    scheduler = {
        f"{top}.root.queues": "default",
        f"{top}.root.default.capacity": 100,
        f"{top}.maximum-am-resource-percent": 1,
        f"{top}.per-node-heartbeat.multiple-assignments-enabled": "false",  # or one node could get all executors
        f"{top}.resource-calculator": "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator",
    }
    configure(conf, core_site=core, yarn_site=manager, capacity_scheduler=scheduler)
    nodes = (folder / "node-1", folder / "node-2")
    for node in nodes:
        own = {
            "resource.memory-mb": 6144,
            "resource.cpu-vcores": 3,  # an application master and two executors, where the other node is lost
            "local-dirs": node / "local",
            "log-dirs": node / "logs",
            "vmem-check-enabled": "false",  # a JVM reserves more addresses than it will ever use
            "disk-health-checker.max-disk-utilization-per-disk-percentage": 99.9,
            "env-whitelist": "JAVA_HOME",
            "address": ANY_PORT,
            "localizer.address": ANY_PORT,
            "webapp.address": ANY_PORT,
        }
        site = manager | {f"yarn.nodemanager.{key}": value for key, value in own.items()}
        configure(node / "conf", core_site=core, yarn_site=site)
    with Daemons(folder, java_home) as daemons:
        running = Yarn(f"http://{manager['yarn.resourcemanager.webapp.address']}", conf, nodes, daemons)
        daemons.start("resourcemanager", conf, f"{YARN}.resourcemanager.ResourceManager")
        for node in nodes:
            running.start(node)
        running.wait()
        try:
            yield running
        finally:
            for node in nodes:  # containers are processes of their own
                if node.name in daemons.running:
                    running.kill(node)


def _too_few(running: Yarn) -> str:
    try:
        result = running.asked("metrics")["clusterMetrics"]["activeNodes"]
    except OSError as error:
        return str(error)
    return "" if result == len(running.nodes) else f"{result} NodeManagers of {len(running.nodes)}"


if __name__ == "__main__":
    check()
