"""Fits a head alone, on averaged features: 2 kB an image for VGG16, so they stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config
from melanoma_spark.errors import ConfigError
from melanoma_spark.metrics import binary
from melanoma_spark.models import network
from melanoma_spark.training import loop

if TYPE_CHECKING:
    import keras

Rows = tuple[NDArray[Any], NDArray[Any]]  # averaged features float32 (n, channels), labels int (n,) of 0 and 1


@dataclass(frozen=True)
class Fold:
    """n images, and those of them that a head must not learn from.

    Attributes:
        views: View 0 of all images, float32 (n, channels), and further views of the first m, float32 (m, channels): the
            train split, which alone has any. Of the other images a head learns from view 0 in every epoch.
        labels: int (n,).
        held_out: bool (n,).
        copies: float32 (n, k, channels), the first k of `network.symmetries`.
    """

    views: Sequence[NDArray[Any]]
    labels: NDArray[Any]
    held_out: NDArray[Any]
    copies: NDArray[Any]


def network_spec(settings: config.Head, backbone: str, image_size: int) -> network.Spec:
    """Return the spec of a network with this head."""
    return network.Spec(backbone=backbone, image_size=image_size, hidden=settings.hidden, dropout=settings.dropout)


def count_views(settings: config.Head, stored: int) -> int:
    """Return how many of the stored views a head learns from. Raise `ConfigError` if there are fewer."""
    if settings.views is not None and settings.views > stored:
        raise ConfigError(
            f"head.views={settings.views}, but features/ holds {stored} of each train image; run featurize with "
            f"featurize.views={settings.views} first, or set head.views to {stored} at most"
        )
    return settings.views or stored


def fit(
    settings: config.Head,
    seed: int,
    spec: network.Spec,
    views: Sequence[Rows],
    validation: Rows,
    *,
    log: Callable[[str], None] = print,
) -> tuple[keras.Model, list[loop.EpochRecord]]:
    """Fit a head.

    Args:
        settings: The head.
        seed: Of first weights, dropout and order: with the same arrays it gives the same head.
        spec: The spec of the network.
        views: The images to learn from, once for each view, in the same order; the epochs take turns.
        validation: The images that choose the epoch.
        log: Writes a line of progress.

    Returns:
        The head of the best epoch, a Keras model of (n, 1, 1, channels), and the log.

    Raises:
        DataError: A class is missing, or the loss is not a number.
    """
    import keras

    keras.utils.set_random_seed(seed)
    features = keras.Input((1, 1, validation[0].shape[-1]), name="features")
    model = keras.Model(features, network.build_head(features, spec), name="head")
    plan = loop.Plan(
        phase="head",
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        patience=settings.patience,
        class_weights=loop.class_weights(views[0][1]),
        seed=seed,
        batch_size=settings.batch_size,
    )
    *train, judged = (loop.in_memory(values[:, None, None], labels) for values, labels in (*views, validation))
    records = loop.train(
        loop.Rank(), model, plan, lambda epoch: train[(epoch - 1) % len(train)], lambda _: judged, log=log
    )
    return model, records


def fit_fold(
    settings: config.Head, seed: int, spec: network.Spec, fold: Fold, ttas: Sequence[int]
) -> list[loop.EpochRecord]:
    """Fit a head without the images that are held out, and validate it on them.

    View 0 alone chooses the epoch, as in training.

    Args:
        settings: The head.
        seed: As in `fit`.
        spec: The spec of the network.
        fold: The images.
        ttas: By how many symmetries each, up to k, the head is validated.

    Returns:
        The best epoch, once for each of `ttas`.

    Raises:
        DataError: As `fit`.
    """
    first, held_out = fold.views[0], fold.held_out
    rest = [np.concatenate([view, first[len(view) :]])[~held_out] for view in fold.views[: settings.views]]
    y, copies = fold.labels[held_out], fold.copies[held_out]
    views = [(view, fold.labels[~held_out]) for view in rest]
    model, records = fit(settings, seed, spec, views, (first[held_out], y), log=lambda _: None)
    predicted = network.predictor(model)(copies.reshape(-1, 1, 1, copies.shape[-1]))[0].reshape(copies.shape[:2])
    found = []
    for tta in ttas:
        p = predicted[:, :tta].mean(axis=1, dtype=np.float64)
        auroc, loss = binary.auroc(y, p), binary.log_loss(y, p)
        found.append(replace(loop.best_of(records), validation_auroc=auroc, validation_loss=loss))
    return found
