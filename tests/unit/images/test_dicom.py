"""DICOM photographs: the pixels of every packing, and nothing of the patient."""

import dataclasses
import io
import logging
import struct
import time
import zlib

import numpy as np
import pydicom
import pytest
from broken import (
    CAPTURE,
    DERMOSCOPIC,
    END_OF_ITEM,
    END_OF_SEQUENCE,
    ENDOSCOPIC,
    GREY,
    ITEM,
    LESION,
    LIMITS,
    PHOTOGRAPHIC,
    PIXELS,
    changed,
    dicom,
    empty_sequences,
    encoded,
    nested,
    with_elements,
)
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import Decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from melanoma_spark.errors import ImageError
from melanoma_spark.images import decoding
from melanoma_spark.images import dicom as reader
from melanoma_spark.images.child import Request
from melanoma_spark.images.dicom_elements import MOST_DEPTH
from melanoma_spark.images.limits import ImageLimits

GREY_PIXELS = np.asarray(GREY)
JPEG = encoded(LESION, "JPEG", quality=95)


def seen(content, **options):
    return decoding.decode_with_hashes(content, 96, ImageLimits(**options)).pixels


def here(content, **options):
    """As the child decodes, in this process, which can be patched."""
    return decoding.decode_in_child(content, Request(96, ImageLimits(**options), decoding.PIXELS_VERSION, hashes=True))


pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, of what is written here


def reason(content, **options):
    with pytest.raises(ImageError) as error:
        decoding.decode_with_hashes(content, 96, ImageLimits(**options))
    return error.value.reason, error.value.detail


def ybr(rgb):
    """YBR_FULL of RGB, by PS3.3 C.7.6.3.1.2."""
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 0.2990 * red + 0.5870 * green + 0.1140 * blue
    blueness = -0.1687 * red - 0.3313 * green + 0.5000 * blue + 128
    redness = 0.5000 * red - 0.4187 * green - 0.0813 * blue + 128
    return np.stack([luma, blueness, redness], axis=-1).round().clip(0, 255).astype(np.uint8)


def test_packings_without_loss_keep_their_pixels():
    result = decoding.decode_with_hashes(dicom(PIXELS[:64]), 96)
    assert (result.width, result.height, result.format) == (96, 64, "DICOM")
    assert np.array_equal(result.pixels, decoding.decode(encoded(LESION.crop((0, 0, 96, 64))), 96))
    assert np.array_equal(
        result.hash_pixels, decoding.decode_with_hashes(encoded(LESION.crop((0, 0, 96, 64))), 32).hash_pixels
    )

    deep = GREY_PIXELS.astype(np.uint16) * 257
    assert np.array_equal(seen(dicom(deep.byteswap(), ExplicitVRBigEndian))[:, :, 0], GREY_PIXELS)
    planes = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0))
    for content in (
        *(dicom(sop=sop) for sop in (DERMOSCOPIC, PHOTOGRAPHIC)),
        dicom(PlanarConfiguration=1, PixelData=planes.tobytes()),
        dicom(PIXELS.astype(np.uint16) * 257),
    ):
        assert np.array_equal(seen(content), PIXELS)

    for color in ("RGB", "YBR_RCT"):
        content = dicom(
            syntax=JPEG2000Lossless, frame=encoded(LESION, "JPEG2000", no_jp2=True), PhotometricInterpretation=color
        )
        assert np.array_equal(seen(content), PIXELS)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes_without_loss(syntax):
    if syntax == RLELossless:
        dataset = pydicom.dcmread(io.BytesIO(dicom()))
        dataset.compress(RLELossless, generate_instance_uid=False)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        content = buffer.getvalue()
    else:
        content = dicom(syntax=syntax)
    assert np.array_equal(seen(content), PIXELS)


