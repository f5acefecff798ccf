"""The settings of all jobs: typed, frozen, each with its default and its description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from melanoma_spark import words


class Section(BaseModel):
    """A group of settings: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
CalibrationMethod = Literal["platt", "temperature", "none"]
Symmetries = Literal[1, 2, 4, 8]  # of a square: how many of `network.symmetries`

Precision = Literal["float32", "bfloat16"]
PRECISION = "of the arithmetic; bfloat16: faster where the processor has it, to about three digits"

NAME_KEY = "MELANOMA_NAME_KEY"  # the environment variable with the key of privacy.source_names=hash


class Backbone(Section):
    """The convolutional base. `weights` is `imagenet`, `random`, or the path or URL of a Keras HDF5 file."""

    name: str = Field(
        default="vgg16", description="vgg16, resnet50, inception_v3, xception, or what an installed package adds"
    )
    weights: str = Field(
        default="imagenet", description="imagenet, random, or the path or URL of a Keras HDF5 file with the weights"
    )
    allow_random: bool = Field(default=False, description="only the demo and the tests say yes")

    @model_validator(mode="after")
    def _random_is_for_the_demo(self) -> Backbone:
        if self.weights == "random" and not self.allow_random:
            raise ValueError("random weights make useless features; use imagenet or the path of a weights file")
        return self


class Labels(Section):
    """Words of an archive's label column, or class folders, beside those of `diagnoses.csv` (in lower case)."""

    positive: tuple[str, ...] = Field(default=(), description="more words for label 1")
    negative: tuple[str, ...] = Field(default=(), description="more words for label 0")

    @model_validator(mode="after")
    def _no_word_is_both(self) -> Labels:
        negative = {words.key(word) for word in self.negative}
        both = [word for word in self.positive if words.key(word) in negative]
        if both:
            raise ValueError(f"{', '.join(map(repr, both))} is positive and negative; leave it in one of them")
        return self


class Privacy(Section):
    """What is stored of names that may name people: file names, and ids of images, lesions and patients."""

    source_names: Literal["keep", "hash"] = Field(
        default="keep", description=f"hash: keyed by the environment variable {NAME_KEY}"
    )


class Ingest(Section):
    labels: Labels = Labels()
    test_fraction: Fraction = Field(default=0.15, description="share of the groups that become test images")
    validation_fraction: Fraction = Field(default=0.15, description="share of the groups that become validation images")
    min_side: Count = Field(default=32, description="pixels; a smaller image is rejected")
    max_pixels: Count = Field(default=100_000_000, description="a larger image is rejected before it is decoded")
    max_bytes: Count = Field(default=256 * 1024 * 1024, description="a larger file is rejected before it is read")
    max_ratio: Annotated[float, Field(gt=1)] = Field(
        default=200, description="uncompressed over compressed bytes; what a zip or tar.gz packs tighter is rejected"
    )
    max_members: Count = Field(default=5_000_000, description="of one zip or tar; the rest is rejected")
    max_container_bytes: Count = Field(
        default=1024**4,
        description="of one zip or tar, uncompressed; the rest is rejected: an end to bombs of many members, each of "
        "them too small for max_ratio",
    )
    allow_recognisable: bool = Field(default=False, description="DICOM marked as showing who the patient is")
    damaged: Literal["reject", "accept"] = Field(
        default="reject",
        description="images whose decoder warns that data is missing or corrupt; accept: taken as decoded, and flagged",
    )
    columns: dict[str, str] = Field(default={}, description="our field -> column of your table, e.g. label: dx")
    indeterminate: Literal["leave_out", "negative", "positive"] = Field(
        default="leave_out", description="images of neither class: unknown, or malignant where melanoma is the target"
    )
    split_overlap: Literal["error", "repair"] = Field(
        default="error", description="groups on two sides of a shipped split: stop, or keep the test side's images"
    )
    unmatched: Literal["report", "error"] = Field(
        default="report", description="images without a row, and rows without an image"
    )
    row_group_mb: Count = Field(default=16, description="size of a Parquet row group, MiB")
    shard_mb: Count = Field(default=128, description="size of a Parquet file, MiB")

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Ingest:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction + validation_fraction must stay below 1")
        return self


