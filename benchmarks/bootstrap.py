"""Measures the bootstrap: 2,000 resamples of 10,000 images, compared with a call of scikit-learn for each resample.

    .venv/bin/python benchmarks/bootstrap.py --rounds 3

Both use the same groups and take turns in one process. Scikit-learn's loop runs a part of the resamples, and its
time is multiplied. Neither Spark nor TensorFlow is used.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from melanoma_spark.evaluation import metric_table
from melanoma_spark.metrics.bootstrap import Bootstrap


def draw_images(count: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return labels (a tenth positive), probabilities (AUROC about 0.9) and groups of two images."""
    generator = np.random.default_rng(0)
    labels = (generator.random(count) < 0.1).astype(int)
    probabilities = 1 / (1 + np.exp(-generator.normal(1.8 * labels, 1)))
    return labels, probabilities, np.arange(count) // 2


def resample_with_sklearn(
    labels: NDArray[Any], probabilities: NDArray[Any], groups: NDArray[Any], resamples: int
) -> list[float]:
    """Return the AUROC of each resample, by one call of scikit-learn each."""
    generator = np.random.default_rng(0)
    count = groups.max() + 1
    aurocs = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, count, count), minlength=count)[groups]
        aurocs.append(roc_auc_score(labels, probabilities, sample_weight=weights))
    return aurocs


def seconds(do: Callable[..., object], *arguments: object, **settings: object) -> float:
    started = time.perf_counter()
    do(*arguments, **settings)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--looped", type=int, default=100, help="resamples of scikit-learn's loop")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = draw_images(options.images)
    images, groups, ratios = rows[:2], rows[2], []
    drawn, prevalences = Bootstrap(groups, options.resamples), (0.02, 0.2)
    count = len(metric_table.measure_figures(*images, Bootstrap(groups, 2), 0.5, prevalences=prevalences))
    for _ in range(options.rounds):
        ours = seconds(drawn.auroc, *images)
        theirs = seconds(resample_with_sklearn, *rows, options.looped) * options.resamples / options.looped
        report = seconds(metric_table.measure_figures, *images, drawn, 0.5, prevalences=prevalences)
        ratios.append(theirs / ours)
        print(
            f"AUROC: {ours:.1f} s, scikit-learn's loop {theirs:.1f} s, ratio {ratios[-1]:.1f}; "
            f"all {count} figures of a report: {report:.1f} s",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
