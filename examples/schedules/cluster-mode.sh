#!/bin/sh
# Plain spark-submit in cluster mode: the driver runs on the cluster, and this script waits until it ends.
#
# YARN reports whether the application failed, not the job's exit status, so spark-submit ends with 0 or 1. So the job
# waits (wait=) instead of ending with 5, and the verdict of the batch is read afterwards.
#
#   cluster-mode.sh WORD...     with the words of `melanoma-spark score`
set -eu
home=${MELANOMA_HOME:-/opt/melanoma_spark}      # at the same path on every node, with its .venv
SPARK_HOME=${SPARK_HOME:-/opt/spark}
zip=$(mktemp --suffix .zip)
trap 'rm -f "$zip"' EXIT
"$home/.venv/bin/melanoma-spark" package "$zip"

# One attempt: a second one by YARN would start at once and fail the same way; your scheduler retries later. If YARN
# loses the driver, its lease is free after 120 s.
timeout 8h "$SPARK_HOME/bin/spark-submit" --master "${MASTER:-yarn}" --deploy-mode cluster --name "melanoma score" \
    --conf spark.yarn.maxAppAttempts=1 \
    --conf spark.yarn.submit.waitAppCompletion=true \
    --conf "spark.yarn.appMasterEnv.PYSPARK_PYTHON=$home/.venv/bin/python" \
    --conf "spark.executorEnv.PYSPARK_PYTHON=$home/.venv/bin/python" \
    --py-files "$zip" "$home/jobs/score.py" log.format=json wait=3600 "$@"

# `score status` ends with 4 if there is no batch within 36 hours. Its line holds the verdict.
warehouse=""
for word in "$@"; do
    case $word in warehouse=*) warehouse=$word ;; esac
done
"$home/.venv/bin/melanoma-spark" score status "${warehouse:-warehouse=warehouse}" score.shown=1 score.within=36