class Augment(Section):
    """Random changes of training images, never of validation's and test's. Each amount is the largest that is drawn.

    Defaults after two works on dermoscopy. P: Perez et al. 2018, "Data Augmentation for Skin Lesion Analysis", and its
    code; H: Ha et al. 2020, the winner of SIIM-ISIC, and its code. Colour is a sign of melanoma, so of the two the
    smaller change of it is taken; the best set of P cuts nothing out.
    """

    enabled: bool = Field(
        default=False,
        description="the switch over all of augment; P and H: who takes so much, Perez et al. 2018 and Ha et al. 2020",
    )
    flip: bool = Field(default=True, description="left to right and top to bottom, each for half of the images (P, H)")
    turn: Annotated[float, Field(ge=0, le=180)] = Field(
        default=180, description="degrees; a lesion has no top (P: 90, with flips the same)"
    )
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.2, description="0.2: scaled by 0.8 to 1.2 (P)")
    shift: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="fraction of the side (H)")
    brightness: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="0.2: pixels times 0.8 to 1.2 (H; P: 0.3)"
    )
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="0.2: distances from the mean times 0.8 to 1.2 (H; P: 0.3)"
    )
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="0.1: distances from grey times 0.9 to 1.1 (H: 20 of 255; P: 0.3)"
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.05, description="fraction of the colour circle (H: 10 of 180; P: 0.1)"
    )
    cutout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="side of the square cut out, a fraction of the image's (P: 0; H: 0.375)"
    )


Engine = Literal["auto", "ncnn", "onnxruntime", "tensorflow"]
ENGINE = (
    "what computes, in float32: ncnn, vgg16 alone and the fastest; onnxruntime, every backbone; tensorflow, the "
    "reference, also for GPUs and bfloat16; auto: the first of these that can"
)


class Featurize(Section):
    dtype: Literal["float16", "float32"] = Field(default="float16", description="in which features are stored")
    precision: Precision = Field(default="float32", description=PRECISION)
    engine: Engine = Field(default="auto", description=ENGINE)
    batch_size: Count = Field(default=16, description="images that go through the network at once")
    views: Count = Field(default=1, description="of each train image: as it is, and views - 1 augmented ones")


class Head(Section):
    """Global average pooling -> dense -> dropout -> sigmoid, on the bottleneck features."""

    hidden: Count = Field(default=256, description="units of the dense layer")
    dropout: Dropout = Field(default=0.5, description="share of the units that are dropped in training")
    learning_rate: Rate = Field(default=1e-3, description="of the optimizer Adam")
    epochs: Count = Field(default=60, description="passes over the train images, at most")
    patience: Count = Field(default=10, description="epochs without a better validation AUROC before training stops")
    batch_size: Count = Field(default=32, description="images of a training step")
    views: Count | None = Field(
        default=None, description="of the stored ones of each train image, learnt from in turn; default: all"
    )


class Phase(Section):
    """One phase of fine-tuning: what stands behind layer `cut` is trained, what stands before it is frozen.

    A frozen part is not computed again: a phase with a `cut` reads that cut's features, one without reads pixels.
    """

    name: str = Field(description="of the phase, in logs, MLflow and the report")
    cut: str | None = Field(default=None, description="a layer of the backbone, or `last_block`")
    learning_rate: Rate = Field(default=1e-5, description="of the optimizer, after the warm-up")
    epochs: Count = Field(default=5, description="passes over the train images, at most")
    patience: Count = Field(default=2, description="epochs without a better validation AUROC before the phase stops")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        default=0, description="in which the rate rises evenly to its own"
    )


