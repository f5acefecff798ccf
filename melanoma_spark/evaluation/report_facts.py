"""What a report tells: the facts of a run, as evaluation finds them and as pages and plots take them."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark import pages
from melanoma_spark.errors import DataError
from melanoma_spark.evaluation import figures
from melanoma_spark.evaluation.subgroups import Subgroup
from melanoma_spark.metrics import binary, bootstrap
from melanoma_spark.metrics.binary import ConfusionMatrix, DecisionCurve, PrecisionRecall, Reliability, RocCurve
from melanoma_spark.models import operating_points
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint

HISTOGRAM_BINS = 20


class Dataset(TypedDict):
    """The images behind the models."""

    id: str
    labels: tuple[str, str]  # the names of label 0 and label 1, e.g. ("benign", "malignant")
    counts: Mapping[str, Mapping[str, int]]  # split -> label name -> images
    groups: Mapping[str, int]  # split -> groups (patients, lesions, duplicates); empty where none are known
    rejects: Mapping[str, int]  # reason -> images
    sources: list[str]  # datasets or institutions, and licences, as far as the archive tells
    licences: list[str]


class Histograms(TypedDict):
    """Numbers of test images by probability: edges (k + 1,), negative and positive (k,)."""

    edges: NDArray
    negative: NDArray
    positive: NDArray


class Uncalibrated(TypedDict):
    """What the network's own probabilities are like, before calibration: test split, keys of `figures.of_split`."""

    reliability: Reliability
    figures: Mapping[str, float]  # ece, brier, log_loss


class Point(TypedDict):
    """An operating point, chosen on validation, and what it does on both splits."""

    point: OperatingPoint
    validation: ConfusionMatrix | None
    test: ConfusionMatrix


class ModelFacts(TypedDict):
    """One model. All figures are of the test split but `validation`; NaN stands for undefined."""

    name: str
    auroc: float
    auroc_low: float  # the bounds of the 95 % interval
    auroc_high: float
    prevalence: float
    figures: Mapping[str, figures.Figure]  # what else is told, by key
    operating_point: OperatingPoint  # chosen on validation
    validation: ConfusionMatrix | None  # of which there is none for an external set
    test: ConfusionMatrix
    points: list[Point]  # that one, and those of operating_points.NAMED
    roc: RocCurve
    precision_recall: PrecisionRecall
    decision_curve: DecisionCurve
    reliability: Reliability
    calibration: Calibration  # fitted on validation
    uncalibrated: Uncalibrated
    histograms: Histograms


class Gain(TypedDict):
    """AUROC on the test split of one model less that of another, with its 95 % interval by a paired bootstrap."""

    of: str
    over: str
    auroc: float
    interval: tuple[float, float]


class Shortcuts(TypedDict):
    """AUROC on the test split of what cannot see the lesion."""

    painted: figures.Figure  # the deciding model, on images whose lesion is painted over
    colours: figures.Figure  # a logistic regression on colour histograms


class Mistake(TypedDict):
    """A wrong decision on a test image: image uint8 RGB (size, size, 3), heat (h, w) in [0, 1] of `gradcam`."""

    label: int
    probability: float
    image: NDArray[np.uint8]
    heat: NDArray[np.float32]


class Deciding(TypedDict):
    """What is told of the last of the models alone, the one that is registered. All of the test split."""

    name: str
    about: str  # what it is: architecture, weights, how it was trained
    subgroups: list[Subgroup]
    subgroup_minimum: int
    shortcuts: Shortcuts | None
    mistakes: list[Mistake]  # missed ones first


class Epoch(TypedDict):
    """One epoch of training. Losses are mean cross-entropies in nats."""

    phase: str
    epoch: int
    loss: float
    validation_loss: float
    validation_auroc: float


class Facts(TypedDict):
    """All that a report says."""

    title: str
    created_at: str  # ISO 8601, UTC
    run_id: str
    dataset: Dataset
    settings: Mapping[str, str]
    lineage: Mapping[str, str]  # what -> id: weights, dataset, package version, commit
    models: list[ModelFacts]
    gains: list[Gain]  # of the last model over the first, over the champion
    champion: str  # why there is no gain over one; empty where there is
    deciding: Deciding
    training: list[Epoch]
    best: Mapping[str, int]  # phase -> the epoch whose weights were kept
    limits: list[str]  # one sentence each
    weights_are_random: bool  # then a banner says that the figures mean nothing


def model_facts(
    name: str,
    calibration: Calibration,
    operating_point: OperatingPoint,
    validation: tuple[ArrayLike, ArrayLike] | None,
    test: tuple[ArrayLike, ArrayLike, ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    prevalences: Sequence[float] = (),
    patients: Sequence[str | None] | None = None,
) -> ModelFacts:
    """Measures one model for the report.

    validation: labels and the network's probabilities, each (n,); None where neither was fitted here. test: labels, the
    network's probabilities and groups, each (m,), as in `metrics`; `patients` as in `figures.of_split`. All
    figures but `uncalibrated` are of the calibrated probabilities, and so is `operating_point`. Models measured with
    the same groups and seed are resampled alike. Raises DataError as `metrics` does.
    """
    labels, raw, groups = test
    probabilities = calibration.apply(raw)
    fitted_on = None if validation is None else (validation[0], calibration.apply(validation[1]))
    threshold = operating_point.threshold
    auroc_low, auroc_high = bootstrap.auroc_interval(labels, probabilities, groups, resamples, seed)
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    points = [
        Point(
            point=point,
            validation=None if fitted_on is None else binary.confusion_matrix_at(*fitted_on, point.threshold),
            test=binary.confusion_matrix_at(labels, probabilities, point.threshold),
        )
        for point in (operating_point, *(operating_points.named(*fitted_on) if fitted_on else ()))
        if point is operating_point or point.rule != operating_point.rule
    ]
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return ModelFacts(
        name=name,
        auroc=binary.auroc(labels, probabilities),
        auroc_low=auroc_low,
        auroc_high=auroc_high,
        prevalence=float(np.mean(truth)),
        figures=figures.of_split(labels, probabilities, groups, threshold, prevalences, resamples, seed, patients),
        operating_point=operating_point,
        validation=points[0]["validation"],
        test=points[0]["test"],
        points=points,
        roc=binary.roc_curve(labels, probabilities),
        precision_recall=binary.precision_recall_curve(labels, probabilities),
        decision_curve=binary.decision_curve(labels, probabilities),
        reliability=binary.reliability(labels, probabilities),
        calibration=calibration,
        uncalibrated=Uncalibrated(
            reliability=binary.reliability(labels, raw),
            figures={
                "ece": binary.expected_calibration_error(labels, raw),
                "brier": binary.brier(labels, raw),
                "log_loss": binary.log_loss(labels, raw),
            },
        ),
        histograms=Histograms(
            edges=edges,
            negative=np.histogram(scores[truth == 0], edges)[0],
            positive=np.histogram(scores[truth == 1], edges)[0],
        ),
    )


def check(facts: Facts) -> None:
    pages.check_keys("the report", facts, Facts.__required_keys__)
    pages.check_keys("the report's deciding model", facts["deciding"], Deciding.__required_keys__)
    pages.check_keys("the report's dataset", facts["dataset"], Dataset.__required_keys__)
    if not facts["models"]:
        raise DataError("the report names no model")
    for number, model in enumerate(facts["models"], start=1):
        pages.check_keys(f"model {number} of the report", model, ModelFacts.__required_keys__)
    for number, epoch in enumerate(facts["training"], start=1):
        pages.check_keys(f"epoch {number} of the report", epoch, Epoch.__required_keys__)
