"""The trials of a search: which combinations are tried, on which folds, and which of them is best."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic takes Python's own from 3.12 on

from melanoma_spark import config
from melanoma_spark.dataset import splits
from melanoma_spark.errors import DataError

TRIED = ("hidden", "dropout", "learning_rate", "views")  # fields of config.Head
SETTINGS = {**{name: f"head.{name}" for name in TRIED}, "tta": "evaluate.tta"}  # what makes a trial
CLASSES = ("negative", "positive")


class Task(TypedDict):
    """One trial with one seed on one fold: how well the head judges the images that it has not seen."""

    trial: int
    seed: int
    fold: int
    auroc: float | None  # None where it failed, as the next two
    loss: float | None  # mean cross-entropy in nats
    epoch: int | None  # whose weights these figures are of
    reason: str  # why it failed, else empty


class Result(TypedDict):
    """One trial over all folds and seeds. If one of its heads failed, it has a reason and no figures."""

    trial: int
    settings: dict[str, int | float]  # of `SETTINGS`
    in_force: bool
    mean: float | None  # of the AUROC over folds and seeds
    std: float | None  # the sample's, n - 1, over folds and seeds: mostly that some folds are harder
    std_seeds: float | None  # the same of the means over folds of each seed; None where there is one seed
    folds: list[float]  # the mean over seeds on each fold
    reason: str


def draw_heads(search: config.Search, in_force: config.Head, seed: int) -> list[config.Head]:
    """Return the heads to try: the one in force, and others of the grid, drawn at random if there are too many.

    `in_force.views` must be a number.
    """
    grid = itertools.product(*(dict.fromkeys(getattr(search, name)) for name in TRIED))
    heads = [in_force.model_copy(update=dict(zip(TRIED, values, strict=True))) for values in grid]
    others = [head for head in heads if head != in_force]
    if len(others) >= search.trials:
        places = np.random.default_rng(abs(seed)).choice(len(others), search.trials - 1, replace=False)
        others = [others[place] for place in sorted(places)]
    return [in_force, *others]


def assign_folds(groups: Sequence[str], labels: NDArray[Any], folds: int, seed: int) -> NDArray[Any]:
    """Return the fold of each image, int (n,), by its group.

    Raises:
        DataError: A fold, or the rest without it, lacks a class, so its AUROC has no value in any trial. To leave such
            a fold out would silently search with fewer folds; scikit-learn's `StratifiedGroupKFold` raises too.
    """
    assigned = _folds(groups, folds, seed)
    missing = _missing(assigned, labels, folds)
    if missing is None:
        return assigned
    fewer = next((k for k in range(folds - 1, 1, -1) if _missing(_folds(groups, k, seed), labels, k) is None), None)
    hint = f"set search.folds={fewer}" if fewer else "a search needs this class in more groups (patients, lesions)"
    raise DataError(f"{missing} ({len(set(groups))} groups of train and validation images); {hint}")


def list_ttas(search: config.Search, in_force: int) -> list[int]:
    """Return by how many symmetries each head is judged, the number in force first."""
    return list(dict.fromkeys([in_force, *search.tta]))


def combine(heads: Sequence[config.Head], ttas: Sequence[int]) -> list[dict[str, float]]:
    """Return the settings of each trial: every head with every tta, by head, those in force first."""
    return [{**{name: getattr(head, name) for name in TRIED}, "tta": tta} for head in heads for tta in ttas]


def summarize(
    tried: Sequence[dict[str, float]], tasks: Sequence[Task], folds: int, seeds: Sequence[int]
) -> tuple[list[Result], list[Result]]:
    """Return the trials with figures, best first (of equals the earlier), and those that failed.

    Raises:
        DataError: All trials failed.
    """
    good, failed = [], []
    for number, settings in enumerate(tried):
        task_of = {(task["seed"], task["fold"]): task for task in tasks if task["trial"] == number}
        reasons = [(task_of[seed, fold]["reason"], seed, fold) for seed in seeds for fold in range(folds)]
        bad = [f"{reason} (seed {seed}, fold {fold})" for reason, seed, fold in reasons if reason]
        result = Result(
            trial=number,
            settings=settings,
            in_force=number == 0,
            mean=None,
            std=None,
            std_seeds=None,
            folds=[],
            reason=bad[0] if bad else "",
        )
        if bad:
            failed.append(result)
            continue
        aurocs = np.array([[task_of[seed, fold]["auroc"] for fold in range(folds)] for seed in seeds], np.float64)
        result["mean"], result["std"] = float(aurocs.mean()), float(aurocs.std(ddof=1))
        result["std_seeds"] = float(aurocs.mean(axis=1).std(ddof=1)) if len(seeds) > 1 else None
        result["folds"] = aurocs.mean(axis=0).tolist()
        good.append(result)
    if not good:
        raise DataError(f"all {len(tried)} trials failed, the first one by: {failed[0]['reason']}")
    return sorted(good, key=lambda result: -(result["mean"] or 0.0)), failed


def as_words(settings: Mapping[str, float]) -> str:
    """Return the settings of a trial as words for the command line of train_head and evaluate."""
    return " ".join(f"{key}={settings[name]}" for name, key in SETTINGS.items())


def describe_auroc(result: Result) -> str:
    """Return mean and standard deviation of the AUROC as text."""
    return f"{result['mean']:.4f} +- {result['std']:.4f}"


def paired_difference(best: Result, other: Result, tasks: Sequence[Task]) -> tuple[float, float]:
    """Return by how much another AUROC is lower: mean and standard deviation over the pairs of fold and seed.

    Both trials have the same folds, so this spread says more about their difference than the spread of each.
    """
    auroc_of = {(task["trial"], task["seed"], task["fold"]): task["auroc"] for task in tasks}
    pairs = sorted({(task["seed"], task["fold"]) for task in tasks})
    first, second = (
        np.array([auroc_of[number, *pair] for pair in pairs], np.float64) for number in (best["trial"], other["trial"])
    )
    return float((first - second).mean()), float((first - second).std(ddof=1))


def _folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[Any]:
    return np.array([splits.fold_of(group, folds, seed) for group in groups], np.int32)


def _missing(assigned: NDArray[Any], labels: NDArray[Any], folds: int) -> str | None:
    """Describe the first fold that lacks a class, or that has all images of a class."""
    for fold, label in itertools.product(range(folds), (0, 1)):
        held = int(((assigned == fold) & (labels == label)).sum())
        if held == 0:
            return f"fold {fold} of search.folds={folds} holds no {CLASSES[label]} image"
        if held == int((labels == label).sum()):
            return (
                f"fold {fold} of search.folds={folds} holds all {CLASSES[label]} images and leaves none to learn from"
            )
    return None
