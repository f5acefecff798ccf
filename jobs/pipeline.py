"""pipeline: ingest -> featurize -> train_head -> finetune -> evaluate -> register -> score, in one submission.

One MLflow run holds all stages, each in a nested run. Stages whose result exists are skipped.

example: melanoma-spark pipeline --conf conf/lesions.yaml
"""

from melanoma_spark.pipeline import pipeline
from melanoma_spark.runner.cli import Command, main

COMMAND = Command("pipeline", __doc__, pipeline, needs_archive=lambda settings: True)

if __name__ == "__main__":
    main(COMMAND)
