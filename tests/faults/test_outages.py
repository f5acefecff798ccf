"""Scoring while file systems are full or lost and other jobs run: no row is lost, none is there twice."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import Line
from fake_clock import FakeClock
from scoring import once, rows

from melanoma_spark import schemas, tracking
from melanoma_spark.archives import contents, listing, tasks
from melanoma_spark.errors import ClusterError, ImageError, explain_storage_error
from melanoma_spark.images import synthetic
from melanoma_spark.images.reasons import UNREADABLE
from melanoma_spark.scoring import batch, compute, ledger
from melanoma_spark.storage import files

NEW = 24  # images that are not scored yet
SMALL = {"batch_size": 4}


def mounted(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine does not let the tests mount anything: {done.stderr.strip()}")


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)


class Disk:
    """A separate file system of a few megabytes."""

    def __init__(self, place: Path) -> None:
        self.place, self.ballast = place, place / "ballast"

    def fill(self, leave: int = 0) -> None:
        with self.ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65536))
        with self.ballast.open("r+b") as file:
            file.truncate(self.ballast.stat().st_size - leave)

    def free(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    (place := tmp_path / "disk").mkdir()
    mounted("-t", "tmpfs", "-o", "size=24m", "tmpfs", place)
    yield Disk(place)
    unmount(place)


@pytest.fixture
def on_disk(scored, disk) -> Line:
    """The warehouse on the small disk, all but models that are there; one batch is committed, another image waits."""
    scored.stage("score")
    folder = disk.place / "warehouse"
    folder.mkdir()
    for path in scored.folder.iterdir():
        if path.name in ("scores", "ledger", "batches"):
            shutil.copytree(path, folder / path.name)
        elif path.name == "mlflow.db":
            shutil.copy(path, folder)
        elif path.is_dir() and path.name not in ("scoring", "running"):
            (folder / path.name).symlink_to(path)
    for seed in range(NEW):
        (scored.archive / f"new-{seed}.jpg").write_bytes(synthetic.lesion_jpeg(500 + seed, size=64))
    settings = scored.context.settings.model_copy(update={"warehouse": str(folder)})
    small = settings.model_copy(update={"score": settings.score.model_copy(update=SMALL)})
    return replace(
        scored, folder=folder, context=replace(scored.context, settings=small, warehouse=files.url_of(str(folder)))
    )


@contextmanager
def full_at(place: str, disk: Disk, monkeypatch):
    """The disk is full from the moment on at which a worker, Spark or SQLite writes; of each write: crash points."""

    def before(owner, name, leave=0):
        complete = getattr(owner, name)

        def first_full(*arguments, **words):
            disk.fill(leave)
            return complete(*arguments, **words)

        only_here.setattr(owner, name, first_full)

    with monkeypatch.context() as only_here:
        if place == "scoring":
            before(compute, "compute_rows", leave=60_000)  # room for the first rows
        elif place == "staging":
            before(ledger, "stage")
        elif place == "MLflow":
            before(tracking.Tracker, "log_metrics")
        yield


@pytest.mark.parametrize("place", ["scoring", "staging", "MLflow"])
def test_a_full_disk_ends_the_job_in_one_line_and_loses_nothing(on_disk, disk, monkeypatch, place):
    before = rows(on_disk)
    with full_at(place, disk, monkeypatch), pytest.raises(ClusterError) as caught:
        on_disk.stage("score")
    output = str(caught.value)
    assert re.search("No space left on device|database or disk is full", output), output
    assert str(disk.place) in output
    assert "free space" in output
    assert "\n" not in output
    assert caught.value.exit_status == 3
    pd.testing.assert_frame_equal(rows(on_disk), before)
    kept = sum(len(pd.read_parquet(path)) for path in on_disk.folder.glob("scoring/*/*/part-*.parquet"))
    assert kept == NEW if place != "scoring" else 0 < kept < NEW
    disk.free()
    text = on_disk.output_of("score")
    assert f"resuming a killed run: {kept} rows are computed already" in text
    assert f"= {NEW} scored + 0 rejected + 0 copies" in text
    once(on_disk)
    assert len(rows(on_disk)) == len(before) + NEW
    left = [path.name for path in on_disk.folder.rglob("*") if path.name.startswith("_staged") or ".tmp" in path.name]
    assert not left
    assert "nothing to do" in on_disk.stage("score")


def test_a_full_disk_ends_a_process_in_one_line(on_disk, disk, submit, settings_file):
    before = rows(on_disk)
    settings = settings_file(archive=str(on_disk.archive), warehouse=str(on_disk.folder), score=SMALL)
    disk.fill(leave=100_000)
    done = submit("score", "--conf", settings, "--master", "local[1]")
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert str(disk.place) in line
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    pd.testing.assert_frame_equal(rows(on_disk), before)
    disk.free()
    assert f"= {NEW} scored + 0 rejected + 0 copies" in on_disk.stage("score")
    once(on_disk)


class Away:
    """A folder that goes away and comes back: renamed, or a mounted one unmounted, which leaves an empty folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind, self.elsewhere = folder, kind, folder.with_name(f"{folder.name}-elsewhere")
        if kind == "unmounted":
            folder.rename(self.elsewhere)
            folder.mkdir()
            self.back()

    def go(self) -> None:
        if self.kind == "renamed":
            self.folder.rename(self.elsewhere)
        else:
            unmount(self.folder)

    def back(self) -> None:
        if self.kind == "renamed":
            self.elsewhere.rename(self.folder)
        else:
            mounted("--bind", self.elsewhere, self.folder)

    def back_after(self, seconds: float) -> None:
        threading.Timer(seconds, self.back).start()


