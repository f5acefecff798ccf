"""The examples of schedules, each read by what will read it: systemd, cron's shell, Airflow, Oozie's schemas."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, TESTS, Line
from hadoop import Missing, or_skipped

from melanoma_spark.images import synthetic
from melanoma_spark.scoring import status

EXAMPLES = REPO / "examples/schedules"
HOME = "/opt/melanoma_spark"  # of all examples
COMMAND = ".venv/bin/melanoma-spark"

# Ends with the statuses of a file, one after the other, and keeps its arguments.
STUB = """#!/bin/sh
here=$(dirname -- "$0")/../..
echo "$*" >>"$here/calls"
status=$(head -n 1 "$here/statuses")
sed -i 1d "$here/statuses"
exit "$status"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def stub(tmp_path):
    """A copy of the examples beside a stub of melanoma-spark: (its folder, a function that sets its exit statuses)."""
    shutil.copytree(EXAMPLES, tmp_path / "repo/examples/schedules")
    executable(tmp_path / "repo" / COMMAND, STUB)

    def ends_with(*statuses: int) -> None:
        (tmp_path / "repo/statuses").write_text("".join(f"{status}\n" for status in statuses))
        (tmp_path / "repo/calls").write_text("")

    return tmp_path / "repo", ends_with


def skip_or_fail(why: str) -> None:
    """What a machine lacks: CI shall have it."""
    if os.environ.get("CI"):
        raise AssertionError(why)
    pytest.skip(why)


@pytest.mark.parametrize(
    ("statuses", "tries"),
    [*(([status], 1) for status in (0, 2, 4, 5, 6)), ([3, 1, 0], 3), ([3, 3, 3], 3), ([137, 0], 2), ([3, 6], 2)],
)
def test_a_night_is_tried_again_where_that_may_help(stub, tmp_path, statuses, tries):
    repo, ends_with = stub
    ends_with(*statuses)
    command = [repo / "examples/schedules/nightly.sh", tmp_path / "log", "archive=a b", "warehouse=w"]
    done = subprocess.run(command, env={**os.environ, "PAUSE": "0"}, capture_output=True, text=True)
    status = statuses[-1]
    assert (done.returncode, done.stdout) == (status, "")
    assert (repo / "calls").read_text().splitlines() == ["score log.format=json archive=a b warehouse=w"] * tries
    output = "" if status in (0, 5) else f"melanoma score ended with exit status {status};"
    assert done.stderr.startswith(output)
    assert bool(done.stderr) == bool(output), "cron mails what is printed, and nothing when all is well"


def test_a_night_has_an_end(stub, tmp_path):
    repo, _ = stub
    executable(repo / COMMAND, "#!/bin/sh\nsleep 60\n")
    environment = {**os.environ, "LIMIT": "0.2", "RETRIES": "1", "PAUSE": "0"}
    command = [repo / "examples/schedules/nightly.sh", tmp_path / "log"]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 124


def lines_of_cron() -> list[str]:
    """The commands of the example, as cron hands them to sh: behind the times and the user."""
    rows = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if re.match(r"[\d*]", line)]
    for row in rows:
        assert re.match(r"(\S+ ){5}[a-z]+ ", row)
        assert "%" not in row, "cron makes a line break of it"
    return [row.split(" ", 6)[6] for row in rows]


