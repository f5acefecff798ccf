"""featurize: `images/` -> `features/`, the backbone's output at each cut, computed once for each image.

With featurize.views=4 it computes four views of each training image: the image as it is, and three augmented ones. Rows
that exist for the same pixels, weights and cuts are not computed again; a killed job is resumed.

example: melanoma-spark featurize warehouse=/data/warehouse
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.featurize import featurize

COMMAND = Command("featurize", __doc__, featurize)

if __name__ == "__main__":
    main(COMMAND)
