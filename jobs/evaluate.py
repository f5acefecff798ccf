"""evaluate: compares the head alone and the fine-tuned network on the test split -> `reports/`.

It takes one Spark pass over validation and test. The operating point is chosen on validation and applied unchanged to
test. evaluate.tta=8 evaluates the same networks by the mean over eight mirror images and rotations of each image,
without training.

If `archive` names another archive than the one of images/, evaluate runs the registered model of score.model on all
of it, excluding images seen in training: an external set. That report is under external/.

example: melanoma-spark evaluate warehouse=/data/warehouse evaluate.operating_point='sensitivity>=0.90'
"""

from melanoma_spark.evaluation.evaluate import evaluate
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("evaluate", __doc__, evaluate, may_read_archive=True)

if __name__ == "__main__":
    main(COMMAND)
