"""The columns of the datasets in the warehouse. Those of `scores/` are in `scoring.columns`."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from petastorm.codecs import CompressedImageCodec, NdarrayCodec, ScalarCodec
from petastorm.unischema import Unischema, UnischemaField
from pyspark.sql import types as t

from melanoma_spark.attributes import ATTRIBUTES


@functools.cache
def images_schema(size: int) -> Unischema:
    """`images/`: one row an accepted image; `image` is uint8 RGB (size, size, 3), stored lossless."""

    def text(name: str, nullable: bool = False) -> UnischemaField:
        return UnischemaField(name, np.str_, (), ScalarCodec(t.StringType()), nullable)

    def number(name: str) -> UnischemaField:
        return UnischemaField(name, np.int32, (), ScalarCodec(t.IntegerType()), False)

    return Unischema(
        "Images",
        [
            text("sha256"),  # of the file as it came
            text("pixel_sha256"),  # of the pixels at images.hashes.HASH_SIZE
            text("image_id"),
            text("source_uri"),
            number("label"),  # 1 is the target
            text("split"),
            text("group"),
            text("patient_id", nullable=True),
            text("lesion_id", nullable=True),
            text("diagnosis", nullable=True),  # in the archive's own words
            *(text(name, nullable=True) for name in ATTRIBUTES),
            number("width"),  # of the file as it came, pixels
            number("height"),
            text("flags", nullable=True),  # quality.DAMAGED or null; datasets made before have none
            UnischemaField("image", np.uint8, (size, size, 3), CompressedImageCodec("png"), False),
        ],
    )


def image_decoder(size: int) -> Callable[[bytes], NDArray[np.uint8]]:
    """Return what decodes values of the column `image` of `images_schema`."""
    field = images_schema(size).fields["image"]
    return functools.partial(field.codec.decode, field)


def features_schema(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Unischema:
    """`features/`: one row a view of an image, one column a cut of the backbone. View 0 is the image as it is."""
    fields = [
        UnischemaField("sha256", np.str_, (), ScalarCodec(t.StringType()), False),
        UnischemaField("view", np.int32, (), ScalarCodec(t.IntegerType()), False),
    ]
    for cut, shape in shapes.items():
        fields.append(UnischemaField(cut, np.dtype(dtype).type, tuple(shape), NdarrayCodec(), False))
    return Unischema("Features", fields)


def _columns(*columns: tuple[str, t.DataType]) -> t.StructType:
    return t.StructType([t.StructField(name, kind, True) for name, kind in columns])


LISTING = _columns(  # a file of an archive, or a member of a zip or tar in it
    ("source_uri", t.StringType()),  # as it is stored: FILE or CONTAINER!/MEMBER, or a keyed hash of that
    ("path", t.StringType()),  # relative to the archive, of a member CONTAINER/MEMBER
    ("image_id", t.StringType()),  # as tables name it
    ("role", t.StringType()),  # image, table, other
    ("file", t.StringType()),  # the file to open, relative to the archive
    ("raw", t.BinaryType()),  # its name in bytes where that is no text
    ("kind", t.StringType()),  # file, container (not yet looked into), zip, tar, tar.gz
    ("member", t.StringType()),
    ("index", t.LongType()),  # containers.Member, from here on
    ("offset", t.LongType()),
    ("stored", t.LongType()),
    ("method", t.IntegerType()),
    ("crc", t.LongType()),
    ("length", t.LongType()),  # bytes, uncompressed
    ("modified", t.TimestampType()),
    ("reason", t.StringType()),  # why it is not read
    ("detail", t.StringType()),
)

_FILE = (("source_uri", t.StringType()), ("length", t.LongType()), ("modified", t.TimestampType()))
_CONTENT = (
    ("sha256", t.StringType()),
    ("pixel_sha256", t.StringType()),
    ("perceptual_hash", t.StringType()),
    ("width", t.IntegerType()),
    ("height", t.IntegerType()),
)

SOURCE = _columns(  # a file of an archive that was read
    *_FILE,
    ("image_id", t.StringType()),
    ("patient_id", t.StringType()),  # where the archive names it
    ("sha256", t.StringType()),  # null where there are no bytes
)

DECODED = _columns(  # what ingest knows of a file's content; nothing here depends on labels
    *_FILE,
    *_CONTENT,
    ("format", t.StringType()),
    ("image", t.BinaryType()),
    ("reason", t.StringType()),
    ("detail", t.StringType()),
    ("flags", t.StringType()),  # quality.DAMAGED, where the file is damaged and was accepted
    ("dicom_patient", t.StringType()),  # PatientID of a DICOM file, or its keyed hash
    ("dicom_study", t.StringType()),  # StudyInstanceUID of a DICOM file, or its keyed hash
    ("thumbnail", t.BinaryType()),  # `hashes.gray_thumbnail`, row by row
    ("profile", t.StringType()),  # what became of an ICC profile: color.Profile
)

REJECTS = _columns(
    ("source_uri", t.StringType()),
    ("sha256", t.StringType()),
    ("reason", t.StringType()),  # a code of images.reasons.REASONS
    ("detail", t.StringType()),
)

PREDICTIONS = _columns(
    ("sha256", t.StringType()),
    ("model", t.StringType()),
    ("split", t.StringType()),
    ("group", t.StringType()),
    ("label", t.IntegerType()),
    ("raw_probability", t.DoubleType()),  # the network's
    ("probability", t.DoubleType()),  # calibrated
)

LEDGER = _columns(  # a file of an archive that a version of a model has been given
    ("source_key", t.BinaryType()),  # by name, size and time of modification
    ("source_uri", t.StringType()),
    ("image_id", t.StringType()),
    ("sha256", t.BinaryType()),  # null where it was not read
    ("done", t.BooleanType()),  # false: to be tried again
    ("batch_id", t.StringType()),  # null of what has not been committed
)

READ = _columns(  # a file of an archive that was read to know its content, not decoded
    ("source_key", t.BinaryType()),
    ("image_id", t.StringType()),  # or its keyed hash
    ("sha256", t.StringType()),
    ("reason", t.StringType()),  # why it could not be
    ("detail", t.StringType()),
)

STATED = ("patient_id", "lesion_id", "split")  # in tables, besides attributes

# Why a row of a table is no image's, and why a field of an image is empty though rows have it
ABSENT, AMBIGUOUS, OTHER_FOLDER, CONTRADICTORY = "no_image", "ambiguous", "other_folder", "contradictory"
LEADING_ZEROS = "leading_zeros"  # two ids that are the same number, and may be one person

UNMATCHED = _columns(  # a row of a table that no image has, or an image whose rows disagree
    ("image_id", t.StringType()),  # with the folders that the row names, or its keyed hash
    ("table", t.StringType()),  # of an image: null
    ("reason", t.StringType()),  # ABSENT, AMBIGUOUS, OTHER_FOLDER, CONTRADICTORY, LEADING_ZEROS
    ("detail", t.StringType()),  # the images of that name, the fields in which rows disagree, or the two ids
)

RECORDS = _columns(  # tables.Record: what one row of an archive's table says of one image
    ("image_id", t.StringType()),
    ("labels", t.ArrayType(t.StringType())),
    ("patient_id", t.StringType()),
    ("lesion_id", t.StringType()),
    ("pairs", t.ArrayType(t.StringType())),
    ("split", t.StringType()),
    *((name, t.DoubleType() if row.bins else t.StringType()) for name, row in ATTRIBUTES.items()),
    ("reference", t.StringType()),
    ("table", t.StringType()),
)

CANDIDATES = _columns(  # a readable file with its label and attributes
    *_FILE,
    *_CONTENT,
    ("image_id", t.StringType()),
    ("label", t.IntegerType()),
    ("word", t.StringType()),  # the label in the archive's own words
    ("diagnosis", t.StringType()),  # ... and in those of diagnoses.csv
    ("shipped", t.StringType()),  # the split that the archive names
    ("keys", t.ArrayType(t.StringType())),  # rows that share one stand on one side
    ("names", t.ArrayType(t.StringType())),  # that may be those of one image, see `selection.unite_by_name`
    ("patient_id", t.StringType()),
    ("lesion_id", t.StringType()),
    *((name, t.StringType()) for name in ATTRIBUTES),
    ("in_table", t.BooleanType()),
    ("flags", t.StringType()),
    ("profile", t.StringType()),
    ("reason", t.StringType()),
    ("detail", t.StringType()),
)

DECISIONS = t.StructType(
    [
        *(field for field in CANDIDATES if field.name not in ("keys", "names", "shipped")),
        t.StructField("group", t.StringType()),
        t.StructField("split", t.StringType()),
    ]
)


def add(schema: t.StructType, *columns: str) -> t.StructType:
    """A schema with columns of text behind it."""
    return t.StructType([*schema.fields, *(t.StructField(name, t.StringType()) for name in columns)])
