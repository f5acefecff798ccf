"""The figures of ISIC's scorer for drawn predictions: writes isic_scorer.json, with which test_metrics.py compares.

In an environment of its own, so that this project does not depend on it:

    uv venv /tmp/isic && uv pip install -p /tmp/isic isic-challenge-scoring==5.6.0 'pandas<3'
    /tmp/isic/bin/python tests/isic_scorer.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore

NAMES = ("auc", "auc_sens_80", "ap", "accuracy", "sensitivity", "specificity", "ppv", "npv")


def cases():
    """Labels and probabilities, with ties, of 4 to 200 images; both classes, and decisions of both kinds."""
    draw = np.random.default_rng(0)
    while True:
        n = int(draw.integers(4, 200))
        labels = (draw.random(n) < draw.uniform(0.1, 0.9)).astype(int)
        digits = int(draw.integers(1, 7))
        probabilities = np.round(1 / (1 + np.exp(-draw.normal(labels - 0.5, 1.0))), digits)
        decided = probabilities > 0.5
        if 0 < labels.sum() < n and 0 < decided.sum() < n:
            yield labels.tolist(), probabilities.tolist()


def scored(labels, probabilities):
    with tempfile.TemporaryDirectory() as folder:
        images = [f"ISIC_{number:07d}" for number in range(len(labels))]
        paths = []
        for name, values in (("truth", labels), ("prediction", probabilities)):
            paths.append(Path(folder) / f"{name}.csv")
            # a second column, as the scorer wants categories
            table = pd.DataFrame({"image": images, "MEL": np.array(values, float), "NV": 1 - np.array(values, float)})
            table.to_csv(paths[-1], index=False)
        return ClassificationScore.from_file(*paths, ClassificationMetric.AUC).per_category.loc["MEL"]


if __name__ == "__main__":
    result = []
    for (labels, probabilities), _ in zip(cases(), range(25), strict=False):
        figures = scored(labels, probabilities)
        figures = {name: float(figures[name]) for name in NAMES}
        result.append({"labels": labels, "probabilities": probabilities, **figures})
    Path(__file__).with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, result)) + "\n]\n")