class Finetune(Section):
    batch_size: Count = Field(default=16, description="global: images a step over all ranks together")
    phases: tuple[Phase, ...] = Field(
        default=(Phase(name="last_block", cut="last_block"), Phase(name="all", learning_rate=1e-6, epochs=2)),
        description="in order; each has name, cut, learning_rate, epochs, patience and warmup_epochs",
    )
    rates_for_batch: Count | None = Field(
        default=None, description="rates are for this batch_size: with k times as many images a step they are k-fold"
    )
    precision: Precision = Field(default="float32", description=PRECISION)
    accumulate: Count = Field(default=1, description="pieces in which a rank computes its part of a step: less memory")
    float16_gradients: bool = Field(default=False, description="halves what ranks send each other")
    read_ahead_mb: Count = Field(default=64, description="MiB that a rank reads before it is needed")
    checkpoint_steps: Count = Field(default=50, description="steps between checkpoints; there is one an epoch at least")
    retries: Annotated[int, Field(ge=0)] = Field(
        default=2, description="starts from the last checkpoint after a rank was lost"
    )
    start_timeout: Count = Field(default=180, description="seconds in which all ranks must have started")

    @model_validator(mode="after")
    def _phases_have_names_of_their_own(self) -> Finetune:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"finetune.phases needs at least one phase, each with a name of its own; found {names}")
        return self


class Evaluate(Section):
    operating_point: str = Field(
        default="screening",
        description="chosen on validation: screening (sensitivity>=0.95), balanced (the greatest Youden index), "
        "specific (specificity>=0.95), or another sensitivity>=X or specificity>=X",
    )
    calibration: CalibrationMethod = Field(
        default="platt",
        description="platt, temperature or none: of probabilities, fitted on validation; the registered model has it",
    )
    resamples: Count = Field(default=2000, description="bootstrap resamples of groups")
    prevalences: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.02, 0.2),
        description="of the target, to tell predictive values for; 0.02: near ISIC 2020's, 0.2: near ISIC 2017's",
    )
    subgroup_minimum: Count = Field(default=30, description="test images below which a subgroup has no figures")
    shortcuts: bool = Field(
        default=True, description="judge test images with the lesion painted over, and colours alone: one pass more"
    )
    mistakes: Annotated[int, Field(ge=0, le=20)] = Field(
        default=3, description="of each kind shown in the report, with Grad-CAM; 0: no image leaves images/"
    )
    batch_size: Count = Field(default=16, description="images that go through the network at once")
    tta: Symmetries = Field(
        default=1,
        description="test-time augmentation: the mean over 1, 2, 4 or 8 mirror images and quarter turns, at so many "
        "times the cost; the registered model does what was evaluated",
    )


Name = Annotated[str, Field(pattern=r"^[^./:\\\s][^/:\\]*$")]  # as MLflow has them, and of a folder
Share = Annotated[float, Field(ge=0, le=1)]


class Gate(Section):
    """Rules that a model must hold on the test images to take the alias; null is none.

    How many may be missed is for those who use the scores to say, so the floors have no default.
    """

    auroc_margin: Share | None = Field(
        default=0.02, description="by which AUROC may at most be below the champion's: 95 % bound, paired bootstrap"
    )
    sensitivity: Share | None = Field(default=None, description="at the operating point, at least: 0.9")
    calibration_error: Share | None = Field(default=None, description="expected calibration error, at most: 0.1")
    subgroup_auroc: Share | None = Field(
        default=None, description="of every subgroup with enough images, at least: 0.8"
    )
    apart: bool = Field(default=True, description="no test image, nor one of its group, is among the training images")


class Register(Section):
    name: Name = Field(default="melanoma", description="of the registered model")
    alias: Name = Field(
        default="champion", description="what a model that holds all rules takes; challenger until then"
    )
    action: Literal["promote", "rollback", "history"] = Field(
        default="promote", description="`register rollback` and `register history` are short for two of them"
    )
    gate: Gate = Gate()
    reference: Annotated[int, Field(ge=0)] = Field(
        default=500,
        description="train and validation images, of each at most so many, by which the new version knows what is "
        "unlike them: a pass of the network over them; 0: it does not",
    )


