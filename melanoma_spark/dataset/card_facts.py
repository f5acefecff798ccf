"""The facts that a data card shows, and how many of each it shows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

THUMBNAIL_SIDE = 96  # pixels
CONTACTS = 40  # thumbnails of a class
REJECTS_SHOWN = 6  # thumbnails of a reason
SETS_LISTED, SETS_SHOWN, MEMBERS_SHOWN = 10, 5, 8  # sets of duplicates, and images of a set
WORDS = 60  # rows of the label mapping
TWINS = 60  # pairs of twins
EXAMPLES = 5  # of rows without an image, and of images without a row
# Where rows of tables and images do not meet -> its title
UNMATCHED = {
    "rows_without_image": "Rows without an image",
    "images_without_row": "Images without a row",
    "ambiguous_rows": "Rows that fit several images, and are attached to none",
    "contradictory_images": "Images whose rows disagree: the field is empty, or the image is rejected",
}

Pair = tuple[int, int]  # images of the negative and of the positive class
# Attribute -> accepted images by category; None counts images without one. None, or None alone: no image states it.
Distributions = Mapping[str, Mapping[str | None, Pair] | None]


class Thumbnail(TypedDict):
    """An image as it is shown."""

    sha256: str | None  # of the file, 64 hexadecimal digits; None where it was not read
    image: bytes | None  # JPEG or PNG, no side over 96 px; None where there are no pixels


class Contact(Thumbnail):
    """An image of the contact sheet."""

    split: str


class Split(TypedDict):
    """One side of the split."""

    images: Pair
    groups: Mapping[str, int]  # "patient", "lesion", "image" -> groups with that in common; empty where not known
    asked: float | None  # share of all images in the settings, 0 to 1; None where the archive brought its split


class FileBytes(TypedDict):
    """Lengths of the accepted files in bytes."""

    median: float
    p95: float
    max: float


class Reject(TypedDict):
    """The files rejected for one reason."""

    count: int
    meaning: str
    thumbnails: Sequence[Thumbnail]  # REJECTS_SHOWN are shown


class DuplicateSet(TypedDict):
    """Files that are one picture."""

    kind: str  # "same bytes", "same pixels" or "same look"
    count: int  # files
    members: Sequence[Thumbnail]  # MEMBERS_SHOWN are shown


class Duplicates(TypedDict):
    """Sets of two files or more that are one picture."""

    same_bytes: int  # sets
    same_pixels: int  # sets with differing bytes
    same_look: int  # sets with differing pixels and equal perceptual hash
    sizes: Mapping[int, int]  # files in a set -> sets
    conflicting: int  # sets whose files carry both labels
    largest: Sequence[DuplicateSet]  # largest first; SETS_LISTED are listed, SETS_SHOWN are shown


class TwinPair(TypedDict):
    """Two images that look like one lesion."""

    correlation: float
    outcome: str  # of `groups.join_twins`
    members: Sequence[Thumbnail]  # two


class Twins(TypedDict):
    """Pairs of images that look like one lesion."""

    mode: str  # ingest.twins
    least_correlation: float
    pairs: int
    groups_joined: int
    outcomes: Mapping[str, int]  # outcome -> pairs
    shown: Sequence[TwinPair]  # most alike first, without those that were in one group anyway; TWINS are shown


class Member(Contact):
    """An image of a pair that the features of a network find alike."""

    label: str


class FeaturePair(TypedDict):
    """Two images that look like one lesion by the features of a network."""

    cosine: float
    members: Sequence[Member]  # two


class FeatureTwins(TypedDict):
    """Pairs of images that look like one lesion by the features of a network."""

    least_cosine: float
    pairs: int
    in_one_group: int  # of these
    with_test_only: bool  # whether pairs without a test image were not compared
    shown: Sequence[FeaturePair]  # most alike first, without those in one group; TWINS are shown


class Unmatched(TypedDict):
    """Rows without an image, or images without a row. Examples are shown as given: hash what may name a person."""

    count: int
    examples: Sequence[str]  # EXAMPLES are shown


class LabelWord(TypedDict):
    """What one word of the archive's labels means."""

    word: str
    diagnosis: str
    target: str  # one of the two labels, or why the images are not used
    count: int  # images


class CardFacts(TypedDict):
    """All that a data card shows. `Pair`s count images of the negative and of the positive class."""

    dataset_id: str
    grew_from: str | None  # id of the version before it; None for the first
    created_at: str  # ISO 8601, UTC
    image_size: int  # side in pixels of the stored square
    target: str  # "malignant" or "melanoma"
    labels: tuple[str, str]  # the names of label 0 and label 1, e.g. ("benign", "malignant")
    layout: str  # the layout of the archive, one line
    listed: int  # files; the three below add up to it
    accepted: int
    rejected: int
    skipped: int  # files that are no images: tables, notes
    splits: Mapping[str, Split]  # in the order to show; their images add up to `accepted`
    with_patient: int  # accepted images that carry a patient id
    with_lesion: int  # ... a lesion id
    distributions: Distributions
    sizes: Mapping[tuple[int, int], int]  # (width, height) in pixels of the accepted files -> images
    file_bytes: FileBytes | None
    rejects: Mapping[str, Reject]  # by reason; their counts add up to `rejected`
    duplicates: Duplicates | None  # None where they were not looked for
    twins: Twins | None  # None where they were not looked for
    contacts: tuple[Sequence[Contact], Sequence[Contact]]  # of the negative and the positive class; CONTACTS are shown
    unmatched: Mapping[str, Unmatched | None]  # by key of UNMATCHED; None where the archive has no table
    label_words: Sequence[LabelWord]
    settings: Mapping[str, str]
    licences: Sequence[str]  # one sentence each


class Row(NamedTuple):
    """A row of a table with a bar. For bars without classes all images stand in `negative`."""

    name: str
    negative: int
    positive: int = 0

    @property
    def total(self) -> int:
        """Images of both classes."""
        return self.negative + self.positive

    @property
    def rate(self) -> float:
        """The share of the positive class; NaN of no images."""
        return share(self.positive, self.total)


def share(part: float, total: float) -> float:
    """Part / total, NaN where there is nothing."""
    return part / total if total else float("nan")


def all_images(facts: CardFacts) -> Row:
    """The images of all splits as a row."""
    images = [split["images"] for split in facts["splits"].values()]
    return Row("all", sum(pair[0] for pair in images), sum(pair[1] for pair in images))
