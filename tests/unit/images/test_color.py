"""Colors: ICC profiles become sRGB, in every format and mode; models registered before see the pixels as they did."""

import icc
import numpy as np
import pytest
from broken import GREY, LESION, PIXELS, chunk, dicom, encoded, png
from PIL import Image, ImageCms

from melanoma_spark.images import color, decoding

P3 = icc.of_primaries(icc.P3)
EXPECTED = icc.p3_to_srgb(PIXELS)
PILLOW_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def of(content, version=decoding.PIXELS_VERSION):
    result = decoding.decode_with_hashes(content, 96, version=version)
    return result.pixels.astype(int), result.profile


def test_the_profile_moves_colors_so_that_the_tests_below_can_fail():
    assert np.abs(EXPECTED.astype(int) - PIXELS).max() > 10


@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("PNG", {}, 1),
        ("TIFF", {}, 1),
        ("TIFF", {"compression": "tiff_lzw"}, 1),
        ("WEBP", {"lossless": True}, 1),
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 6),
    ],
)
def test_display_p3_becomes_srgb(kind, options, most):
    content = encoded(LESION, kind, icc_profile=P3, **options)
    result, state = of(content)
    assert state == "converted"
    assert np.abs(result - EXPECTED).max() <= most
    assert np.array_equal(result, decoding.decode(content, 96))
    before, state = of(content, decoding.UNMANAGED)
    assert state is None
    assert np.array_equal(before, of(encoded(LESION, kind, **options))[0])


def test_a_large_jpeg_is_converted_after_it_was_scaled_down():
    large = LESION.resize((1800, 1800))
    result = decoding.decode_with_hashes(encoded(large, "JPEG", quality=95, icc_profile=P3), 96)
    plain = decoding.decode_with_hashes(encoded(large, "JPEG", quality=95), 96)
    for converted, stored in ((result.pixels, plain.pixels), (result.hash_pixels, plain.hash_pixels)):
        assert np.abs(converted.astype(int) - icc.p3_to_srgb(stored)).max() <= 3


def test_dicom_photographs_have_profiles_too():
    assert np.abs(of(dicom(ICCProfile=P3))[0] - EXPECTED).max() <= 1
    assert np.array_equal(of(dicom(ICCProfile=P3), decoding.UNMANAGED)[0], PIXELS)


def test_transparent_and_indexed_images_are_converted():
    clear = LESION.convert("RGBA")
    clear.putpixel((5, 5), (1, 2, 3, 0))
    result, state = of(encoded(clear, icc_profile=P3))
    assert state == "converted"
    assert result[5, 5].tolist() == [255, 255, 255]
    result[5, 5] = EXPECTED[5, 5]
    assert np.abs(result - EXPECTED).max() <= 1
    few = LESION.quantize(64)
    expected = icc.p3_to_srgb(np.asarray(few.convert("RGB")))
    assert np.abs(of(encoded(few, icc_profile=P3))[0] - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_levels_are_converted_by_their_curve(kind, bits):
    gray = GREY if bits == 8 else Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    expected = np.round(255 * icc.level((np.asarray(GREY) / 255) ** 1.8))
    result, state = of(encoded(gray, kind, icc_profile=icc.of_gray(1.8)))
    assert state == "converted"
    assert np.abs(result - expected[..., None]).max() <= 1
    # Gray levels on a screen of three colors are gray there
    assert np.abs(of(encoded(GREY, kind, icc_profile=P3))[0] - np.asarray(GREY)[..., None]).max() <= 1


def test_inks_are_converted_by_the_table_of_the_press():
    lab = np.full((2, 2, 2, 2, 3), (10.0, 0, 0))
    lab[0, 0, 0, 0], lab[1, 0, 0, 0], lab[0, 1, 0, 0], lab[0, 0, 0, 1] = (
        (100, 0, 0),
        (60, -30, -40),
        (50, 60, 10),
        (15, 0, 0),
    )
    inks = np.zeros((96, 96, 4), np.uint8)
    inks[:48, 48:, 0] = inks[48:, :48, 1] = inks[48:, 48:, 3] = 255
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        content = encoded(Image.fromarray(inks, "CMYK"), kind, icc_profile=icc.of_inks(lab), **options)
        result, state = of(content)
        assert state == "converted"
        for (row, column), mixture in (((20, 20), 0), ((20, 80), (1, 0, 0, 0)), ((80, 80), (0, 0, 0, 1))):
            of_press = icc.lab_to_srgb(lab[0, 0, 0, 0] if mixture == 0 else lab[mixture])
            assert np.abs(result[row, column] - of_press).max() <= 3
        assert np.abs(of(content, decoding.UNMANAGED)[0][20, 80] - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("profile", [PILLOW_SRGB, icc.of_primaries(icc.SRGB)])
def test_srgb_s_own_profile_changes_nothing(profile):
    content = encoded(LESION, icc_profile=profile)
    assert of(content)[1] is None
    assert np.array_equal(of(content)[0], PIXELS)


@pytest.mark.parametrize(
    "profile", [b"x", bytes(200), P3[:300], P3[:128] + bytes(100), icc.of_gray(1.8), P3 + bytes(color.MAX_PROFILE)]
)
def test_a_profile_that_cannot_be_used_is_counted_and_srgb_is_assumed(profile):
    result, state = of(encoded(LESION, "TIFF", icc_profile=profile))
    assert state == "broken"
    assert np.array_equal(result, PIXELS)
    assert of(encoded(LESION.convert("CMYK"), "TIFF", icc_profile=P3))[1] == "broken"


def test_a_profile_that_is_no_zlib_stream_is_none():
    result, state = of(png(8, 2, PIXELS, extra=chunk(b"iCCP", b"icc\0\0rubbish")))
    assert state is None
    assert np.array_equal(result, PIXELS)


def test_a_transform_is_made_once():
    color._transform.cache_clear()
    for _ in range(3):
        of(encoded(LESION, icc_profile=P3))
    assert color._transform.cache_info().misses == 1
