"""score --follow: what lands is scored once, batch after batch, whatever fails and whoever is killed meanwhile."""

import contextlib
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from conftest import Line, captured_output
from kills import kill

from melanoma_spark.errors import DataError
from melanoma_spark.images import hashes, synthetic
from melanoma_spark.scoring import batch, follow, score, status

PATIENCE = 180  # seconds


def drop(folder: Path, *seeds: int, seconds: float = 5000) -> None:
    """Drawn lesions that have not changed for some seconds; renamed into place, as who lands files does."""
    for seed in seeds:
        path = folder.parent / f"{seed}.jpg"
        path.write_bytes(synthetic.lesion_jpeg(seed, size=64))
        os.utime(path, (time.time() - seconds,) * 2)
        path.rename(folder / path.name)


@pytest.fixture
def landing(copied):
    """The line with an empty landing folder, of which nothing has been scored."""
    for folder in (copied.folder / "scores", copied.folder / "ledger", copied.folder / "batches", copied.archive):
        shutil.rmtree(folder)
    copied.archive.mkdir()
    return copied


def followed(line: Line, **changes: object) -> str:
    """Run `score --follow` in this process until it ends. Returns its output."""
    settings = line.context.settings
    section = settings.score.model_copy(
        update={
            "action": "follow",
            "follow": settings.score.follow.model_copy(update={"interval": 0.5, "settle": 5, **changes}),
        }
    )
    job = replace(
        line.context, settings=settings.model_copy(update={"score": section}), run_id="", mlflow=line.tracker()
    )
    with captured_output() as text:
        assert score.run_action(job, "score", score.score, {"job": "score"}).exit_status == 0
    return text.getvalue()


