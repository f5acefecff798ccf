"""Settings of scoring: image quality, drift, the worklist and following a folder."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from melanoma_spark.config.fields import ENGINE, Amount, Count, Engine, Rate, Section, Share, Whole, setting
from melanoma_spark.monitoring.measures import MEASURES


class Quality(Section):
    """Limits of image quality, measured on pixels at the model's size, see `images.quality`; null switches one off."""

    action: Literal["flag", "abstain"] = setting(
        "flag", "for images beyond a limit: score and flag them, or give no decision"
    )
    sharpness: Amount | None = setting(25, "least variance of the Laplacian, in gray levels squared, at 224 px")
    darkest: Share | None = setting(0.3, "least mean gray")
    brightest: Share | None = setting(0.85, "largest mean gray")
    clipped: Share | None = setting(0.1, "largest share of white pixels")
    dark_border: Share | None = setting(0.35, "largest share of the border that is black")
    warm: Share | None = setting(0.5, "least share of pixels that are redder than blue")
    side: Amount | None = setting(
        1, "least shorter side of the file, in sides of the model's input; below 1 it is enlarged"
    )
    distance: Annotated[float, Field(gt=0)] | None = setting(
        1, "largest in feature space; 99 % of the validation images are nearer than 1"
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

    psi: Amount | None = setting(0.1, PSI)
    ks: Share | None = setting(0.125, KS)
    unlike: Share | None = setting(0.05, UNLIKE)


class DriftLimit(Section):
    """Limits above which a batch is beyond the limit; null switches one off."""

    psi: Amount | None = setting(0.25, PSI)
    ks: Share | None = setting(0.2, KS)
    unlike: Share | None = setting(0.2, UNLIKE)


class Drift(Section):
    """Comparison of a batch with the training images. `monitoring.statistics` explains the figures and limits."""

    minimum: Count = setting(50, "images; smaller batches get no verdict")
    warn: DriftWarning = DriftWarning()
    limit: DriftLimit = DriftLimit()
    ignore: tuple[DriftMeasure, ...] = setting(
        (), "measures that are shown but set no verdict: [raw_probability] where the target is known to be rarer"
    )


class Worklist(Section):
    """The page of a batch."""

    rows: Count = setting(2000, "on the page, the highest risks first; the CSV file holds all rows")
    pictures: Whole = setting(
        100, "rows that show the image and Grad-CAM, about a second each; 0: the worklist has no images"
    )


class Follow(Section):
    """`score --follow`: how a landing folder is watched."""

    interval: Rate = setting(60, "seconds from one listing of the archive to the next")
    settle: Amount = setting(30, "seconds since a file changed before it is read; a younger file waits")
    once: bool = setting(False, "end when nothing is left, for tests and cron")
    longest_wait: Rate = setting(900, "seconds; after a batch that failed the wait doubles, from interval up to this")


class Score(Section):
    """What is scored, by which model, and how."""

    model: str = setting("melanoma@champion", "NAME@ALIAS or NAME/VERSION in MLflow's registry")
    batch_size: Count = setting(16, "images that the network computes at once")
    engine: Engine = setting("auto", ENGINE)
    anew: bool = setting(True, "a new version scores all images again; false: only those that no version has scored")
    most_unreadable: Share = setting(
        0.1, "share of the files of a batch that the file system may fail to read; more stop the job, 1 never"
    )
    quality: Quality = Quality()
    drift: Drift = Drift()
    worklist: Worklist = Worklist()
    follow: Follow = Follow()
    action: Literal["score", "status", "follow"] = setting(
        "score", "`score status` and `score --follow` are short for two of them"
    )
    shown: Count = setting(20, "batches that `score status` shows")
    within: Rate | None = setting(None, "hours; `score status` ends with 4 when no batch is younger, for alerts")
