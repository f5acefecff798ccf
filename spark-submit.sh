#!/usr/bin/env bash
# Submits one stage of the line, or all of it, to Spark: finds Java, Python and Spark, checks the settings before
# anything is started, and ships the package to the executors. Never changes directory: relative paths in the arguments
# are the caller's.
set -euo pipefail
{ # read whole before anything runs: an upgrade in the middle of a night changes this file

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
jobs="ingest featurize train_head finetune evaluate register score pipeline search doctor prune"

usage() {
    cat <<'EOF'
Usage: spark-submit.sh JOB [--conf SETTINGS.yaml] [key=value ...] [Spark's options] [-- any option of spark-submit]

  ingest      archive -> images/: decode, check, group and split
  featurize   images/ -> features/: every image through VGG16's base, once
  train_head  features/ -> a head
  finetune    head and base trained on, over Horovod ranks
  evaluate    the test split: metrics at an operating point, a report; of another archive when one is named
  register    the model into MLflow's registry, champion if it may; also: register history, register rollback
  score       what is new in an archive -> scores/, with a registered model; also: score status, score --follow
  pipeline    all of them, in one submission
  search      which settings of a head do best on features/, by cross-validation
  doctor      checks Java, Python, packages, Spark, network, warehouse and MLflow for the others, and tells remedies
  prune       what of a warehouse nobody needs any more; prune.apply=true removes it
  package     FILE.zip: what goes to the executors, for those who call spark-submit themselves (examples/schedules)

  spark-submit.sh JOB --help tells the settings of a job. Spark's own resources come from conf/spark-local.conf;
  SPARK_CONF=FILE or --properties-file FILE picks another, and --master, --conf spark.x=y, ... win over it.

Examples
  ./spark-submit.sh pipeline --conf conf/demo.yaml
  ./spark-submit.sh ingest --conf conf/local.yaml archive=/data/ham10000 warehouse=/data/warehouse
  ./spark-submit.sh score --conf conf/cluster.yaml --master spark://head:7077 --total-executor-cores 16
  ./spark-submit.sh score --conf conf/cluster.yaml --master yarn --deploy-mode cluster --num-executors 8
EOF
}

fail() { # STATUS MESSAGE
    echo "spark-submit.sh: $2" >&2
    exit "$1"
}

# --- What goes to Spark and what to the job ---

case ${1:-} in
    "") usage >&2 && exit 2 ;;
    -h | --help) usage && exit ;;
esac
job=$1
shift
[[ " $jobs package " == *" $job "* ]] || fail 2 "no job '$job': one of $jobs"

settings=() job_args=() spark_args=() help="" master="" cluster="" py_files="" files=""
properties=${SPARK_CONF:-}
while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --) spark_args+=("$@") && break ;;
        -h | --help) help=yes && continue ;;
        --*=*) set -- "${option#*=}" "$@" && option=${option%%=*} ;;
    esac
    case $option in
        --conf | --master | --deploy-mode | --name | --queue | --properties-file | --packages | --jars | --files | \
            --archives | --py-files | --driver-memory | --driver-java-options | --executor-memory | \
            --executor-cores | --num-executors | --total-executor-cores)
            [ $# -gt 0 ] || fail 2 "$option needs a value"
            value=$1
            shift
            ;;
        *) # the job judges it
            job_args+=("$option")
            continue
            ;;
    esac
    case $option=$value in
        --conf=*.yaml | --conf=*.yml) settings=(--conf "$value") && continue ;;
        --conf=spark.submit.deployMode=cluster | --deploy-mode=cluster) cluster=yes ;;
        --conf=*=*) ;;
        --conf=*) fail 2 "--conf $value is neither settings (a .yaml file) nor a property of Spark (spark.x=y)" ;;
        --master=*) master=$value ;;
        --properties-file=*) properties=$value && continue ;;
        --py-files=*) py_files=,$value && continue ;;
        --files=*) files=$value, && continue ;;
    esac
    spark_args+=("$option" "$value")
