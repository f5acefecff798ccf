"""search: which head does best on features/, a small sweep over head.hidden, .dropout, .learning_rate and .views.

Each head is fitted once for each fold and seed, one a Spark task, and judged by the AUROC on the images of the fold,
which it has not seen: by the images as they are and, for each other search.tta, by so many mirror images and turns of
them. Folds are of groups, over train and validation images together; test images have no part in it. An image of the
validation split has no augmented views: where a head learns from it, it does so from the image as it is in every epoch.
A head is that of its best epoch by the images that judge it, as in train_head, so the figures are a little high, for
all combinations alike: they compare heads, and evaluate measures the chosen one.

Nothing is trained for use: the last line says which settings to give to train_head and evaluate. All trials are in
MLflow, a nested run each, and under reports/search/.

example: melanoma-spark search warehouse=/data/warehouse search.hidden=[64,256] search.trials=6
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.search import search

COMMAND = Command("search", __doc__, search)

if __name__ == "__main__":
    main(COMMAND)
