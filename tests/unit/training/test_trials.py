"""The trials of a search: the current head among them, no repeats, complete folds, and correct figures."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark import config
from melanoma_spark.dataset import splits
from melanoma_spark.errors import DataError
from melanoma_spark.training import trials

IN_FORCE = config.Head(views=1)
some = {
    "hidden": st.lists(st.sampled_from([8, 64, 256]), min_size=1, max_size=4),
    "dropout": st.lists(st.sampled_from([0.0, 0.5]), min_size=1, max_size=3),
    "learning_rate": st.lists(st.sampled_from([1e-4, 1e-3]), min_size=1, max_size=3),
    "views": st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3),
    "trials": st.integers(1, 12),
}


@given(st.fixed_dictionaries(some), st.integers(-5, 5))
def test_trials_are_of_the_grid_without_repeats_the_head_in_force_first(values, seed):
    chosen = config.Search(**values)
    heads = trials.draw_heads(chosen, IN_FORCE, seed)
    grid = set(itertools.product(*(values[name] for name in trials.TRIED)))
    tried = [tuple(getattr(head, name) for name in trials.TRIED) for head in heads]
    assert heads[0] == IN_FORCE
    assert len(set(tried)) == len(tried) == min(chosen.trials, len(grid | {tried[0]}))
    assert set(tried[1:]) <= grid
    assert all(head.epochs == IN_FORCE.epochs for head in heads)
    assert trials.draw_heads(chosen, IN_FORCE, seed) == heads


def test_another_seed_draws_other_trials_and_folds_follow_groups():
    assert trials.draw_heads(config.Search(), IN_FORCE, 0) != trials.draw_heads(config.Search(), IN_FORCE, 1)
    groups = [f"patient:{n // 2}" for n in range(200)]
    folds = trials.assign_folds(groups, np.arange(200) // 2 % 2, 5, 7)
    assert folds.tolist() == [splits.fold_of(group, 5, 7) for group in groups]


def test_a_fold_without_a_class_is_refused_with_a_number_of_folds_that_works():
    groups = [f"patient:{n}" for n in range(40)]
    labels = np.arange(40) % 5 == 0
    with pytest.raises(DataError) as error:
        trials.assign_folds(groups, labels, 8, 0)
    output = "of search.folds=8 holds no positive image (40 groups of train and validation images); set search.folds="
    assert output in str(error.value)
    fewer = int(str(error.value).rpartition("=")[2])
    folds = trials.assign_folds(groups, labels, fewer, 0)
    for fold, label in itertools.product(range(fewer), (False, True)):
        assert 0 < ((folds == fold) & (labels == label)).sum() < (labels == label).sum()
    with pytest.raises(DataError, match=f"search.folds={fewer + 1} "):
        trials.assign_folds(groups, labels, fewer + 1, 0)


def test_classes_that_cannot_be_searched_are_refused():
    groups, labels = [*map(str, range(20)), "x", "x"], np.array([0] * 20 + [1, 1])
    with pytest.raises(DataError, match=r"\(21 groups .*\); a search needs this class in more groups"):
        trials.assign_folds(groups, labels, 2, 0)
    # Held out, both classes are there, but learning has one.
    groups = [f"patient:{n}" for n in range(20)]
    folds = np.array([splits.fold_of(group, 2, 0) for group in groups])
    labels = (folds == 0) & (np.arange(20) > 2)
    with pytest.raises(DataError, match=r"fold 0 of .* holds all positive images and leaves none to learn from"):
        trials.assign_folds(groups, labels, 2, 0)


def tasks_of(aurocs, reasons=()):
    """`aurocs`: trial, seed, fold."""
    return [
        trials.Task(
            trial=t, seed=s, fold=f, auroc=value, loss=0.5, epoch=1, reason="bad" if (t, s, f) in reasons else ""
        )
        for (t, s, f), value in np.ndenumerate(aurocs)
    ]


def test_figures_are_numpys_whatever_the_order_of_tasks_and_one_failed_head_fails_its_trial():
    aurocs = np.random.default_rng(0).random((4, 3, 5))
    heads = [IN_FORCE.model_copy(update={"hidden": 8 * n}) for n in range(1, 5)]
    tasks = tasks_of(aurocs, {(2, 1, 4)})
    np.random.default_rng(1).shuffle(tasks)
    good, failed = trials.summarize(trials.combine(heads, [1]), tasks, 5, [0, 1, 2])
    assert [result["trial"] for result in good] == [t for t in np.argsort(-aurocs.mean(axis=(1, 2))) if t != 2]
    for result in good:
        own = aurocs[result["trial"]]
        assert (result["mean"], result["std"]) == pytest.approx((own.mean(), own.std(ddof=1)))
        assert result["std_seeds"] == pytest.approx(own.mean(axis=1).std(ddof=1))
        assert result["folds"] == pytest.approx(own.mean(axis=0).tolist())
        assert result["in_force"] == (result["trial"] == 0)
        pairs = aurocs[good[0]["trial"]] - own
        assert trials.paired_difference(good[0], result, tasks) == pytest.approx((pairs.mean(), pairs.std(ddof=1)))
    assert [(result["trial"], result["reason"], result["mean"]) for result in failed] == [
        (2, "bad (seed 1, fold 4)", None)
    ]


def test_heads_are_combined_with_ttas_and_written_as_settings():
    ttas = trials.list_ttas(config.Search(tta=(1, 8, 2, 8)), 8)
    assert ttas == [8, 1, 2]
    heads = [IN_FORCE.model_copy(update={"hidden": hidden}) for hidden in (8, 16)]
    tried = trials.combine(heads, ttas)
    assert [(settings["hidden"], settings["tta"]) for settings in tried] == [*itertools.product((8, 16), ttas)]
    assert all(settings.keys() == trials.SETTINGS.keys() for settings in tried)

    settings = {"hidden": 1_000_000, "dropout": 0.0, "learning_rate": 1 / 3, "views": 2, "tta": 8}
    actual = config.load(None, trials.as_words(settings).split())
    assert actual.head == config.Head(hidden=1_000_000, dropout=0.0, learning_rate=1 / 3, views=2)
    assert actual.evaluate.tta == 8