def test_the_line_of_cron_scores_a_night(copied: Line, settings_file, tmp_path):
    """By sh, with another place for each path: a real night, and the check of the morning."""
    (copied.archive / "tonight.jpg").write_bytes(synthetic.lesion_jpeg(500, size=64))
    before = set(status.committed(copied.context.warehouse))
    log = tmp_path / "score.log"
    places = {
        HOME: str(REPO),
        "/run/lock/melanoma-score.lock": str(tmp_path / "lock"),
        "/var/log/melanoma/score.log": str(log),
        "/etc/melanoma/score.yaml": str(settings_file()),
        "/data/landing": str(copied.archive),
        "/data/warehouse": str(copied.folder),
    }
    night, morning = lines_of_cron()
    for place, here in places.items():
        night, morning = night.replace(place, here), morning.replace(place, here)
    assert "/opt/" not in night + morning
    environment = {name: os.environ[name] for name in ("HOME", "JAVA_HOME", "REAL_JAVA_HOME") if name in os.environ}
    environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "RETRIES": "0", "PYTHONPATH": str(TESTS / "plugins")}
    done = subprocess.run(["sh", "-c", night], env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), log.read_text()
    (batch,) = set(status.committed(copied.context.warehouse)) - before
    output = [json.loads(line) for line in log.read_text().splitlines()]
    (last,) = [line for line in output if line["event"] == "done"]
    assert (last["batch_id"], last["counts"]["scored"], last["level"]) == (batch, 1, "info")
    checked = subprocess.run(["sh", "-c", morning], env=environment, capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")
    late = ["sh", "-c", morning.replace("score.within=36", "score.within=0.00001")]
    checked = subprocess.run(late, env=environment, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 4
    assert "expected one within 1e-05 hours" in checked.stderr


def verified(folder: Path) -> str:
    """What systemd-analyze finds wrong with the units of a folder."""
    if not shutil.which("systemd-analyze"):
        skip_or_fail("no systemd-analyze on PATH: install systemd")
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(folder.iterdir())], capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit status {done.returncode}")


@pytest.fixture
def units(tmp_path):
    """The units, with this repository for their home."""
    folder = tmp_path / "units"
    folder.mkdir()
    for path in [*EXAMPLES.glob("*.service"), *EXAMPLES.glob("*.timer")]:
        (folder / path.name).write_text(path.read_text().replace(HOME, str(REPO)))
    return folder


def test_systemd_finds_nothing_wrong_with_the_units(units):
    assert len(list(units.iterdir())) == 4
    assert verified(units) == ""
    score = units / "melanoma-score.service"
    score.write_text(score.read_text().replace("RestartSec=", "RestartSeconds="))
    assert "RestartSeconds" in verified(units), "it does look"


def test_the_units_know_the_exit_statuses():
    score = (EXAMPLES / "melanoma-score.service").read_text()
    assert "\nSuccessExitStatus=5\n" in score
    assert "\nRestartPreventExitStatus=2 4 6\n" in score
    follow = (EXAMPLES / "melanoma-follow.service").read_text()
    assert "\nRestartPreventExitStatus=2 4 5\n" in follow
    for text in (score, follow):
        assert "\nKillMode=mixed\n" in text
        assert "\nRestart=on-failure\n" in text


def test_airflow_parses_the_dag_and_maps_exit_statuses(tmp_path):
    uv = REPO / ".uv/bin/uv"
    if not uv.exists():
        skip_or_fail("no .uv/bin/uv, which makes Airflow's environment: run `make install`")
    python = tmp_path / "airflow/bin/python"
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for command in (
        ["venv", "-q", "--no-python-downloads", "--python", REPO / ".uv/bin/python", tmp_path / "airflow"],
        ["pip", "install", "-q", "--python", python, "-r", REPO / "tests/airflow-requirements.txt"],
    ):
        done = subprocess.run([uv, *command], env=clean, capture_output=True, text=True, timeout=600)
        if done.returncode:
            skip_or_fail(f"Airflow cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (tmp_path / "dags").mkdir()
    shutil.copy(EXAMPLES / "airflow_score.py", tmp_path / "dags")
    executable(tmp_path / "bin/spark-submit", '#!/bin/sh\nexit "$EXIT_WITH"\n')
    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_SPARK_DEFAULT": "spark://local",
    }
    command = [python, REPO / "tests/airflow_parsed.py", tmp_path / "dags"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["errors"] == {}
    (dag,) = result["dags"].values()
    assert (dag["schedule"], dag["catchup"], dag["max_active_runs"]) == ("15 2 * * *", False, 1)
    assert dag["params"] == {"archive": "/data/landing"}
    assert dag["timeout"] == 10 * 3600
    score, there = dag["tasks"]["score"], dag["tasks"]["batch_within_36_hours"]
    assert "SparkSubmitOperator" in score["kind"]
    assert (score["retries"], score["wait"], score["timeout"]) == (2, 600, 8 * 3600)
    assert score["downstream"] == ["batch_within_36_hours"]
    assert {"archive={{ params.archive }}", "log.format=json"} <= set(score["words"])
    assert there["retries"] == 0
    assert score["tells"]
    again, never = "AirflowException", "AirflowFailException"
    outcomes = ("done", again, never, again, never, "AirflowSkipException", never)
    assert result["outcomes"] == {str(status): outcome for status, outcome in enumerate(outcomes)}


SCHEMAS = {
    "workflow": ("oozie-common-1.0", "oozie-workflow-1.0", "shell-action-1.0", "email-action-0.2"),
    "coordinator": ("oozie-coordinator-0.5",),
}


@pytest.fixture(scope="module")
def oozie(tmp_path_factory) -> Path:
    """The schemas of Oozie's client, out of Maven Central."""
    folder = tmp_path_factory.mktemp("oozie")
    with or_skipped():
        jar = of_maven("org.apache.oozie:oozie-client:5.2.1", folder)
    with zipfile.ZipFile(jar) as unzipped:
        unzipped.extractall(folder)
    return folder


def of_maven(artifact: str, folder: Path) -> Path:
    """A jar from Maven's local repository, where the first run puts it. Raises `Missing`."""
    if not shutil.which("mvn"):
        raise Missing("no Maven on PATH, which brings Oozie's schemas: install maven")
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
    command = ["mvn", "-q", "-B", plugin, f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    for offline in (["-o"], []):
        done = subprocess.run([*command, *offline], capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            return next(folder.glob("*.jar"))
    raise Missing(f"Maven cannot get {artifact}: {next(iter(done.stdout.splitlines()), 'no reason told')}")


def valid(spark, oozie: Path, kind: str, text: str) -> str:
    """What Java's validator finds wrong by Oozie's schemas."""
    java = spark.sparkContext._jvm
    sources = spark.sparkContext._gateway.new_array(java.javax.xml.transform.Source, len(SCHEMAS[kind]))
    for place, name in enumerate(SCHEMAS[kind]):
        sources[place] = java.javax.xml.transform.stream.StreamSource(java.java.io.File(str(oozie / f"{name}.xsd")))
    factory = java.javax.xml.validation.SchemaFactory.newInstance("http://www.w3.org/2001/XMLSchema")
    reader = java.java.io.StringReader(text)
    try:
        validator = factory.newSchema(sources).newValidator()
        validator.validate(java.javax.xml.transform.stream.StreamSource(reader))
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", SCHEMAS)
def test_oozies_schemas_allow_the_xml(spark, oozie, kind):
    text = (EXAMPLES / f"oozie/{kind}.xml").read_text()
    assert valid(spark, oozie, kind, text) == ""
    wrong = text.replace("<file>", "<fill>").replace("</file>", "</fill>").replace("concurrency>", "concurrent>")
    assert "cvc-complex-type" in valid(spark, oozie, kind, wrong), "it does look"


@pytest.mark.parametrize("status", range(7))
def test_oozies_action_fails_where_another_try_may_help(stub, status):
    repo, ends_with = stub
    ends_with(status)
    done = subprocess.run(
        [repo / "examples/schedules/oozie/score.sh", "archive=a"],
        env={**os.environ, "HOME_OF_MELANOMA": str(repo)},
        capture_output=True,
        text=True,
    )
    again = status in (1, 3)
    assert (done.returncode, done.stdout) == ((status, "") if again else (0, f"status={status}\n"))


def test_cluster_mode_gives_package_and_arguments_to_spark(tmp_path):
    executable(
        tmp_path / "spark/bin/spark-submit",
        '#!/bin/sh\nprintf "%s\\n" "$@" >"$TOLD"\nwhile [ "$1" != --py-files ]; do shift; done\ncp "$2" "$TOLD.zip"\n',
    )
    output = tmp_path / "told"
    (tmp_path / "w").mkdir()
    done = subprocess.run(
        [EXAMPLES / "cluster-mode.sh", "archive=hdfs:///lesions", f"warehouse={tmp_path}/w"],
        env={**os.environ, "MELANOMA_HOME": str(REPO), "SPARK_HOME": str(tmp_path / "spark"), "TOLD": str(output)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 4, "there is no batch"
    assert "there is no batch; expected one within 36 hours" in done.stderr
    words = output.read_text().splitlines()
    assert words[:4] == ["--master", "yarn", "--deploy-mode", "cluster"]
    assert "spark.yarn.maxAppAttempts=1" in words
    place = words.index(f"{REPO}/jobs/score.py")
    assert words[place + 1 :] == ["log.format=json", "wait=3600", "archive=hdfs:///lesions", f"warehouse={tmp_path}/w"]
    assert "melanoma_spark/scoring/follow.py" in zipfile.ZipFile(f"{output}.zip").namelist()


def test_every_example_is_told_of_in_the_operators_page():
    page = (REPO / "docs/operations.md").read_text()
    for path in EXAMPLES.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.name in page, f"{path.name} is not in docs/operations.md"
