"""TIFF files of several images: the photograph is the largest one at full resolution."""

import io
import struct

import numpy as np
import pytest
from broken import LESION, PIXELS, encoded, tiff, tiff_tags
from PIL import Image

from melanoma_spark.errors import ImageError
from melanoma_spark.images import decoding
from melanoma_spark.images import tiff as directories

SMALL = np.asarray(LESION.resize((48, 48)))
RAW, LINEAR = 32803, 34892  # photometric interpretations of DNG


def several(*images, order="<", wide=False, nested=False):
    """A TIFF of some images, each (pixels, further tags); `nested`: the others are subdirectories of the first."""
    pointer = "Q" if wide else "I"
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if wide else 42)
    head += struct.pack(order + "HH", 8, 0) if wide else b""
    content = head + bytes(8 if wide else 4)
    offsets = []
    for place in reversed(range(len(images))):
        pixels, more = images[place]
        start, content = len(content), content + pixels.tobytes()
        height, width = pixels.shape[:2]
        tags = tiff_tags(width, height, **more)
        tags[273] = (16 if wide else 4, start)
        if nested and place == 0 and offsets:
            tags[330] = (16 if wide else 4, tuple(offsets[::-1]))
        offset = len(content)
        after = 0 if nested or not offsets else offsets[-1]
        content += directory(tags, offset, order, wide, after)
        offsets.append(offset)
    return content[: len(head)] + struct.pack(order + pointer, offsets[-1]) + content[len(head) + (8 if wide else 4) :]


def directory(tags, offset, order, wide, after):
    count, entry, field = ("Q", "HHQ", 8) if wide else ("H", "HHI", 4)
    pointer = "Q" if wide else "I"
    codes = {3: "H", 4: "I", 16: "Q"}
    size = struct.calcsize(order + count) + len(tags) * (struct.calcsize(order + entry) + field)
    behind_at, entries, behind = offset + size + field, b"", b""
    for tag, (kind, value) in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        place = (
            struct.pack(order + pointer, behind_at + len(behind)) if len(packed) > field else packed.ljust(field, b"\0")
        )
        behind += packed if len(packed) > field else b""
        entries += struct.pack(order + entry, tag, kind, len(values)) + place
    return struct.pack(order + count, len(tags)) + entries + struct.pack(order + pointer, after) + behind


PREVIEW = (SMALL, {"t254": (4, 1)})
WHOLE = (PIXELS, {})


def reason(content, version=decoding.PIXELS_VERSION):
    with pytest.raises(ImageError) as error:
        decoding.decode(content, 96, version=version)
    return error.value.reason


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("order", "wide"), [("<", False), (">", False), ("<", True)])  # Pillow reads no other
def test_the_whole_image_is_taken_where_the_first_is_its_preview(order, wide, nested):
    content = several(PREVIEW, WHOLE, order=order, wide=wide, nested=nested)
    result = decoding.decode_with_hashes(content, 96)
    assert (result.width, result.height) == (96, 96)
    assert np.array_equal(result.pixels, PIXELS)


@pytest.mark.parametrize(
    "images", [(WHOLE, PREVIEW), (WHOLE, (SMALL, {})), ((SMALL, {}), WHOLE), (PREVIEW, PREVIEW, WHOLE)]
)
def test_the_largest_image_is_taken(images):
    assert np.array_equal(decoding.decode(several(*images), 96), PIXELS)


def test_models_registered_before_see_the_first_image_as_they_did():
    content = several(PREVIEW, WHOLE)
    assert np.array_equal(decoding.decode(content, 48, version=decoding.UNMANAGED), SMALL)
    result = decoding.decode_described(content, 48, version=decoding.UNMANAGED)
    assert (result.width, result.height) == (48, 48)


@pytest.mark.parametrize("version", [decoding.UNMANAGED, decoding.PIXELS_VERSION])
def test_previews_alone_are_refused_for_every_model(version):
    raw = (PIXELS, {"photometric": RAW})
    assert reason(several(PREVIEW), version) == "preview_only"
    assert reason(several(PREVIEW, raw, nested=True), version) == "preview_only"
    assert (
        reason(several(PREVIEW, (PIXELS, {"t254": (4, 1)}), (PIXELS, {"photometric": LINEAR})), version)
        == "preview_only"
    )
    assert reason(several((SMALL, {"t255": (3, 2)})), version) == "preview_only"
    mask = (PIXELS, {"t254": (4, 4)})
    assert np.array_equal(decoding.decode(several((SMALL, {}), mask), 48, version=version), SMALL)


def test_pillow_s_own_files_of_several_pages():
    pages = [LESION.resize((side, side)) for side in (40, 96, 60)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert np.array_equal(decoding.decode(buffer.getvalue(), 96), np.asarray(pages[1]))
    exif = Image.Exif()
    exif[0x0112] = 3
    assert np.array_equal(decoding.decode(encoded(LESION, "TIFF", exif=exif), 96), PIXELS[::-1, ::-1])


def test_loops_and_crowds_of_directories_end():
    content = bytearray(tiff(tiff_tags(), PIXELS.tobytes()))
    (offset,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, offset)
    struct.pack_into("<I", content, offset + 2 + 12 * count, offset)
    assert np.array_equal(decoding.decode(bytes(content), 96), PIXELS)
    crowd = b"II*\0" + struct.pack("<I", 8)
    for place in range(directories.MOST_DIRECTORIES + 1):
        crowd += struct.pack("<H", 0) + struct.pack("<I", 8 + 6 * (place + 1))
    assert reason(crowd) == "too_costly"


def test_strips_are_counted_before_they_are_read():
    limit = directories.MOST_SEGMENTS
    with pytest.raises(ImageError, match=f"too_large: {limit + 1} strips"):
        decoding.decode(
            tiff(tiff_tags(length=9) | {279: (4, (9,) * 3)}, bytes(9)).replace(
                struct.pack("<HHI", 279, 4, 3), struct.pack("<HHI", 279, 4, limit + 1)
            ),
            96,
        )
