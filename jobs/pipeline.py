"""pipeline: ingest -> featurize -> train_head -> finetune -> evaluate -> register -> score, in one submission.

One MLflow run holds it all, with a nested run for each stage. Stages whose result stands already are passed over.

example: melanoma-spark pipeline --conf conf/lesions.yaml
"""

from melanoma_spark.pipeline import pipeline
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("pipeline", __doc__, pipeline, needs_archive=lambda settings: True)

if __name__ == "__main__":
    main(COMMAND)
