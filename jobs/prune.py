"""prune: lists unreferenced files of a warehouse; with prune.apply=true it removes them.

It lists superseded datasets and models, reports of no registered version, files that jobs killed more than
`prune.unfinished_days` ago have left, external sets that were not evaluated for `prune.external_days`, and pictures of
worklists older than `prune.worklists_days`. What a manifest or a registered version names stays; so do scores/,
ledger/, registry/ and MLflow's own files.

It needs no Spark. It ends with 5 while any job runs on the warehouse; with prune.apply=true no job can start meanwhile.
If it is killed, run it again.

example: melanoma-spark prune warehouse=/data/warehouse prune.worklists_days=90 prune.apply=true
"""

from melanoma_spark.operations.prune import prune
from melanoma_spark.runner.cli import Command, main
from melanoma_spark.runner.stage import run_untracked

COMMAND = Command("prune", __doc__, prune, runner=run_untracked, prepared=lambda settings: False)

if __name__ == "__main__":
    main(COMMAND)