class Quality(Section):
    """Limits of `images.quality`, of pixels at the model's size, and of what is known besides; null is none."""

    action: Literal["flag", "abstain"] = Field(
        default="flag", description="what passes a limit keeps its score and is flagged; or it is not judged"
    )
    sharpness: Annotated[float, Field(ge=0)] | None = Field(
        default=25, description="least variance of the Laplacian, in grey levels squared, at 224 px"
    )
    darkest: Share | None = Field(default=0.3, description="least mean grey")
    brightest: Share | None = Field(default=0.85, description="largest mean grey")
    clipped: Share | None = Field(default=0.1, description="largest share of white pixels")
    dark_border: Share | None = Field(default=0.35, description="largest share of the border that is black")
    warm: Share | None = Field(default=0.5, description="least share of pixels that are redder than blue")
    side: Annotated[float, Field(ge=0)] | None = Field(
        default=1, description="least shorter side of the file, in sides of the model's input; under 1 it is enlarged"
    )
    distance: Annotated[float, Field(gt=0)] | None = Field(
        default=1, description="largest in feature space; 99 % of the validation images are nearer than 1"
    )


# fmt: off
DriftMeasure = Literal[
    "raw_probability", "distance", "sharpness", "brightness", "clipped", "dark_border", "warm", "side",
    "age", "sex", "site", "skin_type", "image_type", "unlike",
]
# fmt: on
PSI = "population stability index of a measure against the training images, at most"
KS = "Kolmogorov-Smirnov statistic of a measure against the training images, at most"
UNLIKE = "share of images that are flagged as unlike, at most"


class DriftWarning(Section):
    """Over one of these a batch is drifting; null is none."""

    psi: Annotated[float, Field(ge=0)] | None = Field(default=0.1, description=PSI)
    ks: Share | None = Field(default=0.125, description=KS)
    unlike: Share | None = Field(default=0.05, description=UNLIKE)


class DriftLimit(Section):
    """Over one of these a batch is beyond the limit; null is none."""

    psi: Annotated[float, Field(ge=0)] | None = Field(default=0.25, description=PSI)
    ks: Share | None = Field(default=0.2, description=KS)
    unlike: Share | None = Field(default=0.2, description=UNLIKE)


class Drift(Section):
    """A batch against the training images: `monitoring.statistics` has the figures, and where the limits come from."""

    minimum: Count = Field(default=50, description="images below which a batch is too small to tell")
    warn: DriftWarning = DriftWarning()
    limit: DriftLimit = DriftLimit()
    ignore: tuple[DriftMeasure, ...] = Field(
        default=(), description="told, but set no verdict: [raw_probability] where the target is known to be rarer"
    )


class Worklist(Section):
    """The page of a batch."""

    rows: Count = Field(default=2000, description="on the page, the highest risks; the CSV holds all")
    pictures: Annotated[int, Field(ge=0)] = Field(
        default=100, description="of these that show the image and Grad-CAM: about a second each; 0: no image leaves"
    )


class Follow(Section):
    """`score --follow`: how a landing folder is looked at."""

    interval: Rate = Field(default=60, description="seconds from one look at the archive to the next")
    settle: Annotated[float, Field(ge=0)] = Field(
        default=30, description="seconds for which a file must not have changed; a younger one is left for a later look"
    )
    once: bool = Field(default=False, description="end when there is nothing more, for tests and cron")
    longest_wait: Rate = Field(
        default=900, description="seconds; after a batch that failed the wait doubles, from interval up to this"
    )


class Log(Section):
    format: Literal["text", "json"] = Field(
        default="text", description="json: a line of JSON for each that is told, docs/operations.md"
    )


class Score(Section):
    model: str = Field(default="melanoma@champion", description="NAME@ALIAS or NAME/VERSION in MLflow's registry")
    batch_size: Count = Field(default=16, description="images that go through the network at once")
    engine: Engine = Field(default="auto", description=ENGINE)
    anew: bool = Field(
        default=True, description="a new version scores again what others have; false: what no version has scored"
    )
    most_unreadable: Share = Field(
        default=0.1, description="of a batch, of files that the file system does not give; more stop it, 1: none does"
    )
    quality: Quality = Quality()
    drift: Drift = Drift()
    worklist: Worklist = Worklist()
    follow: Follow = Follow()
    action: Literal["score", "status", "follow"] = Field(
        default="score", description="`score status` and `score --follow` are short for two of them"
    )
    shown: Count = Field(default=20, description="batches that `score status` tells")
    within: Rate | None = Field(
        default=None, description="hours; `score status` leaves with 4 when no batch is so young, for alerts"
    )


