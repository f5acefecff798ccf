"""score: new images of an archive, scored with the model behind an alias -> `scores/`, one row for each image.

A file that was scored before, by name, size and time, is not read again. A copy of a scored image, by content, gets no
second row. A batch is in `scores/` as a whole or not at all; a killed run is resumed by the next one.

`score status` reports the last batches, without Spark. `score --follow` checks the archive at an interval, and scores
what has landed, until SIGTERM or Ctrl-C; then it ends after the current batch, with 0. Its settings are
`score.follow.*`.

Each batch is compared with the training images. The verdict is in the worklist, in `score status`, and in MLflow's
experiment NAME-drift, which charts the batches.

example: melanoma-spark score archive=/data/tonight warehouse=/data/warehouse score.model=melanoma@champion
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.scoring.score import run_action, score

COMMAND = Command(
    "score",
    __doc__,
    score,
    runner=run_action,
    needs_archive=lambda settings: settings.score.action != "status",
    prepared=lambda settings: settings.score.action != "status",
    graceful=lambda settings: settings.score.action == "follow",
    words={"status": "score.action=status", "--follow": "score.action=follow"},
)

if __name__ == "__main__":
    main(COMMAND)
