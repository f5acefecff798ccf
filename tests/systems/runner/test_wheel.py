"""The wheel: one package, with jobs and conf in it, that starts jobs without a checkout."""

import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

from conftest import REPO

START = "from melanoma_spark.runner import submit; submit.main()"


def test_a_wheel_is_one_package_that_starts_jobs(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("melanoma_spark", "jobs", "conf"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(REPO / name, source)
    built = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    subprocess.run(built, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert [path.name for path in installed.iterdir() if "dist-info" not in path.name] == ["melanoma_spark"]
    (scripts,) = installed.glob("*/entry_points.txt")
    assert "melanoma-spark = melanoma_spark.runner.submit:main" in scripts.read_text()

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, "-c", START, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    assert "archive=/data/lesions" in run("ingest", "--help")[1]
    assert run("package", str(tmp_path / "package.zip")) == (0, "")
    with ZipFile(tmp_path / "package.zip") as archive:
        assert {"melanoma_spark/jobs/ingest.py", "melanoma_spark/templates/page.html"} <= set(archive.namelist())
    status, output = run("score", "status", f"warehouse={tmp_path}", "score.within=1")
    assert (status, "there is no batch" in output) == (4, True), output
