"""The index of scored files: merged, interrupted or made anew, it holds the same."""

import hashlib
import os
import shutil
from datetime import UTC, datetime

import pytest
from pyspark.sql import functions as f

from melanoma_spark.errors import ClusterError
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.scoring import columns, ledger
from melanoma_spark.storage import files

MODEL = ("melanoma", "1")


def nothing() -> None:
    """A warehouse without another job."""


def scores(spark, names, **changes):
    """Rows of `columns.schema()` of these files."""
    base = dict.fromkeys(columns.schema().names)
    rows = []
    for name in names:
        read = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "status": "scored"}
        source = {"source_uri": f"file:/a/{name}", "source_bytes": 5, "image_id": name}
        own = {"source_modified": datetime(2026, 1, 2, tzinfo=UTC), "model_name": MODEL[0], "model_version": MODEL[1]}
        rows.append({**base, **source, **own, **read, "run_id": "r", **changes})
    return spark.createDataFrame(rows, columns.schema())


@pytest.fixture
def warehouse(tmp_path):
    return files.url_of(str(tmp_path / "warehouse"))


def commit(spark, warehouse, batch, names):
    rows = scores(spark, names)
    staged = ledger.stage(rows, warehouse, batch, len(names))
    facts = {"batch_id": batch, "model": MODEL[0], "model_version": MODEL[1]}
    ledger.commit(warehouse, staged, ledger.entries(rows), facts, nothing)


def output(spark, warehouse):
    """Names in the ledger, and how often a name occurs at most."""
    result = [row.image_id for row in ledger.read(spark, warehouse, *MODEL).collect()]
    return set(result), max(map(result.count, result), default=0)


def folder_of(warehouse):
    return files.join(warehouse, "ledger", *MODEL)


NIGHTS = 7
MANY = {f"{number}-a" for number in range(NIGHTS)}


@pytest.fixture(scope="module")
def nights(spark, tmp_path_factory):
    """Seven batches, merged in threes."""
    folder = tmp_path_factory.mktemp("nights") / "warehouse"
    with pytest.MonkeyPatch.context() as only_here:
        only_here.setattr(ledger, "LOOSE", 2)
        for number in range(NIGHTS):
            commit(spark, files.url_of(str(folder)), f"b{number}", [f"{number}-a"])
            ledger.repair_and_compact(spark, files.url_of(str(folder)), nothing)
    return folder


@pytest.fixture
def many(nights, warehouse, monkeypatch):
    monkeypatch.setattr(ledger, "LOOSE", 2)
    shutil.copytree(nights, warehouse.removeprefix("file://"))
    return MANY


def test_many_batches_are_few_pieces_and_none_is_lost(spark, warehouse, many):
    sizes = [len(piece.batches) for piece in ledger.pieces(folder_of(warehouse))]
    assert sizes == [6, 1], "three and three, which are six"
    assert output(spark, warehouse) == (many, 1)
    assert len(ledger.committed(warehouse)) == NIGHTS


def test_a_merge_killed_before_it_counts_is_no_merge(spark, warehouse, many, monkeypatch):
    commit(spark, warehouse, "b7", ["7-a"])
    commit(spark, warehouse, "b8", ["8-a"])

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as only_here:
        only_here.setattr(files, "write_json", killed)
        with pytest.raises(Killed):
            ledger.repair_and_compact(spark, warehouse, nothing)
    merged = files.list_names(folder_of(warehouse), f"{ledger.MERGED}*")
    assert len(merged) == 2, "one of them without its mark"
    more = {"7-a", "8-a"}
    assert output(spark, warehouse) == (many | more, 1)
    ledger.repair_and_compact(spark, warehouse, nothing)
    assert output(spark, warehouse) == (many | more, 1)
    assert all(files.exists(f"{piece.url}/{ledger.MERGED_BATCHES}") for piece in ledger.pieces(folder_of(warehouse)))
    assert len(files.list_names(folder_of(warehouse), "*")) == len(ledger.pieces(folder_of(warehouse)))


def test_a_merge_killed_before_it_has_removed_what_went_into_it(spark, warehouse, many, monkeypatch):
    commit(spark, warehouse, "b7", ["7-a"])
    commit(spark, warehouse, "b8", ["8-a"])
    with monkeypatch.context() as only_here:
        only_here.setattr(files, "remove", lambda url: None)
        ledger.repair_and_compact(spark, warehouse, nothing)
    names, often = output(spark, warehouse)
    assert names == many | {"7-a", "8-a"}
    assert often == 2, "an index may tell a file twice"
    ledger.repair_and_compact(spark, warehouse, nothing)
    assert output(spark, warehouse) == (names, 1)


