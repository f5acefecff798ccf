"""ingest: an archive of images -> `images/`, a Petastorm dataset of decoded pixels with label, group and split.

Each listed file, and each member of a zip or tar, becomes an image, a row in `rejects/` with a reason, or is skipped as
a table or text. Files that an earlier ingest has read are not read again.

example: melanoma-spark ingest archive=/data/lesions warehouse=/data/warehouse
"""

from melanoma_spark.dataset.ingest import ingest
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("ingest", __doc__, ingest, needs_archive=lambda settings: True)

if __name__ == "__main__":
    main(COMMAND)
