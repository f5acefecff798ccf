"""The session's helpers, on local[2]."""

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_clock import FakeClock

from melanoma_spark.errors import ClusterError
from melanoma_spark.runner.context import Summary
from melanoma_spark.runner.stage import run_stage
from melanoma_spark.spark import session


def test_a_task_has_one_core_of_the_two(spark: Any) -> None:
    assert session.slots(spark) == 2
    assert session.task_threads(spark) == 1


@pytest.mark.parametrize(
    ("rows", "partitions"),
    [(0, 1), (1, 1), (2, 2), (20, 2), (128, 2), (129, 4), (1280, 20), (12800, 20), (40960, 20), (409600, 200)],
)
def test_rows_are_cut_for_slots_to_be_busy_and_tasks_to_be_long(spark: Any, rows: int, partitions: int) -> None:
    assert session.partitions_for(spark, rows) == partitions


def test_queries_of_few_rows_are_interpreted_and_those_of_many_are_compiled(spark):
    def compiled():
        query = spark.range(10, numPartitions=1).selectExpr("id % 3 as k").where("k > 0")
        plan = query._jdf.queryExecution().executedPlan().toString()
        return "*(" in plan, [row.k for row in query.collect()]

    with session.changed(spark, {"spark.sql.codegen.factoryMode": "FALLBACK", "spark.sql.codegen.wholeStage": "true"}):
        with session.interpreted(spark, rows=100_000):
            few = compiled()
        with session.interpreted(spark, rows=100_001):
            many = compiled()
        assert few == (False, [1, 2, 1, 2, 1, 2])
        assert many == compiled() == (True, few[1])


def test_a_query_beside_others_gives_its_result_or_its_error(spark):
    with session.at_once(spark, "beside", spark.range(5).count) as result:
        assert spark.range(6).count() == 6
    assert result.result() == 5
    with (
        pytest.raises(ZeroDivisionError),
        session.at_once(spark, "beside", lambda: 1 // 0),
    ):
        assert spark.range(6).count() == 6


def test_progress_counts_finished_tasks(spark, capsys):
    def slow(batches):
        for batch in batches:
            time.sleep(0.8)
            yield batch

    with session.progress(spark, "slow things", seconds=0.3):
        spark.range(0, 6, 1, 6).mapInPandas(slow, "id long").collect()
    output = capsys.readouterr().out.splitlines()
    assert len(output) >= 3
    done = [int(re.fullmatch(r"  (\d) of 6 slow things", line)[1]) for line in output]
    assert done == sorted(done)
    assert 0 < done[-1] <= 6
    time.sleep(0.7)
    assert capsys.readouterr().out == "", "when the work is done, it is quiet"


def test_a_stage_that_has_ended_holds_nothing(new_line):
    line = new_line()
    context = line.context.spark.sparkContext

    def held() -> tuple[set[int], set[Path]]:
        return set(context._jsc.getPersistentRDDs()), set(Path(context._temp_dir).iterdir())

    def stage(job: Any) -> Summary:
        session.broadcast(job.spark, [1])
        job.spark.range(3).persist().count()
        during.extend(held())
        return Summary("done")

    (tables, files), during = held(), []
    run_stage(line.context, "held", stage, {"stage": "held"})
    assert [len(during[0] - tables), len(during[1] - files)] == [1, 1], "a table, and the file of a broadcast"
    left = held()  # Spark may have collected what earlier tests held
    assert left[0] <= tables
    assert left[1] <= files


def of_master(master: str) -> Any:
    """What there is of a session that asks a cluster of that kind for executors."""
    context = SimpleNamespace(master=master, applicationId="application_1_0001")
    context._jsc = SimpleNamespace(sc=lambda: SimpleNamespace(isStopped=lambda: False))
    return SimpleNamespace(sparkContext=context)


@pytest.mark.parametrize(
    ("master", "lost", "comes"),
    [
        ("yarn", False, True),
        ("spark://host:7077", False, False),
        ("spark://host:7077", True, True),
        ("local[1]", False, False),
    ],
)
def test_executors_that_fetch_their_packages_first_are_waited_for(monkeypatch, capsys, master, lost, comes):
    """The second one comes after 80 s, when standalone workers have had their time and nodes of YARN have not.

    Nor has had a standalone master that has yet to find that a worker is lost.
    """
    clock = FakeClock()
    began = clock.now()
    monkeypatch.setattr(session, "_slots", lambda spark: 2 if comes and clock.now() >= began + 80 else 1)
    spark = of_master(master)
    if comes:
        session.wait_for_slots(spark, 2, lost, clock)
        assert capsys.readouterr().out.count("1 of 2 slots are free; waiting for executors") in (7, 8)
    else:
        with pytest.raises(ClusterError, match="ranks=2 but Spark has only 1 free slots"):
            session.wait_for_slots(spark, 2, lost, clock)
        assert clock.now() - began == pytest.approx(0 if "local" in master else session.STANDALONE_START, abs=1)


def test_waiting_for_executors_ends_with_the_application(monkeypatch):
    spark = of_master("yarn")
    spark.sparkContext._jsc.sc = lambda: SimpleNamespace(isStopped=lambda: True)
    monkeypatch.setattr(session, "_slots", lambda spark: 0)
    with pytest.raises(ClusterError, match=r"application_1_0001 was ended while the job ran.*yarn logs -applicationId"):
        session.wait_for_slots(spark, 2)


def test_a_table_that_only_lost_executors_had_ends_in_one_line(new_line):
    """Spark's own error, of blocks that are taken away as losing their executors takes them."""
    line = new_line()

    def stage(job: Any) -> Summary:
        table = session.checkpointed(job.spark.range(3).selectExpr("id + 1 as id"))
        for rdd in (
            table._jdf.queryExecution().toRdd().toJavaRDD(),
            *job.spark.sparkContext._jsc.getPersistentRDDs().values(),
        ):
            rdd.unpersist(True)
        return Summary(str(table.count()))

    with pytest.raises(ClusterError, match="several executors were lost at once, and tables that only they had"):
        run_stage(line.context, "held", stage, {"stage": "held"})
