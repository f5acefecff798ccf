"""Whether a batch is like the training images: measure by measure, in figures that do not grow with its size.

Two figures of each measure are held against the training reference. PSI, the population stability index, is the sum
over bins of (b - a) ln(b / a), a and b the shares of reference and batch: the symmetric Kullback-Leibler divergence
(Siddiqi, "Credit Risk Scorecards", 2006, with its 0.1 and 0.25). KS is the largest difference of the two cumulative
distributions. A figure counts when it passes its limit and is more than chance makes of so few images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats has the same by name, and takes each job half a second more to import

from melanoma_spark import config
from melanoma_spark.attributes import ATTRIBUTES, PIXEL_MEASURES
from melanoma_spark.models.training_reference import OTHERS, WITHIN, Reference, categories

AS_TRAINED, DRIFTING, BEYOND = "as in training", "drifting", "beyond the limit"
STATES = (AS_TRAINED, DRIFTING, BEYOND)  # rising
TOO_FEW, NO_REFERENCE = "too few to tell", "no training reference"
CHANCE = 1e-3  # that a figure of as few images is as large though nothing has changed
MOST_NAMED = 4  # measures in a verdict
UNLIKE = "unlike"  # as a measure: the share of images that are

# What is held against the reference -> how people are told of it.
NUMBERS = {
    "raw_probability": "the network's probability",
    "distance": "distance in feature space",
    **PIXEL_MEASURES,
    "side": "shorter side of the file",
}
METADATA = {name: attribute.label for name, attribute in ATTRIBUTES.items() if attribute.drift}
MEASURES = {**NUMBERS, **METADATA, UNLIKE: "share of images that are unlike"}


@dataclass(frozen=True)
class Measure:
    """One measure of a batch beside the reference; a figure that it does not have is None."""

    name: str
    rows: int  # images of the batch that have it
    state: str  # of STATES
    psi: float | None = None
    ks: float | None = None
    share: float | None = None
    labels: Sequence[str] = ()  # of categories
    before: Sequence[float] = ()  # shares of the bins or categories: of the reference ...
    now: Sequence[float] = ()  # ... and of the batch


@dataclass(frozen=True)
class Drift:
    """Of a batch: `state` is one of STATES, `TOO_FEW` or `NO_REFERENCE`."""

    state: str
    measures: Sequence[Measure] = ()
    detail: str = ""

    @property
    def beyond(self) -> bool:
        return self.state == BEYOND

    @property
    def verdict(self) -> str:
        """In one line."""
        return f"{self.state}: {self.detail}" if self.detail else self.state

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> figure, with the same names for every batch, for charts over time."""
        found = {"state": float(STATES.index(self.state))} if self.state in STATES else {}
        for measure in self.measures:
            for figure in ("psi", "ks", "share"):
                value = getattr(measure, figure)
                if value is not None:
                    found[f"{figure}/{measure.name}"] = value
        return found

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {"state": self.state, "detail": self.detail, "measures": [asdict(found) for found in self.measures]}


def psi(before: ArrayLike, now: ArrayLike) -> float:
    """Population stability index of counts (bins,), half an image added to each bin: an empty one is no infinity."""
    a, b = (_shares(np.asarray(counts, np.float64) + 0.5) for counts in (before, now))
    return float(((b - a) * np.log(b / a)).sum())


def psi_by_chance(bins: int, before: int, now: int) -> float:
    """What the index of two samples of one distribution stays under, with a chance of `CHANCE`.

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
    return math.ceil(special.bdtrik(1 - CHANCE, rows, 1 - WITHIN)) / rows


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    total = counts.sum()
    return counts / total if total else counts


def _tenths(before: Sequence[int], now: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bins taken together whose middle lies in the same tenth of the reference: PSI's limits are those of ten bins.

    What lies beyond a value that nearly all images have is a bin by itself.
    """
    counts = np.asarray(before, np.int64)
    middles = np.cumsum(counts) - counts / 2
    _, starts = np.unique(np.floor(10 * middles / counts.sum()), return_index=True)
    return np.add.reduceat(counts, starts), np.add.reduceat(np.asarray(now, np.int64), starts)


def held_against(
    reference: Reference,
    numbers: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Mapping[str, int]],
    rows: int,
    unlike: int | None,
    limits: config.Drift,
) -> Drift:
    """The verdict on a batch of `rows` images that the network has judged.

    `numbers` are counts in the bins of the reference's histograms, `metadata` counts by `category`; `unlike` is how
    many images are, or None where that has no limit. What the archive says of too few images is no measure, and images
    of which it says nothing have no part in it.
    """
    if rows < limits.minimum:
        return Drift(TOO_FEW, detail=f"{rows} images that training has not seen, {limits.minimum} are needed")
    found = [
        _number(name, reference.histograms[name].counts, numbers[name], limits)
        for name in NUMBERS
        if name in reference.histograms and any(reference.histograms[name].counts) and any(numbers.get(name, ()))
    ]
    for name in METADATA:
        known = reference.shares.get(name, {})
        now = categories(metadata.get(name, {}), [value for value in known if value != OTHERS])
        if any(known.values()) and sum(now.values()) >= limits.minimum:
            found.append(_category(name, known, now, limits))
    if unlike is not None:
        found.append(_unlike(unlike, rows, limits))
    worst = max((STATES.index(one.state) for one in found if one.name not in limits.ignore), default=0)
    named = [MEASURES[one.name] for one in found if one.name not in limits.ignore and one.state == STATES[worst]]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return Drift(STATES[worst], found, ", ".join(named[:MOST_NAMED]) + more if worst else "")


def _number(name: str, before: Sequence[int], now: Sequence[int], limits: config.Drift) -> Measure:
    tenths = _tenths(before, now)
    figures = {"psi": psi(*tenths), "ks": ks(before, now)}
    sizes = sum(before), sum(now)
    chance = {"psi": psi_by_chance(len(tenths[0]), *sizes), "ks": ks_by_chance(*sizes)}
    shares = [_shares(counts.astype(np.float64)).tolist() for counts in tenths]
    state = _state(figures, chance, limits)
    return Measure(name, sizes[1], state, figures["psi"], figures["ks"], before=shares[0], now=shares[1])


def _category(name: str, before: Mapping[str, int], now: Mapping[str, int], limits: config.Drift) -> Measure:
    counts = [[found.get(value, 0) for value in now] for found in (before, now)]
    figures = {"psi": psi(*counts)}
    chance = {"psi": psi_by_chance(len(now), *map(sum, counts))}
    shares = [_shares(np.asarray(found, np.float64)).tolist() for found in counts]
    state = _state(figures, chance, limits)
    return Measure(name, sum(counts[1]), state, figures["psi"], labels=tuple(now), before=shares[0], now=shares[1])


def _unlike(count: int, rows: int, limits: config.Drift) -> Measure:
    expected = 1 - WITHIN
    figures = {"unlike": count / rows}
    state = _state(figures, {"unlike": unlike_by_chance(rows)}, limits)
    return Measure(UNLIKE, rows, state, share=count / rows, before=(expected,), now=(count / rows,))


def _state(figures: Mapping[str, float], chance: Mapping[str, float], limits: config.Drift) -> str:
    """The highest of `STATES` that a figure earns; one that chance explains earns none."""
    for state, bounds in ((BEYOND, limits.limit), (DRIFTING, limits.warn)):
        for key, value in figures.items():
            bound = getattr(bounds, key)
            if bound is not None and value > max(bound, chance[key]):
                return state
    return AS_TRAINED
