"""Fitting of a head alone, on features that are averaged already: 2 kB an image for VGG16, so they stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics import binary
from melanoma_spark.models import network
from melanoma_spark.training import loop

Rows = tuple[np.ndarray, np.ndarray]  # averaged features float32 (n, channels), labels int (n,) of 0 and 1


def spec_of(chosen: config.Head, backbone: str, image_size: int) -> network.Spec:
    """What a network with the head of these settings looks like."""
    return network.Spec(backbone=backbone, image_size=image_size, hidden=chosen.hidden, dropout=chosen.dropout)


def views_of(chosen: config.Head, stored: int) -> int:
    """How many of the stored views a head learns from. Raises `ConfigError` where it wants more than there are."""
    if chosen.views is not None and chosen.views > stored:
        raise ConfigError(
            f"a head with head.views={chosen.views}, but features/ holds {stored} of each train image; run featurize "
            f"with featurize.views={chosen.views} first, or take {stored} at most"
        )
    return chosen.views or stored


def fit(
    rank: loop.Rank,
    chosen: config.Head,
    seed: int,
    spec: network.Spec,
    views: Sequence[Rows],
    validation: Rows,
    say: Callable[[str], None] = print,
) -> tuple[Any, list[loop.EpochRecord]]:
    """The head of the best epoch, a Keras model of (n, 1, 1, channels), and the log.

    `views` are the images to learn from, once for each view in the same order; an epoch takes one of them, in turn.
    `seed` is that of first weights, dropout and order: with the same arrays it gives the same head. Raises `DataError`
    when a class is missing or the loss is no number.
    """
    import keras

    keras.utils.set_random_seed(seed)
    features = keras.Input((1, 1, validation[0].shape[-1]), name="features")
    model = keras.Model(features, network.build_head(features, spec), name="head")
    plan = loop.Plan(
        phase="head",
        learning_rate=chosen.learning_rate,
        epochs=chosen.epochs,
        patience=chosen.patience,
        class_weights=loop.class_weights(views[0][1].tolist()),
        seed=seed,
        batch_size=chosen.batch_size,
    )
    train, judged = [images(view) for view in views], images(validation)
    records = loop.train(rank, model, plan, lambda epoch: train[(epoch - 1) % len(train)], lambda _: judged, say)
    return model, records


def fit_without(
    rank: loop.Rank,
    chosen: config.Head,
    seed: int,
    spec: network.Spec,
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    held: np.ndarray,
    copies: np.ndarray,
    ttas: Sequence[int],
) -> list[loop.EpochRecord]:
    """The best epoch of a head that has not seen the images `held`, bool (n,), by what it says of these; for each tta.

    `views[0]` is view 0 of all n images; further ones, float32 (m, channels), are of the first m, those of the train
    split: only they have any, and of the others view 0 is learnt from in every epoch. Which epoch is the best is told
    by view 0 alone, as in training. `copies`, float32 (n, k, channels), are the first k of `network.symmetries`, of
    which a tta takes its part. Raises `DataError` as `fit` does.
    """
    first, labels_left = views[0], labels[~held]
    whole = [np.concatenate([view, first[len(view) :]])[~held] for view in views[: chosen.views]]
    validation = first[held], labels[held]
    model, records = fit(rank, chosen, seed, spec, [(view, labels_left) for view in whole], validation, lambda _: None)
    judged = copies[held]
    said = network.predictor(model)(judged.reshape(-1, 1, 1, judged.shape[-1]))[0].reshape(judged.shape[:2])
    found = []
    for tta in ttas:
        y, p = labels[held], said[:, :tta].mean(axis=1, dtype=np.float64)
        auroc, loss = binary.auroc(y, p), binary.log_loss(y, p)
        found.append(replace(loop.best_of(records), validation_auroc=auroc, validation_loss=loss))
    return found


def images(rows: Rows) -> loop.Images:
    return loop.in_memory(rows[0][:, None, None], rows[1])
