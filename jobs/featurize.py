"""featurize: `images/` -> `features/`, the backbone's output at each cut, computed once for every image.

With featurize.views=4, once for each of four views of a train image: as it is, and three times augmented. Rows that are
there already, for the same pixels, weights and cuts, are not computed again; a killed job is taken up where it stood.

example: melanoma-spark featurize warehouse=/data/warehouse
"""

from melanoma_spark.runner.cli import Command, main
from melanoma_spark.training.featurize import featurize

COMMAND = Command("featurize", __doc__, featurize)

if __name__ == "__main__":
    main(COMMAND)
