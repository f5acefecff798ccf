#!/bin/sh
# For the Oozie workflow: runs score, and prints its exit status for the workflow unless a retry may help.
status=0
"$HOME_OF_MELANOMA/.venv/bin/melanoma-spark" score "$@" >&2 || status=$?
case $status in
    0 | 2 | 4 | 5 | 6) echo "status=$status" ;;
    *) exit "$status" ;;
esac
