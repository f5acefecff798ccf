"""How fast the intervals are: 2,000 resamples of 10,000 images, over scikit-learn called for each resample.

    .venv/bin/python benchmarks/bootstrap.py --rounds 3

Both take the same groups, turn by turn in one process; of scikit-learn's loop some resamples stand for all. Nothing of
Spark or TensorFlow is in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from melanoma_spark.evaluation import figures
from melanoma_spark.metrics import bootstrap


def images(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of which a tenth is positive, probabilities with an AUROC of about 0.9, two images a group."""
    generator = np.random.default_rng(0)
    labels = (generator.random(count) < 0.1).astype(int)
    probabilities = 1 / (1 + np.exp(-generator.normal(1.8 * labels, 1)))
    return labels, probabilities, np.arange(count) // 2


def looped(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int) -> list[float]:
    generator = np.random.default_rng(0)
    count = groups.max() + 1
    found = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, count, count), minlength=count)[groups]
        found.append(roc_auc_score(labels, probabilities, sample_weight=weights))
    return found


def seconds(do: object, *arguments: object, **settings: object) -> float:
    started = time.perf_counter()
    do(*arguments, **settings)  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--looped", type=int, default=100, help="resamples of scikit-learn's loop")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rows = images(chosen.images)
    ratios = []
    for _ in range(chosen.rounds):
        ours = seconds(bootstrap.resampled_auroc, *rows, chosen.resamples)
        theirs = seconds(looped, *rows, chosen.looped) * chosen.resamples / chosen.looped
        every = seconds(figures.of_split, *rows, 0.5, (0.02, 0.2), resamples=chosen.resamples)
        ratios.append(theirs / ours)
        print(
            f"AUROC: {ours:.1f} s, scikit-learn's loop {theirs:.1f} s, ratio {ratios[-1]:.1f}; "
            f"all {len(figures.of_split(*rows, 0.5, (0.02, 0.2), resamples=2))} figures of a report: {every:.1f} s",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
