"""The reference: distances as scikit-learn's density has them, bins that hold all values, and no row of an image."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from melanoma_spark.errors import DataError
from melanoma_spark.models import training_reference


def features(rows: int, seed: int = 0, width: int = 40) -> np.ndarray:
    """Correlated ones: a few directions with much variance, and noise."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(5, width)) * 3
    return (rng.normal(size=(rows, 5)) @ mixing + rng.normal(size=(rows, width)) + 2).astype(np.float32)


def test_distances_are_those_of_scikit_learn_below_1_for_validation_images():
    from sklearn.decomposition import PCA

    train, others = features(400), features(50, 1)
    space = training_reference.fit(train, features(100, 2))
    train, of_others = (rows / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] for rows in (train, others))
    pca = PCA(n_components=len(space.axes), svd_solver="full").fit(train)
    centred = of_others - pca.mean_
    expected = np.sqrt(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(pca.get_covariance()), centred))
    np.testing.assert_allclose(space.distances(others) * space.unit, expected, rtol=1e-3)
    np.testing.assert_allclose(
        space.distances(others * 3), space.distances(others), rtol=1e-5
    )  # of the direction alone

    held_out = features(1000, 1)
    space = training_reference.fit(features(500), held_out)
    assert np.mean(space.distances(held_out) > 1) == pytest.approx(0.01, abs=0.001)
    assert np.mean(space.distances(features(1000, 2)) > 1) < 0.03
    shuffled = np.random.default_rng(0).permuted(held_out, axis=1)  # the same values, in other places
    assert np.mean(space.distances(shuffled) > 1) > 0.95
    assert np.isnan(space.distances(np.full((1, 40), np.nan)))

    for train, held_out in ((features(1), features(5)), (features(5), features(0))):
        with pytest.raises(DataError, match="too few for a training reference"):
            training_reference.fit(train, held_out)


@pytest.mark.parametrize("rows", [2, 3, 10, 100])
def test_few_images_and_dead_features_have_distances_all_the_same(rows):
    for train in (features(rows), np.zeros((rows, 8), np.float32), np.ones((rows, 1024), np.float32)):
        space = training_reference.fit(train, train[:1] + 0.5)
        result = space.distances(np.concatenate([train, np.eye(1, train.shape[1])]))
        assert np.isfinite(result).all()
        assert result[-1] > result[0]


@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), max_size=200))
def test_a_histogram_holds_every_value_once(values):
    result = training_reference.histogram(values)
    known = [value for value in values if value == value]
    assert sum(result.counts) == len(known)
    assert len(result.counts) == len(result.edges) + 1
    assert list(result.edges) == sorted(set(result.edges))
    bounds = (-np.inf, *result.edges, np.inf)
    for place, count in enumerate(result.counts):
        assert count == sum(bounds[place] < value <= bounds[place + 1] for value in known)


def test_bins_are_even_and_rare_categories_lose_their_names():
    result = training_reference.histogram(stats.norm.rvs(size=2000, random_state=0))
    assert result.counts == (100,) * training_reference.BINS
    assert training_reference.histogram([3.0] * 50 + [7.0]).counts == (50, 1)

    counts = {"arm": 40, "leg": 5, "Mrs Smith's toe": 4, "unknown": 7}
    result = training_reference.categories(counts)
    assert result == {"arm": 40, "leg": 5, training_reference.OTHERS: 4}
    assert training_reference.categories({"arm": 1, "hand": 2}, ["arm", "leg"]) == {
        "arm": 1,
        "leg": 0,
        training_reference.OTHERS: 2,
    }


def example(rows: int = 300, width: int = 40) -> training_reference.Reference:
    return training_reference.Reference(
        space=training_reference.fit(features(rows, width=width), features(100, 1, width=width)),
        histograms={"sharpness": training_reference.histogram(np.arange(rows) / 7)},
        shares={"sex": {"female": 10, training_reference.OTHERS: 0}},
        images={"train": rows, "validation": 100},
    )


def test_reference_is_stored_small_and_without_a_row_of_an_image():
    known = example(width=512)
    packed = known.pack()
    again = training_reference.unpack(packed)
    assert again.pack() == packed
    distances = (one.space.distances(features(9, 3, 512)) for one in (known, again))
    np.testing.assert_array_equal(*distances)
    assert sum(map(len, packed.values())) < 300_000
    assert json.loads(packed["reference.json"])["images"] == {"train": 300, "validation": 100}
    # Its size does not grow with the number of images, and of the arrays none has one of their length.
    sizes = [len(example(rows).pack()["reference.npz"]) for rows in (300, 301)]
    assert sizes[0] == sizes[1]
    with np.load(io.BytesIO(example(301).pack()["reference.npz"])) as arrays:
        assert all(301 not in arrays[name].shape for name in arrays.files)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and no more", b"\x00" * 100])
def test_damage_is_a_value_error(damage):
    packed = example(50).pack()
    for name in training_reference.FILES:
        with pytest.raises((KeyError, TypeError, ValueError)):
            training_reference.unpack(packed | {name: damage})
