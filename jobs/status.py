"""score status: the last batches of `scores/`, by their JSON files, without Spark and MLflow.

example: melanoma-spark score status warehouse=/data/warehouse score.shown=5
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.runner.stage import run_untracked
from melanoma_spark.scoring.status import report_status

COMMAND = Command(
    "score", __doc__, report_status, runner=run_untracked, prepared=False, words={"status": "score.action=status"}
)

if __name__ == "__main__":
    main(COMMAND)
