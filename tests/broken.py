"""Broken and hostile image files, made here: name -> (bytes, the reason with which `images.look` refuses them).

They are refused at the limits of `LIMITS`. Each is small, whatever it claims or would unpack to.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from melanoma_spark.images import synthetic

LIMITS = {"min_side": 8, "max_pixels": 1_000_000}
DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"
PHOTOGRAPHIC = "1.2.840.10008.5.1.4.1.1.77.1.4"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
END = b"\xff\xd9"  # of a JPEG
ENDOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.1"

PIXELS = synthetic.draw_lesion(np.random.default_rng(1), malignant=True, size=96)
LESION = Image.fromarray(PIXELS)
GREY = LESION.convert("L")
MASK = GREY.point(lambda value: 255 * (value > 128))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour, rows, transparent=b"", claimed=None, extra=b""):
    """A PNG as Pillow does not write it: of 16-bit samples, with a header that claims another height and width, or more
    chunks.

    `rows` is big-endian (height, width[, channels]).
    """
    height, width = claimed or rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    optional = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IHDR", header) + extra + optional + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(tags, data=b"", order="<"):
    """A TIFF of one directory: tag -> (type, value or values); `data` lies at offset 8 and is its strip or tile."""
    codes = {3: "H", 4: "I", 16: "Q"}
    entries, behind = b"", b""
    start = 8 + len(data)
    after = start + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(packed) > 4:
            field = struct.pack(order + "I", after + len(behind))
            behind += packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4) + behind
    return magic + struct.pack(order + "I", start) + data + directory


def tiff_tags(width=96, height=96, compression=1, photometric=2, bits=(8, 8, 8), length=None, **more):
    """The directory of a TIFF of one strip; `more` is t322=(type, value)."""
    count = length if length is not None else width * height * len(bits) * bits[0] // 8
    tags = {
        256: (4, width),
        257: (4, height),
        258: (3, bits),
        259: (3, compression),
        262: (3, photometric),
        273: (4, 8),
        277: (3, len(bits)),
        278: (4, height),
        279: (4, count),
    }
    return tags | {int(name[1:]): value for name, value in more.items()}


def dicom(pixels=PIXELS, syntax=ExplicitVRLittleEndian, frame=None, sop=DERMOSCOPIC, **changes):
    """A DICOM photograph of uint8 or uint16 (height, width[, 3]); `frame` is what to encapsulate in place of it.

    It names its patient, as they do.
    """
    from pydicom.encaps import encapsulate

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "jane-doe-1"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = encapsulate([frame]) if frame is not None else pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    if frame is not None:
        dataset["PixelData"].is_undefined_length = True
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def webp_of(width, height):
    """A WebP whose extended header claims a canvas, and that holds nothing."""
    header = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little")
    body = b"WEBP" + header + (height - 1).to_bytes(3, "little") + b"VP8 " + bytes(4)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def changed(content, *places):
    """With bytes replaced: (offset, bytes)."""
    new = bytearray(content)
    for offset, value in places:
        new[offset : offset + len(value)] = value
    return bytes(new)


def half(content):
    return content[: len(content) // 2]


def scan_bomb():
    """A progressive JPEG whose last scan comes again and again."""
    content = encoded(LESION.resize((960, 960)), "JPEG", progressive=True, quality=10)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 200 + content[-2:]


def deflated_bomb():
    """A deflated DICOM dataset of 64 x 64 pixels that claims and would unpack to 200 MB before them."""
    small = dicom(PIXELS[:64, :64], DeflatedExplicitVRLittleEndian)
    end = 144 + int.from_bytes(small[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 200_000_000)
    kind = struct.pack("<HH2sH", 0x0008, 0x0016, b"UI", len(DERMOSCOPIC) + len(DERMOSCOPIC) % 2) + DERMOSCOPIC.encode()
    body = packer.compress(kind + bytes(len(DERMOSCOPIC) % 2) + private)
    for _ in range(200):
        body += packer.compress(bytes(1_000_000))
    return small[:end] + body + packer.flush()


def with_elements(elements, syntax=ExplicitVRLittleEndian):
    """A DICOM photograph with further elements, explicit and little-endian, before those of group 0010."""
    content = dicom(syntax=ExplicitVRLittleEndian)
    place = content.index(struct.pack("<HH", 0x0010, 0x0010))
    content = content[:place] + elements + content[place:]
    if syntax == ExplicitVRLittleEndian:
        return content
    head = dicom(syntax=syntax)
    end, start = (144 + int.from_bytes(file[140:144], "little") for file in (head, content))
    return head[:end] + zlib.compress(content[start:], 9, -zlib.MAX_WBITS)


SEQUENCE = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
END_OF_ITEM, END_OF_SEQUENCE = (struct.pack("<HHI", 0xFFFE, element, 0) for element in (0xE00D, 0xE0DD))


def nested(levels):
    """A DICOM photograph with sequences in sequences."""
    return with_elements((SEQUENCE + ITEM) * levels + (END_OF_ITEM + END_OF_SEQUENCE) * levels)


def empty_sequences(count=400_000):
    """A deflated DICOM photograph of some 28 kB that holds so many empty sequences."""
    return with_elements((SEQUENCE + END_OF_SEQUENCE) * count, DeflatedExplicitVRLittleEndian)


def many_strips(count):
    """A TIFF that declares so many strips, and places for them, in a file without them."""
    tags = tiff_tags(t278=(4, 1))
    content = tiff(tags, PIXELS.tobytes())
    for tag in (273, 279):
        place = content.index(struct.pack("<HHI", tag, 4, 1))
        content = changed(content, (place + 4, struct.pack("<I", count)))
    return content


def tile_bomb():
    """A TIFF of 96 x 96 pixels in a single tile of 20,000 x 20,000."""
    data = zlib.compress(bytes(100_000))
    tags = tiff_tags(compression=8, length=len(data), t322=(4, 20_000), t323=(4, 20_000))
    tags[324], tags[325] = tags.pop(273), tags.pop(279)
    del tags[278]
    return tiff(tags, data)


def corpus() -> dict[str, tuple[bytes, str]]:
    jpeg, lossless = encoded(LESION, "JPEG", quality=95), encoded(LESION)
    progressive = encoded(LESION, "JPEG", quality=90, progressive=True)
    cmyk, in_tiff = encoded(LESION.convert("CMYK"), "JPEG"), encoded(LESION, "TIFF", compression="jpeg")
    raw_tiff, deflate = encoded(LESION, "TIFF"), encoded(LESION, "TIFF", compression="tiff_adobe_deflate")
    # of a row more than the image has, so that libtiff does not come to the checksum
    unended = zlib.compress(PIXELS.tobytes() + bytes(96 * 3))[:-4]
    unchecked = zlib.compress(PIXELS.tobytes() + bytes(96 * 3))[:-4] + bytes(4)
    lzw = encoded(LESION, "TIFF", compression="tiff_lzw")
    bmp, webp = encoded(LESION, "BMP"), encoded(LESION, "WEBP", lossless=True)
    lossy = encoded(LESION, "WEBP")
    gif, jp2, avif = (encoded(LESION, kind) for kind in ("GIF", "JPEG2000", "AVIF"))
    hollow = np.zeros((1, 1), np.uint8)
    huge = zlib.compress(bytes(80_000_000), 9)
    of_jpeg = dicom(syntax=JPEGBaseline8Bit, frame=jpeg, PhotometricInterpretation="YBR_FULL_422")
    return {
        # nothing, or something else
        "empty": (b"", "empty"),
        "text": (b"This was to be a photograph.\n", "not_an_image"),
        "text that starts like a BMP": (b"BM is short for benchmark, and this is no picture\n", "not_an_image"),
        "html": (b"\n <!DOCTYPE html>\n<html><body>403</body></html>", "not_an_image"),
        "random bytes": (np.random.default_rng(0).bytes(2048), "not_an_image"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(500), "unsupported_format"),
        "pdf": (encoded(LESION, "PDF"), "unsupported_format"),
        "a riff of sound": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), "not_an_image"),
        "zip": (b"PK\x03\x04" + bytes(60), "archive_by_another_name"),
        "gzip": (zlib.compress(b"x", wbits=31), "archive_by_another_name"),
        "tar": (bytes(257) + b"ustar\0" + bytes(300), "archive_by_another_name"),
        # JPEG
        "jpeg cut": (half(jpeg), "damaged"),
        "jpeg cut and ended": (half(jpeg) + b"\xff\xd9", "damaged"),
        "jpeg with bytes in its scan": (jpeg[:-2] + b"abcdef" + jpeg[-2:], "damaged"),
        "jpeg cut in its header": (jpeg[:60], "corrupt"),
        "jpeg signature alone": (b"\xff\xd8\xff", "corrupt"),
        "jpeg without an end": (jpeg[:-40], "damaged"),
        "progressive jpeg cut": (half(progressive), "damaged"),
        "progressive jpeg cut and ended": (half(progressive) + b"\xff\xd9", "damaged"),
        "cmyk jpeg cut and ended": (half(cmyk) + b"\xff\xd9", "damaged"),
        "jpeg that claims 65,000 squared": (
            changed(jpeg, (jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_000, 65_000))),
            "too_many_pixels",
        ),
        "jpeg of height 0": (changed(jpeg, (jpeg.index(b"\xff\xc0") + 5, bytes(2))), "corrupt"),
        "jpeg of 12 bits": (changed(jpeg, (jpeg.index(b"\xff\xc0") + 4, b"\x0c")), "corrupt"),
        "jpeg of 200 scans": (scan_bomb(), "too_many_pixels"),
        "jpeg of 4 x 4": (encoded(LESION.resize((4, 4)), "JPEG"), "too_small"),
        "jpeg all white": (encoded(Image.new("RGB", (64, 64), "white"), "JPEG"), "blank"),
        # PNG
        "png cut": (half(lossless), "corrupt"),
        "png cut in its header": (lossless[:20], "corrupt"),
        "png with zeros inside": (changed(lossless, (2000, bytes(2000))), "corrupt"),
        "png with a wrong checksum": (changed(lossless, (lossless.index(b"IEND") - 8, bytes(4))), "damaged"),
        "png without an end": (lossless[:-12], "damaged"),
        "png bomb": (synthetic.bomb_png(), "too_many_pixels"),
        "png that claims 9000 x 8000": (png(8, 0, hollow, claimed=(9000, 8000)), "too_many_pixels"),
        "png a line of 100,000": (png(8, 0, hollow, claimed=(9, 100_000)), "too_many_pixels"),
        "png of height 0": (png(8, 0, hollow, claimed=(0, 50)), "corrupt"),
        "png with 80 MB of text": (png(8, 2, PIXELS, extra=chunk(b"zTXt", b"Comment\0\0" + huge)), "too_large"),
        "png with 80 MB of profile": (png(8, 2, PIXELS, extra=chunk(b"iCCP", b"icc\0\0" + huge)), "too_large"),
        "png with a palette of nothing": (png(8, 3, PIXELS[:, :, 0]), "blank"),
        "png of one bit": (encoded(MASK.convert("1")), "mask"),
        "png mask": (encoded(MASK), "mask"),
        "png mask in rgb": (encoded(MASK.convert("RGB")), "mask"),
        "png all transparent": (encoded(LESION.convert("RGBA").point(lambda v: v * 0)), "blank"),
        # TIFF
        "tiff cut": (half(raw_tiff), "corrupt"),
        "deflated tiff cut": (half(deflate), "corrupt"),
        "deflated tiff with zeros inside": (changed(deflate, (1000, bytes(3000))), "corrupt"),
        "deflated tiff with a wrong checksum": (
            tiff(tiff_tags(compression=8, length=len(unchecked)), unchecked),
            "damaged",
        ),
        "deflated tiff whose stream does not end": (
            tiff(tiff_tags(compression=8, length=len(unended)), unended),
            "damaged",
        ),
        "tiff of a jpeg with zeros inside": (changed(in_tiff, (1500, bytes(300))), "damaged"),
        "lzw tiff of rubbish": (changed(lzw, (200, b"\xff" * 2000)), "corrupt"),
        "tiff signature alone": (b"II*\0", "corrupt"),
        "tiff without a directory": (b"MM\0*" + struct.pack(">I", 4_000_000), "corrupt"),
        "tiff whose directory is itself": (b"II*\0" + struct.pack("<I", 4) + bytes(100), "corrupt"),
        "tiff that claims 60,000 squared": (tiff(tiff_tags(60_000, 60_000, length=9), bytes(9)), "too_many_pixels"),
        "tiff of more rows than it holds": (tiff(tiff_tags(height=500, length=27_648), bytes(27_648)), "corrupt"),
        "tiff of width 0": (tiff(tiff_tags(width=0), bytes(9)), "corrupt"),
        "tiff in a tile of 20,000 squared": (tile_bomb(), "too_many_pixels"),
        "tiff of an unknown compression": (tiff(tiff_tags(compression=34_999), PIXELS.tobytes()), "corrupt"),
        "tiff of jpeg rubbish": (tiff(tiff_tags(compression=7, photometric=6, length=500), b"\xff" * 500), "corrupt"),
        "tiff of a jpeg of 200 scans": (
            tiff(tiff_tags(960, 960, compression=7, photometric=6, length=len(scan_bomb())), scan_bomb()),
            "too_many_pixels",
        ),
        "tiff of fax rubbish": (
            tiff(tiff_tags(compression=4, photometric=0, bits=(1,), length=500), b"\x5a" * 500),
            "mask",
        ),
        "tiff of 60 samples": (tiff(tiff_tags(bits=(8,) * 60, length=9), bytes(9)), "corrupt"),
        "tiff of 4 billion strips": (
            changed(
                raw := tiff(tiff_tags(), PIXELS.tobytes()), (raw.index(struct.pack("<HHI", 273, 4, 1)) + 4, b"\xff" * 4)
            ),
            "too_large",
        ),
        "tiff of 17 million strips": (many_strips(17_000_000), "too_large"),
        "tiff of 64 bits": (tiff(tiff_tags(800, 900, bits=(64,) * 3, length=9), bytes(9)), "too_large"),
        "tiff of a preview": (tiff(tiff_tags(t254=(4, 1)), PIXELS.tobytes()), "preview_only"),
        "tiff of floats": (encoded(Image.fromarray(np.float32(PIXELS[:, :, 0]) / 255), "TIFF"), "not_an_image"),
        "tiff of a mask": (encoded(MASK.convert("1"), "TIFF", compression="group4"), "mask"),
        # BMP
        "bmp cut": (half(bmp), "corrupt"),
        "bmp header alone": (bmp[:30], "corrupt"),
        "bmp that claims 2**31 rows": (changed(bmp, (22, struct.pack("<i", -(2**31)))), "too_many_pixels"),
        "bmp that claims 100,000 squared": (
            changed(bmp, (18, struct.pack("<ii", 100_000, 100_000))),
            "too_many_pixels",
        ),
        "bmp of more rows than it holds": (changed(bmp, (22, struct.pack("<i", -500))), "corrupt"),
        "bmp of 13 bits": (changed(bmp, (28, struct.pack("<H", 13))), "corrupt"),
        "bmp of a line run-length encoded": (
            changed(bmp, (18, struct.pack("<ii", 900_000, 1)), (28, struct.pack("<HI", 8, 1))),
            "too_many_pixels",
        ),
        # WebP
        "webp cut": (half(webp), "corrupt"),
        "lossy webp cut": (half(lossy), "corrupt"),
        "webp signature alone": (webp[:12], "corrupt"),
        "webp that claims 16 million squared": (webp_of(1 << 24, 1 << 24), "too_many_pixels"),
        "webp that claims 9000 squared": (webp_of(9000, 9000), "too_many_pixels"),
        "webp of nothing": (webp_of(90, 90), "corrupt"),
        "webp with zeros inside": (changed(webp, (30, bytes(3000))), "corrupt"),
        # GIF, JPEG 2000, AVIF
        "gif cut": (half(gif), "corrupt"),
        "gif that claims 60,000 squared": (changed(gif, (6, struct.pack("<HH", 60_000, 60_000))), "too_many_pixels"),
        "jpeg 2000 cut": (half(jp2), "corrupt"),
        "jpeg 2000 that claims 60,000 squared": (
            changed(jp2, (jp2.index(b"ihdr") + 4, struct.pack(">II", 60_000, 60_000))),
            "too_many_pixels",
        ),
        "avif cut": (half(avif), "corrupt"),
        "avif signature alone": (avif[:12], "corrupt"),
        # DICOM
        "dicom signature alone": (bytes(128) + b"DICM", "dicom_not_photographic"),
        "dicom endoscopic": (dicom(sop=ENDOSCOPIC), "dicom_not_photographic"),
        "dicom of a ct": (dicom(GREY_PIXELS, sop="1.2.840.10008.5.1.4.1.1.2"), "dicom_not_photographic"),
        "dicom of a face": (dicom(RecognizableVisualFeatures="YES"), "recognisable"),
        "dicom with a name on it": (dicom(BurnedInAnnotation="YES"), "burned_in"),
        "dicom cut": (half(dicom()), "corrupt"),
        "dicom without pixels": (dicom(PixelData=None), "corrupt"),
        "dicom without rows": (dicom(Rows=None), "corrupt"),
        "dicom that claims 60,000 squared": (dicom(Rows=60_000, Columns=60_000), "too_many_pixels"),
        "dicom of more rows than it holds": (dicom(Rows=500), "corrupt"),
        "dicom signed": (dicom(PixelRepresentation=1), "corrupt"),
        "dicom of an unknown colour space": (dicom(PhotometricInterpretation="HSV"), "corrupt"),
        "dicom of 4 samples": (dicom(SamplesPerPixel=4), "corrupt"),
        "dicom of an unknown transfer syntax": (
            dicom(syntax="1.2.840.10008.1.2.4.102", frame=b"12"),
            "unsupported_transfer_syntax",
        ),
        "dicom of 12 bits in 32": (dicom(BitsAllocated=32), "corrupt"),
        "dicom whose jpeg is larger": (
            dicom(PIXELS[:50], JPEGBaseline8Bit, jpeg, PhotometricInterpretation="YBR_FULL_422"),
            "corrupt",
        ),
        "dicom whose jpeg 2000 is larger": (
            dicom(PIXELS[:50], JPEG2000Lossless, encoded(LESION, "JPEG2000", no_jp2=True)),
            "corrupt",
        ),
        "dicom of a jpeg 2000 box without end": (
            dicom(syntax=JPEG2000Lossless, frame=changed(jp2, (12, bytes(4)))),
            "corrupt",
        ),
        "dicom of a cut jpeg": (half(of_jpeg), "corrupt"),
        "dicom of a jpeg cut and ended": (
            dicom(syntax=JPEGBaseline8Bit, frame=half(jpeg) + b"\xff\xd9", PhotometricInterpretation="YBR_FULL_422"),
            "damaged",
        ),
        "dicom of rubbish for jpeg": (dicom(syntax=JPEGBaseline8Bit, frame=b"\xff" * 400), "corrupt"),
        "dicom of rubbish for rle": (dicom(syntax=RLELossless, frame=b"\x03" * 400), "corrupt"),
        "dicom without a palette": (dicom(GREY_PIXELS, PhotometricInterpretation="PALETTE COLOR"), "corrupt"),
        "dicom deflated bomb": (deflated_bomb(), "corrupt"),
        "dicom of a million samples of 16 bits": (
            dicom(PIXELS.astype(np.uint16), Rows=1000, Columns=1000),
            "too_large",
        ),
        "dicom of two frames": (dicom(NumberOfFrames=2, PixelData=PIXELS.tobytes() * 2), "multi_frame"),
        "dicom of nested sequences": (nested(100), "too_costly"),
        "dicom of many empty sequences": (empty_sequences(), "too_costly"),
        "dicom all black": (dicom(PIXELS * 0), "blank"),
        "dicom of a mask": (dicom(np.asarray(MASK)), "mask"),
        "dicom of 4 x 4": (dicom(PIXELS[:4, :4]), "too_small"),
    }


GREY_PIXELS = np.asarray(GREY)
CORPUS = corpus()