done
job_args=("${settings[@]}" "${job_args[@]}")

# --- What it runs on: Python, Java, Spark ---

# PYSPARK_PYTHON is the executors' Python, and may be a path that only they have (./env/bin/python of an archive).
python=${PYSPARK_DRIVER_PYTHON:-${PYSPARK_PYTHON:-}}
case $python in
    "" | ./*) python=$repo/.venv/bin/python ;;
esac
command -v "$python" >/dev/null || fail 3 "no Python at $python: run \`make install\`, or set PYSPARK_PYTHON"

package() { # FILE: the package as --py-files takes it
    "$python" - "$repo" "$1" <<'EOF'
import sys
import zipfile
from pathlib import Path

# The same sources give the same zip: sorted, and without times.
repo, target = Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
    for path in sorted(p for package in ("melanoma_spark", "jobs") for p in (repo / package).rglob("*")):
        if path.suffix in (".py", ".html", ".csv", ".md"):
            archive.writestr(zipfile.ZipInfo(str(path.relative_to(repo))), path.read_bytes(), zipfile.ZIP_DEFLATED)
EOF
}
if [ "$job" = package ]; then
    [ ${#job_args[@]} = 1 ] || fail 2 "package takes the name of the zip to make: package melanoma_spark.zip"
    package "${job_args[0]}"
    exit
fi

run_job() { # in this process, without Spark
    PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH} "$python" -m "jobs.${module:-$job}" "$@"
}
if [ -n "$help" ]; then
    run_job --help
    exit
fi
# What reads a few small files, or asks MLflow alone, is not worth a JVM.
for word in "${job_args[@]}"; do
    case $job:$word in
        score:status | score:score.action=status) module=status ;;
        register:history | register:rollback | register:register.action=history | register:register.action=rollback) module=register ;;
    esac
done
[ "$job" != prune ] || module=prune
if [ -n "${module:-}" ]; then
    run_job "${job_args[@]}"
    exit
fi

JAVA_HOME=$("$repo/conf/find-java.sh") || exit 3
export JAVA_HOME
# Its warning of an incubating module would open every run: conf/java/bin/java tells why.
[ "$JAVA_HOME" = "$repo/conf/java" ] || export REAL_JAVA_HOME=$JAVA_HOME JAVA_HOME=$repo/conf/java

pyspark='import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])'
if [ -n "${SPARK_HOME:-}" ]; then
    spark_submit=$SPARK_HOME/bin/spark-submit
    [ -x "$spark_submit" ] || fail 3 "SPARK_HOME is $SPARK_HOME, which has no bin/spark-submit"
elif SPARK_HOME=$("$python" -c "$pyspark" 2>/dev/null); then
    export SPARK_HOME
    spark_submit=$SPARK_HOME/bin/spark-submit
else
    unset SPARK_HOME
    spark_submit=$(command -v spark-submit) || fail 3 "no Spark found: run \`make install\`, or set SPARK_HOME"
fi

checked=$(run_job --check "${job_args[@]}") || exit

# --- Submit ---

if [ -z "$properties" ]; then
    case $master in
        "" | local*) properties=$repo/conf/spark-local.conf ;;
        spark:*) properties=$repo/conf/spark-standalone.conf ;;
        yarn)
            properties=$repo/conf/spark-yarn.conf
            # Of a driver that is here, YARN's master of the application asks for executors alone: should its node be lost,
            # another one does, and the job goes on. YARN takes no more attempts than it allows to all, by default 2.
            [ -n "$cluster" ] || spark_args=(--conf spark.yarn.maxAppAttempts=4 "${spark_args[@]}")
            spark_args=(--load-spark-defaults "${spark_args[@]}")
            ;;
        k8s:*)
            properties=$repo/conf/spark-kubernetes.conf
            template=$repo/conf/kubernetes/pod.yaml
            spark_args=(--conf "spark.kubernetes.driver.podTemplateFile=$template" \
                --conf "spark.kubernetes.executor.podTemplateFile=$template" "${spark_args[@]}")
            ;;
    esac # any other cluster has its own spark-defaults.conf
fi
if [ -n "$properties" ]; then
    [ -f "$properties" ] || fail 2 "no properties file $properties"
    spark_args=(--properties-file "$properties" "${spark_args[@]}")
fi

# The line of progress is drawn over and over: for a terminal, not for a log.
[ -t 2 ] || spark_args=(--conf spark.ui.showConsoleProgress=false "${spark_args[@]}")

# A driver on the cluster has a Python of its own.
if [ -z "$cluster" ]; then
    case $master in
        k8s:*) PYSPARK_PYTHON=${PYSPARK_PYTHON:-/opt/melanoma_spark/.venv/bin/python} ;; # of the executors' image
    esac
    export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$python} PYSPARK_DRIVER_PYTHON=$python
else
    unset PYSPARK_DRIVER_PYTHON
    if [ ${#settings[@]} -gt 0 ]; then # it starts in a folder of its own, into which Spark puts these
        files+=${settings[1]}
        job_args=("${job_args[0]}" "${settings[1]##*/}" "${job_args[@]:2}")
    fi
