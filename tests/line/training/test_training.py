"""Training: right batches, right weights, the best epoch kept, and the same on any number of ranks."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import QUIET, images_of, plan, rows_of, same, small_model

from melanoma_spark.errors import DataError
from melanoma_spark.training import loop, sharding


def fitted(model, chosen, images, evaluated=None, **more):
    evaluated = evaluated or images
    arguments = {**QUIET, **more}
    return loop.train(loop.Rank(), model, chosen, lambda epoch: images, lambda epoch: evaluated, **arguments)


class Part(loop.Rank):
    """A rank among several, for what does not talk to the others."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 5), batch=st.integers(5, 24))
def test_batches_hold_every_row_once_and_weigh_each_step_as_its_global_mean(count, size, batch):
    inputs = np.arange(count, dtype=np.float64)[:, None]
    images = images_of(inputs, np.zeros(count, int))
    dealt = sharding.deal(images.groups, batch, seed=1)
    result, weight_of_step = [], np.zeros(len(dealt))
    for rank in range(size):
        own = list(loop.batches(images, dealt, Part(rank, size), (1.0, 1.0), (1,), "float32"))
        assert len(own) == len(dealt)
        assert len({batch[0].shape for batch in own}) == 1
        for step, (values, labels, weights) in enumerate(own):
            assert len(values) == len(labels) == len(weights)
            assert (values[weights == 0] == 0).all()
            result += [int(value) for value in values[weights > 0, 0]]
            weight_of_step[step] += weights.sum() / len(weights) / size
    assert sorted(result) == list(range(count))
    np.testing.assert_allclose(weight_of_step, 1.0, rtol=1e-5)


def test_class_weights_are_those_of_scikit_learn_and_weigh_labels():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 70 + [1] * 30
    expected = compute_class_weight("balanced", classes=np.asarray([0, 1]), y=labels)
    np.testing.assert_allclose(loop.class_weights(labels), expected)
    with pytest.raises(DataError, match="3 negative and 0 positive"):
        loop.class_weights(np.zeros(3, int))

    images = images_of(np.zeros((4, 1)), np.array([0, 1, 1, 0]))
    ((_, labels, weights),) = loop.batches(
        images, sharding.deal(images.groups, 4), loop.Rank(), (0.5, 2.0), (1,), "float32"
    )
    assert labels.tolist() == [0, 1, 1, 0]
    assert weights.tolist() == [0.5, 2.0, 2.0, 0.5]


def test_training_keeps_the_weights_of_its_best_epoch():
    from sklearn.metrics import roc_auc_score

    inputs, labels = rows_of(40)
    model = small_model()
    records = fitted(model, plan(epochs=8, patience=8), images_of(inputs, labels))
    assert records[-1].loss < records[1].loss
    best = loop.best_of(records)
    assert roc_auc_score(labels, model.predict_on_batch(inputs)[:, 0]) == pytest.approx(best.validation_auroc)
    assert best.validation_auroc == max(record.validation_auroc for record in records)

    model = small_model()
    fitted(model, plan(epochs=30), images_of(inputs, labels))
    good = model.get_weights()
    harmful = plan(epochs=30, patience=2, learning_rate=0.5)
    records = fitted(model, harmful, images_of(inputs, 1 - labels), images_of(inputs, labels))
    assert loop.best_of(records).epoch == 0
    assert len(records) == 3, "the start and two epochs of patience"
    assert same(model.get_weights(), good)

    ones = images_of(inputs[labels == 1], labels[labels == 1])
    records = fitted(small_model(), plan(), images_of(inputs, labels), ones)
    assert all(np.isnan(record.validation_auroc) for record in records)
    assert loop.best_of(records).validation_loss == min(record.validation_loss for record in records)


def test_a_step_is_that_of_keras():
    """One epoch of one step over all rows, against Keras's own `fit`."""
    inputs, labels = rows_of(20)
    one, other = small_model(), small_model()
    fitted(one, plan(epochs=1, batch_size=20, class_weights=(0.5, 2.0)), images_of(inputs, labels))
    other.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    printed = other.fit(inputs, labels, batch_size=20, shuffle=False, class_weight={0: 0.5, 1: 2.0}, verbose=0)
    records = fitted(small_model(), plan(epochs=1, batch_size=20, class_weights=(0.5, 2.0)), images_of(inputs, labels))
    assert records[1].loss == pytest.approx(printed.history["loss"][0], rel=1e-5)
    for result, expected in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pieces", [2, 3, 100])
