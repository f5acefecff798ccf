"""Manifests: what each dataset, model and report of the warehouse is, what it was made from, and where its files lie.

The folder `PLACE/<path>/` that `PLACE/manifest.json` names is the one that counts. A job replaces the manifest in one
step after the data is complete, so a killed job leaves nothing that a reader could mistake for a result.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from melanoma_spark import __version__
from melanoma_spark.config import CalibrationMethod
from melanoma_spark.errors import DataError
from melanoma_spark.storage import files
from melanoma_spark.storage.tensors import WEIGHTS, pack_tensors, unpack_tensors

FORMAT = 1  # of all manifests; one without a number has this one
FILE = "manifest.json"

Scalar = bool | int | float | str | None


class Manifest(BaseModel):
    """What all manifests hold. Keys that this release does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    place: ClassVar[str]
    job: ClassVar[str]  # the job that writes it

    format: int = FORMAT
    id: str
    path: str  # of the data, below `place`
    version: str = ""  # of this package
    made_at: str = ""  # ISO 8601, UTC

    def url(self, warehouse: str) -> str:
        """Return the folder of the data."""
        return files.join(warehouse, self.place, self.path)


class ImagesManifest(Manifest):
    """`images/`: decoded pixels with label, group and split. Counts are of files of the archive."""

    place = "images"
    job = "ingest"

    made_from: str  # content id of the listing and the settings
    archive: str = ""  # id of the archive's URL
    decoded: str = ""  # the folder of decoded/ with the rows that it was made from
    grew_from: str | None = None  # id of the dataset before
    layout: str = ""
    target: str
    image_size: int  # pixels
    pixels_version: int = 2  # decoding.PIXELS_VERSION; releases before did not name it
    listed: int
    read: int = 0  # now, not by an earlier ingest
    accepted: int
    damaged: int = 0  # of the accepted ones
    rejected: int
    skipped: int
    skipped_for: Mapping[str, int] = {}  # reason -> files; those without are tables and notes
    profiles: Mapping[str, int] = {}  # `color.Profile` -> images
    profiles_to: str = ""  # the colors that profiles are converted to, and how
    rows_without_image: int = 0
    rows_unclear: Mapping[str, int | Mapping[str, list[str]]] = {}  # `records.Notes`
    counts: Mapping[str, int]  # train_0, train_1, validation_0, ...
    groups: Mapping[str, int] = {}  # by split
    reasons: Mapping[str, int] = {}  # of the rejected ones
    twins: Mapping[str, Scalar | Mapping[str, int]] = {}  # `twins.Twins.record`


class FeaturesManifest(Manifest):
    """`features/`: the backbone's output at each cut, for every view of an image."""

    place = "features"
    job = "featurize"

    made_from: str  # id of the images
    weights: str  # content id
    weights_origin: str = ""
    backbone: str
    cuts: list[str]
    image_size: int  # pixels
    images: int = 0
    views: int = 1  # of each train image; releases before 0.1 stored one and did not name it
    pixels_version: int = 0
    dtype: str = ""
    precision: str = ""
    engine: str | None = None  # that computed the last ones
    augment: Mapping[str, Scalar] | None = None
    key: list[str] = []


class ModelManifest(Manifest):
    """A trained network: `weights.npz` in its folder holds the tensors in the order of `network.build`."""

    made_from: str
    spec: Mapping[str, Scalar]  # of `network.Spec`
    tensors_id: str
    weights_id: str
    weights_origin: str
    dataset_id: str
    features_id: str
    validation_auroc: float
    training: list[Mapping[str, Any]]  # `loop.EpochRecord` of each epoch
    best: Mapping[str, int]  # phase -> epoch whose weights were kept
    run_id: str


class HeadManifest(ModelManifest):
    """`models/head`: the backbone with a head trained on stored features."""

    place = "models/head"
    job = "train_head"


class FinetunedManifest(ModelManifest):
    """`models/finetuned`: base and head trained on, by phases."""

    place = "models/finetuned"
    job = "finetune"

    head_id: str = ""
    ranks: int = 0


class CalibrationEntry(BaseModel):
    """`calibration.Calibration`."""

    method: CalibrationMethod
    slope: float
    intercept: float


