#!/usr/bin/env bash
# Keeps Spark's classes as Java has loaded and checked them, in .venv/spark-classes.jsa, so that each JVM that
# conf/java/bin/java starts maps them and does not load 15,000 from jars: a job starts some seconds sooner. The archive is
# of this Java and these jars, and holds no more than classes; Java looks whether it fits, and does without where not.
# https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html
set -uo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$repo/melanoma_spark/runner" ] || exit 0 # an image is built layer by layer, and its entry point has a Java of its own
# 21.0.8 wrote them and then took none of them, since Spark's class path were another one.
home=$("$repo/conf/find-java.sh" 2>/dev/null) && "$home/bin/java" -version 2>&1 | grep -q 'version "17' || exit 0
echo "keeping Spark's classes, loaded and checked, so that jobs start sooner: a minute"
classes=$repo/.venv/spark-classes.jsa
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$classes"

# What an ingest of a few images has loaded is most of what any job will.
"$repo/.venv/bin/python" -m melanoma_spark.images.synthetic "$work/archive" --images 20 --size 64 >"$work/told" 2>&1 &&
    SPARK_SUBMIT_OPTS="-XX:ArchiveClassesAtExit=$work/classes.jsa -XX:TieredStopAtLevel=1 -XX:+UseSerialGC" \
        SPARK_CONF='' SPARK_HOME='' PYSPARK_PYTHON='' PYSPARK_DRIVER_PYTHON='' "$repo/.venv/bin/melanoma-spark" ingest \
        archive="$work/archive" warehouse="$work/warehouse" image_size=64 --master 'local[2]' >>"$work/told" 2>&1
if [ -s "$work/classes.jsa" ]; then
    # in one step: a JVM that maps half of it would crash
    mv "$work/classes.jsa" "$classes.part" && mv "$classes.part" "$classes"
else
    tail -n 3 "$work/told" >&2
    echo "Spark's classes are not kept: jobs run all the same, and start some seconds later" >&2
fi
