"""DICOM photographs: whether their headers allow their use, and their pixels. Nothing else of a file is read.

A DICOM file names its patient. `TAGS` are the only elements that are read; of these `PatientID` and `StudyInstanceUID`
tell which photographs belong together. Messages quote none of their values but numbers and UIDs of the standard.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# SOP classes, DICOM PS3.6 annex A
PHOTOGRAPHIC = {
    "1.2.840.10008.5.1.4.1.1.77.1.7": "Dermoscopic Photography Image Storage",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image Storage",
}
# Transfer syntaxes, PS3.6 annex A: how the dataset and its pixels are packed
EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
PLAIN = {"1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", DEFLATED, "1.2.840.10008.1.2.5"}  # the last is RLE
JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}

# Photometric interpretations, PS3.3 C.7.6.3.1.2 -> samples of a pixel
COLORS = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
PALETTE = ("Red", "Green", "Blue")
TAGS = [
    *("PatientID", "StudyInstanceUID"),
    *("SOPClassUID", "RecognizableVisualFeatures", "BurnedInAnnotation", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit"),
    *(f"{color}PaletteColorLookupTable{part}" for color in PALETTE for part in ("Descriptor", "Data")),
]
PIXELS = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
HEADER_BYTES = 1 << 24  # of a deflated dataset before its pixels; far more than the color profile of a camera


@dataclass(frozen=True)
class Photograph:
    """A photograph whose header was read: its size in pixels and how its first frame is packed."""

    width: int
    height: int
    is_jpeg: bool  # whether `frame` is a JPEG file; else `array` gives the pixels
    is_rgb: bool  # whether samples of that file are RGB, unless a marker in it says otherwise
    is_inverted: bool  # whether white is zero
    patient: str | None  # PatientID, as it is written
    study: str | None  # StudyInstanceUID
    _content: bytes
    _header: Dataset

    def frame(self, max_pixels: int) -> bytes:
        """The packed bytes of the first frame."""
        from pydicom.encaps import get_frame

        dataset = self._read_pixels(max_pixels)
        frames = max(1, int(dataset.get("NumberOfFrames") or 1))
        return get_frame(dataset.PixelData, 0, number_of_frames=frames)

    def array(self, max_pixels: int) -> NDArray[Any]:
        """The first frame, uint8 (height, width) or RGB (height, width, 3). Raises `ImageError`, or pydicom's errors.

        Samples of b bits are divided by 2**b - 1, so that white is 255.
        """
        from pydicom.pixels.decoders.base import get_decoder

        dataset = self._read_pixels(max_pixels)
        if dataset.file_meta.TransferSyntaxUID in JPEG_2000:
            _check_jpeg_2000(self.frame(max_pixels), self.width, self.height)
        samples, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=0)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            return np.stack([_apply_palette(samples, dataset, color) for color in PALETTE], axis=-1)
        white = (1 << dataset.BitsStored) - 1
        if white != 255:
            samples = np.minimum(samples.astype(np.uint32) * 255 // white, 255).astype(np.uint8)
        return 255 - samples if self.is_inverted else samples

    def _read_pixels(self, max_pixels: int) -> Dataset:
        # Unpacks no more than the header declares, and of several frames no more than the limit
        samples = self.width * self.height * int(self._header.SamplesPerPixel)
        frames = max(1, int(self._header.get("NumberOfFrames") or 1))
        claimed = min(frames * samples * self._header.BitsAllocated // 8, 6 * max_pixels)
        return _dataset(self._content, HEADER_BYTES + claimed, [*TAGS, *PIXELS])


def read(content: bytes, allow_recognisable: bool = False, allow_burned_in: bool = False) -> Photograph:
    """Read the header of a photograph in a DICOM file. The caller checks its size; pixels are not decoded.

    Raises `ImageError` with reason `dicom_not_photographic`, `recognisable`, `burned_in` or `corrupt`, or pydicom's
    errors if the header is broken.
    """
    header = _dataset(content, HEADER_BYTES, TAGS, stop_before_pixels=True)
    kind = str(header.get("SOPClassUID", ""))
    if kind not in PHOTOGRAPHIC:
        shown = kind if re.fullmatch(r"[0-9.]{1,64}", kind) else "none or an invalid one"
        raise ImageError("dicom_not_photographic", f"SOP class {shown}")
    if _is_yes(header, "RecognizableVisualFeatures") and not allow_recognisable:
        raise ImageError("recognisable", "Recognizable Visual Features (0028,0302) is YES")
    if _is_yes(header, "BurnedInAnnotation") and not allow_burned_in:
        raise ImageError("burned_in", "Burned In Annotation (0028,0301) is YES")
    syntax, color = str(header.file_meta.TransferSyntaxUID), str(header.PhotometricInterpretation)
    wrong = [
        syntax not in PLAIN | JPEG | JPEG_2000 and "its transfer syntax",
        COLORS.get(color) != header.SamplesPerPixel and "its photometric interpretation",
        syntax in JPEG and color == "PALETTE COLOR" and "a palette of indices packed with loss",
        header.BitsAllocated not in (8, 16) and "its number of bits",
        not 1 <= header.BitsStored <= header.BitsAllocated and "its number of bits",
        header.get("PixelRepresentation", 0) != 0 and "signed samples",
        min(header.Columns, header.Rows) < 1 and "a side of 0 pixels",
    ]
    if any(wrong):
        raise ImageError("corrupt", f"{next(filter(None, wrong))} cannot be read")
    is_jpeg = syntax in JPEG
    shape = int(header.Columns), int(header.Rows)
    identity = _identifier(header, "PatientID"), _identifier(header, "StudyInstanceUID")
    return Photograph(*shape, is_jpeg, color == "RGB", color == "MONOCHROME1", *identity, content, header)


def _identifier(header: Dataset, keyword: str) -> str | None:
    """An identifier of at most 64 characters, as both of these may have by PS3.5 section 6.2; None if it is empty."""
    return str(header.get(keyword) or "").strip(" \0")[:64] or None


def _is_yes(header: Dataset, keyword: str) -> bool:
    return str(header.get(keyword) or "").strip().upper() == "YES"


def _dataset(content: bytes, limit: int, tags: list[str], stop_before_pixels: bool = False) -> Dataset:
    """Some elements of a DICOM file. Of a deflated one no more than `limit` bytes are unpacked."""
    import pydicom

    # Its warnings quote values, even those that name the patient
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    plain = _inflated(content, limit) if DEFLATED.encode() in content else content
    return pydicom.dcmread(io.BytesIO(plain), stop_before_pixels=stop_before_pixels, specific_tags=tags)


def _inflated(content: bytes, limit: int) -> bytes:
    """A deflated DICOM file as a plain one, its dataset cut at `limit` bytes; any other file unchanged.

    pydicom has no such limit. By PS3.10 section 7.1 the first element of the meta information has its length; all that
    follows is deflated.
    """
    import pydicom

    if content[132:140] != b"\x02\0\0\0UL\x04\0":
        raise ImageError("corrupt", "its meta information does not have its length")
    end = 144 + int.from_bytes(content[140:144], "little")
    meta = pydicom.dcmread(io.BytesIO(content[:end])).file_meta
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return content
    syntax = EXPLICIT.encode() + b"\0"
    element = b"\x02\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax
    return bytes(128) + b"DICM" + element + zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[end:], limit)


def _check_jpeg_2000(frame: bytes, width: int, height: int) -> None:
    """Raise `ImageError` if a frame has another size than the header declares, before it is unpacked."""
    from PIL import Image, Jpeg2KImagePlugin

    # PS3.5 A.4.4 allows no boxes around the codestream; pydicom 3.0 loops forever in one of length 0.
    if not frame.startswith(b"\xff\x4f\xff\x51"):
        raise ImageError("corrupt", "its frame is not a JPEG 2000 codestream")
    assert Jpeg2KImagePlugin  # imported, so that Pillow knows the format
    if Image.open(io.BytesIO(frame), formats=("JPEG2000",)).size != (width, height):
        raise ImageError("corrupt", "its frame is not of the size that the header says")


def _apply_palette(indices: NDArray[Any], dataset: Dataset, color: str) -> NDArray[np.uint8]:
    """One color of an image with a palette, uint8 (height, width), by PS3.3 C.7.6.3.1.5 and 6."""
    entries, first, bits = dataset[f"{color}PaletteColorLookupTableDescriptor"].value
    entries = entries or 1 << 16
    data = bytes(dataset[f"{color}PaletteColorLookupTableData"].value)
    if bits == 8 and len(data) < 2 * entries:
        table = np.frombuffer(data, np.uint8, entries)
    else:  # 8 bits may be stored in 16, too
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(data, order + "u2", entries)
        table = (table if bits == 8 else table // 257).astype(np.uint8)
    return np.asarray(table[np.clip(indices.astype(np.int32) - first, 0, entries - 1)], np.uint8)