def test_ybr_full_and_422():
    full = ybr(PIXELS)
    result = seen(dicom(PhotometricInterpretation="YBR_FULL", PixelData=full.tobytes()))
    assert np.abs(result.astype(int) - PIXELS).max() <= 3
    halved = np.empty((96, 48, 4), np.uint8)  # two lumas, then the color of the first
    halved[..., 0], halved[..., 1] = full[:, 0::2, 0], full[:, 1::2, 0]
    halved[..., 2:] = full[:, 0::2, 1:]
    result = seen(dicom(PhotometricInterpretation="YBR_FULL_422", PixelData=halved.tobytes()))
    assert np.abs(result[:, ::2].astype(int) - PIXELS[:, ::2]).max() <= 3


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_of_8_to_16_bits_and_with_white_at_zero(bits):
    white = 2**bits - 1
    samples = np.ceil(GREY_PIXELS.astype(float) * white / 255).astype(np.uint16 if bits > 8 else np.uint8)
    expected = np.repeat(GREY_PIXELS[:, :, None], 3, axis=2)
    assert np.array_equal(seen(dicom(samples, BitsStored=bits, HighBit=bits - 1)), expected)
    inverted = dicom(samples, BitsStored=bits, HighBit=bits - 1, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(seen(inverted), 255 - expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 7])
