"""score status: the last batches of `scores/`, by their JSON files, without Spark and MLflow.

example: ./spark-submit.sh score status warehouse=/data/warehouse score.shown=5
"""

from __future__ import annotations

import sys

from jobs.job import alone, say
from melanoma_spark import batches, config, files

FIELDS = ("batch_id", "committed_at", "model", "model_version", "run_id", "rows", "counts", "verdict")


def run(settings: config.Settings) -> str:
    """Tells them, the newest first; returns a summary."""
    warehouse = files.url_of(settings.warehouse)
    there = batches.committed(warehouse)
    shown = there[-settings.score.shown :]
    for batch in reversed(shown):
        found = batches.facts(warehouse, batch)
        say(batches.told(found), "batch", **{key: found[key] for key in FIELDS if key in found})
    return f"{len(there)} batches in scores/, {len(shown)} shown, the newest first"


if __name__ == "__main__":
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "status"]
    alone("score", __doc__, run)