@pytest.fixture(params=["renamed", "unmounted"])
def away(request):
    made = []

    def of(folder: Path) -> Away:
        made.append(Away(folder, request.param))
        return made[-1]

    yield of
    for one in made:
        if one.kind == "unmounted":
            unmount(one.folder)


@pytest.mark.parametrize("moment", ["hash_files", "compute_files"])
def test_jobs_wait_for_an_archive_missing_for_a_moment(scored, monkeypatch, away, moment):
    with zipping(scored.archive / "more.zip") as more:
        for seed in range(4):
            more.writestr(f"{seed}.jpg", synthetic.lesion_jpeg(700 + seed, size=64))
    disk = away(scored.archive)
    complete = getattr(tasks, moment)

    def first_away(*arguments, **words):
        planned = complete(*arguments, **words)
        disk.go()
        disk.back_after(3)
        return planned

    with monkeypatch.context() as only_here:
        only_here.setattr(tasks, moment, first_away)
        output = scored.stage("score")
    assert "11 images listed = 10 scored + 1 rejected + 0 copies" in output
    assert list(rows(scored)["reason"].dropna()) == ["corrupt"]


@contextmanager
def zipping(path: Path):
    import zipfile

    with zipfile.ZipFile(path, "w") as opened:
        yield opened


def listed(root: Path) -> pd.DataFrame:
    """Rows of the listing of an archive, as `contents` takes them."""
    result = pd.DataFrame(listing.walk_folder(f"file:{root}", "", 10**6), columns=schemas.LISTING.names, dtype=object)
    return result.sort_values("path")


def test_a_missing_archive_rejects_no_image(tmp_path, monkeypatch, away):
    (folder := tmp_path / "archive").mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    disk, root = away(folder), f"file:{folder}"
    wait = partial(contents.wait_until_available, clock=FakeClock())
    monkeypatch.setattr(contents, "wait_until_available", wait)
    result = contents.read_contents(root, [listed(folder)], 100)
    assert next(result)[1] == b"a"
    disk.go()
    with pytest.raises(ClusterError, match="has been away for 120 s; mount it again"):
        next(result)
    disk.back()


