"""Augmented images: the same for the same seed, view and key, and changed as each setting is named."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.images import augmentation, decoding, synthetic
from melanoma_spark.images.augmentation import DRAWS, augment, generator

AMOUNTS = {
    "flip": st.booleans(),
    "turn": st.floats(0, 180),
    "zoom": st.floats(0, 0.99),
    "shift": st.floats(0, 0.99),
    "brightness": st.floats(0, 0.99),
    "contrast": st.floats(0, 0.99),
    "saturation": st.floats(0, 1),
    "hue": st.floats(0, 0.5),
    "cutout": st.floats(0, 0.99),
}
NOTHING = {**dict.fromkeys(AMOUNTS, 0), "flip": False}
# The place of each number among those drawn; 0.5 changes nothing, nearly 1 is the most to one side, 0 to the other.
PLACES = ("flip_x", "flip_y", "turn", "zoom", "right", "down", "brightness", "contrast", "saturation", "hue", "side")
PLACES = (*PLACES, "top", "left")
MOST, LEAST = 1 - 2**-53, 0.0
SIZE = 96

# of generator(7, 1, "abab...")
NUMBERS = [0.7337016262375308, 0.9718947637353083, 0.6099560418818307]


class Drawn:
    """In place of a generator: 0.5, but for the numbers that are given by their names."""

    def __init__(self, **numbers: float) -> None:
        self.numbers = numbers

    def random(self, size: int) -> np.ndarray:
        assert size == len(PLACES) == DRAWS
        return np.array([self.numbers.get(place, 0.5) for place in PLACES])


def only(**amounts) -> config.Augment:
    """Settings with nothing but these."""
    return config.Augment(enabled=True, **{**NOTHING, **amounts})


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lesion() -> np.ndarray:
    """Drawn, and without any symmetry: a corner of it is darker."""
    picture = decoding.decode(synthetic.lesion_jpeg(3, size=SIZE), SIZE).copy()
    picture[8:28, 12:44] //= 2
    return picture


def near(result: np.ndarray, expected: np.ndarray, mean: float = 0.01) -> None:
    """Equal but for rounding of a few pixels."""
    difference = np.abs(result.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert difference.mean() <= mean


@given(st.fixed_dictionaries(AMOUNTS), st.integers(32, 512), st.integers(32, 512), st.integers(0, 99))
def test_any_amounts_and_sizes_give_an_image_of_the_same_shape_and_dtype(amounts, height, width, view):
    image = noise(height, width)
    before = image.copy()
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        result = augment(image, config.Augment(enabled=True, **amounts), generator(0, view, "ab" * 32))
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before, err_msg="what was given is changed")


@given(st.integers(0, 10**9))
def test_nothing_changes_if_disabled_or_without_amounts(view):
    image = noise(64, 48, seed=view)
    assert not config.Settings().augment.enabled
    for chosen in (config.Augment(), only()):
        np.testing.assert_array_equal(augment(image, chosen, generator(1, view, "key")), image)


@pytest.mark.parametrize("image", [noise(32, 32)[..., 0], noise(32, 32).astype(np.float32), noise(32, 32)[..., :2]])
def test_other_arrays_than_images_are_refused(image):
    with pytest.raises(ValueError, match=r"cannot be augmented; it takes uint8 \(h, w, 3\)"):
        augment(image, config.Augment(enabled=True), generator(0, 1, "key"))


@pytest.mark.parametrize("key", ["turn", "zoom", "shift", "brightness", "contrast", "saturation", "hue", "cutout"])
@pytest.mark.parametrize("value", [-0.1, 200, float("nan"), float("inf")])
def test_invalid_amounts_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"augment\.{key}"):
        config.parse({"augment": {key: value}})


def test_draws_depend_on_seed_view_and_key_and_not_on_other_settings(lesion):
    chosen = config.Augment(enabled=True, cutout=0.4)
    result = [augment(lesion, chosen, generator(5, 2, "ab" * 32)) for _ in range(2)]
    np.testing.assert_array_equal(*result)
    assert generator(1, 23, "x").random() != generator(12, 3, "x").random()
    assert generator(-1, 0, "x").random() != generator(1, 0, "x").random()
    others = [generator(6, 2, "ab" * 32), generator(5, 3, "ab" * 32), generator(5, 2, "ac" * 32)]
    for other in others:
        assert not np.array_equal(augment(lesion, chosen, other), result[0])
    # Whether cutting out is on or not, the rest of the picture is the same.
    plain = augment(lesion, config.Augment(enabled=True), generator(0, 1, "key"))
    cut = augment(lesion, config.Augment(enabled=True, cutout=0.5), generator(0, 1, "key"))
    changed = (plain != cut).any(axis=2)
    assert 0 < changed.mean() < 0.3


def test_the_numbers_are_the_same_in_another_process_and_in_another_version_of_this_code():
    code = (
        "import cv2; from melanoma_spark.images.augmentation import generator; "
        "assert cv2.getNumThreads() == 1; print(generator(7, 1, 'ab' * 32).random(3).tolist())"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    expected = generator(7, 1, "ab" * 32).random(3).tolist()
    assert output.strip() == str(expected)
    assert expected == pytest.approx(NUMBERS), "raise augmentation.VERSION, and change these"


def test_amounts_are_drawn_evenly_to_both_sides():
    """Each number that `augmented` takes is even in [0, 1): so are the amounts, which are linear in them."""
    drawn = np.array([generator(0, view, f"{view:064x}").random(DRAWS) for view in range(2000)])
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(drawn.T) - np.eye(DRAWS)).max() < 0.1


@pytest.mark.parametrize(("flips", "axes"), [(("flip_x",), 1), (("flip_y",), 0), (("flip_x", "flip_y"), (0, 1))])
def test_flip(lesion, flips, axes):
    result = augment(lesion, only(flip=True), Drawn(**dict.fromkeys(flips, LEAST)))
    np.testing.assert_array_equal(result, np.flip(lesion, axes))


def test_half_of_the_images_are_flipped_to_each_side(lesion):
    result = [augment(lesion, only(flip=True), generator(0, 1, str(number))) for number in range(400)]
    sides = [np.array_equal(picture, np.flip(lesion, axes)) for axes in ((), 1, 0, (0, 1)) for picture in result]
    assert [sum(sides[start : start + 400]) > 70 for start in range(0, 1600, 400)] == [True] * 4
    assert sum(sides) == 400


@pytest.mark.parametrize(("turn", "drawn", "quarters"), [(180, 0.75, 3), (180, 0.25, 1), (90, MOST, 3), (180, 0, 2)])
def test_turn(lesion, turn, drawn, quarters):
    """In images y points down, so a turn to the positive side is clockwise; numpy turns the other way."""
    near(augment(lesion, only(turn=turn), Drawn(turn=drawn)), np.rot90(lesion, quarters))


def test_a_turn_by_any_angle_keeps_the_middle_and_fills_the_corners_with_the_picture(lesion):
    light = np.full((65, 65, 3), 200, np.uint8)
    light[30:35, 30:35] = 20
    result = augment(light, only(turn=180), Drawn(turn=0.6))
    assert result[32, 32].max() == 20
    assert result[:10, :10].min() == result[-10:, -10:].min() == 200, "no black corners"


@pytest.mark.parametrize(("drawn", "scale"), [(MOST, 2), (LEAST, 0.5)])
def test_zoom(drawn, scale):
    """A square in the middle, twice or half as large."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[36:60, 36:60] = 255
    result = augment(picture, only(zoom=0.999999 if scale == 2 else 0.5), Drawn(zoom=drawn))
    side = round(24 * scale)
    middle = result[48 - side // 2 - 6 : 48 + side // 2 + 6, 48 - side // 2 - 6 : 48 + side // 2 + 6, 0]
    assert np.sqrt((middle > 127).sum()) == pytest.approx(side, abs=1.5)


def test_shift_saturation_and_cutout_change_pixels_by_their_amounts(lesion):
    picture = noise(40, 80)
    near(augment(picture, only(shift=0.25), Drawn(right=MOST, down=MOST))[10:, 20:], picture[:30, :60])
    result = augment(lesion, only(shift=0.25), Drawn(right=MOST, down=0.25))  # by 24 and -12 pixels
    near(result[: SIZE - 12, 24:], lesion[12:, : SIZE - 24])
    # what was not there is the picture reflected at its edge
    near(result[: SIZE - 12, :24], lesion[12:, 1:25][:, ::-1])

    spread = np.ptp(lesion.astype(int), axis=2).mean()
    gray = augment(lesion, only(saturation=1), Drawn(saturation=LEAST))
    assert np.ptp(gray.astype(int), axis=2).max() <= 1
    near(gray[..., 0], np.rint(lesion @ augmentation.LUMINANCE), mean=0.05)
    more = augment(lesion, only(saturation=0.2), Drawn(saturation=MOST))
    assert np.ptp(more.astype(int), axis=2).mean() == pytest.approx(1.2 * spread, rel=0.05)

    result = augment(lesion, only(cutout=0.5), Drawn(side=0.5, top=0.25, left=0.75))
    top, left, side = int(0.25 * 73), int(0.75 * 73), SIZE // 4
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    np.testing.assert_array_equal(result[~mask], lesion[~mask])
    np.testing.assert_array_equal(result[mask], np.tile(np.rint(lesion.mean(axis=(0, 1))), (side * side, 1)))


@pytest.mark.parametrize(("drawn", "factor"), [(MOST, 1.2), (LEAST, 0.8)])
def test_brightness(lesion, drawn, factor):
    result = augment(lesion, only(brightness=0.2), Drawn(brightness=drawn))
    near(result, np.clip(np.rint(lesion * factor), 0, 255))


@pytest.mark.parametrize(("drawn", "factor"), [(MOST, 1.3), (LEAST, 0.7)])
def test_contrast(lesion, drawn, factor):
    """About the mean of luminance, which stays."""
    result = augment(lesion, only(contrast=0.3), Drawn(contrast=drawn))
    middle = (lesion @ augmentation.LUMINANCE).mean()
    near(result, np.clip(np.rint((lesion - middle) * factor + middle), 0, 255))
    assert (result @ augmentation.LUMINANCE).mean() == pytest.approx(middle, abs=2)
    assert result.std() > lesion.std() if factor > 1 else result.std() < lesion.std()


@pytest.mark.parametrize("drawn", [0.1, 0.7, MOST])
def test_hue(lesion, drawn):
    """Luminance and gray stay, color does not; a turn there and back is none."""
    muted = np.rint(lesion * 0.3 + 90).astype(np.uint8)  # far from 0 and 255, where colors would be cut
    result = augment(muted, only(hue=0.25), Drawn(hue=drawn))
    assert np.abs(result.astype(int) - muted).max() > 5
    assert np.abs((result - muted.astype(float)) @ augmentation.LUMINANCE).max() < 1.5
    gray = np.repeat(noise(32, 32)[..., :1], 3, axis=2)
    assert np.abs(augment(gray, only(hue=0.25), Drawn(hue=drawn)).astype(int) - gray).max() <= 1
    back = augment(result, only(hue=0.25), Drawn(hue=1 - drawn))
    assert np.abs(back.astype(int) - muted).max() <= 3
    red = np.tile(np.array([140, 110, 115], np.uint8), (32, 32, 1))  # a third of the circle makes green of it, or blue
    turned = [augment(red, only(hue=1 / 3), Drawn(hue=side))[0, 0].argmax() for side in (MOST, LEAST)]
    assert turned == [1, 2]


@given(st.floats(0, 0.99), st.integers(0, 1000))
def test_cutout_is_never_larger_than_its_setting_and_never_outside(share, view):
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, ::2] = 255  # whose mean is no color of it
    result = augment(picture, only(cutout=share), generator(0, view, "key"))
    rows, columns = np.nonzero((result != picture).any(axis=2))
    if len(rows):
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert height == width <= np.ceil(share * 40)
