"""A network of some neurons and its data, which train in a moment, on any number of ranks."""

import keras
import numpy as np

from melanoma_spark.training import loop, sharding

QUIET = {"log": lambda text: None}


def rows_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return (draw.standard_normal((count, 6)) + labels[:, None]).astype(np.float32), labels


def images_of(inputs: np.ndarray, labels: np.ndarray) -> loop.Images:
    """Seven to a row group."""
    groups = np.arange(len(labels)) // 7
    return loop.Images(groups, labels, lambda shared: iter(inputs[shared[shared != sharding.NONE]]))


def small_model(dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    hidden = keras.layers.Dropout(dropout)(hidden) if dropout else hidden
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


def train_on_rank(rank, count, batch, *float16):
    """For gradients that travel as they are, and as float16 where asked: weights, log and the loss of each step."""
    images = images_of(*rows_of(count))
    result = []
    for half in (False, *float16):
        model = small_model()
        states = []
        weighted = plan(class_weights=(0.5, 2.0), batch_size=batch, float16_gradients=half)
        arguments = (lambda epoch: images, lambda epoch: images)
        records = loop.train(rank, model, weighted, *arguments, **QUIET, checkpoint=states.append, checkpoint_steps=1)
        log = [(r.loss, r.validation_loss, r.validation_auroc) for r in records[1:]]
        result.append((model.get_weights(), log, [state.losses for state in states]))
    return result


def plan(**changes) -> loop.Plan:
    values = {
        "phase": "test",
        "learning_rate": 0.05,
        "epochs": 3,
        "patience": 3,
        "class_weights": (1.0, 1.0),
        "seed": 0,
        "batch_size": 8,
    }
    return loop.Plan(**{**values, **changes})


def same(ones, others):
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))
