#!/bin/sh
# Plain spark-submit in cluster mode: the driver runs on the cluster, and this script only waits for its end.
#
# Spark on YARN tells whether the application failed, not the job's exit status: spark-submit ends with 0 or 1. So what
# would need the status is left to the job: wait= instead of 5, and the verdict of the batch is read afterwards.
#
#   cluster-mode.sh WORD...     the words are those of `melanoma-spark score`
set -eu
home=${MELANOMA_HOME:-/opt/melanoma_spark}      # at the same path on every node, with its .venv
SPARK_HOME=${SPARK_HOME:-/opt/spark}
zip=$(mktemp --suffix .zip)
trap 'rm -f "$zip"' EXIT
"$home/.venv/bin/melanoma-spark" package "$zip"

# One attempt: YARN's own second one would start at once, into the same trouble, and whoever schedules this tries again.
# The lease tells a driver that YARN lost from one that lives: after 120 s without a sign of life the way is free.
timeout 8h "$SPARK_HOME/bin/spark-submit" --master "${MASTER:-yarn}" --deploy-mode cluster --name "melanoma score" \
    --conf spark.yarn.maxAppAttempts=1 \
    --conf spark.yarn.submit.waitAppCompletion=true \
    --conf "spark.yarn.appMasterEnv.PYSPARK_PYTHON=$home/.venv/bin/python" \
    --conf "spark.executorEnv.PYSPARK_PYTHON=$home/.venv/bin/python" \
    --py-files "$zip" "$home/jobs/score.py" log.format=json wait=3600 "$@"

# `score status` ends with 4 when there is no batch within 36 hours; a verdict stands in its line.
warehouse=""
for word in "$@"; do
    case $word in warehouse=*) warehouse=$word ;; esac
done
"$home/.venv/bin/melanoma-spark" score status "${warehouse:-warehouse=warehouse}" score.shown=1 score.within=36
