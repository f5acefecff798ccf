"""DICOM photographs: whether their headers allow their use, and their pixels. Nothing else of a file is used.

A DICOM file names its patient. `TAGS` are the only elements that are read; of these `PatientID` and `StudyInstanceUID`
tell which photographs belong together. Messages quote none of their values but numbers and UIDs of the standard.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.errors import ImageError
from melanoma_spark.images.dicom_elements import (
    EXPLICIT,
    IMPLICIT,
    JPEG_8_BIT,
    SimpleFile,
    check_elements,
    meta_information,
    simplify,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# SOP classes, DICOM PS3.6 annex A
PHOTOGRAPHIC = {
    "1.2.840.10008.5.1.4.1.1.77.1.7": "Dermoscopic Photography Image Storage",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image Storage",
}
# Secondary Capture: any picture that some system saved as DICOM. The modality tells photographs from radiology.
CAPTURED = {"1.2.840.10008.5.1.4.1.1.7", *(f"1.2.840.10008.5.1.4.1.1.7.{number}" for number in (2, 4))}
CAMERAS = {"", "XC", "DMS", "GM", "OT", "SC"}  # external camera, dermoscopy, general microscopy, other
# Transfer syntaxes beside those of `dicom_elements`
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"  # of 8 bits or of 12
JPEG = {JPEG_8_BIT, JPEG_12_BIT}
JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
NEEDS_GDCM = {f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 81)}  # JPEG lossless, JPEG-LS

BARE_META = re.compile(rb"\x02\0\0\0UL\x04\0")  # how the meta information begins

# Photometric interpretations, PS3.3 C.7.6.3.1.2 -> samples of a pixel
COLORS = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
PALETTE = ("Red", "Green", "Blue")
TAGS = [
    *("PatientID", "StudyInstanceUID", "Modality", "ICCProfile"),
    *("SOPClassUID", "RecognizableVisualFeatures", "BurnedInAnnotation", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit"),
    *(f"{color}PaletteColorLookupTable{part}" for color in PALETTE for part in ("Descriptor", "Data")),
]
PIXELS = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
HEADER_BYTES = 1 << 24  # of a deflated dataset before its pixels; far more than the color profile of a camera


@dataclass(frozen=True)
class Photograph:
    """A photograph whose header was read: its size in pixels and how it is packed."""

    width: int
    height: int
    is_jpeg: bool  # whether `frame` is a JPEG file; else `array` gives the pixels
    is_rgb: bool  # whether samples of that file are RGB, unless a marker in it says otherwise
    is_inverted: bool  # whether white is zero
    patient: str | None  # PatientID, as it is written
    study: str | None  # StudyInstanceUID
    profile: bytes | None  # ICC
    _content: bytes
    _header: Dataset

    def frame(self, max_pixels: int) -> bytes:
        """The packed bytes of the image."""
        from pydicom.encaps import get_frame

        return get_frame(self._read_pixels(max_pixels).PixelData, 0, number_of_frames=1)

    def array(self, max_pixels: int) -> NDArray[Any]:
        """The image, uint8 (height, width) or RGB (height, width, 3). Raises `ImageError`, or pydicom's errors.

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
            scaled = np.empty(samples.shape, np.uint8)
            for row, line in enumerate(samples):  # a line at a time: 32 bits of each sample of all would be large
                scaled[row] = np.minimum(line.astype(np.uint32) * 255 // white, 255)
            samples = scaled
        return 255 - samples if self.is_inverted else samples

    def _read_pixels(self, max_pixels: int) -> Dataset:
        if "PixelData" in self._header:
            return self._header
        # Unpacks no more than the header declares
        claimed = min(self.bytes, 6 * max_pixels)
        return _dataset(_inflated(self._content, HEADER_BYTES + claimed), [*TAGS, *PIXELS])

    @property
    def bytes(self) -> int:
        """Of the unpacked pixels."""
        samples = self.width * self.height * int(self._header.SamplesPerPixel)
        return samples * int(self._header.BitsAllocated) // 8


def read(content: bytes | SimpleFile, allow_recognisable: bool = False) -> Photograph:
    """Read the header of a photograph in a DICOM file. The caller checks its size; pixels are not decoded.

    Raises `ImageError` with reason `dicom_not_photographic`, `recognisable`, `burned_in`, `multi_frame`,
    `unsupported_transfer_syntax`, `too_costly` or `corrupt`, or pydicom's errors if the header is broken.
    """
    content, header = _read_simple(content) if isinstance(content, SimpleFile) else _read_elements(content)
    kind = str(header.get("SOPClassUID", ""))
    modality = str(header.get("Modality") or "").strip().upper()
    if kind not in PHOTOGRAPHIC and not (kind in CAPTURED and modality in CAMERAS):
        shown = f"SOP class {kind}" if re.fullmatch(r"[0-9.]{1,64}", kind) else "SOP class none or an invalid one"
        captured = f", modality {modality}" if kind in CAPTURED and re.fullmatch("[A-Z]{2,16}", modality) else ""
        raise ImageError("dicom_not_photographic", shown + captured)
    if _is_yes(header, "RecognizableVisualFeatures") and not allow_recognisable:
        raise ImageError("recognisable", "Recognizable Visual Features (0028,0302) is YES")
    if _is_yes(header, "BurnedInAnnotation"):
        raise ImageError("burned_in", "Burned In Annotation (0028,0301) is YES")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError("multi_frame", f"{frames} frames; save each as a file of its own")
    syntax, color = str(header.file_meta.TransferSyntaxUID), str(header.PhotometricInterpretation)
    _check_syntax(syntax, int(header.BitsAllocated))
    wrong = [
        COLORS.get(color) != header.SamplesPerPixel and "its photometric interpretation",
        syntax in JPEG and color == "PALETTE COLOR" and "a palette of indices packed with loss",
        header.BitsAllocated not in (8, 16) and "its number of bits",
        not 1 <= header.BitsStored <= header.BitsAllocated and "its number of bits",
        (header.get("HighBit") or 0) > header.BitsStored - 1 and "samples that do not start at the lowest bit",
        header.get("PixelRepresentation", 0) != 0 and "signed samples",
        min(header.Columns, header.Rows) < 1 and "a side of 0 pixels",
    ]
    if any(wrong):
        raise ImageError("corrupt", f"{next(filter(None, wrong))} cannot be read")
    shape = int(header.Columns), int(header.Rows)
    identity = _identifier(header, "PatientID"), _identifier(header, "StudyInstanceUID")
    packing = syntax in JPEG, color == "RGB", color == "MONOCHROME1"
    return Photograph(*shape, *packing, *identity, header.get("ICCProfile"), content, header)


def _read_simple(file: SimpleFile) -> tuple[bytes, Dataset]:
    from pydicom import DataElement

    header = _dataset(file.header, TAGS)
    header.add(DataElement(0x7FE00010, file.kind, file.pixels))
    return file.header, header


def _read_elements(content: bytes) -> tuple[bytes, Dataset]:
    """A file with a preamble, and its elements; those of its pixels may be missing."""
    content = _with_preamble(content)
    deflated = DEFLATED.encode() in content
    plain = _inflated(content, HEADER_BYTES) if deflated else content
    check_elements(plain)
    header = None if deflated else _dataset(plain, [*TAGS, *PIXELS])
    if header is None or "PixelData" not in header:  # pydicom gives nothing of a file whose pixels are cut
        header = _dataset(plain, TAGS, stop_before_pixels=True)
    return content, header


def bounded(content: bytes) -> SimpleFile | None:
    """A file for `read` that costs no more than its pixels; None if nothing shows that of the content."""
    return simplify(content, _wanted_tags())


@cache
def _wanted_tags() -> frozenset[int]:
    from pydicom.datadict import tag_for_keyword

    return frozenset(tag_for_keyword(keyword) or 0 for keyword in ("SpecificCharacterSet", *TAGS))


def _check_syntax(syntax: str, bits: int) -> None:
    """Raise `ImageError` if no decoder is installed for a transfer syntax."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if syntax in JPEG and bits <= 8:
        return
    try:
        readable = syntax != JPEG_12_BIT and get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        shown = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "none or an invalid one"
        name = UID(syntax).name if shown == syntax else ""
        known = f"{name}, " if name and name != syntax else ""
        hint = "; install python-gdcm" if syntax in NEEDS_GDCM else ""
        raise ImageError("unsupported_transfer_syntax", f"{known}{shown}{hint}")


def _identifier(header: Dataset, keyword: str) -> str | None:
    """An identifier of at most 64 characters, as both of these may have by PS3.5 section 6.2; None if it is empty."""
    return str(header.get(keyword) or "").strip(" \0")[:64] or None


def _is_yes(header: Dataset, keyword: str) -> bool:
    return str(header.get(keyword) or "").strip().upper() == "YES"


def _dataset(content: bytes, tags: list[str], stop_before_pixels: bool = False) -> Dataset:
    """Some elements of a DICOM file."""
    import pydicom

    # Its warnings quote values, even those that name the patient
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=stop_before_pixels, specific_tags=tags)


def _with_preamble(content: bytes) -> bytes:
    """A file that begins with its meta information, or without any with its dataset, as the standard has it."""
    if content[128:132] == b"DICM":
        return content
    start = bytes(128) + b"DICM"
    if BARE_META.match(content):
        return start + content
    return start + meta_information(EXPLICIT if content[4:6].isalpha() else IMPLICIT) + content


def _inflated(content: bytes, limit: int) -> bytes:
    """A deflated DICOM file as a plain one, its dataset cut at `limit` bytes; any other file unchanged.

    pydicom has no such limit. By PS3.10 section 7.1 the first element of the meta information has its length; all that
    follows is deflated.
    """
    import pydicom

    if not BARE_META.match(content, 132):
        raise ImageError("corrupt", "its meta information does not have its length")
    end = 144 + int.from_bytes(content[140:144], "little")
    meta = pydicom.dcmread(io.BytesIO(content[:end])).file_meta
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return content
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[end:], limit)
    return bytes(128) + b"DICM" + meta_information(EXPLICIT) + plain


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
