"""Trains a network, or the part behind a cut, on any number of ranks.

All ranks take the same number of steps and end with the same weights. A step is over the same images on any number of
ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark.background import TimedIterator, prefetch
from melanoma_spark.errors import DataError
from melanoma_spark.metrics import binary
from melanoma_spark.models.network import Predict, input_dtype, predictor
from melanoma_spark.training import sharding

if TYPE_CHECKING:
    import keras

Batch = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # inputs (b, ...), labels (b,) float32, weights (b,) float32


@dataclass(frozen=True)
class Images:
    """The n images of an epoch, by their row groups and labels, and how a rank reads its share."""

    groups: NDArray[Any]  # int (n,): see `sharding.deal`
    labels: NDArray[Any]  # int (n,)
    read: Callable[
        [NDArray[Any]], Iterator[NDArray[Any]]
    ]  # rows of `sharding.share` -> the input of each, in that order


EpochImages = Callable[[int], Images]


def in_memory(values: NDArray[Any], labels: NDArray[Any]) -> Images:
    """Return images whose inputs are an array (n, ...)."""
    groups = np.zeros(len(values), np.int32)
    return Images(groups, labels, lambda shared: iter(values[shared[shared != sharding.NONE]]))


class Rank:
    """One of the processes that train together. One of this class itself trains alone, without Horovod."""

    rank, size = 0, 1
    gpus: Sequence[str] = ()  # addresses of the GPUs that Spark gave it

    def optimizer(self, learning_rate: float, float16: bool = False) -> keras.Optimizer:
        """Return an Adam that averages gradients over the ranks first; with `float16` they travel as float16."""
        import keras

        return keras.optimizers.Adam(learning_rate)

    def broadcast(self, variables: list[keras.Variable]) -> None:
        """Set Keras variables to rank 0's values."""

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the concatenation of the ranks' arrays (n_r, ...), on every rank; lengths may differ."""
        return values


@dataclass(frozen=True)
class EpochRecord:
    """One line of a training log."""

    phase: str
    epoch: int
    loss: float
    validation_loss: float
    validation_auroc: float
    seconds: float
    images_per_second: float
    waited: float = 0.0  # seconds in which rank 0 had no images


# An epoch of a head takes a fraction of a second, one of a network may take an hour: the most seconds between lines of
# steps, and the fewest between lines of epochs.
STEP_SECONDS, EPOCH_SECONDS = 10.0, 2.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a phase trains.

    Attributes:
        class_weights: The factors of label 0 and label 1.
        batch_size: Images in a step of all ranks together.
        accumulate: A rank computes its share of a step in so many pieces and adds their gradients: less memory.
        warmup_epochs: The learning rate rises evenly over these epochs (Goyal et al. 2017).
        float16_gradients: Gradients travel between ranks as float16.
    """

    phase: str
    learning_rate: float
    epochs: int
    patience: int
    class_weights: tuple[float, float]
    seed: int
    batch_size: int
    accumulate: int = 1
    warmup_epochs: float = 0.0
    float16_gradients: bool = False

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs, each of which has `steps`."""
        return self.learning_rate * min(1.0, (step + 1) / max(1.0, self.warmup_epochs * steps))


@dataclass(frozen=True)
class State:
    """What a phase resumes from as if it had never stopped, on any number of ranks."""

    phase: str
    epoch: int  # the current one
    losses: tuple[float, ...]  # of its steps so far
    seconds: float  # that they took
    records: tuple[EpochRecord, ...]
    variables: list[NDArray[Any]]  # of the network, with its random generators
    optimizer: list[NDArray[Any]]
    best: list[NDArray[Any]]  # weights of the best epoch
    earlier: tuple[EpochRecord, ...] = ()  # of the earlier phases


