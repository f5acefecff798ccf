"""The doctor: its checks, its table, and the job on a real machine with several faults."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.errors import ClusterError
from melanoma_spark.operations import doctor as job
from melanoma_spark.spark import checks
from melanoma_spark.spark.checks import DRIVER, FAILED, OK, WARNING, Finding

WORDS = st.text("abc /:", min_size=1, max_size=12).map(str.strip).filter(bool)
WHERE = st.one_of(st.just(DRIVER), st.sampled_from("abc").map(checks.executor_on))
FINDINGS = st.lists(st.builds(Finding, WORDS, WHERE, WORDS, st.sampled_from([OK, WARNING, FAILED]), st.just("mend it")))
SECONDS = st.floats(0, 100)

HERE = {"Python": "3.11.7", "melanoma_spark": "0.2.0", "numpy": "1.26.4", "tensorflow-cpu": "2.18.1"}
MACHINE = checks.Machine("17.0.15", "4.0.1", horovod="", warehouse="", total=64, available=50, cores=8)
ASKED = checks.ExecutorResources(heap=4, overhead=0.4, python=0, contained=False, threads=1, gpus=False)
YARN = replace(ASKED, contained=True)
LOCK = """
[[package]]
name = "melanoma-spark"
source = { editable = "." }
dependencies = [{ name = "numpy" }, { name = "pyspark" }]
"""
LOCK += "".join(
    f'[[package]]\nname = "{name}"\nversion = "{version}"\n'
    for name, version in (("numpy", "1.26.4"), ("pytest", "8.1"), ("pyspark", "4.0.1"), ("tensorflow-cpu", "2.18.1"))
)
LOCKED = {"numpy": "1.26.4", "tensorflow-cpu": "2.18.1"}


@given(FINDINGS)
def test_columns_are_aligned_with_remedies_below(findings):
    header, *lines = checks.findings_table(findings).split("\n")
    at = [header.index(word) for word in ("verdict", "what", "where", "found")]
    for finding in findings:
        line, below, *lines = lines
        assert [line[a:b].rstrip() for a, b in zip(at, [*at[1:], None], strict=True)] == [
            finding.verdict,
            finding.what,
            finding.where,
            finding.found,
        ]
        assert below == " " * at[3] + "-> mend it"
    assert lines == []


@given(FINDINGS)
def test_merging_loses_nothing_and_keeps_the_driver_apart(findings):
    lines = checks.merge_findings(findings)
    for finding in findings:
        same = [line for line in lines if replace(line, where="") == replace(finding, where="")]
        if finding.where == DRIVER:
            assert [line.where for line in same].count(DRIVER) == 1
        else:
            (line,) = (line for line in same if line.where != DRIVER)
            assert finding.where.removeprefix("executor on ") in re.split("[ ,]+", line.where)
    of = [line.what for line in lines]
    assert list(dict.fromkeys(of)) == list(dict.fromkeys(finding.what for finding in findings))
    assert of == sorted(of, key=of.index), "what is about the same stands together"


def test_the_first_that_failed_is_refused_in_one_line():
    fine, warned = Finding("a", DRIVER, "x"), Finding("b", DRIVER, "y", WARNING, "mend b")
    checks.raise_failure([fine, warned])
    with pytest.raises(ClusterError, match=r"^executor on n: z; mend c$"):
        checks.raise_failure([fine, warned, Finding("c", checks.executor_on("n"), "z", FAILED, "mend c")])
    hosts = [checks.executor_on(f"node-{number}") for number in (3, 1, 2, 5, 4, 4)]
    (line,) = checks.merge_findings(Finding("Java", host, "17") for host in hosts)
    assert line.where == "6 executors on node-1, node-2, node-3 and 2 more"
    full = ClusterError("cannot write file:///w: No space left on device; make room; or go")
    message = ("cannot write file:///w: No space left on device", FAILED, "make room; or go")
    assert checks.finding_of_error("warehouse", DRIVER, full, "else") == Finding("warehouse", DRIVER, *message)
    assert checks.finding_of_error("MLflow", DRIVER, ClusterError("is away"), "else").remedy == "else"


@pytest.mark.parametrize(
    ("version", "verdict"), [("17.0.15", OK), ("21", OK), ("11.0.2", FAILED), ("1.8.0_402", FAILED), ("170.1", FAILED)]
)
def test_java(version, verdict):
    assert checks.check_java(DRIVER, version).verdict == verdict


def test_spark_horovod_cores_packages_and_gpus():
    assert checks.check_spark("n", "4.0.1", "4.0.1").verdict == checks.check_horovod("n", "").verdict == OK
    result = checks.check_spark("n", "4.0.1", "3.5.6")
    assert (result.verdict, result.found) == (FAILED, "3.5.6 (driver: 4.0.1)")
    broken = checks.check_horovod("n", "ImportError: undefined symbol: x")
    assert (broken.verdict, broken.remedy.split()[0]) == (FAILED, "build")
    absent = [checks.check_horovod("n", "ModuleNotFoundError: No module named 'horovod'", ranks) for ranks in (1, 2)]
    assert [one.verdict for one in absent] == [WARNING, FAILED]
    assert {one.remedy for one in absent} == {"pip install 'melanoma-spark[horovod]'"}
    for capped in ("MemoryError", "ImportError: libtensorflow_cc.so.2: failed to map segment from shared object"):
        assert "spark.executor.pyspark.memory" in checks.check_horovod("n", capped).remedy
    assert [checks.check_cores("n", tasks, threads, 8).verdict for tasks, threads in ((8, 1), (3, 3))] == [OK, WARNING]

    assert checks.check_packages("n", HERE, dict(HERE)).found == "Python 3.11.7 and 3 packages as on the driver"
    there = {**HERE, "numpy": "2.0", "pandas": "2.2"}
    del there["tensorflow-cpu"]
    result = checks.check_packages("n", HERE, there)
    message = "numpy 2.0 (driver: 1.26.4), pandas 2.2 (driver: none), tensorflow-cpu none (driver: 2.18.1)"
    assert (result.verdict, result.found) == (FAILED, message)

    cuda = {"tensorflow": "2.18.1"}
    asked = replace(ASKED, gpus=True)
    given = replace(MACHINE, gpus=("0",), devices=1)
    assert checks.check_gpus("n", ASKED, MACHINE, HERE).found == "none"
    idle = checks.check_gpus("n", ASKED, replace(MACHINE, devices=2), HERE)
    assert (idle.verdict, idle.found) == (WARNING, "2 in the machine, Spark gives tasks none")
    assert checks.check_gpus("n", asked, given, cuda) == Finding("GPUs", "n", "Spark gives a task GPU 0")
    assert "GPU=1" in checks.check_gpus("n", asked, given, HERE).remedy
    assert "spark.executor.pyspark.memory" in checks.check_gpus("n", replace(asked, python=6), given, cuda).remedy


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (LOCKED, None),
        (LOCKED | {"pytest": "8.1", "pyspark": "4.0.1"}, None),
        (LOCKED | {"pytest": "9"}, "pytest 9 (uv.lock: 8.1)"),
        (LOCKED | {"pyspark": "3.5"}, "pyspark 3.5 (uv.lock: 4.0.1)"),
        ({"tensorflow-cpu": "2.18.1"}, "numpy is missing"),
        ({"numpy": "2", "tensorflow-cpu": "2.18.1"}, "numpy 2 (uv.lock: 1.26.4)"),
        ({"numpy": "1.26.4"}, "tensorflow-cpu is missing"),
        ({"numpy": "1.26.4", "tensorflow": "2.18.1"}, None),
    ],
)
def test_packages_against_the_lock(there, message):
    result = checks.check_lock(LOCK, there)
    if message is None:
        assert result.verdict == OK
    else:
        assert (result.verdict, result.found) == (FAILED, message)
        assert "make install" in result.remedy


def of_memory(asked, machine=MACHINE, tasks=1, executors=1, engine="ncnn"):
    result = checks.check_memory("n", tasks, asked, machine, executors, engine=engine)
    assert result.verdict == OK or result.remedy
    return result.verdict


def test_memory_is_checked_on_yarn_elsewhere_and_under_a_cap():
    assert of_memory(YARN) == FAILED, "Spark's default"
    assert of_memory(replace(YARN, overhead=0.99)) == FAILED
    assert of_memory(replace(YARN, overhead=1.01)) == WARNING, "scores, and does not train"
    assert of_memory(replace(YARN, overhead=1.61)) == OK
    assert of_memory(replace(YARN, overhead=1.61), tasks=2) == WARNING
    assert of_memory(replace(YARN, python=1.3)) == OK, "it comes on top of the overhead"
    assert of_memory(replace(YARN, overhead=4), replace(MACHINE, available=0.1)) == OK, "YARN counts for itself"

    assert of_memory(ASKED) == OK
    assert of_memory(ASKED, replace(MACHINE, available=1.1)) == WARNING
    assert of_memory(ASKED, replace(MACHINE, available=0.5)) == FAILED
    assert of_memory(replace(ASKED, heap=63), MACHINE) == WARNING, "the heap grows"
    assert of_memory(ASKED, replace(MACHINE, total=8, available=6), tasks=4) == WARNING
    assert of_memory(ASKED, executors=4, tasks=11) == WARNING, "each has a fourth of the 48 GB that heaps leave"
    assert of_memory(ASKED, executors=2, tasks=10) == OK

    result = checks.check_memory("n", 2, replace(ASKED, python=1), MACHINE, 1, engine="ncnn")
    assert result.found == (
        "2 workers take 1.2 GB to score by ncnn, 2.4 GB to train; spark.executor.pyspark.memory has 1.0 GB for them"
    )
    assert (result.verdict, "raise spark.executor.pyspark.memory" in result.remedy) == (FAILED, True)
    assert of_memory(replace(ASKED, python=1.3), tasks=2) == WARNING
    assert of_memory(replace(ASKED, python=2.5), tasks=2) == OK
    assert of_memory(replace(YARN, overhead=1.2), engine="ncnn") == WARNING
    assert of_memory(replace(YARN, overhead=1.2), engine="tensorflow") == FAILED
    assert of_memory(replace(YARN, overhead=1.65), engine="onnxruntime") == FAILED, "it takes more than TensorFlow"


@given(st.floats(-500, 500), SECONDS, SECONDS, SECONDS)
def test_a_skew_is_never_overstated_and_found_but_for_the_way(skew, there, work, back):
    sent = 1_000_000.0
    began, ended = sent + there, sent + there + work
    result = checks.clock_skew(sent, began + skew, ended + skew, ended + back)
    assert result * skew >= 0, "on the right side"
    assert abs(result) <= abs(skew) + 1e-6
    assert abs(result) >= abs(skew) - (back if skew > 0 else there) - 1e-6


@pytest.mark.parametrize(
    ("seconds", "verdict", "message"),
    [
        (0, OK, "within 30 s"),
        (-30, OK, "within 30 s"),
        (31, WARNING, "at least 31 s ahead of the driver's"),
        (-119, WARNING, "at least 119 s behind the driver's"),
        (-120, FAILED, "at least 120 s behind the driver's"),
    ],
)
def test_a_clock(seconds, verdict, message):
    result = checks.check_clock("n", seconds, 120)
    assert result.verdict == verdict
    assert message in result.found


def test_findings_about_executors():
    """Two on one machine, of two tasks each, and another one of one task that is amiss in every way."""
    bad = replace(MACHINE, java="11", spark="3.5", horovod="undefined symbol", warehouse="cannot write x; mount it")
    bad = replace(bad, total=4.1, cores=0, devices=1)

    def answer(host, executor, machine=None, **changes):
        return replace(checks.Answer(host, executor, HERE, "", 0, 0, machine=machine), **changes)

    answers = [
        answer("a", "a:1", MACHINE),
        answer("a", "a:1"),
        answer("a", "a:2", replace(MACHINE, available=20)),
        answer("a", "a:2"),
        answer("b", "b:1", bad, versions={**HERE, "numpy": "2"}, skew=200, unreachable="a:1 (refused)"),
    ]
    result = list(checks.check_executors(answers, HERE, "4.0.1", ASKED, engine="ncnn", stale=120))
    of_b = {one.what: one for one in result if one.where == checks.executor_on("b")}
    assert set(of_b) == {one.what for one in result}
    assert {what for what, one in of_b.items() if one.verdict == WARNING} == {"cores", "GPUs"}
    assert {one.verdict for what, one in of_b.items() if what not in ("cores", "GPUs")} == {FAILED}
    assert all(one.remedy for one in of_b.values())
    of_a = [one for one in result if one.where == checks.executor_on("a")]
    assert {one.verdict for one in of_a} == {OK}
    message = "2 workers take 1.2 GB to score by ncnn, 2.4 GB to train; the machine has that"
    assert {one.found for one in of_a if one.what == "memory"} == {message}
    assert {one.found for one in of_a if one.what == "cores"} == {"4 tasks of 1 threads on 8 cores"}

    lost = [*answers[:1], replace(answers[1], unreachable="driver:1 (refused)"), *answers[2:4]]
    result = [
        one
        for one in checks.check_executors(lost, HERE, "4.0.1", ASKED, engine="ncnn", stale=120)
        if one.what == "network"
    ]
    assert [one.verdict for one in result] == [FAILED, OK], "any task of an executor may tell it"


def rows(out):
    """The lines of the table: (what, where) -> (verdict, found, remedy)."""
    header, *lines = out.splitlines()
    at = [header.index(word) for word in ("verdict", "what", "where", "found")]
    result, last = {}, None
    for line in lines:
        if line.startswith(" " * at[3] + "-> "):
            result[last] = (*result[last][:2], line[at[3] + 3 :])
        elif not line.startswith("doctor: "):
            verdict, what, where = (line[a:b].rstrip() for a, b in pairwise(at))
            last = (what, "executor" if where.startswith("executor on ") else where)
            assert last not in result
            result[last] = (verdict, line[at[3] :], "")
    return result


CHECKS = {
    *((what, DRIVER) for what in ("uv.lock", "Horovod", "weights", "warehouse", "Java", "Spark", "MLflow", "slots")),
    *((what, "executor") for what in ("Java", "Spark", "packages", "Horovod", "memory", "cores", "GPUs")),
    *((what, "executor") for what in ("network", "clock", "warehouse")),
}


def test_a_machine_that_passes_all_checks(submit, settings_file, tmp_path):
    settings = settings_file(warehouse=str(tmp_path / "warehouse"))
    done = submit("doctor", "--conf", settings, "--master", "local[2]")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    result = rows(done.stdout)
    assert set(result) == CHECKS
    assert not any(verdict == FAILED for verdict, _, _ in result.values()), done.stdout
    assert all(remedy for verdict, _, remedy in result.values() if verdict != OK)
    assert result["slots", DRIVER][1] == "2, ranks=2"
    assert result["packages", "executor"][1].startswith(f"Python {sys.version.split()[0]} and ")
    assert re.fullmatch(r"doctor: 18 checks, \d of them with a warning, none failed", done.stdout.splitlines()[-1])
    assert list((tmp_path / "warehouse").iterdir()) == [], "it leaves nothing"


def test_a_machine_that_fails_five_checks(submit, settings_file, tmp_path):
    """Four faults at once, each reported with its remedy; the other checks pass."""
    (tmp_path / "file").write_text("no folder")
    settings = settings_file(
        warehouse=str(tmp_path / "file/warehouse"),
        ranks=3,
        backbone={"weights": "imagenet", "allow_random": False},
        mlflow={"tracking_uri": "http://127.0.0.1:9"},
    )
    nowhere = str(tmp_path / "no-weights.h5")
    done = submit("doctor", "--conf", settings, "--master", "local[2]", MELANOMA_WEIGHTS=nowhere)
    assert done.returncode == 3, done.stdout + done.stderr
    result = rows(done.stdout)
    assert set(result) == CHECKS
    failed = {key: row for key, row in result.items() if row[0] == FAILED}
    message = {
        ("weights", DRIVER): (f"MELANOMA_WEIGHTS names {nowhere}, which is no file", "correct or unset it"),
        ("warehouse", DRIVER): (f"cannot write file://{tmp_path}/file/warehouse/", "choose another warehouse=URL"),
        ("warehouse", "executor"): (f"cannot write file://{tmp_path}/file/warehouse/", "choose another warehouse=URL"),
        ("MLflow", DRIVER): ("MLflow at http://127.0.0.1:9 cannot be used: ", job.SERVER),
        ("slots", DRIVER): (
            "ranks=3 but Spark has only 2 free slots (cores / spark.task.cpus over all executors)",
            "set ranks=2 or give Spark more cores, for example --master local[3]",
        ),
    }
    assert failed.keys() == message.keys()
    for key, (start, remedy) in message.items():
        assert failed[key][1].startswith(start)
        assert failed[key][2] == remedy
    assert "Not a directory" in failed["warehouse", DRIVER][1]
    assert done.stderr == ("error: 5 of 18 checks failed: weights, warehouse, MLflow, slots; the table has remedies\n")


def test_executors_without_python(submit, settings_file, tmp_path):
    """--archives was forgotten."""
    settings = settings_file(warehouse=str(tmp_path / "warehouse"), log={"format": "json"})
    words = ("doctor", "--conf", settings, "--master", "local[2]")
    done = submit(*words, PYSPARK_PYTHON="./env/bin/python")
    assert done.returncode == 3, done.stdout + done.stderr
    message = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["event"] for line in message} == {"finding"}
    (failed,) = (line for line in message if line["verdict"] == FAILED)
    assert (failed["what"], failed["level"]) == ("executors", "error")
    assert 'cannot be asked: java.io.IOException: Cannot run program "./env/bin/python"' in failed["found"]
    assert "--archives" in failed["remedy"]
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["exit_status"]) == ("failed", 3)
    assert list((tmp_path / "warehouse").iterdir()) == []


def test_checks_that_cannot_be_done_are_findings(monkeypatch, tmp_path):
    def broken():
        raise ZeroDivisionError("nobody foresaw\nthis")

    assert job.run_check("a", DRIVER, broken, "mend a") == [
        Finding("a", DRIVER, "could not be checked: ZeroDivisionError: nobody foresaw", FAILED, "mend a")
    ]

    monkeypatch.setattr(job.lineage, "checkout", lambda: tmp_path)
    (result,) = job.check_lock()
    assert (result.verdict, result.found.split(":")[0]) == (OK, "not compared")


def test_help_teaches(submit):
    done = submit("doctor", "--help")
    assert done.returncode == 0
    for what, _ in CHECKS:
        assert re.search(rf"^  .*{what}", done.stdout, re.MULTILINE)
    assert "It ends with 3 when a check failed." in done.stdout
