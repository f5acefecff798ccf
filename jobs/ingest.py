"""ingest: an archive of images -> `images/`, a Petastorm dataset of decoded pixels with label, group and split.

Every listed file and member of a zip or tar ends as an image, as a row in `rejects/` with a reason, or among the
skipped tables and texts. What an earlier ingest has read is not read again.

example: melanoma-spark ingest archive=/data/lesions warehouse=/data/warehouse
"""

from melanoma_spark.dataset.ingest import ingest
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("ingest", __doc__, ingest, needs_archive=lambda settings: True)

if __name__ == "__main__":
    main(COMMAND)
