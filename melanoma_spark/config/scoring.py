"""Settings of scoring: image quality, drift, the worklist and following a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from melanoma_spark.config.fields import ENGINE, Amount, Count, Engine, Rate, Section, Share, Whole
from melanoma_spark.monitoring.measures import MEASURES


class Quality(Section):
    """Limits of image quality, measured on pixels at the model's size, see `images.quality`; null switches one off."""

    action: Literal["flag", "abstain"] = Field(
        default="flag", description="for images beyond a limit: score and flag them, or give no decision"
    )
    sharpness: Amount | None = Field(
        default=25, description="least variance of the Laplacian, in gray levels squared, at 224 px"
    )
    darkest: Share | None = Field(default=0.3, description="least mean gray")
    brightest: Share | None = Field(default=0.85, description="largest mean gray")
    clipped: Share | None = Field(default=0.1, description="largest share of white pixels")
    dark_border: Share | None = Field(default=0.35, description="largest share of the border that is black")
    warm: Share | None = Field(default=0.5, description="least share of pixels that are redder than blue")
    side: Amount | None = Field(
        default=1,
        description="least shorter side of the file, in sides of the model's input; below 1 it is enlarged",
    )
    distance: Annotated[float, Field(gt=0)] | None = Field(
        default=1, description="largest in feature space; 99 % of the validation images are nearer than 1"
    )


if TYPE_CHECKING:
    DriftMeasure = str
else:
    DriftMeasure = Literal[tuple(MEASURES)]
PSI = "largest population stability index of a measure against the training images"
KS = "largest Kolmogorov-Smirnov statistic of a measure against the training images"
UNLIKE = "largest share of images that are flagged as unlike"


class DriftWarning(Section):
    """Limits above which a batch is drifting; null switches one off."""

    psi: Amount | None = Field(default=0.1, description=PSI)
    ks: Share | None = Field(default=0.125, description=KS)
    unlike: Share | None = Field(default=0.05, description=UNLIKE)


class DriftLimit(Section):
    """Limits above which a batch is beyond the limit; null switches one off."""

    psi: Amount | None = Field(default=0.25, description=PSI)
    ks: Share | None = Field(default=0.2, description=KS)
    unlike: Share | None = Field(default=0.2, description=UNLIKE)


class Drift(Section):
    """Comparison of a batch with the training images. `monitoring.statistics` explains the figures and limits."""

    minimum: Count = Field(default=50, description="images; smaller batches get no verdict")
    warn: DriftWarning = DriftWarning()
    limit: DriftLimit = DriftLimit()
    ignore: tuple[DriftMeasure, ...] = Field(
        default=(),
        description="measures that are shown but set no verdict: [raw_probability] where the target is known to be "
        "rarer",
    )


class Worklist(Section):
    """The page of a batch."""

    rows: Count = Field(default=2000, description="on the page, the highest risks first; the CSV file holds all rows")
    pictures: Whole = Field(
        default=100,
        description="rows that show the image and Grad-CAM, about a second each; 0: the worklist has no images",
    )


class Follow(Section):
    """`score --follow`: how a landing folder is watched."""

    interval: Rate = Field(default=60, description="seconds from one listing of the archive to the next")
    settle: Amount = Field(
        default=30, description="seconds since a file changed before it is read; a younger file waits"
    )
    once: bool = Field(default=False, description="end when nothing is left, for tests and cron")
    longest_wait: Rate = Field(
        default=900, description="seconds; after a batch that failed the wait doubles, from interval up to this"
    )


class Score(Section):
    """What is scored, by which model, and how."""

    model: str = Field(default="melanoma@champion", description="NAME@ALIAS or NAME/VERSION in MLflow's registry")
    batch_size: Count = Field(default=16, description="images that the network computes at once")
    engine: Engine = Field(default="auto", description=ENGINE)
    anew: bool = Field(
        default=True,
        description="a new version scores all images again; false: only those that no version has scored",
    )
    most_unreadable: Share = Field(
        default=0.1,
        description="share of the files of a batch that the file system may fail to read; more stop the job, 1 never",
    )
    quality: Quality = Quality()
    drift: Drift = Drift()
    worklist: Worklist = Worklist()
    follow: Follow = Follow()
    action: Literal["score", "status", "follow"] = Field(
        default="score", description="`score status` and `score --follow` are short for two of them"
    )
    shown: Count = Field(default=20, description="batches that `score status` shows")
    within: Rate | None = Field(
        default=None, description="hours; `score status` ends with 4 when no batch is younger, for alerts"
    )