class OperatingPointEntry(BaseModel):
    """`operating_points.OperatingPoint`."""

    name: str
    rule: str
    threshold: float


class ReportManifest(Manifest):
    """`reports/`: the last evaluation. Keys of `models` and the like are names of models, such as `fine-tuned`."""

    place = "reports"
    job = "evaluate"

    made_from: str  # id of the images
    models: Mapping[str, str]  # ids
    operating_points: Mapping[str, OperatingPointEntry]
    calibrations: Mapping[str, CalibrationEntry] = {}
    tta: int = 1
    metrics: Mapping[str, float]
    subgroups: list[dict[str, Any]] = []  # `Subgroup.as_record`
    licences: list[str] = []
    run_id: str


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def read_values(url: str) -> Mapping[str, Any] | None:
    """Read a manifest of any kind, as it is; None where there is none.

    Raises `DataError` where it is damaged, or of a newer format than this release knows.
    """
    values = files.read_json(url)
    if values and (number := values.get("format", FORMAT)) not in range(1, FORMAT + 1):
        raise DataError(f"{url} has format {number}, this release reads formats up to {FORMAT}; update melanoma-spark")
    return values


def _url_of_manifest(kind: type[Manifest], warehouse: str, below: str) -> str:
    return files.join(warehouse, kind.place, *([below] if below else []), FILE)


def read(kind: type[AnyManifest], warehouse: str, below: str = "") -> AnyManifest | None:
    """Read the manifest of a place, or of a folder `below` it; None where the data was never completed.

    Raises `DataError` as `read_values`, and where keys are missing or damaged.
    """
    url = _url_of_manifest(kind, warehouse, below)
    values = read_values(url)
    if values is None:
        return None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        keys = ", ".join(sorted({str(found["loc"][0]) for found in error.errors()}))
        raise DataError(f"{url} lacks {keys}, or they are damaged; remove it and run `{kind.job}` again") from None


def require(kind: type[AnyManifest], warehouse: str) -> AnyManifest:
    """Read the manifest of data that an earlier job makes. Raises `DataError` naming that job where there is none."""
    manifest = read(kind, warehouse)
    if manifest is None:
        url = files.join(warehouse, kind.place)
        raise DataError(f"{url} is not there yet; run `melanoma-spark {kind.job}` first")
    return manifest


def publish(manifest: AnyManifest, warehouse: str, below: str = "") -> AnyManifest:
    """Write a manifest, with format, release and time, so that readers take its data. Returns the complete one."""
    stamp = {"format": FORMAT, "version": __version__, "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    complete = manifest.model_copy(update=stamp)
    files.write_json(_url_of_manifest(type(manifest), warehouse, below), complete.model_dump(exclude_unset=True))
    return complete


def save_model(warehouse: str, manifest: AnyManifest, tensors: list[NDArray[Any]]) -> AnyManifest:
    """Write a network's tensors into the folder of its manifest, and publish that."""
    files.write_bytes(files.join(manifest.url(warehouse), WEIGHTS), pack_tensors(tensors))
    return publish(manifest, warehouse)


def load_model(warehouse: str, manifest: ModelManifest) -> list[NDArray[Any]]:
    """Read a network's tensors. Raises `DataError` where they are missing or damaged."""
    return unpack_tensors(files.read_bytes(files.join(manifest.url(warehouse), WEIGHTS)))


def check_fit(images: ImagesManifest, features: FeaturesManifest, head: HeadManifest | None = None) -> None:
    """Raise `DataError` where these were made from other pixels, with another backbone or with other weights.

    One of them may have been made again since, and no longer fit the others.
    """
    if features.image_size != images.image_size:
        raise DataError(
            f"features/ are of images of {features.image_size} px, images/ holds {images.image_size} px; run "
            "`melanoma-spark featurize` first"
        )
    if head is None:
        return
    trained_on = {**head.spec, "weights": head.weights_id}
    for what in ("backbone", "weights", "image_size"):
        if trained_on[what] != getattr(features, what):
            raise DataError(
                f"models/head was trained on features with {what} {trained_on[what]}, features/ has "
                f"{getattr(features, what)}; run `melanoma-spark train_head` first"
            )
