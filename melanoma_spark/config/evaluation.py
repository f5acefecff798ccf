"""Settings of evaluation, and of the rules by which a model is promoted."""

from typing import Annotated, Literal

from pydantic import Field

from melanoma_spark.config.fields import Count, Fraction, Section, Share, Symmetries, Whole, setting

CalibrationMethod = Literal["platt", "temperature", "none"]


class Evaluate(Section):
    """How models are judged on the test split."""

    operating_point: str = setting(
        "screening",
        "chosen on validation: screening (sensitivity>=0.95), balanced (the greatest Youden index), "
        "specific (specificity>=0.95), or another sensitivity>=X or specificity>=X",
    )
    calibration: CalibrationMethod = setting(
        "platt", "of probabilities, fitted on validation; the registered model includes it"
    )
    resamples: Count = setting(2000, "bootstrap resamples of groups")
    prevalences: tuple[Fraction, ...] = setting(
        (0.02, 0.2),
        "of the target, for which the report shows predictive values; 0.02 is near ISIC 2020's, 0.2 near ISIC 2017's",
    )
    subgroup_minimum: Count = setting(30, "smaller subgroups of test images have no figures")
    shortcuts: bool = setting(
        True, "judge test images with the lesion painted over, and by colors alone; takes one more pass"
    )
    mistakes: Annotated[int, Field(ge=0, le=20)] = setting(
        3, "of each kind that the report shows, with Grad-CAM; 0: the report has no images"
    )
    batch_size: Count = setting(16, "images that the network computes at once")
    tta: Symmetries = setting(
        1,
        "test-time augmentation: the mean over 1, 2, 4 or 8 mirror images and quarter turns, which takes "
        "as many times longer; the registered model does the same",
    )


class Gate(Section):
    """Rules that a model must meet on the test images to get the alias; null switches a rule off.

    Those who use the scores decide how many cases may be missed, so the minimum figures have no default.
    """

    auroc_margin: Share | None = setting(
        0.02, "largest drop of AUROC below the champion's: 95 % bound by paired bootstrap"
    )
    sensitivity: Share | None = setting(None, "least at the operating point, such as 0.9")
    calibration_error: Share | None = setting(None, "largest expected error, such as 0.1")
    subgroup_auroc: Share | None = setting(None, "least of every subgroup with enough images, such as 0.8")
    apart: bool = setting(True, "no test image, nor one of its group, is among the training images")


class Register(Section):
    """The registered model and its alias."""

    name: Annotated[str, Field(pattern=r"^[^./:\\\s][^/:\\]*$")] = setting("melanoma", "of the registered model")
    alias: Annotated[str, Field(pattern=r"^[^./:\\\s][^/:\\]*$")] = setting(
        "champion", "for a model that meets all rules; others get the alias challenger"
    )
    action: Literal["promote", "rollback", "history"] = setting(
        "promote", "`register rollback` and `register history` are short for two of them"
    )
    gate: Gate = Gate()
    reference: Whole = setting(
        500,
        "train and validation images, at most so many of each, that define what counts as unlike the "
        "training images: one pass of the network over them; 0: no such check",
    )
