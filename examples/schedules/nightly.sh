#!/bin/sh
# One night's scoring for a schedule: tries again what another try may mend, says nothing when all is well, and one line
# with the exit status when somebody is to look. Everything the job tells is appended to the log.
#
#   nightly.sh LOG WORD...     the words are those of `melanoma-spark score`
#
# RETRIES (2), PAUSE (600 seconds before each) and LIMIT (8h for each try) may be set in the environment.
set -u
log=$1
shift
repo=$(cd -- "$(dirname -- "$0")/../.." && pwd)
left=${RETRIES:-2}
while :; do
    # TERM first: a job that is told to end leaves nothing behind, and what it has computed is kept.
    status=0
    timeout -k 120 "${LIMIT:-8h}" "$repo/.venv/bin/melanoma-spark" score log.format=json "$@" >>"$log" 2>&1 || status=$?
    case $status in
        0) exit 0 ;;
        5) exit 5 ;; # another score is at work, so this night is taken care of; a person need not look
        2 | 4) break ;; # settings, archive or model: the same again tomorrow, unless somebody looks
        6) break ;; # the batch is in scores/: done, not to be tried again, but something wants a look
    esac
    [ "$left" -gt 0 ] || break # 1, 3, killed, out of time: Spark, MLflow or the file system may be back soon
    left=$((left - 1))
    sleep "${PAUSE:-600}"
done
echo "melanoma score ended with exit status $status; docs/exit-statuses.md says what to do, $log what was said" >&2
exit "$status"
