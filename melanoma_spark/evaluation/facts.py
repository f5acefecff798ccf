"""The facts of a report: what was measured, on which data, with which limits. Pages and plots take these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melanoma_spark.evaluation import metric_table
from melanoma_spark.evaluation.metric_table import Figure
from melanoma_spark.evaluation.subgroups import Subgroup
from melanoma_spark.metrics import binary
from melanoma_spark.metrics.binary import ConfusionMatrix, DecisionCurve, PrecisionRecall, Reliability, RocCurve
from melanoma_spark.metrics.bootstrap import Bootstrap
from melanoma_spark.models import operating_points
from melanoma_spark.models.calibration import Calibration
from melanoma_spark.models.operating_points import OperatingPoint
from melanoma_spark.training.loop import EpochRecord

HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Dataset:
    """The images behind the models."""

    id: str
    labels: tuple[str, str]  # the names of label 0 and label 1, e.g. ("benign", "malignant")
    counts: Mapping[str, Mapping[str, int]]  # split -> label name -> images
    groups: Mapping[str, int]  # split -> groups (patients, lesions, duplicates); empty where none are known
    rejects: Mapping[str, int]  # reason -> images
    sources: Sequence[str]  # datasets or institutions, as far as the archive names them
    licenses: Sequence[str]


@dataclass(frozen=True)
class Histograms:
    """Numbers of test images by probability: edges (k + 1,), negative and positive (k,)."""

    edges: NDArray[np.float64]
    negative: NDArray[np.int64]
    positive: NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """An operating point, chosen on validation, with its decisions on both splits."""

    point: OperatingPoint
    validation: ConfusionMatrix | None  # None for an external set
    test: ConfusionMatrix


@dataclass(frozen=True)
class ModelFacts:
    """One model. All figures are of the test split but `validation`; NaN stands for undefined."""

    name: str
    auroc: Figure
    prevalence: float
    figures: Mapping[str, Figure]  # all others, by key
    operating_point: OperatingPoint  # chosen on validation
    validation: ConfusionMatrix | None  # None for an external set
    test: ConfusionMatrix
    points: Sequence[Point]  # `operating_point` first, then those of operating_points.NAMED
    roc: RocCurve
    precision_recall: PrecisionRecall
    decision_curve: DecisionCurve
    reliability: Reliability
    calibration: Calibration  # fitted on validation
    raw_reliability: Reliability  # of the network's probabilities, before calibration
    raw_figures: Mapping[str, float]  # likewise: ece, brier, log_loss
    histograms: Histograms

    def metrics(self) -> dict[str, float]:
        """Flat names for MLflow: `auroc`, its bounds, and the keys of `figures`."""
        low, high = self.auroc.interval
        others = {key: figure.value for key, figure in self.figures.items()}
        return {"auroc": self.auroc.value, "auroc_low": low, "auroc_high": high, **others}


@dataclass(frozen=True)
class Gain:
    """AUROC on the test split of one model minus that of another, with its 95 % interval by a paired bootstrap."""

    of: str
    over: str
    auroc: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Shortcuts:
    """AUROC on the test split without a view of the lesion."""

    painted: Figure  # the deciding model, on images whose lesion is painted over
    colors: Figure  # a logistic regression on color histograms


@dataclass(frozen=True)
class Mistake:
    """A wrong decision on a test image: image uint8 RGB (size, size, 3), heat (h, w) in [0, 1] of `gradcam`."""

    label: int
    probability: float
    image: NDArray[np.uint8]
    heat: NDArray[np.float32]


@dataclass(frozen=True)
class Deciding:
    """Facts of the last of the models alone, the one that is registered. All of the test split."""

    name: str
    about: str  # architecture, weights, how it was trained
    subgroups: Sequence[Subgroup]
    subgroup_minimum: int
    shortcuts: Shortcuts | None
    mistakes: Sequence[Mistake]  # missed ones first


@dataclass(frozen=True)
class Facts:
    """All that a report shows."""

    title: str
    created_at: str  # ISO 8601, UTC
    run_id: str
    dataset: Dataset
    settings: Mapping[str, str]
    lineage: Mapping[str, str]  # what -> id: weights, dataset, package version, commit
    models: Sequence[ModelFacts]
    deciding: Deciding
    limits: Sequence[str]  # one sentence each
    weights_are_random: bool  # then a banner warns that the figures mean nothing
    gains: Sequence[Gain] = ()  # of the last model over the first, over the champion
    champion: str = ""  # why there is no gain over the champion, or which images it leaves out
    training: Sequence[EpochRecord] = ()
    best: Mapping[str, int] = field(default_factory=dict)  # phase -> the epoch whose weights were kept


def measure_gain(
    of: str, over: str, labels: ArrayLike, drawn: Bootstrap, probabilities: ArrayLike, others: ArrayLike
) -> Gain:
    """The gain of the model `of` over another one, by their probabilities for the same images, each (n,)."""
    difference = drawn.auroc(labels, probabilities) - drawn.auroc(labels, others)
    auroc = binary.auroc(labels, probabilities) - binary.auroc(labels, others)
    return Gain(of, over, auroc, drawn.interval(difference))


def measure_model(
    name: str,
    calibration: Calibration,
    operating_point: OperatingPoint,
    validation: tuple[ArrayLike, ArrayLike] | None,
    test: tuple[ArrayLike, ArrayLike],
    drawn: Bootstrap,
    *,
    prevalences: Sequence[float] = (),
    patients: Sequence[str | None] | None = None,
) -> ModelFacts:
    """Measure one model for the report.

    All figures but the raw ones are of the calibrated probabilities.

    Args:
        name: Its name in the report.
        calibration: Fitted on validation.
        operating_point: Chosen on calibrated probabilities of validation.
        validation: Labels and the network's probabilities, each (n,); None where neither was fitted here.
        test: Labels and the network's probabilities, each (m,), as in `metrics`.
        drawn: The bootstrap over the groups of test.
        prevalences: At which predictive values are computed.
        patients: (m,), as in `metric_table.measure_figures`.

    Raises:
        DataError: As `metrics` does.
    """
    truth, raw = np.asarray(test[0]), test[1]
    scores = calibration.apply(raw)
    fitted_on = None if validation is None else (validation[0], calibration.apply(validation[1]))
    points = [
        Point(
            point,
            None if fitted_on is None else binary.confusion_matrix_at(*fitted_on, point.threshold),
            binary.confusion_matrix_at(truth, scores, point.threshold),
        )
        for point in (operating_point, *(operating_points.choose_named(*fitted_on) if fitted_on else ()))
        if point is operating_point or point.rule != operating_point.rule
    ]
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return ModelFacts(
        name=name,
        auroc=Figure("AUROC", binary.auroc(truth, scores), drawn.interval(drawn.auroc(truth, scores))),
        prevalence=float(np.mean(truth)),
        figures=metric_table.measure_figures(
            truth, scores, drawn, operating_point.threshold, prevalences=prevalences, patients=patients
        ),
        operating_point=operating_point,
        validation=points[0].validation,
        test=points[0].test,
        points=points,
        roc=binary.roc_curve(truth, scores),
        precision_recall=binary.precision_recall_curve(truth, scores),
        decision_curve=binary.decision_curve(truth, scores),
        reliability=binary.reliability(truth, scores),
        calibration=calibration,
        raw_reliability=binary.reliability(truth, raw),
        raw_figures={
            "ece": binary.expected_calibration_error(truth, raw),
            "brier": binary.brier(truth, raw),
            "log_loss": binary.log_loss(truth, raw),
        },
        histograms=Histograms(edges, *(np.histogram(scores[truth == label], edges)[0] for label in (0, 1))),
    )
