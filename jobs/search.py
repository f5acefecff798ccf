"""search: compares heads on features/: a small search over head.hidden, .dropout, .learning_rate and .views.

Each head is fitted once for each fold and seed, one Spark task each, and judged by its AUROC on the images of the fold,
which it has not seen: on the images as they are and, for each other value of search.tta, on that many mirror images and
rotations of them. Folds consist of groups, over train and validation images; test images are not used. Only train
images have augmented views; a head learns from the others as they are, in every epoch. As in train_head, the images
that judge a head also choose its epoch. So all figures are a little high; they compare heads, and evaluate measures the
chosen one.

It trains no model for use. The last line gives the settings for train_head and evaluate. All trials are in MLflow, a
nested run each, and under reports/search/.

example: melanoma-spark search warehouse=/data/warehouse search.hidden=[64,256] search.trials=6
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.search import search

COMMAND = Command("search", __doc__, search)

if __name__ == "__main__":
    main(COMMAND)