@contextlib.contextmanager
def meanwhile(what):
    """`what()` in a thread while a job runs in this one; SIGTERM to this process at its end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if failed:
        raise failed[0]
    assert signal.getsignal(signal.SIGTERM) == before


def wait_for(what, why: str) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.1)


def committed(line: Line) -> int:
    return len(status.committed(line.context.warehouse))


def runs(line: Line) -> int:
    line.tracker()
    return len(mlflow.search_runs(search_all_experiments=False))


def once(line: Line, count: int) -> None:
    """Every content has one row of each model version."""
    result = line.scores()
    assert len(result) == count
    assert not result.duplicated(["sha256", "model_version"]).any()


def test_follow_once_scores_settled_files_and_ends(landing):
    runs_before = runs(landing)
    assert "score: 0 batches, nothing is left" in followed(landing, once=True)
    drop(landing.archive, 0, 1, 2)
    drop(landing.archive, 3, seconds=0)
    output = followed(landing, once=True, settle=1000)
    assert "3 images listed = 3 scored + 0 rejected + 0 copies + 0 scored before" in output
    assert "score: 1 batches, nothing is left" in output
    once(landing, 3)
    output = followed(landing, once=True, settle=1000)
    assert "3 images listed, all scored before" in output
    assert runs(landing) == runs_before + 1, "what does nothing is no run"
    drop(landing.archive, 3)
    assert "4 images listed = 1 scored + 0 rejected + 0 copies + 3 scored before" in followed(landing, once=True)
    once(landing, 4)
    facts = status.read_facts(landing.context.warehouse, status.committed(landing.context.warehouse)[-1])
    assert mlflow.get_run(facts["run_id"]).data.tags["batch_id"] == facts["batch_id"]


def test_follow_scores_batches_until_a_signal_and_keeps_nothing_between_them(landing):
    context = landing.context.spark.sparkContext
    sent = Path(context._temp_dir)
    held: list[tuple[int, int]] = []
    runs_before = runs(landing)

    def lands() -> None:
        for number in range(4):
            if number == 2:
                with zipfile.ZipFile(landing.folder.parent / "more.zip", "w") as zipped:
                    zipped.write(landing.archive / "0.jpg", "again.jpg")
                    for seed in (20, 21):
                        zipped.writestr(f"{seed}.jpg", synthetic.lesion_jpeg(seed, size=64))
                os.utime(landing.folder.parent / "more.zip", (1000, 1000))
                (landing.folder.parent / "more.zip").rename(landing.archive / "more.zip")
            else:
                drop(landing.archive, 2 * number, 2 * number + 1)
            wait_for(lambda: committed(landing) == number + 1, f"no batch {number + 1}")  # noqa: B023
            time.sleep(3)
            held.append((len(context._jsc.getPersistentRDDs()), len(list(sent.iterdir()))))

    with meanwhile(lands):
        output = followed(landing)
    assert output.splitlines()[-1] == "score: 4 batches, ended by a signal"
    assert "= 2 scored + 0 rejected + 1 copies + 4 scored before" in output
    assert len(output.splitlines()) == 6, "idle looks say nothing"
    once(landing, 8)
    assert runs(landing) == runs_before + 4
    assert held == [held[0]] * 4, "RDDs persisted, and files of broadcasts, after each batch"


def test_follow_retries_a_failed_batch(landing):
    tracker = landing.tracker()
    version = tracker.find_version("melanoma@champion").version
    client = mlflow.MlflowClient()
    client.delete_registered_model_alias("melanoma", "champion")
    drop(landing.archive, 0, 1)
    tries = []

    def returns() -> None:
        wait_for(lambda: len(tries) >= 2, "it did not try again")
        client.set_registered_model_alias("melanoma", "champion", version)
        wait_for(lambda: committed(landing), "it did not succeed")

    score_batch, failing = batch.score_batch, "no model melanoma@champion in MLflow"

    def counted(*arguments):
        tries.append(arguments)
        return score_batch(*arguments)

    with pytest.MonkeyPatch.context() as only_here:
        only_here.setattr(batch, "score_batch", counted)
        with meanwhile(returns):
            output = followed(landing, longest_wait=2)
    waits = re.findall(rf"error: {failing}.*; attempt (\d) failed, the next one in (\d) s", output)
    assert waits[:2] == [("1", "0"), ("2", "1")]
    assert "2 images listed = 2 scored" in output
    once(landing, 2)
    # where it is to end, a schedule shall know
    client.delete_registered_model_alias("melanoma", "champion")
    with pytest.raises(DataError, match=failing):
        followed(landing, once=True)


def test_follow_scores_again_when_the_alias_moves(landing):
    drop(landing.archive, 0, 1)
    tracker = landing.tracker()
    client = mlflow.MlflowClient()
    first = tracker.find_version("melanoma@champion")

    def moves() -> None:
        wait_for(lambda: committed(landing) == 1, "no first batch")
        second = client.create_model_version("melanoma", first.source)
        for key, value in first.tags.items():
            client.set_model_version_tag("melanoma", second.version, key, value)
        client.set_registered_model_alias("melanoma", "champion", second.version)
        wait_for(lambda: committed(landing) == 2, "nothing was scored anew")

    with meanwhile(moves):
        followed(landing)
    assert landing.scores().groupby("model_version").size().tolist() == [2, 2]


def test_follow_ends_at_once_without_an_archive(landing):
    landing.archive.rmdir()
    with pytest.raises(DataError, match="does not exist"):
        followed(landing)


def test_follow_restarts_a_broken_stream(landing, monkeypatch):
    streams = []
    started = follow.Follower.start_stream
    monkeypatch.setattr(follow.Follower, "start_stream", lambda self: streams.append(started(self)) or streams[-1])

    def breaks() -> None:
        wait_for(lambda: streams, "no stream")
        streams[0].stop()
        drop(landing.archive, 0)
        wait_for(lambda: committed(landing), "nothing was scored")

    with meanwhile(breaks):
        followed(landing)
    assert len(streams) == 2
    once(landing, 1)


def test_sigterm_in_the_middle_of_a_batch_ends_a_process_after_it(landing, submitted, settings_file):
    drop(landing.archive, *range(4))
    words = ["--master", "local[1]", "--follow", "score.follow.interval=1", "log.format=json"]
    settings = settings_file(archive=str(landing.archive), warehouse=str(landing.folder), score={"batch_size": 2})
    scoring = landing.folder / "scoring"
    started = submitted("score", "--conf", settings, *words)
    try:
        wait_for(lambda: committed(landing) or started.poll() is not None, "it scored nothing")
        drop(landing.archive, *range(4, 44))
        wait_for(lambda: list(scoring.rglob("*.parquet")) or started.poll() is not None, "it took up no other batch")
        started.send_signal(signal.SIGTERM)
        out, err = started.communicate(timeout=PATIENCE)
    finally:
        kill(started)
    assert (started.returncode, err) == (0, ""), out + err
    assert "ended by a signal" in out
    once(landing, 44)
    here = {hashes.sha256(path.read_bytes()) for path in landing.archive.glob("*.jpg")}
    assert set(landing.scores()["sha256"]) == here
    assert not list(scoring.rglob("*.parquet"))
