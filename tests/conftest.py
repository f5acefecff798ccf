"""One Spark session, one drawn archive and one run of all stages, for all tests that read them."""

import contextlib
import copy
import importlib
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A JVM of tests lives for minutes: what its second compiler takes of two cores it never gives back. Without that one
# it keeps 48 MB of compiled code, which are full after 90 s of stages; then it compiles nothing more.
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=160m -XX:+UseSerialGC"
# Nor what Spark takes to write Java for each plan and to compile it. On standalone clusters and on YARN it does.
INTERPRETED = "-Dspark.sql.codegen.wholeStage=false -Dspark.sql.codegen.factoryMode=NO_CODEGEN"
os.environ["SPARK_SUBMIT_OPTS"] = f"{SHORT_LIVED} {INTERPRETED}"
# An example may take its time: on a busy machine a limit of it would only fail at random.
for profile, examples in {"dev": 20, "ci": 100, "nightly": 1000}.items():
    hypothesis.settings.register_profile(profile, deadline=None, max_examples=examples)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

pytest_plugins = ["scoring", "standalone"]  # their fixtures

TESTS = Path(__file__).parent
REPO = TESTS.parent
SHARED = REPO.parent / "shared"

# What Spark's Python workers and Horovod's ranks, too, import: a tiny backbone (tests/plugins).
plugins = [str(TESTS / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(plugins)

# Small enough for two cores, and whole: every stage has something to do.
SETTINGS: dict[str, Any] = {
    "image_size": 64,
    "ranks": 2,
    "backbone": {"name": "tiny_vgg16", "weights": "random", "allow_random": True},
    "ingest": {"test_fraction": 0.3, "validation_fraction": 0.2},
    "head": {"epochs": 3, "learning_rate": 1e-2, "hidden": 32, "dropout": 0.0},
    "finetune": {
        "phases": [
            {"name": "block5", "cut": "block4_pool", "learning_rate": 3e-3, "epochs": 2},
            {"name": "all", "learning_rate": 3e-4, "epochs": 2},
        ]
    },
    "evaluate": {"resamples": 50},
    "score": {"worklist": {"pictures": 0}},  # a score of seven images takes twice as long with them; `line` has two
}
STAGES = ("ingest", "featurize", "train_head", "finetune", "evaluate", "register", "score")


# Seconds of all tests of a tier on two quiet cores, and of one test: docs/testing.md has those over it.
BUDGETS = {"unit": 60, "model": 90, "spark": 180, "line": 240, "faults": 600, "systems": 900}
LIMITS = {"unit": 1, "model": 5, "spark": 5, "line": 30}


def tier_of(path: Path) -> str:
    """The tier of a test, which is the folder below tests/ in which its file lies."""
    return path.relative_to(TESTS).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's marker comes from its folder; YARN's tests have one more."""
    for item in items:
        item.add_marker(tier_of(item.path))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What each tier took of its budget, and the tests that took longer than their tier allows, the longest first."""
    spent: Counter[str] = Counter()
    over = []
    for report in itertools.chain(*map(terminalreporter.getreports, ("passed", "failed", "error", "skipped", ""))):
        tier = report.nodeid.split("/")[1] if report.nodeid.startswith("tests/") else ""
        spent[tier] += getattr(report, "duration", 0)
        if getattr(report, "when", "") == "call" and report.duration > LIMITS.get(tier, float("inf")):
            over.append((report.duration, report.nodeid))
    terminalreporter.section("seconds of each tier, and its budget on two quiet cores")
    for tier, seconds in BUDGETS.items():
        if tier in spent:
            terminalreporter.write_line(f"{tier:8} {spent[tier]:6.0f} of {seconds}")
    if over:
        terminalreporter.section(f"{len(over)} tests over their tier's limit of one test ({LIMITS}, in seconds)")
        for duration, name in sorted(over, reverse=True):
            terminalreporter.write_line(f"{duration:7.1f} s  {name}")


def with_settings(**changes: Any) -> dict[str, Any]:
    """`SETTINGS` with some keys changed; those of a section one by one."""
    values = copy.deepcopy(SETTINGS)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def java_home() -> str:
    """Of the Java that spark-submit.sh would take."""
    return subprocess.run([REPO / "conf/find-java.sh"], capture_output=True, text=True, check=True).stdout.strip()


def java_environment() -> dict[str, str]:
    """By what spark-submit.sh starts that Java."""
    result, wrapper = java_home(), str(REPO / "conf/java")
    return {"JAVA_HOME": wrapper, **({} if result == wrapper else {"REAL_JAVA_HOME": result})}


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """The session of a job, on two cores of this machine."""
    os.environ.update(java_environment())
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from melanoma_spark.spark import session

    with pytest.MonkeyPatch.context() as only_here:
        properties = ["--properties-file", f"'{REPO}/conf/spark-local.conf'", "--master", "local[2]"]
        # Of 200 partitions, Spark's own, each task of a shuffle opens 200 files for a hundred rows.
        small = ["--conf", "spark.sql.shuffle.partitions=4"]
        quiet = [*small, "--conf", "spark.ui.showConsoleProgress=false", "pyspark-shell"]
        only_here.setenv("PYSPARK_SUBMIT_ARGS", " ".join(properties + quiet))
        log = f'"-Dlog4j2.configurationFile=file:{REPO}/conf/log4j2.properties"'
        only_here.setenv("SPARK_SUBMIT_OPTS", f"{log} {SHORT_LIVED} {INTERPRETED}")
        only_here.delenv("SPARK_HOME", raising=False)
        started = session.start("tests")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running HDFS, see `hadoop.Hdfs`."""
    import hadoop

    with hadoop.or_skipped(), hadoop.hdfs(tmp_path_factory.mktemp("hdfs"), java_home()) as running:
        yield running


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of an empty database, see `postgres.postgres`."""
    import hadoop
    import postgres

    with hadoop.or_skipped(), postgres.postgres() as running:
        yield running


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The address of an empty database for MLflow's server."""
    return f"sqlite:///{tmp_path}/server.db"


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """The address of a running MLflow server with that database, through which artifacts go too."""
    from mlflow_server import mlflow_server

    with mlflow_server(database, tmp_path) as address:
        yield address


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a running S3 server."""
    import object_store

    with object_store.s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(params=["file", "hdfs", "s3a"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty folder on each kind of store."""
    if request.param == "file":
        yield f"file://{tmp_path}"
    elif request.param == "hdfs":
        yield f"{request.getfixturevalue('hdfs').url}/new"
    else:
        import boto3

        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="new")
        yield "s3a://new/folder"


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 drawn lesions with copies, turned JPEGs, broken files and an image without a label."""
    from melanoma_spark.images import synthetic

    folder = tmp_path_factory.mktemp("archive") / "lesions"
    synthetic.draw_archive(folder, images=120, size=64)
    return folder


@dataclass(frozen=True)
class Line:
    """A warehouse, its archive, and the output of the jobs that made it."""

    context: Any
    archive: Path
    folder: Path
    output: str = ""
    left: int = 0  # files that it has left in Spark's temporary folder

    def stage(self, name: str, **changes: Any) -> str:
        """Run one stage again, with some settings changed; returns its summary line."""
        return self.output_of(name, **changes).splitlines()[-1]

    def output_of(self, name: str, **changes: Any) -> str:
        """The same; returns all its output."""
        from melanoma_spark import pipeline
        from melanoma_spark.runner.stage import run_stage

        context = replace(
            self.context, settings=self.context.settings.model_copy(update=changes), mlflow=self.tracker()
        )
        with captured_output() as text:
            run_stage(context, name, pipeline.STAGES[name], {"stage": name})
        return text.getvalue()

    def tracker(self) -> Any:
        """MLflow of this warehouse: its address belongs to the process, and other tests change it."""
        from melanoma_spark import tracking

        return tracking.Tracker(self.context.settings.mlflow, self.context.warehouse)

    def read(self, name: str) -> Any:
        """A dataset of the warehouse as a Spark table."""
        return self.context.spark.read.parquet(f"{self.context.warehouse}/{name}/{self.manifest(name)['path']}")

    def manifest(self, name: str) -> dict[str, Any]:
        """A manifest as users' scripts read it."""
        from melanoma_spark.storage import files, manifests

        result = manifests.read_values(files.join(self.context.warehouse, name, manifests.FILE))
        assert result is not None
        return result

    def tensors(self, kind: Any) -> list[Any]:
        """The tensors of its `HeadManifest` or `FinetunedManifest`."""
        from melanoma_spark.storage import manifests

        warehouse = self.context.warehouse
        return manifests.load_model(warehouse, manifests.require(kind, warehouse))

    def scores(self) -> Any:
        """All of `scores/`, as anybody would read it."""
        return self.context.spark.read.parquet(f"{self.context.warehouse}/scores").toPandas()


def with_pictures(line: Line, count: int) -> Any:
    """The section `score` of a line, with so many pictures in its worklists."""
    section = line.context.settings.score
    return section.model_copy(update={"worklist": section.worklist.model_copy(update={"pictures": count})})


@contextlib.contextmanager
def captured_output() -> Iterator[io.StringIO]:
    """What jobs print."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        yield text


def counted(line: Line) -> dict[str, Any]:
    """What ingest counted of an archive, which adds up."""
    facts = line.manifest("images")
    assert facts["accepted"] + facts["rejected"] + facts["skipped"] == facts["listed"]
    assert sum(facts["reasons"].values()) == facts["rejected"]
    return facts


def command(name: str) -> Any:
    """What `jobs/NAME.py` runs."""
    return importlib.import_module(f"jobs.{name}").COMMAND


def one_line(text: str, *words: str) -> None:
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def refused(line: Line, stage: str, *words: str, **changes: Any) -> None:
    """A stage ends in one line that holds these words, and its run has failed."""
    import mlflow

    from melanoma_spark.errors import MelanomaError

    with pytest.raises(MelanomaError) as caught, captured_output() as text:
        line.stage(stage, **changes)
    assert caught.value.exit_status in (2, 3, 4)
    one_line(str(caught.value), *words)
    assert text.getvalue() == ""
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string=f"name = '{line.context.settings.mlflow.experiment}'")
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FAILED"


def open_line(spark: Any, archive: Path, folder: Path, **changes: Any) -> Line:
    """A line whose stages have yet to run."""
    from melanoma_spark import config, tracking
    from melanoma_spark.runner.context import StageContext
    from melanoma_spark.storage import files

    settings = config.parse(with_settings(archive=str(archive), warehouse=str(folder), **changes))
    warehouse = files.url_of(settings.warehouse)
    return Line(StageContext(spark, settings, warehouse, tracking.Tracker(settings.mlflow, warehouse)), archive, folder)


@pytest.fixture(scope="session")
def shared_mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow for lines that look at nothing there: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def new_line(spark: Any, lesions: Path, tmp_path: Path, shared_mlflow: str) -> Callable[..., Line]:
    """A function: an archive and changed settings -> a line in a new folder, with the shared MLflow."""

    def new(archive: Path = lesions, **changes: Any) -> Line:
        return open_line(spark, archive, tmp_path / "warehouse", mlflow={"tracking_uri": shared_mlflow}, **changes)

    return new


@pytest.fixture(scope="session")
def line(spark: Any, lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The whole line, run once. Look at it, and run it again; what changes it belongs into a copy of its folder."""
    from melanoma_spark import pipeline
    from melanoma_spark.runner.stage import run_stage

    new = open_line(spark, lesions, tmp_path_factory.mktemp("line") / "warehouse", score={"worklist": {"pictures": 2}})
    temporary = Path(spark.sparkContext._temp_dir)
    before = len(list(temporary.iterdir()))
    with captured_output() as text:
        run_stage(new.context, "pipeline", pipeline.pipeline, {"job": "pipeline"})
    return replace(new, output=text.getvalue(), left=len(list(temporary.iterdir())) - before)


@pytest.fixture
def copied(line: Line, tmp_path: Path) -> Line:
    """The line with copies of its archive and its warehouse, to change; without pictures, as `SETTINGS`."""
    from melanoma_spark.storage import files

    shutil.copytree(line.archive, tmp_path / "archive", copy_function=shutil.copy2)
    shutil.copytree(line.folder, tmp_path / "warehouse")
    folders = {"archive": str(tmp_path / "archive"), "warehouse": str(tmp_path / "warehouse")}
    settings = line.context.settings.model_copy(update={**folders, "score": with_pictures(line, 0)})
    context = replace(line.context, settings=settings, warehouse=files.url_of(str(tmp_path / "warehouse")))
    return Line(context, tmp_path / "archive", tmp_path / "warehouse")


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[..., Path]:
    """A function: changed settings -> `SETTINGS` with these as a YAML file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(with_settings(**changes)))
        return path

    return write


@pytest.fixture
def submitted(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A function that starts ./spark-submit.sh, in a new session and in a folder outside the repository."""
    folder = tmp_path / "submitted"

    def start(
        *arguments: str | Path, script: Path = REPO / "spark-submit.sh", **changes: str | None
    ) -> subprocess.Popen[str]:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYSPARK_PYTHON": sys.executable, **changes}
        environment.pop("PYSPARK_DRIVER_PYTHON", None)
        return subprocess.Popen(
            [str(script), *map(str, arguments)],
            cwd=folder,
            env={key: value for key, value in environment.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def submit(submitted: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs ./spark-submit.sh to its end."""

    def run(*arguments: str | Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
        started = submitted(*arguments, **changes)
        out, err = started.communicate(timeout=300)
        return subprocess.CompletedProcess(started.args, started.returncode, out, err)

    return run
