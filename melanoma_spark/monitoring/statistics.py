"""Whether a batch is like the training images: figures of each measure, which do not grow with the batch.

Two figures compare a measure of the batch with the training reference. PSI, the population stability index, is the sum
over bins of (b - a) ln(b / a), with a and b the shares of reference and batch. It is the symmetric Kullback-Leibler
divergence (Siddiqi, "Credit Risk Scorecards", 2006, with its 0.1 and 0.25). KS is the largest difference of the two
cumulative distributions. A figure counts when it passes its limit and is more than chance makes of so few images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats has the same by name, and takes each job half a second more to import

from melanoma_spark import config
from melanoma_spark.models.training_reference import OTHERS, WITHIN, Reference, categories
from melanoma_spark.monitoring.measures import MEASURES, UNLIKE, of_kind

AS_TRAINED, DRIFTING, BEYOND = "as in training", "drifting", "beyond the limit"
STATES = (AS_TRAINED, DRIFTING, BEYOND)  # rising
TOO_FEW, NO_REFERENCE = "too few to tell", "no training reference"
CHANCE = 1e-3  # probability that a figure of so few images is as large though nothing has changed
Pair = Sequence[ArrayLike]  # counts of the reference and of the batch
MOST_NAMED = 4  # measures in a verdict


@dataclass(frozen=True)
class Comparison:
    """One measure of a batch compared with the reference; a figure that does not apply is None."""

    name: str
    rows: int  # images of the batch that have the measure
    state: str  # of STATES
    psi: float | None = None
    ks: float | None = None
    share: float | None = None
    labels: Sequence[str] = ()  # of categories
    before: Sequence[float] = ()  # shares of the bins or categories: of the reference ...
    now: Sequence[float] = ()  # ... and of the batch


@dataclass(frozen=True)
class Drift:
    """The drift of a batch: `state` is one of STATES, `TOO_FEW` or `NO_REFERENCE`."""

    state: str
    measures: Sequence[Comparison] = ()
    detail: str = ""

    @property
    def beyond(self) -> bool:
        """Whether a measure is beyond its limit."""
        return self.state == BEYOND

    @property
    def verdict(self) -> str:
        """The state and the measures that cause it, in one line."""
        return f"{self.state}: {self.detail}" if self.detail else self.state

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> figure, with the same names for every batch, for charts over time."""
        metrics = {"state": float(STATES.index(self.state))} if self.state in STATES else {}
        for measure in self.measures:
            for figure in ("psi", "ks", "share"):
                value = getattr(measure, figure)
                if value is not None:
                    metrics[f"{figure}/{measure.name}"] = value
        return metrics

    def as_record(self) -> dict[str, object]:
        """The fields of the drift for JSON."""
        return {"state": self.state, "detail": self.detail, "measures": [asdict(one) for one in self.measures]}


def psi(before: ArrayLike, now: ArrayLike) -> float:
    """Population stability index of counts (bins,). Half an image is added to each bin, so an empty one is finite."""
    a, b = (_shares(np.asarray(counts, np.float64) + 0.5) for counts in (before, now))
    return float(((b - a) * np.log(b / a)).sum())


def psi_by_chance(bins: int, before: int, now: int) -> float:
    """The index that two samples of one distribution exceed with a probability of `CHANCE`.

    It is (1 / before + 1 / now) times a chi-squared with bins - 1 degrees of freedom (Yurdakul and Naranjo, 2020).
    """
    return float(special.chdtri(max(bins - 1, 1), CHANCE) * (1 / before + 1 / now))


def ks(before: ArrayLike, now: ArrayLike) -> float:
    """The Kolmogorov-Smirnov statistic of counts (bins,): at the edges of the bins, so at most that of the values."""
    a, b = (np.cumsum(_shares(np.asarray(counts, np.float64))) for counts in (before, now))
    return float(np.abs(a - b).max())


def ks_by_chance(before: int, now: int) -> float:
    """As `psi_by_chance`, by the limiting distribution of the two-sample statistic."""
    return float(special.kolmogi(CHANCE) * math.sqrt(1 / before + 1 / now))


