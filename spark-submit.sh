#!/usr/bin/env bash
# Submits a job of this checkout to Spark: `melanoma-spark JOB` on the Python of .venv, or of PYSPARK_DRIVER_PYTHON.
# melanoma_spark/runner/submit.py is what it does.
set -euo pipefail
{ # read whole before anything runs: an upgrade in the middle of a night changes this file

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# PYSPARK_PYTHON is the executors' Python, and may be a path that only they have (./env/bin/python of an archive).
python=${PYSPARK_DRIVER_PYTHON:-${PYSPARK_PYTHON:-}}
case $python in
    "" | ./*) python=$repo/.venv/bin/python ;;
esac
if ! command -v "$python" >/dev/null; then
    echo "spark-submit.sh: no Python at $python: run \`make install\`, or set PYSPARK_PYTHON" >&2
    exit 3
fi
start='import sys; sys.path.insert(0, sys.argv.pop(1)); from melanoma_spark.runner.submit import main; main()'
MELANOMA_PYTHON=$python exec "$python" -c "$start" "$repo" "$@"
}