def pack(state: State) -> list[NDArray[Any]]:
    """Return a state as arrays, the first of which is JSON."""
    lists = (state.variables, state.optimizer, state.best)
    facts = asdict(replace(state, variables=[], optimizer=[], best=[]))
    facts["lengths"] = [len(tensors) for tensors in lists]
    return [np.frombuffer(json.dumps(facts).encode(), np.uint8), *chain(*lists)]


def unpack(tensors: Sequence[NDArray[Any]]) -> State:
    """Return the state that `pack` was given.

    Raises:
        ValueError: The arrays are no state; `KeyError` and `TypeError` mean the same.
    """
    facts = json.loads(bytes(np.asarray(tensors[0], np.uint8)))
    rest = iter(tensors[1:])
    variables, optimizer, best = ([next(rest) for _ in range(length)] for length in facts["lengths"])
    records, earlier = (tuple(EpochRecord(**record) for record in facts[key]) for key in ("records", "earlier"))
    losses = tuple(facts["losses"])
    return State(facts["phase"], facts["epoch"], losses, facts["seconds"], records, variables, optimizer, best, earlier)


def class_weights(labels: NDArray[Any]) -> tuple[float, float]:
    """Return n / (2 n_class) for label 0 and 1, scikit-learn's "balanced" class weights (King & Zeng 2001).

    Raises:
        DataError: A class is missing.
    """
    negatives, positives = np.bincount(labels, minlength=2).tolist()
    if not negatives or not positives:
        raise DataError(f"the train split has {negatives} negative and {positives} positive images; both are needed")
    return len(labels) / (2 * negatives), len(labels) / (2 * positives)


def batches(
    images: Images,
    dealt: NDArray[Any],
    rank: Rank,
    class_weights: tuple[float, float],
    shape: Sequence[int],
    dtype: str,
) -> Iterator[Batch]:
    """Yield this rank's share of each step; padding is zero and has weight zero.

    Weights are scaled so that the average over the ranks of each share's mean loss is the mean over the real images of
    that step on all ranks, however unevenly they are spread.

    Args:
        images: The images of the epoch.
        dealt: The rows of each step, from `sharding.deal`.
        rank: This rank.
        class_weights: The factors of label 0 and label 1.
        shape: The shape of one input.
        dtype: The dtype of one input.
    """
    shared = sharding.share(dealt, rank.rank, rank.size)
    width = shared.shape[1]
    values = images.read(shared)
    for rows, valid in zip(shared, (dealt != sharding.NONE).sum(axis=1), strict=True):
        real = rows != sharding.NONE
        inputs = np.zeros((width, *shape), dtype)
        for place in np.flatnonzero(real):
            inputs[place] = next(values)
        labels = np.where(real, images.labels[rows], 0).astype(np.float32)
        weights = np.where(labels > 0.5, class_weights[1], class_weights[0]) * (width * rank.size / valid)
        yield inputs, labels, np.where(real, weights, 0).astype(np.float32)