def test_a_removed_batch_leaves_the_ledger(spark, warehouse, many):
    shutil.rmtree(warehouse.removeprefix("file://") + "/scores/batch_id=b3")
    ledger.repair_and_compact(spark, warehouse, nothing)
    assert output(spark, warehouse) == (many - {"3-a"}, 1)
    commit(spark, warehouse, "b7", ["7-a"])
    assert files.read_json(files.join(warehouse, "batches/b7/batch.json"))["batch_id"] == "b7"
    files.write_json(files.join(warehouse, "batches/killed/batch.json"), {})
    commit(spark, warehouse, "b8", ["8-a"])
    ledger.repair_and_compact(spark, warehouse, nothing)
    assert output(spark, warehouse) == (many - {"3-a"} | {"7-a", "8-a"}, 1)
    assert not files.exists(files.join(warehouse, "batches/killed/batch.json"))
    assert files.exists(files.join(warehouse, "batches/b8/batch.json"))


def test_a_lost_index_is_one_piece_made_from_all_scores(spark, warehouse, many):
    commit(spark, warehouse, "empty", [])
    shutil.rmtree(warehouse.removeprefix("file://") + "/ledger")
    ledger.repair_and_compact(spark, warehouse, nothing)
    (piece,) = ledger.pieces(folder_of(warehouse))
    assert piece.batches == {*(f"b{number}" for number in range(NIGHTS)), "empty"}
    assert output(spark, warehouse) == (many, 1)


def test_nothing_is_removed_while_the_warehouse_is_missing(spark, warehouse, many):
    """scores/ cannot be listed for a moment: that is not an order to remove everything that belongs to it."""
    there = warehouse.removeprefix("file://")
    os.rename(f"{there}/scores", f"{there}/away")

    def away() -> None:
        raise ClusterError("away")

    with pytest.raises(ClusterError):
        ledger.repair_and_compact(spark, warehouse, away)
    os.rename(f"{there}/away", f"{there}/scores")
    assert output(spark, warehouse) == (many, 1)
    assert len(files.list_names(f"{warehouse}/batches", "*")) == NIGHTS


@pytest.fixture
def place(warehouse):
    return files.join(warehouse, "scoring/archive/work")


def wait(rows, place):
    rows.coalesce(1).write.mode("append").parquet(place)


def test_a_content_computed_by_two_runs_waits_once(spark, warehouse, place):
    """The tasks of a job that stood still may write on while the next one is at it."""
    wait(scores(spark, ["a", "b"]), place)
    wait(scores(spark, ["b", "c"], run_id="another"), place)
    result = ledger.read_waiting(spark, place, ledger.read(spark, warehouse, *MODEL), "r")
    assert result.schema.names == columns.schema().names
    assert sorted(row.image_id for row in result.collect()) == ["a", "b", "c"]


def test_files_that_another_run_could_not_read_are_read_again(spark, warehouse, place):
    lost = {"sha256": None, "status": "rejected", "reason": UNREADABLE}
    wait(scores(spark, ["a", "b"], run_id="before", **lost), place)
    wait(scores(spark, ["a", "c"], **lost), place)
    wait(scores(spark, ["b"]), place)
    result = ledger.read_waiting(spark, place, ledger.read(spark, warehouse, *MODEL), "r").collect()
    assert sorted((row.image_id, row.reason) for row in result) == [("a", UNREADABLE), ("b", None), ("c", UNREADABLE)]


def test_waiting_rows_committed_under_another_name_are_dropped(spark, warehouse, place):
    commit(spark, warehouse, "b0", ["a"])
    renamed = scores(spark, ["a"]).withColumn("source_uri", f.lit("file:/a/renamed"))
    wait(renamed.unionByName(scores(spark, ["b"])), place)
    result = ledger.read_waiting(spark, place, ledger.read(spark, warehouse, *MODEL), "r").collect()
    assert [row.image_id for row in result] == ["b"]


def test_a_content_committed_by_another_run_is_refused(spark, warehouse):
    commit(spark, warehouse, "b0", ["a"])
    done = ledger.read(spark, warehouse, *MODEL)
    ledger.refuse_twice(scores(spark, ["b", "c"]), 2, done)
    ledger.refuse_twice(scores(spark, ["b"], sha256=None), 1, done)
    with pytest.raises(ClusterError, match="came into scores/ by another run"):
        ledger.refuse_twice(scores(spark, ["a", "b"]), 2, done)
