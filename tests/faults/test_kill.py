"""Jobs killed half-way: what was finished is kept, what was not is no result, and nothing is done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
from kills import killed_when

from jobs import finetune
from melanoma_spark import drawing, files, ledger, reading, sharding, store
from melanoma_spark.errors import DataError


def same_features(one: pd.DataFrame, other: pd.DataFrame) -> None:
    tables = [table.sort_values("sha256", ignore_index=True) for table in (one, other)]
    pd.testing.assert_frame_equal(*tables)


def test_featurize_killed_goes_on_where_it_stood(line, copied, submitted, settings_file):
    shutil.rmtree(copied.folder / "features")
    target = copied.folder / "features" / line.manifest("features")["path"]
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder), featurize={"batch_size": 4})
    started = submitted("featurize", "--conf", settings, "--master", "local[1]")
    killed_when(started, lambda: list(target.glob("*.parquet")))
    kept = list(target.glob("*.parquet"))
    done = len(pd.concat([pd.read_parquet(path) for path in kept]))
    images = line.manifest("images")["accepted"]
    assert 0 < done < images
    assert store.manifest(copied.job.warehouse, "features") is None
    times = {path: path.stat().st_mtime_ns for path in kept}

    told = copied.stage("featurize")
    assert f"{images} images = {images - done} computed + {done} computed before" in told
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    features = copied.read("features").toPandas()
    assert features["sha256"].is_unique
    same_features(features, line.read("features").toPandas())
    # and Petastorm reads old and new files alike
    url = store.data_url(copied.job.warehouse, "features", copied.manifest("features"))
    index = reading.indexes(copied.job.spark, url, {"all": dict.fromkeys(features["sha256"], 0)})["all"][0]
    shared = sharding.share(sharding.deal(index.groups, 1), 0, 1)
    assert len(list(reading.values(url, "block5_pool", index, shared, 1, 1024**2))) == images


@pytest.mark.parametrize("torn", [False, True])
def test_featurize_killed_after_its_last_image(line, copied, monkeypatch, torn):
    """All rows are there, Petastorm's metadata is not, or is in part: a second run adds it."""

    class Killed(BaseException):
        pass

    @contextmanager
    def killed(*arguments):
        yield
        raise Killed

    shutil.rmtree(copied.folder / "features")
    with monkeypatch.context() as only_here:
        only_here.setattr(store, "petastorm", killed)
        with pytest.raises(Killed):
            copied.stage("featurize")
    assert store.manifest(copied.job.warehouse, "features") is None
    if torn:
        (next((copied.folder / "features").iterdir()) / "_common_metadata").write_bytes(b"PAR1 and no more")

    images = line.manifest("images")["accepted"]
    assert f"{images} images = 0 computed + {images} computed before" in copied.stage("featurize")
    same_features(copied.read("features").toPandas(), line.read("features").toPandas())
    shutil.rmtree(copied.folder / "models")
    assert "validation AUROC" in copied.stage("train_head")


def rank_processes() -> dict[int, int]:
    """Rank -> process id, of all Horovod ranks on this machine."""
    found = {}
    for name in os.listdir("/proc"):
        try:
            variables = Path(f"/proc/{int(name)}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except (ValueError, OSError):
            continue
        ranks = [int(v.removeprefix(b"HOROVOD_RANK=")) for v in variables if v.startswith(b"HOROVOD_RANK=")]
        if ranks and b"gloo_exec_fn" in command and b"sh" not in command.split(b"\0")[0]:
            found[ranks[0]] = int(name)
    return found


def trained(line) -> tuple[dict, list]:
    """What a fine-tuned model is known by, without the time it took; and its tensors."""
    facts = line.manifest("models/finetuned")
    log = [{**epoch, "seconds": 0, "images_per_second": 0, "waited": 0} for epoch in facts["training"]]
    return {"log": json.dumps(log), "id": facts["id"]}, store.load_model(line.job.warehouse, "models/finetuned", facts)


def same_model(one, other) -> None:
    (facts, tensors), (expected, expected_tensors) = trained(one), trained(other)
    for found, wanted in zip(tensors, expected_tensors, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert facts == expected


def test_a_rank_killed_in_mid_epoch_costs_the_steps_since_the_last_checkpoint(line, copied):
    shutil.rmtree(copied.folder / "models/finetuned")
    often = copied.job.settings.finetune.model_copy(update={"checkpoint_steps": 1})
    killed = []

    def murder() -> None:
        while not list((copied.folder / "models").glob("finetuned/*/checkpoint.npz")):
            time.sleep(0.02)
        pid = rank_processes()[1]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    murderer = threading.Thread(target=murder, daemon=True)
    murderer.start()
    told = copied.told("finetune", finetune=often)
    murderer.join(timeout=10)
    assert len(killed) == 1
    assert "training on 2 ranks ended early" in told
    assert "starting again from the last checkpoint" in told
    assert re.search(r"block5: goes on from the checkpoint in epoch 1, after step [1-9]", told)
    same_model(copied, line)
    assert not list((copied.folder / "models").rglob("checkpoint.npz"))


def test_finetune_killed_goes_on_from_its_last_checkpoint(line, copied, submitted, settings_file):
    shutil.rmtree(copied.folder / "models/finetuned")
    often = {"checkpoint_steps": 1}
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder), finetune=often)
    started = submitted("finetune", "--conf", settings, "--master", "local[2]")
    checkpoints = (copied.folder / "models").glob
    killed_when(started, lambda: list(checkpoints("finetuned/*/checkpoint.npz")))
    assert store.manifest(copied.job.warehouse, "models/finetuned") is None
    until = time.monotonic() + 30
    while rank_processes():
        assert time.monotonic() < until, "ranks outlive their driver"
        time.sleep(0.1)
    told = copied.told("finetune")
    assert re.search(r"(block5|all): goes on from the checkpoint in epoch \d, after step \d", told)
    same_model(copied, line)


