"""finetune: trains base and head together, in phases, on Horovod ranks that Spark starts.

The first phase trains the last block, the next one the whole network (settings: finetune.phases). A phase with a `cut`
reads the features of that cut, so the frozen part is not computed again; each epoch takes another of the stored views.
A phase on pixels augments them while it trains (augment.enabled). The best epoch by validation AUROC is kept; the start
counts as an epoch.

Without Horovod, ranks=1 trains in this process.

When a rank is lost, all ranks start again from the last checkpoint, finetune.retries times. After that, or when the
driver was killed, the same command resumes from the checkpoint.

example: melanoma-spark finetune warehouse=/data/warehouse ranks=2
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.finetune import finetune

COMMAND = Command("finetune", __doc__, finetune)

if __name__ == "__main__":
    main(COMMAND)
