"""Training: right batches, right weights, the best epoch kept, and the same on any number of ranks."""

import sys

import cloudpickle
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melanoma_spark import ranks, sharding, training
from melanoma_spark.errors import DataError


def rows_of(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    draw = np.random.default_rng(seed)
    labels = [place % 2 for place in range(count)]
    return [((draw.standard_normal(6) + label).astype(np.float32), label) for label in labels]


def small_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


def plan(**changes) -> training.Plan:
    values = {
        "phase": "test",
        "learning_rate": 0.05,
        "epochs": 3,
        "patience": 3,
        "class_weights": (1.0, 1.0),
        "seed": 0,
    }
    return training.Plan(**{**values, **changes})


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 5), batch=st.integers(1, 24))
def test_batches_hold_every_row_once_and_weigh_each_step_as_its_global_mean(count, size, batch):
    if count < size:
        return
    keys = [str(place) for place in range(count)]
    shards = sharding.deal(keys, size, batch)
    found, weight_of_step = [], np.zeros(shards[0].steps)
    for shard in shards:
        rows = ((np.asarray([float(key)]), 0) for key in shard.rows)
        own = list(training.batches(rows, shard, (1.0, 1.0), size))
        assert len(own) == shard.steps
        for step, (inputs, labels, weights) in enumerate(own):
            assert len(inputs) == len(labels) == len(weights) == shard.batch_size
            found += [int(value) for value in inputs[weights > 0, 0]]
            weight_of_step[step] += weights.sum() / shard.batch_size / size
    assert sorted(found) == list(range(count))
    np.testing.assert_allclose(weight_of_step, 1.0, rtol=1e-5)


def test_shuffling_changes_the_order_and_neither_loses_nor_doubles_a_row():
    rows = [(np.asarray([place]), 0) for place in range(100)]
    orders = [[int(row[0][0]) for row in training.shuffled(rows, seed, 16)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(100))
    assert orders[0] != list(range(100))


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 70 + [1] * 30
    expected = compute_class_weight("balanced", classes=np.asarray([0, 1]), y=labels)
    np.testing.assert_allclose(training.class_weights(labels), expected)
    with pytest.raises(DataError, match="3 negative and 0 positive"):
        training.class_weights([0, 0, 0])


def train_in_one_process(count: int, **changes):
    rows = rows_of(count)
    shard = sharding.deal([str(place) for place in range(count)], 1, changes.pop("batch", 8))[0]
    model = small_model()
    arguments = (shard, lambda epoch: rows, shard, lambda epoch: rows)
    records = training.train(ranks.Alone(), model, plan(**changes), *arguments, say=lambda text: None)
    return model, records, rows


def test_training_learns_and_leaves_the_model_with_the_weights_of_its_best_epoch():
    model, records, rows = train_in_one_process(40, epochs=8, patience=8)
    assert records[-1].loss < records[1].loss
    best = training.best_of(records)
    inputs, labels = np.stack([row[0] for row in rows]), np.asarray([row[1] for row in rows])
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(labels, model.predict_on_batch(inputs)[:, 0]) == pytest.approx(best.validation_auroc)
    assert best.validation_auroc == max(record.validation_auroc for record in records)


def test_a_loss_that_is_no_number_ends_training_and_names_the_phase_the_step_and_its_rate():
    good = rows_of(40)
    bad = [*good[:20], (np.full(6, np.inf, np.float32), 0), *good[21:]]
    shard = sharding.deal([str(place) for place in range(40)], 1, 8)[0]
    arguments = (shard, lambda epoch: good if epoch < 2 else bad, shard, lambda epoch: good)
    message = r"^test: the loss is nan in epoch 2, step \d of 5; lower the learning rate of this phase \(now 0\.05\)"
    with pytest.raises(DataError, match=message):
        training.train(ranks.Alone(), small_model(), plan(), *arguments, say=lambda text: None)


def test_a_phase_that_only_harms_ends_with_the_weights_it_began_with_and_stops_early():
    rows = rows_of(40)
    flipped = [(inputs, 1 - label) for inputs, label in rows]
    model = small_model()
    shard = sharding.deal([str(place) for place in range(40)], 1, 8)[0]
    training.train(ranks.Alone(), model, plan(epochs=30), shard, lambda e: rows, shard, lambda e: rows, lambda t: None)
    good = model.get_weights()
    arguments = (shard, lambda epoch: flipped, shard, lambda epoch: rows)
    harmful = plan(epochs=30, patience=2, learning_rate=0.5)
    records = training.train(ranks.Alone(), model, harmful, *arguments, say=lambda text: None)
    assert training.best_of(records).epoch == 0
    assert len(records) == 3, "the start and two epochs of patience"
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), good, strict=True))


def test_one_class_in_validation_leaves_auroc_undefined_and_the_loss_decides():
    rows = rows_of(40)
    ones = [row for row in rows if row[1] == 1]
    model = small_model()
    shard = sharding.deal([str(place) for place in range(40)], 1, 8)[0]
    judged = sharding.deal([str(place) for place in range(20)], 1, 8)[0]
    records = training.train(
        ranks.Alone(), model, plan(), shard, lambda epoch: rows, judged, lambda epoch: ones, lambda text: None
    )
    assert all(np.isnan(record.validation_auroc) for record in records)
    assert training.best_of(records).validation_loss == min(record.validation_loss for record in records)


def train_on_rank(rank, count: int, size: int):
    """One step an epoch over all rows, so that the order within a step cannot matter."""
    rows = rows_of(count)
    shards = sharding.deal([str(place) for place in range(count)], size, global_batch=count + size)
    start = sum(shards[0].sizes[: rank.rank])
    own = rows[start : start + len(shards[rank.rank].rows)]
    model = small_model()
    arguments = (shards[rank.rank], lambda epoch: own, shards[rank.rank], lambda epoch: own)
    weighted = plan(class_weights=(0.5, 2.0))
    records = training.train(rank, model, weighted, *arguments, say=lambda text: None)
    return model.get_weights(), [(r.loss, r.validation_loss, r.validation_auroc) for r in records]


def test_two_horovod_ranks_with_ragged_shards_train_as_one_process_does(spark):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks do not have this file on their path
    alone, told_alone = ranks.run_alone(train_on_rank, 7, 1)[0]
    results = ranks.run_on_spark(spark, 2, 120, train_on_rank, 7, 2)
    for tensors, told in results:
        for expected, found in zip(alone, tensors, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.asarray(told)[1:], np.asarray(told_alone)[1:], rtol=1e-4)
    first, second = results
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))
