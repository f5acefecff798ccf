"""Quality: measures as by hand, flags where a picture earns them, and few on real lesions."""

import io

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter
from samples import examples

from melanoma_spark import config
from melanoma_spark.images import quality, synthetic

LIMITS = config.Quality()
LESIONS = SHARED / "data/lesions"
SIZE = 224


def lesion(seed=1):
    return Image.open(io.BytesIO(synthetic.lesion_jpeg(seed, size=SIZE))).convert("RGB")


def flagged(image) -> set[str]:
    return set(quality.flags(quality.measures(np.asarray(image)[None]), LIMITS)[0])


@given(arrays.arrays(np.uint8, (2, 32, 32, 3)))
@examples(0.2)
def test_measures_are_those_of_a_loop(images):
    result = quality.measures(images)
    assert result.shape == (2, len(quality.MEASURES))
    assert result.dtype == np.float32
    for image, row in zip(images.astype(np.float64), result, strict=True):
        gray = image @ [0.299, 0.587, 0.114]
        laplacian = [
            gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1] - 4 * gray[y, x]
            for y in range(1, 31)
            for x in range(1, 31)
        ]
        border = [gray[y, x] < 30 for y in range(32) for x in range(32) if not (2 <= y < 30 and 2 <= x < 30)]
        warm = np.mean([red >= blue for red, _, blue in image.reshape(-1, 3)])
        expected = [np.var(laplacian), gray.mean() / 255, np.mean(gray >= 245), np.mean(border), warm]
        # greys at a limit may fall to either side in float32
        np.testing.assert_allclose(row[[0, 1, 4]], np.array(expected)[[0, 1, 4]], rtol=1e-3, atol=1e-3)
        assert abs(row[2] - expected[2]) <= np.mean(np.abs(gray - 245) < 1e-3) + 1e-6
        assert abs(row[3] - expected[3]) <= np.mean(np.abs(gray - 30) < 1e-3) * 10 + 1e-6


@given(st.integers(0, 70))
def test_any_number_of_images(count):
    assert quality.measures(np.zeros((count, 32, 32, 3), np.uint8)).shape == (count, 5)


def test_pictures_are_flagged_by_their_limits():
    image = lesion()
    assert flagged(image) == set()
    assert flagged(image.filter(ImageFilter.GaussianBlur(6))) == {"blurred"}
    pixels = np.asarray(image).astype(int)
    assert "dark" in flagged((pixels * 0.2).astype(np.uint8))
    assert "bright" in flagged(np.clip(pixels + 120, 0, 255).astype(np.uint8))
    glare = pixels.copy()
    glare[60:160, 60:160] = 255
    assert flagged(glare.astype(np.uint8)) == {"clipped"}
    framed = pixels.copy()
    framed[:20], framed[-20:], framed[:, :20], framed[:, -20:] = 0, 0, 0, 0
    assert flagged(framed.astype(np.uint8)) == {"heavy_border"}
    assert "not_skin" in flagged(pixels[..., ::-1].astype(np.uint8))

    off = config.Quality(**dict.fromkeys(("sharpness", "darkest", "brightest", "clipped", "dark_border", "warm")))
    black = quality.measures(np.zeros((1, 32, 32, 3), np.uint8))
    assert quality.flags(black, off) == [()]
    assert len(quality.flags(black, LIMITS)[0]) >= 3
    assert quality.flags(np.full((1, 5), np.nan, np.float32), LIMITS) == [()]

    measured = np.full((4, 5), np.nan, np.float32)
    side, distance = np.array([1.0, 0.99, 2, np.nan]), np.array([1.0, 0.5, 1.01, np.nan])
    assert quality.flags(measured, LIMITS, side, distance) == [(), ("too_small",), ("unlike",), ()]
    off = config.Quality(side=None, distance=None)
    assert quality.flags(measured, off, side, distance) == [()] * 4
    assert quality.flags(measured, LIMITS) == [()] * 4, "a model without reference knows no distances"

    assert quality.describe_flags(["blurred", "dark"]).startswith("blurred: sharpness is low")
    assert set(quality.describe_flags(list(quality.FLAGS)).split("; ")) == {
        f"{k}: {v}" for k, v in quality.FLAGS.items()
    }


@pytest.mark.skipif(not LESIONS.is_dir(), reason=f"no real lesions at {LESIONS}")
def test_few_real_lesions_are_flagged():
    paths = sorted(LESIONS.glob("*/*.jpg"))[::8]
    assert len(paths) > 300
    result = [flagged(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in paths]
    for name in quality.FLAGS:
        assert np.mean([name in names for names in result]) <= 0.015, name
    assert 0 < np.mean([bool(names) for names in result]) < 0.06
