"""score: what is new in an archive through the model behind an alias -> `scores/`, one row for every image.

A file that was scored before, by name, size and time, is not read again; a copy of an image that was, by content, has
no second row. A batch is in `scores/` whole or not at all; a killed run is gone on with by the next one.

`score status` tells the last batches, without Spark. `score --follow` looks at the archive every so often, and scores
what has landed, until SIGTERM or Ctrl-C: it ends after the batch in hand, with 0. Its settings are `score.follow.*`.

Each batch is held against the training images: its verdict stands in the worklist, in `score status`, and in MLflow's
experiment NAME-drift, whose charts show batch after batch.

example: melanoma-spark score archive=/data/tonight warehouse=/data/warehouse score.model=melanoma@champion
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.scoring.score import runner, score

COMMAND = Command(
    "score",
    __doc__,
    score,
    runner=runner,
    needs_archive=lambda settings: settings.score.action != "status",
    needs_spark=lambda settings: settings.score.action != "status",
    graceful=lambda settings: settings.score.action == "follow",
    words={"status": "score.action=status", "--follow": "score.action=follow"},
)

if __name__ == "__main__":
    main(COMMAND)
