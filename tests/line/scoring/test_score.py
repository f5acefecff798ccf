"""Scoring: every image once for each model version, whatever files are renamed, copied, lost or changed."""

import os
import re
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from broken import encoded
from conftest import Line, with_pictures
from PIL import Image
from scoring import of_ledger, once, rows

from melanoma_spark.errors import BusyError, ClusterError
from melanoma_spark.images import synthetic
from melanoma_spark.scoring import columns, ledger, status
from melanoma_spark.storage import files

KEYS = ["source_uri", "sha256", "status", "reason", "probability", "decision"]


def descriptions(line: Line, after: int) -> list[str]:
    """What Spark's UI and its event log say of the session's jobs after one of a number, the newest first."""
    jobs = line.context.spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    result = [jobs.apply(place) for place in range(jobs.size())]
    return [job.description().get() for job in result if job.jobId() > after]


def test_a_batch_holds_every_file_once_and_status_lists_the_batches(scored):
    last = scored.context.spark.sparkContext._jsc.sc().statusStore().jobsList(None).head().jobId()
    output = scored.stage("score", score=with_pictures(scored, 2))
    stated = descriptions(scored, last)
    assert list(dict.fromkeys(re.sub(r"batch \S+", "batch X", one) for one in stated)) == [
        "score: log the drift of the batch",
        "score: commit batch X",
        "score: counts of the worklist's page",
        "score: draw 2 images and their Grad-CAM",
        "score: worklist of 7 rows",
        "score: compare with the training images",
        "score: stage 7 rows of batch X",
        "score: compute 7 rows with melanoma version 1",
        "score: read new files, 7 of them",
        "score: list the archive, look up what was scored before",
    ]
    assert "7 images listed = 6 scored + 1 rejected + 0 copies + 0 scored before" in output
    once(scored)
    assert sorted(rows(scored).columns) == sorted(columns.schema(batch_id=True).names)
    index = of_ledger(scored)
    assert len(index) == 7
    assert index["done"].all()
    before = rows(scored)
    assert "7 images listed, all scored before by melanoma version 1; nothing to do" in scored.stage("score")
    pd.testing.assert_frame_equal(rows(scored), before)

    (scored.archive / "new.jpg").write_bytes(synthetic.lesion_jpeg(50, size=64))
    scored.stage("score")
    shown = scored.context.settings.score.model_copy(update={"action": "status"})
    output = scored.output_of("score", score=shown).splitlines()
    assert "melanoma version 1  1 scored  too few to tell: " in output[0], "the newest first"
    assert "melanoma version 1  6 scored, 1 rejected  too few to tell: " in output[1]
    assert output[2].startswith("score: 2 batches in scores/, 2 shown")
    shutil.rmtree(scored.folder / "batches")
    assert "of before version 0.2" in scored.output_of("score", score=shown)


def test_a_renamed_file_and_copies_have_no_second_row_and_a_changed_file_has_one(scored):
    shutil.copy(scored.archive / "0.jpg", scored.archive / "twin.jpg")
    assert "8 images listed = 6 scored + 1 rejected + 1 copies + 0 scored before" in scored.stage("score")
    (scored.archive / "1.jpg").rename(scored.archive / "renamed.jpg")
    os.utime(scored.archive / "2.jpg", (1, 1))
    with zipfile.ZipFile(scored.archive / "more.zip", "w") as more:
        more.write(scored.archive / "3.jpg", "again.jpg")
        more.writestr("new.jpg", synthetic.lesion_jpeg(100, size=64))
    with zipfile.ZipFile(scored.archive / "most.zip", "w") as most:
        most.writestr("new_too.jpg", synthetic.lesion_jpeg(100, size=64))
    output = scored.stage("score")
    assert "11 images listed = 1 scored + 0 rejected + 4 copies + 6 scored before" in output
    once(scored)
    result = rows(scored)
    assert len(result) == 8
    assert result["source_uri"].str.endswith("more.zip!/new.jpg").sum() == 1, "the first by name has the row"
    index = of_ledger(scored)
    assert index["source_uri"].str.endswith("renamed.jpg").sum() == 1
    assert "11 images listed, all scored before" in scored.stage("score")

    (scored.archive / "0.jpg").unlink()
    (scored.folder / "outside.jpg").write_bytes(synthetic.lesion_jpeg(50, size=64))
    (scored.archive / "0.jpg").symlink_to(scored.folder / "outside.jpg")
    output = scored.stage("score")
    assert "= 0 scored + 1 rejected + 0 copies + 10 scored before" in output
    assert "; 1 links lead out of the archive and were not read" in output
    followed = scored.context.settings.ingest.model_copy(update={"links": "follow"})
    output = scored.stage("score", ingest=followed)
    assert "= 1 scored + 0 rejected + 0 copies + 10 scored before" in output
    assert "links" not in output
    reasons = rows(scored).set_index("source_uri")["reason"]
    assert list(reasons[reasons.index.str.endswith("/0.jpg")].dropna()) == ["link"]
    once(scored)


def test_a_batch_with_a_row_missing_or_without_its_lease_is_not_committed(scored, monkeypatch):
    complete = ledger.stage
    monkeypatch.setattr(ledger, "stage", lambda rows, *more: complete(rows.limit(3), *more))
    with pytest.raises(ClusterError, match=r"batch .* has 3 rows, expected 7, so it is not committed"):
        scored.stage("score")
    assert not list((scored.folder / "scores").glob("*"))

    def slow(*arguments):  # a machine that stood still for minutes: another one took over meanwhile
        facts = files.read_json(f"{scored.context.warehouse}/running/score.json")
        files.write_json(f"{scored.context.warehouse}/running/score.json", facts | {"owner": "another"})
        return complete(*arguments)

    monkeypatch.setattr(ledger, "stage", slow)
    with pytest.raises(BusyError):
        scored.stage("score")
    assert not list((scored.folder / "scores").glob("batch_id=*"))
    shutil.rmtree(scored.folder / "running")
    monkeypatch.undo()
    output = scored.output_of("score")
    assert "resuming a killed run: 7 rows are computed already" in output
    assert "7 images listed = 6 scored + 1 rejected + 0 copies + 0 scored before" in output
    once(scored)


def test_a_new_column_is_one_entry(scored, monkeypatch):
    scored.stage("score")
    (before,) = scored.folder.glob("scores/*")
    margin = columns.ScoreColumn("margin", columns.NUMBER, "", 19, lambda rows: rows["probability"] - rows["threshold"])
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, margin))
    profiled = Image.fromarray(synthetic.draw_lesion(np.random.default_rng(50), malignant=True, size=64))
    (scored.archive / "new.png").write_bytes(encoded(profiled, icc_profile=b"no profile"))
    assert "; 1 with a color profile that cannot be used, sRGB is assumed; " in scored.stage("score")
    (batch,) = {*scored.folder.glob("scores/*")} - {before}
    (row,) = pd.read_parquet(batch).to_dict("records")
    assert row["profile"] == "broken"
    assert status.read_facts(scored.context.warehouse, status.id_of(batch.name))["profiles"] == {"broken": 1}
    assert row["margin"] == row["probability"] - row["threshold"]
    worklist = pd.read_csv(scored.folder / "batches" / batch.name.partition("=")[2] / "worklist.csv")
    assert worklist.columns[-1] == "margin"
    table = scored.context.spark.read.schema(columns.schema(batch_id=True)).parquet(str(scored.folder / "scores"))
    assert table.where("margin is not null").count() == 1, "batches of before have none"