class Search(Section):
    """A sweep over heads. Lists are what is tried; the settings in force, of `head` and evaluate.tta, always are."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(64, 256, 1024), description="head.hidden to try"
    )
    dropout: Annotated[tuple[Dropout, ...], Field(min_length=1)] = Field(
        default=(0.2, 0.5, 0.7), description="head.dropout to try"
    )
    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)] = Field(
        default=(3e-4, 1e-3, 3e-3), description="head.learning_rate to try"
    )
    views: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(1,), description="head.views to try; at most as many as are stored"
    )
    tta: Annotated[tuple[Symmetries, ...], Field(min_length=1)] = Field(
        default=(1,), description="evaluate.tta to judge each head by; 8: seven more passes of the base over each image"
    )
    trials: Annotated[int, Field(ge=2)] = Field(
        default=8, description="heads that are tried, drawn at random where the lists make more"
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        default=5, description="of the groups of train and validation images; each is held out once"
    )
    seeds: Count = Field(default=3, description="fits of each head and fold, from training_seed upwards")


Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prune(Section):
    """What of a warehouse goes, and when: `operations.retention` has the rules. Without `apply` it is told alone.

    How long pictures of patients are kept is for those who answer for them to say, so that has no default.
    """

    apply: bool = Field(default=False, description="remove what else is only told")
    unfinished_days: Days = Field(
        default=30, description="since work was last at it that was killed, until what it left counts as given up"
    )
    worklists_days: Days | None = Field(
        default=None, description="for which the pictures of a worklist are kept; page, CSV and scores stay; null: ever"
    )
    external_days: Days | None = Field(
        default=180, description="since an external set was last evaluated; its reports stay; null: ever"
    )


class Mlflow(Section):
    tracking_uri: str | None = Field(default=None, description="default: an SQLite file in the warehouse")
    experiment: str = Field(default="melanoma", description="name of the experiment that holds the runs")
    system_metrics: bool = Field(default=True, description="processor, memory and network of the driver's machine")


class Settings(Section):
    """All settings of a job."""

    archive: str | None = Field(default=None, description="URL or path of the archive: a folder, a zip or a tar")
    layout: str | None = Field(default=None, description="the archive's layout, where it is not recognised by itself")
    target: Literal["melanoma", "malignant"] = Field(default="malignant", description="what label 1 means")
    split: Literal["hash", "from_layout", "test"] = Field(
        default="hash", description="by hash of the group; as shipped; or all of it test, to judge a model by"
    )
    warehouse: str = Field(default="warehouse", description="URL or path under which everything made is kept")
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(
        default=224, description="side in pixels of the stored square"
    )
    seed: int = Field(default=0, description="of splits, augmentation, resamples, and a search's folds and trials")
    training_seed: int = Field(
        default=0, description="of a head's first weights, of dropout and of the order of images"
    )
    ranks: Count = Field(default=2, description="Horovod ranks in fine-tuning; each takes one Spark slot")
    wait: Annotated[float, Field(ge=0)] = Field(
        default=0, description="seconds to wait for another job of the kind on the warehouse before leaving with 5"
    )
    backbone: Backbone = Backbone()
    privacy: Privacy = Privacy()
    ingest: Ingest = Ingest()
    augment: Augment = Augment()
    featurize: Featurize = Featurize()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(default=Register(), alias="register")
    score: Score = Score()
    search: Search = Search()
    prune: Prune = Prune()
    mlflow: Mlflow = Mlflow()
    log: Log = Log()

    @model_validator(mode="after")
    def _views_differ(self) -> Settings:
        if self.featurize.views > 1 and not self.augment.enabled:
            raise ValueError(
                f"featurize.views={self.featurize.views} would store the same features again and again, because "
                "augment.enabled is false; set augment.enabled=true, or featurize.views=1"
            )
        return self