def test_single_missing_files_are_rows_and_other_errors_are_kept(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    result = contents.read_contents(f"file:{tmp_path}", [listed(tmp_path)], 100)
    (tmp_path / "b.jpg").unlink()
    read = [content for _, content in result]
    assert (read[0], read[2]) == (b"a", b"c")
    assert isinstance(read[1], ImageError)
    assert read[1].reason == UNREADABLE

    places = {"the warehouse": "/w"}
    assert explain_storage_error(ValueError("no such thing"), places) is None
    assert explain_storage_error(FileNotFoundError(2, "No such file or directory", "/elsewhere"), places) is None
    lost = explain_storage_error(FileNotFoundError(2, "No such file or directory", "/w/scores"), places)
    assert isinstance(lost, ClusterError)


def test_many_missing_files_end_the_job_instead_of_being_rejected(scored, monkeypatch):
    """A disk below the archive, or rights that changed: the archive itself is there."""
    (below := scored.archive / "below").mkdir()
    for seed in range(12):
        (below / f"{seed}.jpg").write_bytes(synthetic.lesion_jpeg(800 + seed, size=64))
    list_archive, elsewhere = batch.list_archive, scored.folder.parent / "below"

    def vanishing(spark, settings):
        result = list_archive(spark, settings).localCheckpoint()
        below.rename(elsewhere)
        return result

    with monkeypatch.context() as only_here:
        only_here.setattr(batch, "list_archive", vanishing)
        with pytest.raises(ClusterError, match=r"12 of 19 new files were listed and cannot be read \(No such file"):
            scored.stage("score")
    assert not list(scored.folder.glob("scores/batch_id=*"))
    elsewhere.rename(below)
    output = scored.output_of("score")
    assert "resuming a killed run: 7 rows are computed already" in output
    assert "19 images listed = 18 scored + 1 rejected + 0 copies" in output
    once(scored)
    assert list(rows(scored)["reason"].dropna()) == ["corrupt"], "nobody is told of what came back"

    for seed in range(12):
        (below / f"{seed}.jpg").write_bytes(synthetic.lesion_jpeg(900 + seed, size=64))
    with monkeypatch.context() as only_here:
        only_here.setattr(batch, "list_archive", vanishing)
        taken = scored.context.settings.score.model_copy(update={"most_unreadable": 1})
        assert "= 0 scored + 12 rejected" in scored.stage("score", score=taken)


@pytest.mark.parametrize("moment", ["compute_files", "stage", "commit"])
def test_a_warehouse_missing_for_a_moment_ends_the_job_without_damage(scored, monkeypatch, moment):
    disk = Away(scored.folder, "renamed")
    place = tasks if moment == "compute_files" else ledger
    complete = getattr(place, moment)

    def first_away(*arguments, **words):
        disk.go()
        return complete(*arguments, **words)

    with monkeypatch.context() as only_here:
        only_here.setattr(place, moment, first_away)
        with pytest.raises(ClusterError) as caught:
            scored.stage("score")
    assert caught.value.exit_status == 3
    assert "run the job again" in str(caught.value) or "run score again" in str(caught.value)
    if scored.folder.exists():  # what was written where the disk was not mounted
        assert not list(scored.folder.glob("scores/batch_id=*"))
        shutil.rmtree(scored.folder)
    disk.back()
    shutil.rmtree(scored.folder / "running")  # it could not be given back, and this process lives on
    assert not list(scored.folder.glob("scores/batch_id=*"))
    assert "7 images listed = 6 scored + 1 rejected + 0 copies" in scored.stage("score")
    once(scored)


def test_one_of_two_simultaneous_schedules_commits(scored, submitted, settings_file):
    settings = settings_file(archive=str(scored.archive), warehouse=str(scored.folder), score=SMALL)
    words = ("score", "--conf", settings, "--master", "local[1]")
    at_once = [submitted(*words, *more) for more in ((), ("wait=600",))]
    output = [started.communicate(timeout=600) for started in at_once]
    statuses = [started.returncode for started in at_once]
    assert statuses[0] in (0, 5), output[0]
    assert statuses[1] == 0, output[1]
    assert all("score is already running" in err for (_, err), status in zip(output, statuses, strict=True) if status)
    once(scored)
    assert len(rows(scored)) == 7
    assert len(ledger.committed(scored.context.warehouse)) == 1


def stop(started: subprocess.Popen[str], number: int) -> None:
    """A signal to everything that spark-submit.sh has started."""
    for name in os.listdir("/proc"):
        with suppress(ProcessLookupError, ValueError):
            if os.getsid(int(name)) == started.pid:
                os.kill(int(name), number)


def test_a_stopped_job_commits_nothing_that_another_has_committed(scored, submitted, settings_file):
    """Stopped between staging and the rename, on what counts as another machine, and woken up when all is over."""
    settings = settings_file(archive=str(scored.archive), warehouse=str(scored.folder), score=SMALL)
    asleep = submitted("score", "--conf", settings, "--master", "local[1]")
    until = time.monotonic() + 300
    while not list(scored.folder.glob("scores/_staged-*/part-*.parquet")):
        assert asleep.poll() is None, asleep.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    stop(asleep, signal.SIGSTOP)
    try:
        url = f"{scored.context.warehouse}/running/score.json"
        files.write_json(url, (files.read_json(url) or {}) | {"host": "elsewhere", "beat": time.time() - 1000})
        assert "6 scored + 1 rejected" in scored.stage("score")
    finally:
        stop(asleep, signal.SIGCONT)
    _, err = asleep.communicate(timeout=300)
    assert asleep.returncode in (3, 5), err
    assert err.startswith("error: ")
    once(scored)
    assert len(rows(scored)) == 7
    assert len(ledger.committed(scored.context.warehouse)) == 1
    assert "nothing to do" in scored.stage("score")
    assert not list(scored.folder.glob("scores/_staged-*"))


def test_a_score_killed_at_99_percent_computes_at_most_5_percent_again(scored, monkeypatch):
    """Workers count the rows that the network has scored."""
    count = 200
    for seed in range(count - 7):
        (scored.archive / f"more-{seed}.jpg").write_bytes(synthetic.lesion_jpeg(2000 + seed, size=64))
    counted = str(scored.folder.parent / "counted")
    complete = compute.add_quality

    def counting(limit: int):
        def add_quality(result, *more):
            with open(counted, "a") as file:
                file.write("x" * len(result))
            if os.path.getsize(counted) >= limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return complete(result, *more)

        return add_quality

    small = scored.context.settings.score.model_copy(update=SMALL)
    with monkeypatch.context() as only_here:
        only_here.setattr(compute, "add_quality", counting(int(0.99 * count)))
        with pytest.raises(Exception, match=r"exited unexpectedly|crashed"):
            scored.stage("score", score=small)
        done = os.path.getsize(counted)
        assert 0.99 * count <= done <= count
        only_here.setattr(compute, "add_quality", counting(10**9))
        assert f"{count} images listed = {count - 1} scored + 1 rejected" in scored.stage("score", score=small)
    again = os.path.getsize(counted) - count
    print(f"{done} of {count} were computed before the kill, {again} were computed twice")
    assert again <= 0.05 * count
    once(scored)
