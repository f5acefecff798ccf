"""Shortcuts: the lesion is painted over and the skin around it kept; colors predict labels that have a color."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from melanoma_spark.evaluation import shortcuts
from melanoma_spark.metrics import binary

SKIN, DARK = (220, 170, 150), (70, 40, 30)


def disc(size=96, centre=(48, 48), radius=20, corners=False):
    """Skin with a dark disc, and dark corners where they are asked for."""
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), SKIN, np.uint8)
    lesion = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image[lesion] = DARK
    if corners:
        image[(y - size / 2) ** 2 + (x - size / 2) ** 2 > (0.6 * size) ** 2] = (5, 5, 5)
    return image, lesion


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("centre", "radius"), [((48, 48), 20), ((48, 48), 8), ((30, 66), 25), ((48, 20), 18)])
def test_no_part_of_the_lesion_is_left_and_the_skin_around_it_is(corners, centre, radius):
    image, lesion = disc(centre=centre, radius=radius, corners=corners)
    mask = shortcuts.lesion_mask(image)
    before = image.copy()
    painted = shortcuts.without_lesion(image)
    np.testing.assert_array_equal(image, before)
    assert mask[lesion].all()
    assert 0.45 < mask.mean() < 0.85
    assert not (painted == DARK).all(axis=2).any()
    np.testing.assert_array_equal(painted[~mask], image[~mask])
    assert (painted[mask] == SKIN).all()


def test_small_lesions_leave_no_trace_and_histograms_are_numpys():
    masks = [shortcuts.lesion_mask(disc(radius=radius)[0]) for radius in (4, 12, 30)]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    expected, _ = np.histogramdd(image.reshape(-1, 3), bins=[np.arange(0, 257, 64)] * 3)
    np.testing.assert_allclose(shortcuts.color_histogram(image), expected.ravel() / 1200, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(32, 60), st.integers(32, 60), st.just(3))))
def test_any_image_keeps_some_skin(image):
    mask = shortcuts.lesion_mask(image)
    assert 0.4 < mask.mean() <= 0.85
    assert shortcuts.without_lesion(image).shape == image.shape
    assert shortcuts.color_histogram(image).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("message", "least", "most"), [(True, 0.85, 1), (False, 0.3, 0.7)])
def test_colors_predict_a_label_that_has_a_color_and_no_other(message, least, most):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    red = 120 + (60 * labels if message else 0) + generator.normal(0, 15, 300)
    images = np.clip(generator.normal(130, 30, (300, 16, 16, 3)), 0, 255)
    images[..., 0] = np.clip(red, 0, 255)[:, None, None]
    rows = np.stack([shortcuts.color_histogram(image) for image in images.astype(np.uint8)])
    result = shortcuts.predict_from_colors(rows[:200], labels[:200], rows[200:])
    assert result.dtype == np.float64
    assert least <= binary.auroc(labels[200:], result) <= most
