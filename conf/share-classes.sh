#!/usr/bin/env bash
# Stores Spark's classes, loaded and verified, in .venv/spark-classes.jsa. Each JVM that conf/java/bin/java starts maps
# this archive instead of loading 15,000 classes from jars, so a job starts some seconds sooner. The archive is for this
# Java and these jars and holds only classes. Java checks whether it fits, and ignores it if it does not.
# https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html
set -uo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$repo/melanoma_spark/runner" ] || exit 0 # in an image that is being built; its entry point uses another Java
# Java 21.0.8 wrote the archive and then refused it, because Spark's class path was different.
home=$("$repo/conf/find-java.sh" 2>/dev/null) && "$home/bin/java" -version 2>&1 | grep -q 'version "17' || exit 0
echo "storing Spark's loaded classes, so that jobs start sooner: about a minute"
classes=$repo/.venv/spark-classes.jsa
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$classes"

# An ingest of a few images loads most of the classes that any job needs.
"$repo/.venv/bin/python" -m melanoma_spark.images.synthetic "$work/archive" --images 20 --size 64 >"$work/told" 2>&1 &&
    SPARK_SUBMIT_OPTS="-XX:ArchiveClassesAtExit=$work/classes.jsa -XX:TieredStopAtLevel=1 -XX:+UseSerialGC" \
        SPARK_CONF='' SPARK_HOME='' PYSPARK_PYTHON='' PYSPARK_DRIVER_PYTHON='' "$repo/.venv/bin/melanoma-spark" ingest \
        archive="$work/archive" warehouse="$work/warehouse" image_size=64 --master 'local[2]' >>"$work/told" 2>&1
if [ -s "$work/classes.jsa" ]; then
    # renamed in one step: a JVM that maps a partial archive crashes
    mv "$work/classes.jsa" "$classes.part" && mv "$classes.part" "$classes"
else
    tail -n 3 "$work/told" >&2
    echo "Spark's classes were not stored: jobs work, and start some seconds later" >&2
fi
