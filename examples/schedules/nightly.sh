#!/bin/sh
# Scores one night, for a schedule. Retries where a retry may help. Prints nothing on success, and one line with the exit
# status if a person must act. Appends the job's output to LOG.
#
#   nightly.sh LOG WORD...     with the words of `melanoma-spark score`
#
# RETRIES (2), PAUSE (600 seconds before each retry) and LIMIT (8h for each attempt) may be set in the environment.
set -u
log=$1
shift
repo=$(cd -- "$(dirname -- "$0")/../.." && pwd)
left=${RETRIES:-2}
while :; do
    # TERM before KILL: a job that gets TERM removes its temporary files and keeps what it has computed.
    status=0
    timeout -k 120 "${LIMIT:-8h}" "$repo/.venv/bin/melanoma-spark" score log.format=json "$@" >>"$log" 2>&1 || status=$?
    case $status in
        0) exit 0 ;;
        5) exit 5 ;; # another score runs and scores the images of this night
        2 | 4) break ;; # settings, archive or model: a retry would end the same way
        6) break ;; # the batch is in scores/: no retry, but a person must check it
    esac
    [ "$left" -gt 0 ] || break # 1, 3, killed or out of time: Spark, MLflow or the file system may be back soon
    left=$((left - 1))
    sleep "${PAUSE:-600}"
done
echo "melanoma score ended with exit status $status; docs/exit-statuses.md says what to do, the log is $log" >&2
exit "$status"