def train(
    rank: Rank,
    model: keras.Model,
    plan: Plan,
    train_images: EpochImages,
    validation_images: EpochImages,
    *,
    log: Callable[[str], None] = print,
    network: keras.Model | None = None,
    state: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    checkpoint_steps: int = 0,
) -> list[EpochRecord]:
    """Train `model` in place and leave it with the weights of its best epoch by validation AUROC.

    The start counts as epoch 0, so training never ends worse than it began.

    Args:
        rank: This rank.
        model: What is trained.
        plan: How it is trained.
        train_images: The number of an epoch -> the images to train on.
        validation_images: The number of an epoch -> the images to validate on.
        log: Writes a line of progress.
        network: What `model` is a part of.
        state: Where to resume.
        checkpoint: Gets the state after each epoch, and after each `checkpoint_steps` steps, on rank 0.
        checkpoint_steps: 0 for none within an epoch.

    Returns:
        The log, which is the same on every rank.

    Raises:
        DataError: The loss is not a number.
    """
    network = model if network is None else network
    if rank.rank != 0:
        log = lambda text: None  # noqa: E731
    variables = model.trainable_variables
    shape, dtype = model.input.shape[1:], input_dtype(model)
    optimizer = rank.optimizer(plan.learning_rate, plan.float16_gradients)
    optimizer.build(variables)
    if state is not None:
        _assign(network.variables, state.variables)
        _assign(optimizer.variables, state.optimizer)
    rank.broadcast([*network.variables, *optimizer.variables])
    for generator in _random_states(network):  # a dropout mask for each rank's images; checkpoints have rank 0's
        generator.assign(generator.numpy() + np.array([rank.rank, 0], generator.dtype))
    gradients, apply, predict = _compile(model, optimizer)

    def validate(epoch: int, loss: float, seconds: float, images: int, waited: float = 0.0) -> EpochRecord:
        """Validate over all ranks: predictions are gathered, because an average of metrics would be wrong."""
        judged = validation_images(epoch)
        probabilities, labels = [np.zeros(0)], [np.zeros(0)]
        dealt = sharding.deal(judged.groups, plan.batch_size)
        for inputs, y, w in prefetch(batches(judged, dealt, rank, (1.0, 1.0), shape, dtype), lambda batch: batch):
            probabilities.append(predict(inputs)[0].reshape(-1)[w > 0].astype(np.float64))
            labels.append(y[w > 0])
        p = rank.gather(np.concatenate(probabilities)).clip(0, 1)
        y = rank.gather(np.concatenate(labels)).astype(int)
        speed = images / seconds if seconds else 0.0
        metrics = binary.log_loss(y, p), binary.auroc(y, p)
        return EpochRecord(plan.phase, epoch, loss, *metrics, seconds, speed, waited)

    def current_state(seconds: float) -> State:
        variables, steps = ([variable.numpy() for variable in owner.variables] for owner in (network, optimizer))
        return State(plan.phase, epoch, tuple(losses), seconds, tuple(records), variables, steps, best)

    if state is None:
        records = [validate(0, float("nan"), 0.0, 0)]
        best, epoch, losses, before = model.get_weights(), 1, [], 0.0
        _log(log, records[-1], plan, kept=False)
    else:
        records, best, epoch = list(state.records), state.best, state.epoch
        losses, before = list(state.losses), state.seconds
        log(f"{plan.phase}: resuming from the checkpoint in epoch {epoch}, after step {len(losses)}")
    logged = time.monotonic()
    while epoch <= plan.epochs and epoch - 1 - best_of(records).epoch < plan.patience:
        images = train_images(epoch)
        dealt = sharding.deal(images.groups, plan.batch_size, plan.seed + epoch)
        steps, done, new_losses = len(dealt), len(losses), []
        started = time.monotonic() - before

        rest = batches(images, dealt[done:], rank, plan.class_weights, shape, dtype)
        timed = TimedIterator(prefetch(rest, lambda batch: batch, 2))
        for step, batch in enumerate(timed, start=done + 1):
            optimizer.learning_rate = plan.rate((epoch - 1) * steps + step - 1, steps)
            new_losses.append(_step(gradients, apply, batch, plan.accumulate))
            if time.monotonic() - logged > STEP_SECONDS:
                logged = time.monotonic()
                log(f"{plan.phase} epoch {epoch}/{plan.epochs}: step {step}/{steps}")
            if checkpoint is not None and checkpoint_steps and step % checkpoint_steps == 0 and step < steps:
                losses, new_losses = losses + _gather(rank, plan, new_losses, epoch, len(losses), steps), []
                if rank.rank == 0:
                    checkpoint(current_state(time.monotonic() - started))
        losses += _gather(rank, plan, new_losses, epoch, len(losses), steps)
        seconds = time.monotonic() - started
        loss = float(np.average(losses, weights=(dealt != sharding.NONE).sum(axis=1)))
        records.append(validate(epoch, loss, seconds, len(images.labels), timed.seconds))
        better = best_of(records) is records[-1]
        if better:
            best = model.get_weights()
        if time.monotonic() - logged > EPOCH_SECONDS:
            logged = time.monotonic()
            _log(log, records[-1], plan, better)
        epoch, losses, before = epoch + 1, [], 0.0
        if checkpoint is not None and rank.rank == 0:
            checkpoint(current_state(before))
    model.set_weights(best)
    return records


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return the epoch whose weights `train` keeps: the first with the highest validation AUROC."""
    # With one class in validation, AUROC is undefined; the loss then decides.
    return max(records, key=lambda r: -r.validation_loss if np.isnan(r.validation_auroc) else r.validation_auroc)


def _compile(model: keras.Model, optimizer: keras.Optimizer) -> tuple[Callable[..., Any], Callable[..., Any], Predict]:
    """Return the functions for a batch's loss and gradients, for their application, and for the forward pass."""
    import keras
    import tensorflow as tf

    variables = model.trainable_variables
    column = tf.TensorSpec([None], tf.float32)
    signature = [tf.TensorSpec([None, *model.input.shape[1:]], input_dtype(model)), column, column, tf.TensorSpec([])]

    # No XLA: Horovod's operations have no kernels for it.
    @tf.function(input_signature=signature, jit_compile=False)  # type: ignore[untyped-decorator]
    def gradients(inputs: Any, labels: Any, weights: Any, width: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = keras.losses.binary_crossentropy(labels[:, None], model(inputs, training=True))
            loss = tf.reduce_sum(weights * losses) / width
        return loss, tape.gradient(loss, variables)

    @tf.function(jit_compile=False)  # type: ignore[untyped-decorator]
    def apply(total: Any) -> None:
        optimizer.apply(total, variables)

    return gradients, apply, predictor(model)


def _step(gradients: Callable[..., Any], apply: Callable[..., Any], batch: Batch, pieces: int) -> float:
    """Take one step of the optimizer over a rank's share of a batch; return the share's mean loss."""
    width = len(batch[0])
    total, loss = None, 0.0
    for places in np.array_split(np.arange(width), min(pieces, width)):
        low, high = int(places[0]), int(places[-1]) + 1
        piece_loss, piece = gradients(*(part[low:high] for part in batch), np.float32(width))
        total = piece if total is None else [a + b for a, b in zip(total, piece, strict=True)]
        loss += float(piece_loss)
    apply(total)
    return loss


def _gather(rank: Rank, plan: Plan, losses: list[float], epoch: int, done: int, steps: int) -> list[float]:
    """Return the losses of the steps after `done` over all ranks. Raise `DataError` if one is not a number."""
    means = rank.gather(np.asarray([losses], np.float64)).mean(axis=0)
    if not np.isfinite(means).all():
        bad = int(np.argmax(~np.isfinite(means)))
        raise DataError(
            f"{plan.phase}: the loss is {means[bad]} in epoch {epoch}, step {done + bad + 1} of {steps}; lower the "
            f"learning rate of this phase (now {plan.learning_rate:g}); the models of earlier stages are unchanged"
        )
    return [float(loss) for loss in means]


def _random_states(network: keras.Model) -> list[keras.Variable]:
    """Return the states, int64 (2,), of the network's random generators."""
    return [layer.seed_generator.state for layer in network.layers if hasattr(layer, "seed_generator")]


def _assign(variables: Sequence[keras.Variable], values: Sequence[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _log(log: Callable[[str], None], record: EpochRecord, plan: Plan, kept: bool) -> None:
    validation = f"validation loss {record.validation_loss:.4f}, AUROC {record.validation_auroc:.4f}"
    if record.epoch == 0:
        log(f"{record.phase}, before: {validation}")
        return
    log(
        f"{record.phase} epoch {record.epoch}/{plan.epochs}: loss {record.loss:.4f}, {validation}, "
        f"{record.images_per_second:.1f} images/s{', best so far' if kept else ''}"
    )
