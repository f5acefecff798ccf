"""Two jobs at once on one warehouse, each in a process: which the lease keeps apart, and which may run together.

The jobs are the real ones but for their stages: a stage reads a list in the warehouse, waits, and writes it with its
own name added, so that of two at once one is lost. Two real jobs at once: score in `test_outages`. Leases on HDFS and
S3: `systems/storage/test_remote_warehouses`.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import command

from melanoma_spark.operations.prune import JOBS

REPO = Path(__file__).parents[2]
STAGES = ("ingest", "featurize", "train_head", "finetune", "evaluate", "register", "score")


# --- In a process of its own: one job after another, as its standard input says.


def serve() -> None:
    from melanoma_spark import pipeline
    from melanoma_spark.errors import BusyError
    from melanoma_spark.operations import retention
    from melanoma_spark.runner.cli import invoke
    from melanoma_spark.runner.context import StageContext, Summary
    from melanoma_spark.runner.stage import run_stage
    from melanoma_spark.scoring import batch, follow
    from melanoma_spark.storage import files, lease

    orders, answers = sys.stdin, sys.stdout  # a job's own output is in its result
    order: dict[str, Any] = {}
    lease.RETRY = 0.05

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    def stage(job: StageContext, name: str = "") -> Summary:
        if name not in ("", order["at"]):  # of a pipeline, a stage that is passed over
            return Summary("")
        url = files.join(job.warehouse, "rows.json")
        rows = (files.read_json(url) or {"by": []})["by"]
        if order["hold"]:
            time.sleep(order["hold"])
        else:
            answer(inside=order["job"])
            orders.readline()
        if job.lease:
            job.lease.check()
        files.write_json(url, {"by": [*rows, order["job"]]})
        return Summary("done")

    @contextlib.contextmanager
    def untracked(*_: Any):
        yield ""

    tracker = SimpleNamespace(run=untracked, log_metrics=lambda figures: None)

    def run(name: str, job: StageContext, *_: Any) -> Summary:
        job = replace(job, mlflow=tracker)
        if name == "follow":
            return follow.follow(job, "score", batch.score_batch, {})
        return run_stage(job, name, complete(name), {})

    def never(settings: Any) -> bool:
        return False

    def complete(name: str) -> Any:
        return pipeline.pipeline if name == "pipeline" and order["at"] else stage

    def run_once(following: follow.Follower) -> None:
        stage(following.context)
        following.done = True

    refuse, decide = lease._refuse, retention.decide

    def refusing(*given: Any, **words: Any) -> None:
        try:
            refuse(*given, **words)
        except BusyError:
            if order.pop("wait", 0) and not order["hold"]:
                answer(waits=True)
            raise

    def deciding(*given: Any) -> Any:
        stage(StageContext(None, None, files.url_of(order["warehouse"]), None))
        return decide(*given)

    follow.Follower.run, retention.decide, lease._refuse = run_once, deciding, refusing
    follow.plan.is_empty_folder = lambda url: True
    pipeline.STAGES = {name: partial(stage, name=name) for name in STAGES}
    pipeline.weights.locate = pipeline.executors.check_ready = lambda *_: None
    StageContext.spark = None  # no stage here uses it
    pipeline.log_results = lambda job: ""
    answer(ready=True)
    for line in orders:
        order |= json.loads(line)
        lease.SETTLE = order["settle"]
        name, words = order["job"], [f"warehouse={order['warehouse']}", f"wait={order['wait']}"]
        if name == "prune":
            chosen = command("prune")
            words += ["prune.apply=true", "prune.unfinished_days=0"]
        else:
            chosen = command("score" if name == "follow" else name)
            chosen = replace(chosen, runner=partial(run, name), prepared=never, needs_archive=never)
        result = invoke(chosen, words)
        answer(status=result.exit_status, log=result.log)


# --- In the process of the tests.


class Worker:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=REPO,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{REPO}:{REPO}/tests", "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def start(self, job: str, warehouse: Path, wait: float = 0, hold: float = 0, settle: float = 0.01) -> None:
        """`pipeline/ingest` is a pipeline at its stage ingest. Without `hold` it stays there until `leave`."""
        job, _, at = job.partition("/")
        facts = {"job": job, "at": at, "warehouse": str(warehouse), "wait": wait, "hold": hold, "settle": settle}
        self.tell(json.dumps(facts))

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def leave(self) -> None:
        """Let the job that is inside go on to its end."""
        self.tell()
        ended = self.answer()
        assert ended["status"] == 0, ended


@pytest.fixture(scope="module")
def workers():
    started = [Worker(), Worker()]
    assert all(worker.answer() == {"ready": True} for worker in started)
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


def rows(warehouse: Path) -> list[str]:
    return json.loads((warehouse / "rows.json").read_text())["by"]


def check_refused(ended: dict[str, Any], by: str, pid: int) -> None:
    assert ended.get("status") == 5, ended
    (line,) = (line for line in ended["log"].splitlines() if line.startswith("error: "))
    assert re.match(
        rf"error: {by} is already running on this warehouse, since \S+ on {re.escape(socket.gethostname())} "
        rf"\(process {pid}\); wait for it, or stop it",
        line,
    )
    assert "Traceback" not in ended["log"]


# A job that is at work, one that starts meanwhile, and who the second is told of.
PAIRS = [
    *((job, job, job) for job in JOBS),
    *((f"pipeline/{stage}", stage, stage) for stage in STAGES),
    *((stage, f"pipeline/{stage}", stage) for stage in STAGES),
    *(("prune", job, "prune") for job in (*JOBS, "follow", "prune")),
    *((job, "prune", job) for job in JOBS),
    ("pipeline/score", "prune", "pipeline"),
    ("follow", "prune", "score"),
    ("follow", "score", "score"),
    ("score", "follow", "score"),
    ("follow", "follow", "score"),
]


@pytest.mark.parametrize(("first", "second", "holder"), PAIRS)
def test_the_second_job_is_refused_or_waits(workers, tmp_path, first, second, holder):
    one, other = workers
    one.start(first, tmp_path)
    assert "inside" in one.answer()
    other.start(second, tmp_path)
    check_refused(other.answer(), holder, one.process.pid)
    other.start(second, tmp_path, wait=60)
    assert other.answer() == {"waits": True}
    one.leave()
    assert "inside" in other.answer()
    other.leave()
    assert rows(tmp_path) == [first.split("/")[0], second.split("/")[0]]
    assert not list((tmp_path / "running").iterdir())


@pytest.mark.parametrize(
    ("first", "second"),
    [("search", "train_head"), ("ingest", "score"), ("pipeline/ingest", "score"), ("pipeline/score", "ingest")],
)
def test_jobs_that_write_nothing_in_common_work_at_once(workers, tmp_path, first, second):
    one, other = workers
    for worker, job in ((one, first), (other, second)):
        worker.start(job, tmp_path)
        assert "inside" in worker.answer()
    assert len(list((tmp_path / "running").iterdir())) == 2 + ("/" in first)
    other.leave()
    one.leave()  # a pipeline comes to the stage score, too


@pytest.mark.parametrize("job", [*JOBS, "follow", "prune"])
def test_jobs_that_start_at_once_run_one_after_the_other(workers, tmp_path, job):
    for worker in workers:
        worker.start(job, tmp_path, settle=0.3)
    answers = [worker.answer() for worker in workers]
    (inside,) = (worker for worker, answer in zip(workers, answers, strict=True) if "inside" in answer)
    (refused,) = (answer for answer in answers if "inside" not in answer)
    check_refused(refused, "score" if job == "follow" else job, inside.process.pid)
    inside.leave()
    for worker in workers:
        worker.start(job, tmp_path, wait=60, hold=0.1, settle=0.3)
    assert [worker.answer()["status"] for worker in workers] == [0, 0]
    assert rows(tmp_path) == [job] * 3


if __name__ == "__main__":
    serve()
