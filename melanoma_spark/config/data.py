"""Settings of what is read: labels, privacy, ingest and augmentation."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from melanoma_spark import words
from melanoma_spark.config.fields import BelowOne, Count, Fraction, Section, Share, setting

NAME_KEY = "MELANOMA_NAME_KEY"  # the environment variable with the key of privacy.source_names=hash


# YAML reads [4] as a number
Word = Annotated[str, BeforeValidator(lambda word: str(word) if type(word) in (int, float) else word)]


class Labels(Section):
    """Further words of an archive's label column or class folders, besides those of `diagnoses.csv`, in lower case."""

    positive: tuple[Word, ...] = setting((), "more words for label 1")
    negative: tuple[Word, ...] = setting((), "more words for label 0")

    @model_validator(mode="after")
    def _no_word_is_both(self) -> Self:
        negative = {words.key(word) for word in self.negative}
        both = [word for word in self.positive if words.key(word) in negative]
        if both:
            raise ValueError(
                f"{', '.join(map(repr, both))} is positive and negative; leave it out of "
                "ingest.labels.positive=[WORD,...] or of ingest.labels.negative=[WORD,...]"
            )
        return self


class Privacy(Section):
    """What is stored of names that may identify people: file names, and ids of images, lesions and patients."""

    source_names: Literal["keep", "hash"] = setting(
        "keep", f"hash: store keyed hashes; the environment variable {NAME_KEY} holds the key"
    )


class Ingest(Section):
    """Limits of what is read, and what happens to images without a clear label or split."""

    labels: Labels = Labels()
    test_fraction: Fraction = setting(0.15, "share of the groups that become test images")
    validation_fraction: Fraction = setting(0.15, "share of the groups that become validation images")
    min_side: Count = setting(32, "pixels; smaller images are rejected")
    max_pixels: Count = setting(100_000_000, "larger images are rejected before they are decoded")
    max_bytes: Count = setting(256 * 1024 * 1024, "larger files are rejected before they are read")
    max_ratio: Annotated[float, Field(gt=1)] = setting(
        200, "uncompressed over compressed bytes in a zip or tar.gz; files above it are rejected"
    )
    max_members: Count = setting(5_000_000, "files in one zip or tar; the rest is rejected")
    max_container_bytes: Count = setting(
        1024**4,
        "uncompressed bytes of one zip or tar; the rest is rejected. Stops archive bombs of many members, "
        "each too small for max_ratio",
    )
    max_seconds: Count = setting(60, "processor seconds of one image of TIFF or DICOM, or of a large image")
    pixels_version: Annotated[int, Field(ge=2, le=3)] = setting(
        3,
        "how files become pixels. 3: colors by ICC profiles, the largest image of a TIFF; 2: as release 0.2, without "
        "profiles, the first image of a TIFF",
    )
    allow_recognisable: bool = setting(False, "accept DICOM files that are marked as showing who the patient is")
    damaged: Literal["reject", "accept"] = setting(
        "reject", "images whose decoder warns of missing or corrupt data; accept: use them as decoded, with a flag"
    )
    links: Literal["inside", "follow"] = setting(
        "inside", "links on this machine's disks; inside: to files of the archive alone; follow: to any file or folder"
    )
    columns: dict[str, str] = setting({}, "our field -> column of your table, e.g. label: dx")
    indeterminate: Literal["leave_out", "negative", "positive"] = setting(
        "leave_out", "label of images that are neither: diagnosis unknown, or malignant while target is melanoma"
    )
    split_overlap: Literal["error", "repair"] = setting(
        "error", "groups on two sides of a shipped split: error stops, repair keeps the images of the test side"
    )
    unmatched: Literal["report", "error"] = setting(
        "report", "images without a row, and rows without an image: report them, or stop"
    )
    twins: Literal["group", "report", "off"] = setting(
        "group",
        "pairs of images that look like one lesion photographed twice: one group, so that they share a side of the "
        "split; only show them; or do not look for them",
    )
    row_group_mb: Count = setting(16, "size of a Parquet row group, MiB")
    shard_mb: Count = setting(128, "size of a Parquet file, MiB")

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                "the shares must stay below 1 together; lower ingest.test_fraction=SHARE or "
                "ingest.validation_fraction=SHARE"
            )
        return self


class Augment(Section):
    """Random changes of training images, never of validation or test images. Each amount is the largest drawn.

    Defaults follow two works on dermoscopy. P: Perez et al. 2018, "Data Augmentation for Skin Lesion Analysis", and its
    code; H: Ha et al. 2020, the winner of SIIM-ISIC, and its code. Color is a sign of melanoma, so the smaller change
    of the two is the default. The best set of P has no cutout.
    """

    enabled: bool = setting(False, "switches all of augment on; P is Perez et al. 2018, H is Ha et al. 2020")
    flip: bool = setting(True, "left to right and top to bottom, each for half of the images (P, H)")
    turn: Annotated[float, Field(ge=0, le=180)] = setting(
        180, "degrees; a lesion has no top (P: 90, which with flips is the same)"
    )
    zoom: BelowOne = setting(0.2, "0.2: scaled by 0.8 to 1.2 (P)")
    shift: BelowOne = setting(0.1, "fraction of the side (H)")
    brightness: BelowOne = setting(0.2, "0.2: pixels times 0.8 to 1.2 (H; P: 0.3)")
    contrast: BelowOne = setting(0.2, "0.2: differences from the mean times 0.8 to 1.2 (H; P: 0.3)")
    saturation: Share = setting(0.1, "0.1: differences from gray times 0.9 to 1.1 (H: 20 of 255; P: 0.3)")
    hue: Annotated[float, Field(ge=0, le=0.5)] = setting(0.05, "fraction of the color circle (H: 10 of 180; P: 0.1)")
    cutout: BelowOne = setting(0.0, "side of the square that is cut out, as a fraction of the image's (P: 0; H: 0.375)")