@pytest.mark.parametrize("content", [b"", b"PK no npz", files.pack_tensors([np.zeros(3)])])
def test_a_checkpoint_that_cannot_be_read_is_an_error_that_names_it(copied, content):
    (target,) = (path for path in (copied.folder / "models/finetuned").iterdir() if path.is_dir())
    (copied.folder / "models/finetuned/manifest.json").unlink()
    (target / "checkpoint.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint .*npz cannot be read \(.*\); remove it, and fine-tuning starts"):
        finetune.checkpoint_in(files.url_of(str(target)))


def test_score_killed_leaves_no_half_batch(line, copied, submitted, settings_file):
    """Killed while it computes: nothing is seen of the batch, and what was finished is not computed again."""
    scores, waiting = copied.folder / "scores", copied.folder / "scoring"
    before = len(copied.scores())
    (new := copied.archive / "new").mkdir()
    for seed in range(80):
        (new / f"{seed}.jpg").write_bytes(drawing.lesion_jpeg(1000 + seed, size=64))
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder), score={"batch_size": 4})
    started = submitted("score", "--conf", settings, "--master", "local[1]")
    killed_when(started, lambda: list(waiting.rglob("*/part-*.parquet")))
    kept = list(waiting.rglob("*/part-*.parquet"))
    done = len(pd.concat([pd.read_parquet(path) for path in kept]))
    assert 0 < done < 80
    # Spark, Arrow and pandas see what was complete before, and no more
    assert len(list(scores.glob("batch_id=*"))) == 1
    assert len(copied.scores()) == before
    assert pyarrow.dataset.dataset(scores, partitioning="hive").to_table().num_rows == before
    assert len(pd.read_parquet(scores)) == before

    told = copied.told("score", score=copied.job.settings.score.model_copy(update={"batch_size": 4}))
    assert f"a killed run has left {done} rows, which are not computed again" in told
    assert re.search(r"210 images listed = 80 scored \+ \d rejected \+ 12\d copies \+ 0 scored before", told)
    found = copied.scores()
    assert found["sha256"].dropna().is_unique
    assert len(found) == before + 80 + found["sha256"].isna().sum() // 2
    assert not waiting.exists() or not list(waiting.rglob("*.parquet"))
    assert "nothing to do" in copied.stage("score")


@pytest.mark.parametrize("moment", ["stage", "commit", "rename", "remove"])
def test_score_killed_around_its_commit(line, copied, monkeypatch, moment):
    """Each step of docs/decisions/once-and-only-once.md is the last one that was made, or half of it."""

    class Killed(BaseException):
        pass

    def killed(*arguments, **words):
        raise Killed

    place = files if moment == "rename" else ledger
    for name in ("scores", "ledger", "batches"):
        shutil.rmtree(copied.folder / name)
    with monkeypatch.context() as only_here:
        if moment == "rename":  # files of Spark's tasks are renamed as well, in other processes
            only_here.setattr(files, "rename", killed)
        else:
            only_here.setattr(place, moment, killed)
        only_here.setattr(files, "remove", lambda url: None)  # as if killed by a signal that nothing can catch
        with pytest.raises(Killed):
            copied.stage("score")
    shutil.rmtree(copied.folder / "running")  # the process that holds the lease is dead only as far as scores go
    there = [path.name[:8] for path in (copied.folder / "scores").glob("*")]
    assert there == {"stage": [], "commit": ["_staged-"], "rename": ["_staged-"], "remove": ["batch_id"]}[moment]
    expected = line.scores()
    told = copied.told("score")
    if moment == "remove":
        assert "nothing to do" in told
    else:
        assert f"a killed run has left {len(expected)} rows, which are not computed again" in told
    found = copied.scores()
    assert len(found) == len(expected)
    assert found["sha256"].dropna().is_unique
    assert [path.name[:8] for path in (copied.folder / "scores").iterdir()] == ["batch_id"]
    assert not list((copied.folder / "scoring").rglob("*.parquet"))
