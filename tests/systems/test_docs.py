"""The documentation site."""

import subprocess
import sys

from conftest import REPO

BUILD = """
import sys
from sphinx.cmd.build import main
status = main(["-b", "html", "-W", "--keep-going", "-n", "-q", *sys.argv[1:]])
sys.exit(status or "tensorflow" in sys.modules and "TensorFlow was imported")
"""


def test_site_builds_without_a_warning_or_a_broken_link(tmp_path):
    command = [sys.executable, "-c", BUILD, "-d", tmp_path / "doctrees", "docs", tmp_path / "html"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    generated = {
        "settings": "score.follow.settle",
        "command-line": "Usage: melanoma-spark",
        "decisions/index": "accepted",
    }
    for page, text in {**generated, "api/melanoma_spark.errors": "ConfigError"}.items():
        assert text in (tmp_path / f"html/{page}.html").read_text(), page
