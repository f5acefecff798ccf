"""train_head: bottleneck features of the train split -> a fully connected head; keeps the best epoch by validation.

example: melanoma-spark train_head warehouse=/data/warehouse head.learning_rate=1e-3
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.train_head import train_head

COMMAND = Command("train_head", __doc__, train_head)

if __name__ == "__main__":
    main(COMMAND)
