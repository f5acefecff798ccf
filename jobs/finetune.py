"""finetune: base and head joined, trained on by phases on Horovod ranks that Spark starts.

The last block first, then the whole network (conf: finetune.phases). A phase with a `cut` reads that cut's features
instead of computing the frozen part again: in each epoch another of the views that are stored, while a phase on pixels
augments them as it goes (augment.enabled). The best epoch by validation AUROC is kept, the start included.

A lost rank costs the work since the last checkpoint: the ranks start again from there, `finetune.retries` times. After
that, and after a killed driver, the same command goes on from there.

example: melanoma-spark finetune warehouse=/data/warehouse ranks=2
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.finetune import finetune

COMMAND = Command("finetune", __doc__, finetune)

if __name__ == "__main__":
    main(COMMAND)