def unlike_by_chance(rows: int) -> float:
    """As `psi_by_chance`, of the share of images that are farther from training than `WITHIN` of it: a binomial one."""
    return float(np.ceil(special.bdtrik(1 - CHANCE, rows, 1 - WITHIN)) / rows)


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    total = counts.sum()
    return counts / total if total else counts


def _tenths(before: Sequence[int], now: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge the bins whose middle lies in the same tenth of the reference: PSI's limits are those of ten bins.

    What lies beyond a value that nearly all images have is a bin by itself.
    """
    counts = np.asarray(before, np.int64)
    middles = np.cumsum(counts) - counts / 2
    _, starts = np.unique(np.floor(10 * middles / counts.sum()), return_index=True)
    return np.add.reduceat(counts, starts), np.add.reduceat(np.asarray(now, np.int64), starts)


def compare_with_reference(
    reference: Reference,
    numbers: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Mapping[str, int]],
    rows: int,
    *,
    unlike: int | None,
    limits: config.Drift,
) -> Drift:
    """Compare a batch of `rows` images that the network has scored with the training images.

    A category of too few images is no measure, and images without a value take no part in it.

    Args:
        reference: Of the training images.
        numbers: Measure -> counts of the batch in the bins of the reference's histogram.
        metadata: Attribute -> images of the batch by category.
        rows: Images of the batch.
        unlike: Images that are unlike the training images; None where that has no limit.
        limits: The settings of drift.
    """
    if rows < limits.minimum:
        return Drift(TOO_FEW, detail=f"{rows} images that training has not seen, {limits.minimum} are needed")
    measures: list[Comparison] = []
    for name in of_kind("number"):
        counts = reference.histograms[name].counts if name in reference.histograms else ()
        if any(counts) and any(numbers.get(name, ())):
            measures.append(_compare(name, _tenths(counts, numbers[name]), limits, (counts, numbers[name])))
    for name in of_kind("category"):
        before = reference.shares.get(name, {})
        now = categories(metadata.get(name, {}), [value for value in before if value != OTHERS])
        if any(before.values()) and sum(now.values()) >= limits.minimum:
            counts_of = [[images.get(value, 0) for value in now] for images in (before, now)]
            measures.append(_compare(name, counts_of, limits, labels=tuple(now)))
    if unlike is not None:
        measures.append(_compare_unlike(unlike, rows, limits))
    deciding = [measure for measure in measures if measure.name not in limits.ignore]
    worst = max((STATES.index(measure.state) for measure in deciding), default=0)
    labels = [MEASURES[measure.name].label for measure in deciding if measure.state == STATES[worst]]
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return Drift(STATES[worst], measures, ", ".join(labels[:MOST_NAMED]) + more if worst else "")


def _compare(name: str, bins: Pair, limits: config.Drift, finer: Pair = (), labels: Sequence[str] = ()) -> Comparison:
    """Compare counts of reference and batch: PSI of `bins`, and KS of the `finer` bins where they are given."""
    before, now = (np.asarray(images, np.float64) for images in bins)
    sizes = int(before.sum()), int(now.sum())
    figures, chance = {"psi": psi(before, now)}, {"psi": psi_by_chance(len(now), *sizes)}
    if finer:
        figures["ks"], chance["ks"] = ks(*finer), ks_by_chance(*sizes)
    state = _state(figures, chance, limits)
    shares = _shares(before).tolist(), _shares(now).tolist()
    return Comparison(name, sizes[1], state, figures["psi"], figures.get("ks"), None, labels, *shares)


def _compare_unlike(count: int, rows: int, limits: config.Drift) -> Comparison:
    share = count / rows
    state = _state({"unlike": share}, {"unlike": unlike_by_chance(rows)}, limits)
    return Comparison(UNLIKE, rows, state, share=share, before=(1 - WITHIN,), now=(share,))


def _state(figures: Mapping[str, float], chance: Mapping[str, float], limits: config.Drift) -> str:
    """The highest of `STATES` that a figure reaches; one that chance explains reaches none."""
    for state, bounds in ((BEYOND, limits.limit), (DRIFTING, limits.warn)):
        for key, value in figures.items():
            bound = getattr(bounds, key)
            if bound is not None and value > max(bound, chance[key]):
                return state
    return AS_TRAINED
