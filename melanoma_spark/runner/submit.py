"""Submits a job to Spark, for `melanoma-spark JOB` and `./spark-submit.sh JOB`.

It finds Java, Python and Spark, checks the settings before anything starts, and ships the package to the executors.
Relative paths in the arguments are those of the caller. It imports only the standard library and `SUFFIXES`.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from melanoma_spark import SUFFIXES

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "jobs").is_dir()  # from a wheel, whose package holds jobs/ and conf/
HOME = PACKAGE if INSTALLED else PACKAGE.parent
JOBS = {
    "ingest": "archive -> images/: decode, check, group and split",
    "featurize": "images/ -> features/: every image through VGG16's base, once",
    "train_head": "features/ -> a head",
    "finetune": "trains head and base further, over Horovod ranks",
    "evaluate": "the test split: metrics at an operating point, a report; of another archive when one is named",
    "register": "model -> MLflow's registry, champion if it passes; also: register history, register rollback",
    "score": "new images of an archive -> scores/, with a registered model; also: score status, score --follow",
    "pipeline": "all stages, in one submission",
    "search": "finds the best settings of a head on features/, by cross-validation",
    "doctor": "checks Java, Python, packages, Spark, network, warehouse and MLflow, and suggests remedies",
    "prune": "lists files of a warehouse that nothing refers to; prune.apply=true removes them",
}
USAGE = """Usage: melanoma-spark JOB [--conf SETTINGS.yaml] [key=value ...] [Spark's options] [-- others of Spark]

{jobs}
  package     FILE.zip: the code for executors, for those who call spark-submit themselves (examples/schedules)

  melanoma-spark JOB --help shows the settings of a job. Spark's own resources come from conf/spark-local.conf;
  SPARK_CONF=FILE or --properties-file FILE selects another, and --master, --conf spark.x=y, ... override it.
  In a checkout, ./spark-submit.sh JOB does the same.

Examples
  melanoma-spark pipeline --conf conf/demo.yaml
  melanoma-spark ingest --conf conf/local.yaml archive=/data/ham10000 warehouse=/data/warehouse
  melanoma-spark score --conf conf/cluster.yaml --master spark://head:7077 --total-executor-cores 16
  melanoma-spark score --conf conf/cluster.yaml --master yarn --deploy-mode cluster --num-executors 8"""
WITH_VALUE = {
    *("--conf", "--master", "--deploy-mode", "--name", "--queue", "--properties-file", "--packages", "--jars"),
    *("--files", "--archives", "--py-files", "--driver-memory", "--driver-java-options", "--executor-memory"),
    *("--executor-cores", "--num-executors", "--total-executor-cores"),
}
# With these words a job only reads a few small files, or asks MLflow, and runs without a JVM. `prune` always does.
WITHOUT_SPARK = {
    "score": {"status", "score.action=status"},
    "register": {"history", "rollback", "register.action=history", "register.action=rollback"},
}
CLUSTER_MODE = (("--conf", "spark.submit.deployMode=cluster"), ("--deploy-mode", "cluster"))
ERROR_VARIABLE = "MELANOMA_ERROR_FILE"  # names the file for the line of a job's error
GRACEFUL = "graceful"  # printed by --check for a job that ends by itself at a signal
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
IMAGE = "/opt/melanoma_spark"  # the package in a container image


@dataclass
class Words:
    """A command line, split into words for the job and for Spark."""

    job: list[str] = field(default_factory=list)
    spark: list[str] = field(default_factory=list)
    settings: str = ""  # a YAML file
    master: str = ""
    properties: str = ""
    py_files: str = ""
    files: str = ""
    cluster: bool = False  # whether the driver runs there
    help: bool = False


def fail(status: int, message: str) -> NoReturn:
    """Print an error and exit."""
    print(f"melanoma-spark: {message}", file=sys.stderr)
    sys.exit(status)


def sort_words(argv: Sequence[str]) -> Words:
    """Split a command line into the words for Spark and those for the job.

    The value of `--conf` decides: a YAML file, or a property of Spark.
    """
    words, rest = Words(properties=os.environ.get("SPARK_CONF", "")), list(argv)
    while rest:
        option = rest.pop(0)
        if option == "--":
            words.spark += rest
            break
        if option in ("-h", "--help"):
            words.help = True
            continue
        if option.startswith("--") and "=" in option:
            option, _, value = option.partition("=")
            rest.insert(0, value)
        if option not in WITH_VALUE:
            words.job.append(option)
            continue
        if not rest:
            fail(2, f"{option} needs a value")
        value = rest.pop(0)
        if option == "--conf" and value.endswith((".yaml", ".yml")):
            words.settings = value
        elif option == "--conf" and "=" not in value:
            fail(2, f"--conf {value} is neither settings (a .yaml file) nor a property of Spark (spark.x=y)")
        elif option == "--properties-file":
            words.properties = value
        elif option == "--py-files":
            words.py_files = value
        elif option == "--files":
            words.files = value
        else:
            words.spark += [option, value]
        words.master = value if option == "--master" else words.master
        words.cluster |= (option, value) in CLUSTER_MODE
    words.job = [*(["--conf", words.settings] if words.settings else []), *words.job]
    return words


def write_package(target: str | Path) -> None:
    """Write the package as a zip for --py-files. The same sources give the same zip: sorted, and without times."""
    tops = [PACKAGE] if INSTALLED else [HOME / "jobs", PACKAGE]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for top in tops for path in top.rglob("*")):
            if path.suffix in SUFFIXES:
                name = zipfile.ZipInfo(str(path.relative_to(PACKAGE.parent)))
                archive.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)


def run_here(python: str, module: str, words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a job in its own process, without Spark; by its file, since the caller's folder may hold a `jobs`."""
    above = os.environ.get("PYTHONPATH")
    path = os.environ if INSTALLED else os.environ | {"PYTHONPATH": f"{HOME}:{above}" if above else str(HOME)}
    return subprocess.run([python, HOME / f"jobs/{module}.py", *words], env=path, text=True, check=False, **options)


def find_java() -> None:
    """Set JAVA_HOME to a wrapper that hides Spark's warning of an incubating module."""
    found = subprocess.run([HOME / "conf/find-java.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(3)
    wrapper = str(HOME / "conf/java")
    if (home := found.stdout.strip()) != wrapper:
        os.environ["REAL_JAVA_HOME"] = home
    os.environ["JAVA_HOME"] = wrapper


def find_spark() -> str:
    """Find spark-submit in SPARK_HOME, in the package pyspark, or in PATH."""
    if home := os.environ.get("SPARK_HOME"):
        if not os.access(f"{home}/bin/spark-submit", os.X_OK):
            fail(3, f"SPARK_HOME is {home}, which has no bin/spark-submit")
        return f"{home}/bin/spark-submit"
    os.environ.pop("SPARK_HOME", None)
    pyspark = importlib.util.find_spec("pyspark")
    if pyspark and pyspark.submodule_search_locations:
        os.environ["SPARK_HOME"] = pyspark.submodule_search_locations[0]
        return f"{os.environ['SPARK_HOME']}/bin/spark-submit"
    return shutil.which("spark-submit") or fail(3, "no Spark found: run `make install`, or set SPARK_HOME")


def add_resources(words: Words) -> None:
    """Put the properties file for the kind of cluster, and its other options, before the caller's options."""
    conf, properties, more = HOME / "conf", words.properties, []
    if not properties and (not words.master or words.master.startswith("local")):
        properties = str(conf / "spark-local.conf")
    elif not properties and words.master.startswith("spark:"):
        properties = str(conf / "spark-standalone.conf")
    elif not properties and words.master == "yarn":
        properties = str(conf / "spark-yarn.conf")
        more = ["--load-spark-defaults"]
        if not words.cluster:
            # With the driver here, YARN's application master only asks for executors. If its node is lost, another one
            # takes over and the job continues. YARN limits the attempts of all applications, by default to 2.
            more += ["--conf", "spark.yarn.maxAppAttempts=4"]
    elif not properties and words.master.startswith("k8s:"):
        properties = str(conf / "spark-kubernetes.conf")
        for who in ("driver", "executor"):
            more += ["--conf", f"spark.kubernetes.{who}.podTemplateFile={conf / 'kubernetes/pod.yaml'}"]
    if properties:  # any other cluster has its own spark-defaults.conf
        if not os.path.isfile(properties):
            fail(2, f"no properties file {properties}")
        more = ["--properties-file", properties, *more]
    # The progress bar is for a terminal, not for a log.
    quiet = [] if sys.stderr.isatty() else ["--conf", "spark.ui.showConsoleProgress=false"]
    words.spark = [*quiet, *more, *words.spark]


def set_environment(words: Words, python: str) -> None:
    """Set the Python of driver and executors, files to ship, and how the driver's JVM logs."""
    if not words.cluster:
        of_image = f"{IMAGE}/.venv/bin/python" if words.master.startswith("k8s:") else python
        os.environ["PYSPARK_PYTHON"] = os.environ.get("PYSPARK_PYTHON") or of_image
        os.environ["PYSPARK_DRIVER_PYTHON"] = python
    else:  # a driver on the cluster has its own Python, and starts in its own folder with these files
        os.environ.pop("PYSPARK_DRIVER_PYTHON", None)
        if words.settings:
            words.files = f"{words.files},{words.settings}".removeprefix(",")
            words.job[1] = Path(words.settings).name
    if words.files:
        words.spark += ["--files", words.files]
    log = f'"-Dlog4j2.configurationFile=file:{HOME}/conf/log4j2.properties"'
    # For the driver's JVM only, so that the caller can still use --driver-java-options.
    os.environ["SPARK_SUBMIT_OPTS"] = f"{log} {os.environ.get('SPARK_SUBMIT_OPTS', '')}"


def wait_for(command: Sequence[str], graceful: bool) -> int:
    """Run a command in its own process group, so that a signal to this process reaches both JVM and Python.

    Returns its exit status, 128 + n where it ended by signal n. A `graceful` job needs its JVM until it ends, so the
    JVM ignores the signals. Such a job gets SIGTERM every 2 s from the first signal on, because the first one may
    come before the job listens.
    """

    def prepare() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if graceful else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # no thread runs here, so `prepare` is safe
    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=prepare)  # noqa: PLW1509

    def forward(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM if number == signal.SIGALRM else number)
        if graceful:
            signal.alarm(2)

    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    status = started.wait()
    signal.alarm(0)
    return status if status >= 0 else 128 - status


def submit(job: str, words: Words, python: str) -> int:
    """Check the settings, then run the job on Spark. Returns its exit status."""
    find_java()
    spark_submit = find_spark()
    checked = run_here(python, job, ["--check", *words.job], stdout=subprocess.PIPE)
    if checked.returncode:
        return checked.returncode
    add_resources(words)
    set_environment(words, python)
    with tempfile.TemporaryDirectory() as folder:
        main, shipped = str(HOME / f"jobs/{job}.py"), words.py_files
        if words.cluster and words.master.startswith("k8s:"):
            # the image has the package and its Python, and the driver's pod sees no file of this machine
            os.environ.pop("PYSPARK_PYTHON", None)
            main = f"local://{IMAGE}/jobs/{job}.py"
        else:
            write_package(f"{folder}/melanoma_spark.zip")
            shipped = f"{folder}/melanoma_spark.zip,{words.py_files}".removesuffix(",")
        if shipped:
            words.spark = ["--py-files", shipped, *words.spark]
        error = Path(folder) / "error"
        os.environ[ERROR_VARIABLE] = str(error)
        status = wait_for([spark_submit, *words.spark, main, *words.job], checked.stdout.strip() == GRACEFUL)
        if error.exists():  # the error line of the job: Spark sends Python's stderr to stdout
            sys.stderr.write(error.read_text())
    return status


def main() -> None:
    """Run the command line. Exits with the job's status, with 2 for wrong words, with 3 where something is missing."""
    argv = sys.argv[1:]
    usage = USAGE.format(jobs="\n".join(f"  {name:11} {text}" for name, text in JOBS.items()))
    if not argv:
        print(usage, file=sys.stderr)
        sys.exit(2)
    if argv[0] in ("-h", "--help"):
        print(usage)
        sys.exit()
    job, words = argv[0], sort_words(argv[1:])
    if job not in (*JOBS, "package"):
        fail(2, f"no job {job!r}: one of {' '.join(JOBS)}")
    python = os.environ.pop("MELANOMA_PYTHON", sys.executable)
    if job == "package":
        if len(words.job) != 1:
            fail(2, "package takes the name of the zip to make: package melanoma_spark.zip")
        write_package(words.job[0])
    elif words.help:
        sys.exit(run_here(python, job, ["--help"]).returncode)
    elif job == "prune" or WITHOUT_SPARK.get(job, set()).intersection(words.job):
        sys.exit(run_here(python, job, words.job).returncode)
    else:
        sys.exit(submit(job, words, python))


if __name__ == "__main__":
    main()
