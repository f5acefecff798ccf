"""The session's helpers, on local[2]."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.job import run_stage
from melanoma_spark import session


def test_a_task_has_one_core_of_the_two(spark: Any) -> None:
    assert session.slots(spark) == 2
    assert session.task_threads(spark) == 1


@pytest.mark.parametrize(
    ("rows", "partitions"),
    [(0, 1), (1, 1), (2, 2), (20, 2), (128, 2), (129, 4), (1280, 20), (12800, 20), (40960, 20), (409600, 200)],
)
def test_rows_are_cut_for_slots_to_be_busy_and_tasks_to_be_long(spark: Any, rows: int, partitions: int) -> None:
    assert session.partitions_for(spark, rows) == partitions


def test_long_work_tells_how_many_tasks_have_ended(spark, capsys):
    def slow(batches):
        for batch in batches:
            time.sleep(0.8)
            yield batch

    with session.progress(spark, "slow things", seconds=0.3):
        spark.range(0, 6, 1, 6).mapInPandas(slow, "id long").collect()
    told = capsys.readouterr().out.splitlines()
    assert len(told) >= 3
    done = [int(re.fullmatch(r"  (\d) of 6 slow things", line)[1]) for line in told]
    assert done == sorted(done)
    assert 0 < done[-1] <= 6
    time.sleep(0.7)
    assert capsys.readouterr().out == "", "when the work is done, it is quiet"


def test_a_stage_that_has_ended_holds_nothing(new_line):
    line = new_line()
    context = line.job.spark.sparkContext

    def held() -> tuple[int, int]:
        return len(context._jsc.getPersistentRDDs()), len(list(Path(context._temp_dir).iterdir()))

    def stage(job: Any) -> str:
        session.broadcast(job.spark, [1])
        job.spark.range(3).persist().count()
        during.append(held())
        return "done"

    before, during = held(), []
    run_stage(line.job, "held", stage, {"stage": "held"})
    assert during == [(before[0] + 1, before[1] + 1)], "a table, and the file of a broadcast"
    assert held() == before