fi
files=${files%,}
[ -z "$files" ] || spark_args+=(--files "$files")
# The driver's JVM alone, and without taking --driver-java-options from the caller.
export SPARK_SUBMIT_OPTS="\"-Dlog4j2.configurationFile=file:$repo/conf/log4j2.properties\" ${SPARK_SUBMIT_OPTS:-}"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
main=$repo/jobs/$job.py
case $cluster$master in
    yesk8s:*) # the image has the package and its Python, and the driver's pod sees no file of this machine
        unset PYSPARK_PYTHON
        main=local:///opt/melanoma_spark/jobs/$job.py
        [ -z "$py_files" ] || spark_args=(--py-files "${py_files#,}" "${spark_args[@]}")
        ;;
    *)
        package "$tmp/melanoma_spark.zip"
        spark_args=(--py-files "$tmp/melanoma_spark.zip$py_files" "${spark_args[@]}")
        ;;
esac

submit() {
    # A job that ends by itself at a signal needs its JVM until then: what is ignored here, the JVM ignores, too.
    [ "$checked" != graceful ] || trap '' HUP INT TERM
    MELANOMA_ERROR_FILE=$tmp/error exec "$spark_submit" "${spark_args[@]}" "$main" "${job_args[@]}" </dev/null
}
# In a process group of its own, so that a signal to this script reaches the JVM and Python alike.
set -m
submit &
submitted=$!

ended() { # sets its exit status; of a job that is only stopped, by SIGSTOP or a terminal, `wait` says 128 + 19 to 22
    status=0
    wait "$submitted" || status=$?
    while [ "$status" -ge 147 ] && [ "$status" -le 150 ]; do
        sleep 1
        status=0
        wait "$submitted" || status=$?
    done
}
forward() { # SIGNAL
    kill "-$1" -- "-$submitted" 2>/dev/null || true
    # Again and again to one that ends by itself: the first may come before it listens.
    while [ "$checked" = graceful ] && kill -0 "$submitted" 2>/dev/null; do
        sleep 2
        kill -TERM -- "-$submitted" 2>/dev/null || true
    done
    ended
    [ ! -s "$tmp/error" ] || cat "$tmp/error" >&2
    exit $status
}
trap 'forward HUP' HUP
trap 'forward INT' INT
trap 'forward TERM' TERM
ended
# The one line of a job that failed: Spark gives out what Python writes to stderr as stdout.
[ ! -s "$tmp/error" ] || cat "$tmp/error" >&2
[ "$status" = 0 ] || exit "$status"
exit
}
