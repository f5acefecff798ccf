"""Labels, probabilities and groups, drawn for tests of metrics; and how many examples a test draws."""

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# Multiples of 1/8 tie often; the free floats reach 0, 1 and the subnormals.
TIED = st.integers(0, 8).map(lambda eighths: eighths / 8)
PROBABILITIES = st.one_of(TIED, st.floats(0, 1))


def examples(times: float) -> settings:
    """A decorator: so many times the examples that HYPOTHESIS_PROFILE asks for."""
    return settings(max_examples=max(1, round(times * settings.default.max_examples)))


@st.composite
def scored(draw, both_classes=True):
    """Labels (n,), probabilities (n,), groups (n,) of 1 to 40 images."""
    n = draw(st.integers(2, 40))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 1)))
    if both_classes:
        labels[:2] = (0, 1)
    probabilities = draw(arrays(np.float64, n, elements=PROBABILITIES))
    groups = draw(arrays(np.int64, n, elements=st.integers(0, 6)))
    return labels, probabilities, groups


def grouped_sample(seed, groups=150, shift=1.0):
    """Groups of 1 to 4 images that share a label and part of their score, as the photographs of one lesion do."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), generator.integers(1, 5, groups))
    label = (generator.random(groups) < 0.4).astype(int)
    score = generator.normal(shift * label, 0.9)[group] + generator.normal(0, math.sqrt(1 - 0.81), len(group))
    return label[group], 1 / (1 + np.exp(-score)), group


def resamples_of(groups, resamples, seed):
    """The rows of each resample, by a plain loop."""
    names = sorted(set(groups.tolist()))
    for drawn in np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names))):
        yield np.concatenate([np.flatnonzero(groups == names[k]) for k in drawn])
