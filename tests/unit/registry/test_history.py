"""The moves of an alias: in order, once each, never rewritten, and a way back."""

import multiprocessing
import pathlib

import pytest

from melanoma_spark.errors import ClusterError, DataError
from melanoma_spark.registry import alias_history
from melanoma_spark.storage import files


@pytest.fixture
def place(tmp_path):
    return alias_history.History(files.url_of(str(tmp_path)), "melanoma", "champion")


def move(place, action, before, after):
    return place.append(action, before, after, "because", {"report_id": "r"})


def test_moves_are_numbered_kept_and_refused_to_a_second_job(place, tmp_path, monkeypatch):
    first = move(place, alias_history.PROMOTE, None, "1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    second = move(place, alias_history.PROMOTE, "1", "2")
    assert place.read() == [first, second]
    assert (second["number"], second["from"], second["to"], second["why"]) == (2, "1", "2", "because")
    assert second["evidence"] == {"report_id": "r"}
    assert second["by"]
    assert second["at"].endswith("+00:00")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.rglob("*"))) == 5, "a temporary file was left"
    assert alias_history.format_moves([first, second]).splitlines()[1].endswith("promote: version 1 -> 2; because")

    monkeypatch.setattr(files, "write_new", lambda url, content: False)
    with pytest.raises(ClusterError, match="another job moved melanoma@champion at the same time"):
        move(place, alias_history.PROMOTE, None, "1")


def test_the_aliases_that_were_moved(place):
    assert alias_history.list_histories(place.warehouse) == []
    move(place, alias_history.PROMOTE, None, "1")
    other = alias_history.History(place.warehouse, "a model", "best")
    other.append(alias_history.PROMOTE, None, "1", "")
    files.write_json(files.join(place.warehouse, "registry", "melanoma", alias_history.VERDICTS, "1.json"), {})
    assert alias_history.list_histories(place.warehouse) == [other, place]


def test_the_way_back_is_to_the_version_before(place):
    with pytest.raises(DataError, match="melanoma@champion was never moved by `register`"):
        place.previous_version()
    move(place, alias_history.PROMOTE, None, "1")
    with pytest.raises(DataError, match="melanoma@champion has no version before 1"):
        place.previous_version()
    move(place, alias_history.PROMOTE, "1", "2")
    move(place, alias_history.PROMOTE, "2", "5")
    assert place.previous_version() == "2"
    move(place, alias_history.ROLLBACK, "5", "2")
    assert place.previous_version() == "1"  # not back to what was left for a reason
    move(place, alias_history.OUTSIDE, "2", "7")
    assert place.previous_version() == "2"


@pytest.mark.parametrize("damage", ["removed", "changed", "no json"])
def test_a_log_that_was_tampered_with_is_refused(place, tmp_path, damage):
    for number in (1, 2, 3):
        move(place, alias_history.PROMOTE, None, str(number))
    second = tmp_path / "registry/melanoma/champion/000002.json"
    if damage == "removed":
        second.unlink()
    else:
        second.write_text('{"number": 7}' if damage == "changed" else "{")
    with pytest.raises(DataError, match="00000"):
        place.read()


def one_of_many(folder, barrier, answers):
    barrier.wait()
    try:
        alias_history.History(files.url_of(folder), "melanoma", "champion").append("promote", None, "1", "")
        answers.put("written")
    except ClusterError as error:
        answers.put(str(error))


def test_simultaneous_moves_have_different_numbers(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    jobs = [context.Process(target=one_of_many, args=(str(tmp_path), barrier, answers)) for _ in range(3)]
    for job in jobs:
        job.start()
    output = [answers.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    moves = alias_history.History(files.url_of(str(tmp_path)), "melanoma", "champion").read()
    assert len(moves) == output.count("written") >= 1
    for refused in set(output) - {"written"}:
        assert "another job moved melanoma@champion at the same time" in refused
    assert pathlib.Path(tmp_path / "registry/melanoma/champion/000001.json").exists()