def test_a_step_in_pieces_is_the_same_step(pieces):
    images = images_of(*rows_of(41))
    one, other = small_model(), small_model()
    fitted(one, plan(), images)
    fitted(other, plan(accumulate=pieces), images)
    for result, expected in zip(other.get_weights(), one.get_weights(), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_learning_rate_rises_and_is_that_of_the_optimizer():
    warm = plan(learning_rate=1.0, warmup_epochs=0.5)
    assert [warm.rate(step, 8) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert plan(learning_rate=1.0).rate(0, 8) == 1.0
    # Adam's first step is as long as its rate, whatever the gradient.
    states = []
    slow = plan(epochs=1, learning_rate=0.01, warmup_epochs=10.0)
    fitted(small_model(), slow, images_of(*rows_of(8)), checkpoint=states.append)
    np.testing.assert_allclose(np.abs(states[0].variables[0] - small_model().get_weights()[0]), 0.001, rtol=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_training_resumed_from_any_checkpoint_gives_the_same_model(dropout):
    images = images_of(*rows_of(41))
    complete = small_model(dropout)
    states = []
    records = fitted(complete, plan(), images, checkpoint=states.append, checkpoint_steps=2)
    assert [(state.epoch, len(state.losses)) for state in states[:4]] == [(1, 2), (1, 4), (2, 0), (2, 2)]
    assert len(states) == 9
    for state in states:
        model = small_model(dropout)
        kept = loop.unpack(loop.pack(state))
        again = fitted(model, plan(), images, state=kept)
        assert same(model.get_weights(), complete.get_weights())
        clocks = {"seconds": 0, "images_per_second": 0, "waited": 0}
        printed, expected = ([replace(record, **clocks) for record in log[1:]] for log in (again, records))
        assert printed == expected


def test_a_checkpoint_holds_the_complete_network():
    network = small_model()
    part = keras.Model(network.layers[1].output, network.output)
    hidden = network.layers[1](rows_of(20)[0]).numpy()
    states = []
    fitted(part, plan(epochs=1), images_of(hidden, rows_of(20)[1]), network=network, checkpoint=states.append)
    assert len(states[0].variables) == len(network.variables) > len(part.trainable_variables)


@pytest.mark.parametrize("tensors", [[np.zeros(3)], [np.frombuffer(b"{}", np.uint8)], []])
def test_arrays_that_are_no_state_are_refused(tensors):
    with pytest.raises((ValueError, KeyError, TypeError, IndexError)):
        loop.unpack(tensors)


def test_ranks_use_different_dropout_masks():
    images = images_of(*rows_of(8))
    seeds = []
    for rank in (0, 1):
        model = small_model(0.5)
        loop.train(Part(rank, 2), model, plan(epochs=1), *2 * [lambda epoch: images], **QUIET)
        seeds.append(int(model.layers[2].seed_generator.state.numpy()[0]))
    assert seeds[0] != seeds[1]


def test_a_loss_that_is_no_number_ends_training_and_names_the_phase_the_step_and_its_rate():
    inputs, labels = rows_of(40)
    good, bad = images_of(inputs, labels), images_of(np.where(np.arange(40)[:, None] == 20, np.inf, inputs), labels)
    states = []
    message = r"^test: the loss is nan in epoch 2, step \d of 5; lower the learning rate of this phase \(now 0\.05\)"
    with pytest.raises(DataError, match=message):
        loop.train(
            loop.Rank(),
            small_model(),
            plan(),
            lambda epoch: good if epoch < 2 else bad,
            lambda epoch: good,
            checkpoint=states.append,
            checkpoint_steps=1,
            **QUIET,
        )
    assert states
    assert all(np.isfinite(tensor).all() for state in states for tensor in state.variables), "the last good state"