def test_palette_is_looked_up_as_pydicom_does(bits, first):
    few = LESION.quantize(32)
    palette = np.array(few.getpalette()[: 3 * 32], np.uint16).reshape(32, 3)
    palette = palette.astype(np.uint8) if bits == 8 else palette * 257
    changes = {}
    for index, color in enumerate(("Red", "Green", "Blue")):
        changes[f"{color}PaletteColorLookupTableDescriptor"] = [32, first, bits]
        changes[f"{color}PaletteColorLookupTableData"] = np.ascontiguousarray(palette[:, index]).tobytes()
    indices = np.asarray(few) + np.uint8(first)
    indices[0, 0], indices[0, 1] = 0, 200  # below and above the table: its first and its last entry
    content = dicom(indices, PhotometricInterpretation="PALETTE COLOR", **changes)
    expected = apply_color_lut(indices, pydicom.dcmread(io.BytesIO(content)))
    assert np.array_equal(seen(content), expected if bits == 8 else expected // 257)
    assert np.array_equal(seen(content)[1:], np.asarray(few.convert("RGB"))[1:])


def test_jpeg_frames_have_the_pixels_of_the_jpeg(monkeypatch):
    content = dicom(syntax=JPEGBaseline8Bit, frame=JPEG, PhotometricInterpretation="YBR_FULL_422")
    assert np.array_equal(seen(content), decoding.decode(JPEG, 96))
    gray = encoded(GREY, "JPEG", quality=95)
    for color, expected in (("MONOCHROME2", seen(gray)), ("MONOCHROME1", 255 - seen(gray))):
        content = dicom(GREY_PIXELS, JPEGBaseline8Bit, gray, PhotometricInterpretation=color)
        assert np.array_equal(seen(content), expected)

    stored = encoded(Image.frombytes("YCbCr", (96, 96), PIXELS.tobytes()), "JPEG", quality=100, subsampling=0)
    app0 = stored.index(b"\xff\xe0")
    bare = stored[:app0] + stored[app0 + 2 + int.from_bytes(stored[app0 + 2 : app0 + 4]) :]
    assert b"JFIF" not in bare
    assert np.abs(seen(dicom(syntax=JPEGBaseline8Bit, frame=bare)).astype(int) - PIXELS).mean() < 1
    # ... where there is a marker, it is right, as in pydicom
    marked = dicom(syntax=JPEGBaseline8Bit, frame=JPEG)
    assert np.array_equal(seen(marked), decoding.decode(JPEG, 96))

    large = encoded(LESION.resize((1800, 1300)), "JPEG")
    content = dicom(np.zeros((1300, 1800, 3), np.uint8), JPEGBaseline8Bit, large, PhotometricInterpretation="YBR_FULL")
    result = decoding.decode_with_hashes(content, 512)
    assert np.array_equal(result.pixels, decoding.decode(large, 512))
    assert np.array_equal(result.hash_pixels, decoding.decode_with_hashes(large, 64).hash_pixels)


def test_several_frames_are_refused_and_counted():
    turned = np.rot90(PIXELS)
    both = dicom(NumberOfFrames=2, PixelData=PIXELS.tobytes() + turned.tobytes())
    assert reason(both) == ("multi_frame", "2 frames; save each as a file of its own")
    assert np.array_equal(seen(dicom(NumberOfFrames=1)), PIXELS)


def pydicom_file(name, **changes):
    """One of pydicom's own test files, as a photograph."""
    dataset = pydicom.dcmread(get_testdata_file(name))
    dataset.SOPClassUID = PHOTOGRAPHIC
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_jpeg_lossless_and_jpeg_ls_frames():
    plain = pydicom.dcmread(get_testdata_file("SC_rgb_small_odd.dcm")).pixel_array
    assert plain.shape == (3, 3, 3)
    bars = pydicom.dcmread(get_testdata_file("SC_rgb_rle.dcm")).pixel_array  # the same picture, packed otherwise
    for name, difference in (("SC_rgb_jpeg_gdcm.dcm", 0), ("SC_rgb_jls_lossy_line.dcm", 10)):
        result = decoding.decode(pydicom_file(name), 100).astype(int)
        assert np.abs(result - bars).max() <= difference
    near = decoding.decode(pydicom_file("JPEGLSNearLossless_16.dcm"), 50)
    assert near.shape == (50, 50, 3)


def test_a_transfer_syntax_without_a_decoder_is_named(monkeypatch):
    video = dicom(syntax="1.2.840.10008.1.2.4.102", frame=b"12")
    named = "MPEG-4 AVC/H.264 High Profile / Level 4.1, 1.2.840.10008.1.2.4.102"
    assert reason(video) == ("unsupported_transfer_syntax", named)
    deep = dicom(GREY_PIXELS.astype(np.uint16), JPEGExtended12Bit, frame=JPEG)
    assert reason(deep)[1].startswith("JPEG Extended (Process 2 and 4), 1.2.840.10008.1.2.4.51")
    monkeypatch.setattr(Decoder, "is_available", False)
    with pytest.raises(ImageError, match=r"JPEG-LS Lossless.*install python-gdcm"):
        here(pydicom_file("MR_small_jpeg_ls_lossless.dcm", PixelRepresentation=0))


def test_secondary_captures_of_cameras_are_photographs():
    assert np.array_equal(seen(dicom(sop=CAPTURE)), PIXELS)
    assert np.array_equal(seen(dicom(sop=CAPTURE, Modality="XC")), PIXELS)
    assert reason(dicom(sop=CAPTURE, Modality="CT")) == ("dicom_not_photographic", f"SOP class {CAPTURE}, modality CT")
    assert reason(dicom(sop=CAPTURE, BurnedInAnnotation="YES"))[0] == "burned_in"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_files_without_a_preamble(syntax):
    content = dicom(syntax=syntax)
    assert np.array_equal(seen(content[132:]), PIXELS)
    if syntax != DeflatedExplicitVRLittleEndian:  # without meta information nothing says that it is deflated
        assert np.array_equal(seen(content[144 + int.from_bytes(content[140:144], "little") :]), PIXELS)


def test_12_bits_in_16_are_scaled_by_the_bits_that_are_stored():
    samples = GREY_PIXELS.astype(np.uint16) * 16
    exact = seen(dicom(samples, BitsStored=12, HighBit=11))[..., 0]
    assert np.array_equal(exact, GREY_PIXELS.astype(int) * 16 * 255 // 4095)
    overlay = samples | 0x8000  # bits above those stored are not of the picture
    assert np.array_equal(seen(dicom(overlay, BitsStored=12, HighBit=11))[..., 0], exact)
    assert reason(dicom(samples, BitsStored=12, HighBit=15))[0] == "corrupt"


def test_bounds_of_elements_and_levels():
    assert np.array_equal(seen(nested(MOST_DEPTH)), PIXELS)
    assert reason(nested(MOST_DEPTH + 1))[0] == "too_costly"
    bomb = empty_sequences()
    assert len(bomb) < 60_000
    start = time.process_time()
    assert reason(bomb)[0] == "too_costly"
    assert time.process_time() - start < 1
    # Fragments of an icon are no elements
    icon = struct.pack("<HH2sHI", 0x0088, 0x0200, b"SQ", 0, 0xFFFFFFFF) + ITEM
    fragment = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    fragment += struct.pack("<HHI", 0xFFFE, 0xE000, 8000) + ITEM * 1000 + END_OF_SEQUENCE
    assert np.array_equal(seen(with_elements(icon + fragment + END_OF_ITEM + END_OF_SEQUENCE)), PIXELS)


def test_other_objects_and_sizes_over_the_limits_are_refused(monkeypatch):
    assert reason(dicom(sop=ENDOSCOPIC)) == ("dicom_not_photographic", f"SOP class {ENDOSCOPIC}")
    assert reason(dicom(sop="Doe^Jane")) == ("dicom_not_photographic", "SOP class none or an invalid one")
    assert reason(dicom(SOPClassUID=None))[0] == "dicom_not_photographic"
    monkeypatch.setattr(reader.Photograph, "_read_pixels", lambda *of: pytest.fail("unpacked"))
    for limits, code in (({"max_pixels": 96 * 96 - 1}, "too_many_pixels"), ({"min_side": 97}, "too_small")):
        with pytest.raises(ImageError, match=code):
            here(dicom(), **limits)


def test_annotated_ones_never_pass_and_recognisable_ones_only_when_allowed():
    recognisable, annotated = dicom(RecognizableVisualFeatures="YES"), dicom(BurnedInAnnotation="YES")
    assert reason(recognisable)[0] == "recognisable"
    assert np.array_equal(seen(recognisable, allow_recognisable=True), PIXELS)
    assert reason(annotated, allow_recognisable=True)[0] == "burned_in"
    assert np.array_equal(seen(dicom(RecognizableVisualFeatures="NO", BurnedInAnnotation="NO")), PIXELS)


def test_a_deflated_dataset_is_unpacked_no_further_than_it_claims(monkeypatch):
    content = dicom(syntax=DeflatedExplicitVRLittleEndian)
    end = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = zlib.decompress(content[end:], -zlib.MAX_WBITS)
    body = packer.compress(plain) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(12)) + packer.flush()
    named = dicom(InstitutionName=str(DeflatedExplicitVRLittleEndian))
    assert np.array_equal(seen(named), PIXELS), "only its name stands there"
    limits, real = [], reader._inflated
    monkeypatch.setattr(reader, "_inflated", lambda *of: limits.append(len(real(*of))) or real(*of))
    here(content[:end] + body, **LIMITS)
    assert max(limits) < reader.HEADER_BYTES + PIXELS.nbytes + 300
    # without the length of the meta information pydicom would unpack all of it
    assert reason(changed(content, (132, b"\x09")), **LIMITS)[0] == "corrupt"


def test_patient_and_study_come_with_the_pixels():
    result = decoding.decode_with_hashes(dicom(PatientID=" 0017 ", StudyInstanceUID="1.2.840.1"), 96)
    assert (result.patient, result.study) == ("0017", "1.2.840.1")
    result = decoding.decode_with_hashes(dicom(PatientID=""), 96)
    assert (result.patient, result.study) == (None, None)
    assert decoding.decode_with_hashes(JPEG, 96).patient is None


def test_only_the_ids_of_the_patient_are_read_and_nothing_is_logged(caplog, capfd):
    content = dicom(PatientBirthDate="not a date", InstitutionName="Clinic of Jane Doe")
    result = reader.read(content)
    assert "PatientName" in pydicom.dcmread(io.BytesIO(content))
    assert {element.keyword for element in result._header} <= {*reader.TAGS, *reader.PIXELS, "SpecificCharacterSet"}
    with caplog.at_level(logging.DEBUG):
        looked = decoding.decode_with_hashes(content, 96)
        for broken in (
            content[:-900],
            dicom(Rows=None),
            dicom(sop="Jane^Doe"),
            dicom(PhotometricInterpretation="JANE"),
        ):
            assert "jane" not in " ".join(reason(broken)).lower()
    kept = {"pixels", "hash_pixels", "width", "height", "format", "damage", "patient", "study", "profile"}
    assert {field.name for field in dataclasses.fields(looked)} == kept
    assert "jane" not in caplog.text.lower()
    assert capfd.readouterr() == ("", "")
