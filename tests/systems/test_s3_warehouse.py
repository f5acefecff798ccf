"""All stages with archive and warehouse on a real S3 server, through Spark's s3a and fsspec's S3, as submitted."""

import contextlib
import io
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import REPO, STAGES, with_settings
from kills import killed_when
from mlflow_server import mlflow_server

from melanoma_spark.images import hashes, synthetic
from melanoma_spark.storage import files

WAREHOUSE = "s3a://melanoma/warehouse"
ARCHIVE = "s3a://melanoma/archive"


@dataclass(frozen=True)
class Bucket:
    """The arguments of spark-submit.sh for a job on the bucket."""

    words: tuple[str, ...]
    settings: Path


@pytest.fixture(scope="module")
def bucket(s3: dict[str, str], lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    import boto3
    import hadoop

    folder = tmp_path_factory.mktemp("s3-line")
    with hadoop.or_skipped():
        jars = hadoop.classpath(folder, "s3a-pom.xml")
    spark = {
        "spark.driver.extraClassPath": jars,
        "spark.hadoop.fs.s3a.endpoint": s3["AWS_ENDPOINT_URL"],
        "spark.hadoop.fs.s3a.path.style.access": "true",
    }
    with contextlib.ExitStack() as until_the_end:
        patch = until_the_end.enter_context(pytest.MonkeyPatch.context())
        for name, value in s3.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="melanoma")
        there, top = files.filesystem(ARCHIVE)
        there.put(f"{lesions}/", top, recursive=True)
        server = until_the_end.enter_context(mlflow_server(f"sqlite:///{folder}/server.db", folder))
        settings = with_settings(archive=ARCHIVE, warehouse=WAREHOUSE, mlflow={"tracking_uri": server})
        path = folder / "settings.yaml"
        path.write_text(yaml.safe_dump(settings))
        options = [word for key, value in spark.items() for word in ("--conf", f"{key}={value}")]
        yield Bucket(("--conf", str(path), "--master", "local[2]", *options), path)


def manifest(name: str) -> dict[str, Any]:
    return files.read_json(f"{WAREHOUSE}/{name}/manifest.json") or {}


def scores() -> pd.DataFrame:
    """All rows that a reader of Parquet sees: without Spark, and without names that begin with an underscore."""
    there, top = files.filesystem(f"{WAREHOUSE}/scores")
    names = [name for name in there.find(top) if re.search(r"/batch_id=[^/]+/[^_][^/]*\.parquet$", name)]
    tables = [pd.read_parquet(io.BytesIO(there.cat_file(name))) for name in names]
    return pd.concat(tables, ignore_index=True)


def once() -> pd.DataFrame:
    """The rows of contents, each of which has one for the model version; a file that cannot be read has a row, too."""
    result = scores()
    result = result[result["sha256"].notna()]
    assert not result.duplicated(["sha256", "model_version"]).any()
    return result


@pytest.fixture(scope="module")
def output(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of the pipeline."""
    done = subprocess.run(
        [str(REPO / "spark-submit.sh"), "pipeline", *bucket.words],
        cwd=tmp_path_factory.mktemp("s3-submitted"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_gives_what_a_folder_gives(output, line):
    for stage in STAGES:
        assert f"{stage}: " in output, output
    for key in ("id", "counts", "reasons", "groups"):
        assert manifest("images")[key] == line.manifest("images")[key]
    ours, theirs = (result["metrics"] for result in (line.manifest("reports"), manifest("reports")))
    for name in ("test_auroc_head", "test_auroc_finetuned"):
        assert abs(ours[name] - theirs[name]) <= 1e-6
    here, there = (rows[rows["sha256"].notna()].set_index("sha256").sort_index() for rows in (line.scores(), scores()))
    assert list(here.index) == list(there.index)
    assert (here["probability"] - there["probability"]).abs().max() <= 1e-3


def test_score_killed_in_its_commit_has_one_row_an_image_after_the_next_run(output, bucket, submit, submitted):
    """S3 has no rename: staged files are copied to their names and then removed. The job is killed in between."""
    store, folder = files.filesystem(ARCHIVE)
    new = [synthetic.lesion_jpeg(9000 + seed, size=64) for seed in range(20)]
    for number, content in enumerate(new):
        store.pipe_file(f"{folder}/new-{number}.jpg", content)
    there, top = files.filesystem(WAREHOUSE)

    def rows_in(prefix: str) -> Callable[[], set[str]]:
        return lambda: {name for name in there.find(top) if f"/{prefix}" in name and name.endswith(".parquet")}

    committed = rows_in("scores/batch_id=")
    before = committed()
    killed_when(submitted("score", *bucket.words), lambda: committed() - before)
    once()
    assert committed() >= before
    done = submit("score", *bucket.words)
    assert done.returncode == 0, done.stderr
    result = once()
    assert set(map(hashes.sha256, new)) <= set(result["sha256"])
    assert not rows_in("scores/_staged-")()
    assert not rows_in("scoring/")()
