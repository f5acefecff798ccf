"""The head alone: the same arrays and seed give the same head, views take turns, what is held out is not learnt."""

import numpy as np
import pytest

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics import binary
from melanoma_spark.training import head, loop

CHOSEN = config.Head(hidden=4, dropout=0.2, learning_rate=0.01, epochs=3, batch_size=8)
SPEC = head.network_spec(CHOSEN, "vgg16", 64)


def rows(count=40, channels=6, seed=0):
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int8)
    return (draw.standard_normal((count, channels)) + labels[:, None]).astype(np.float32), labels


def fitted(views, validation, chosen=CHOSEN, seed=3):
    model, records = head.fit(chosen, seed, SPEC, views, validation, log=lambda text: None)
    return model.get_weights(), records


def without(views, labels, held, chosen=CHOSEN, seed=3):
    copies = views[0][:, None]
    return head.fit_fold(chosen, seed, SPEC, head.Fold(views, labels, held, copies), [1])[0]


def probabilities(tensors, values):
    """The head's arithmetic by hand: probabilities of values (..., channels)."""
    hidden = np.maximum(values @ tensors[0] + tensors[1], 0)
    return 1 / (1 + np.exp(-(hidden @ tensors[2] + tensors[3])[..., 0]))


def outcome(record):
    return record.epoch, record.validation_auroc, record.validation_loss


def test_head_is_that_of_its_best_epoch_and_its_seed():
    tensors, records = fitted([rows()], rows(20, seed=1))
    values, labels = rows(20, seed=1)
    assert binary.auroc(labels, probabilities(tensors, values)) == pytest.approx(loop.best_of(records).validation_auroc)
    one, again, other = (fitted([rows()], rows(20, seed=1), seed=seed)[0] for seed in (3, 3, 4))
    for first, second in zip(one, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(one[0], other[0])


def test_views_take_turns_and_are_those_stored():
    """An epoch each: with two views the third epoch is over the first one again."""
    one, other, evaluated = rows(), rows(seed=2), rows(20, seed=1)

    def losses(*views):
        return [record.loss for record in fitted(views, evaluated)[1][1:]]

    assert len(losses(one)) == 3
    assert losses(one, other) == losses(one, other, one) != losses(one, other, other)
    assert losses(one, other)[0] == losses(one)[0]
    assert losses(one, other)[1] != losses(one)[1]

    assert head.count_views(CHOSEN, 3) == 3
    assert head.count_views(CHOSEN.model_copy(update={"views": 2}), 3) == 2
    with pytest.raises(ConfigError, match=r"head\.views=4, but features/ holds 3 .*featurize\.views=4.*3 at most"):
        head.count_views(CHOSEN.model_copy(update={"views": 4}), 3)


def test_held_out_images_are_not_learned_and_missing_views_replaced():
    """Spoilt further views of them do no harm, and what is learnt is what the rest alone teaches."""
    values, labels = rows()
    other = values + 0.5
    held = np.arange(40) % 5 == 1
    other[held] = np.inf
    result = without([values, other], labels, held, CHOSEN.model_copy(update={"views": 2}))
    rest = [(values[~held], labels[~held]), (other[~held], labels[~held])]
    assert outcome(result) == outcome(loop.best_of(fitted(rest, (values[held], labels[held]))[1]))

    values, labels = rows()
    held = np.arange(40) < 10
    second = np.concatenate([values[:25] * 2, values[25:]])
    two = CHOSEN.model_copy(update={"views": 2})
    assert outcome(without([values, values[:25] * 2], labels, held, two)) == outcome(
        without([values, second], labels, held, two)
    )
    one = CHOSEN.model_copy(update={"views": 1})
    assert outcome(without([values, values[:25] * 2], labels, held, one)) == outcome(without([values], labels, held))


def test_each_tta_evaluates_the_same_head_by_the_mean_of_its_copies():
    values, labels = rows()
    held = np.arange(40) % 3 == 0
    copies = np.stack([values, *(rows(seed=seed)[0] for seed in (5, 6, 7))], axis=1)
    result = head.fit_fold(CHOSEN, 3, SPEC, head.Fold([values], labels, held, copies), [4, 1, 2])
    tensors, records = fitted([(values[~held], labels[~held])], (values[held], labels[held]))
    best = loop.best_of(records)
    assert outcome(result[1]) == pytest.approx(outcome(best))
    for record, tta in zip(result, [4, 1, 2], strict=True):
        probability = probabilities(tensors, copies[held, :tta]).mean(axis=1)
        expected = binary.auroc(labels[held], probability), binary.log_loss(labels[held], probability)
        assert outcome(record) == pytest.approx((best.epoch, *expected), rel=1e-5)
    assert len({record.validation_loss for record in result}) == 3
