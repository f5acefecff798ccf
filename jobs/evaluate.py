"""evaluate: the head alone and the fine-tuned network side by side on the test split -> `reports/`.

A Spark pass over validation and test. The operating point is chosen on validation and applied unchanged to test.
evaluate.tta=8 judges the same networks by the mean over eight mirror images and turns of each image, without training.

With `archive` naming another archive than images/ was made from, the registered model of score.model is judged on all
of it, less what training has seen: an external set. That report lies under external/.

example: melanoma-spark evaluate warehouse=/data/warehouse evaluate.operating_point='sensitivity>=0.90'
"""

from melanoma_spark.evaluation.evaluate import either
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("evaluate", __doc__, either)

if __name__ == "__main__":
    main(COMMAND)
