"""prune: tells what of a warehouse nobody needs any more, and with prune.apply=true removes it.

Superseded datasets and models, reports of no registered version, what killed jobs left before `prune.unfinished_days`,
external sets that were not evaluated for `prune.external_days`, pictures of worklists older than
`prune.worklists_days`. What a manifest or a registered version names stays, and so do scores/, ledger/, registry/ and
MLflow's own files.

Without Spark. It leaves with 5 while any job is at work on the warehouse; with prune.apply=true none starts meanwhile.
It may be killed at any time: run it again.

example: melanoma-spark prune warehouse=/data/warehouse prune.worklists_days=90 prune.apply=true
"""

from melanoma_spark.operations.prune import prune
from melanoma_spark.runner.cli import Command, main
from melanoma_spark.runner.stage import run_untracked

COMMAND = Command("prune", __doc__, prune, runner=run_untracked, prepared=False)

if __name__ == "__main__":
    main(COMMAND)
