"""Training of a network, or of the part behind a cut, on any number of ranks.

The ranks are handed in; so are the rows. Every rank takes the same number of steps and ends with the same weights, and
a step is over the same images on any number of ranks.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from melanoma_spark.background import TimedIterator, prefetch
from melanoma_spark.errors import DataError
from melanoma_spark.metrics import binary
from melanoma_spark.models.network import input_dtype, predictor
from melanoma_spark.training import sharding

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs (b, ...), labels (b,) float32, weights (b,) float32


@dataclass(frozen=True)
class Images:
    """What an epoch goes through: n images, by their row groups and labels, and how a rank reads its part."""

    groups: np.ndarray  # int (n,): see `sharding.deal`
    labels: np.ndarray  # int (n,)
    read: Callable[[np.ndarray], Iterator[np.ndarray]]  # rows of `sharding.share` -> the input of each, in that order


EpochImages = Callable[[int], Images]


def in_memory(values: np.ndarray, labels: np.ndarray) -> Images:
    """Images whose inputs (n, ...) lie in an array."""
    groups = np.zeros(len(values), np.int32)
    return Images(groups, labels, lambda shared: iter(values[shared[shared != sharding.NONE]]))


class Rank(Protocol):
    """What training code sees of the other ranks."""

    rank: int
    size: int
    gpus: Sequence[str]  # addresses of those that Spark gave it

    def optimizer(self, learning_rate: float, float16: bool = False) -> Any:
        """An Adam whose gradients are averaged over the ranks before they are applied; they travel as `float16`."""

    def broadcast(self, variables: list[Any]) -> None:
        """Set Keras variables to rank 0's values."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        """The ranks' arrays (n_r, ...) one behind the other, on every rank; lengths may differ."""


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
    waited: float = 0.0  # of the seconds, those in which rank 0 had no images


# A head's epoch takes a fraction of a second, a network's may take an hour: a line at least this often, and at most.
STEP_SECONDS, EPOCH_SECONDS = 10.0, 2.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a phase trains. `class_weights` are the factors of label 0 and label 1.

    `batch_size` is that of all ranks together. A rank computes its part of a step in `accumulate` pieces, whose
    gradients are added up: less memory, the same step. The rate rises evenly over the first `warmup_epochs`
    (Goyal et al. 2017).
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
    float16_gradients: bool = False  # between ranks

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs, of which each has `steps`."""
        return self.learning_rate * min(1.0, (step + 1) / max(1.0, self.warmup_epochs * steps))


@dataclass(frozen=True)
class State:
    """Where a phase stands: all that it takes to go on as if it had never stopped, on any number of ranks."""

    phase: str
    epoch: int  # in hand
    losses: tuple[float, ...]  # of its steps so far
    seconds: float  # that they took
    records: tuple[EpochRecord, ...]
    variables: list[np.ndarray]  # of the network, with its random generators
    optimizer: list[np.ndarray]
    best: list[np.ndarray]  # weights of the best epoch
    earlier: tuple[EpochRecord, ...] = ()  # of the phases before


def pack(state: State) -> list[np.ndarray]:
    """A state as arrays, the first of them JSON."""
    lists = (state.variables, state.optimizer, state.best)
    facts = {
        "phase": state.phase,
        "epoch": state.epoch,
        "losses": state.losses,
        "seconds": state.seconds,
        "records": [asdict(record) for record in state.records],
        "earlier": [asdict(record) for record in state.earlier],
        "lengths": [len(tensors) for tensors in lists],
    }
    return [np.frombuffer(json.dumps(facts).encode(), np.uint8), *(tensor for some in lists for tensor in some)]


def unpack(tensors: Sequence[np.ndarray]) -> State:
    """The state that `pack` was given. Raises `ValueError`, `KeyError` or `TypeError` when the arrays are no state."""
    facts = json.loads(bytes(np.asarray(tensors[0], np.uint8)))
    rest = iter(tensors[1:])
    variables, optimizer, best = ([next(rest) for _ in range(length)] for length in facts["lengths"])
    records, earlier = (tuple(EpochRecord(**record) for record in facts[key]) for key in ("records", "earlier"))
    losses = tuple(facts["losses"])
    return State(facts["phase"], facts["epoch"], losses, facts["seconds"], records, variables, optimizer, best, earlier)


def balanced_weights(negatives: int, positives: int) -> tuple[float, float]:
    """n / (2 n_class) for label 0 and 1, as scikit-learn's `compute_class_weight("balanced")` (King & Zeng 2001)."""
    total = negatives + positives
    return total / (2 * negatives), total / (2 * positives)


def class_weights(labels: Iterable[int]) -> tuple[float, float]:
    """`balanced_weights` of these labels. Raises `DataError` when a class is missing."""
    counted = Counter(labels)
    if not counted[0] or not counted[1]:
        raise DataError(f"the train split has {counted[0]} negative and {counted[1]} positive images; both are needed")
    return balanced_weights(counted[0], counted[1])


def batches(
    images: Images, dealt: np.ndarray, rank: Rank, class_weights: tuple[float, float], shape: Sequence[int], dtype: str
) -> Iterator[Batch]:
    """This rank's part of each step that `sharding.deal` has dealt; what pads it is zero and weighs zero.

    Weights are scaled so that the average over the ranks of each part's mean loss is the mean over the real images of
    that step on all ranks, however unevenly they fall. `shape` and `dtype` are those of one input.
    """
    own = sharding.share(dealt, rank.rank, rank.size)
    width = own.shape[1]
    read = images.read(own)
    for rows, valid in zip(own, (dealt != sharding.NONE).sum(axis=1), strict=True):
        real = rows != sharding.NONE
        inputs = np.zeros((width, *shape), dtype)
        for place in np.flatnonzero(real):
            inputs[place] = next(read)
        labels = np.where(real, images.labels[rows], 0).astype(np.float32)
        weights = np.where(labels > 0.5, class_weights[1], class_weights[0]) * (width * rank.size / valid)
        yield inputs, labels, np.where(real, weights, 0).astype(np.float32)


def train(
    rank: Rank,
    model: Any,
    plan: Plan,
    train_images: EpochImages,
    validation_images: EpochImages,
    say: Callable[[str], None] = print,
    network: Any = None,
    state: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    every: int = 0,
) -> list[EpochRecord]:
    """Train `model` in place and leave it with the weights of its best epoch by validation AUROC.

    The start counts as epoch 0, so training never ends with less than it began with. `checkpoint` is given the state
    after each epoch and each `every` steps, on rank 0; training that is given such a `state` goes on from there.
    `network` is what `model` is a part of. Returns the log, the same on every rank. Raises `DataError` when the loss is
    no number any more.
    """
    whole = model if network is None else network
    variables = model.trainable_variables
    shape, dtype = model.input.shape[1:], input_dtype(model)
    optimizer = rank.optimizer(plan.learning_rate, plan.float16_gradients)
    optimizer.build(variables)
    if state is not None:
        _assign(whole.variables, state.variables)
        _assign(optimizer.variables, state.optimizer)
    rank.broadcast([*whole.variables, *optimizer.variables])
    noise = _noise(whole)
    for generator in noise:  # a mask for each rank's images; rank 0 keeps what the checkpoint says
        generator.assign(generator.numpy() + np.array([rank.rank, 0], generator.dtype))
    gradients, apply, predict = _compiled(model, optimizer)

    def measured(epoch: int, loss: float, seconds: float, images: int, waited: float = 0.0) -> EpochRecord:
        """Validation over all ranks: predictions are gathered, never averages of metrics."""
        judged = validation_images(epoch)
        probabilities, labels = [np.zeros(0)], [np.zeros(0)]
        dealt = sharding.deal(judged.groups, plan.batch_size)
        for inputs, y, w in prefetch(batches(judged, dealt, rank, (1.0, 1.0), shape, dtype), lambda batch: batch):
            probabilities.append(predict(inputs)[0].reshape(-1)[w > 0])
            labels.append(y[w > 0])
        p = rank.gather(np.concatenate(probabilities).astype(np.float64)).clip(0, 1)
        y = rank.gather(np.concatenate(labels)).astype(int)
        speed = images / seconds if seconds else 0.0
        found = binary.log_loss(y, p), binary.auroc(y, p)
        return EpochRecord(plan.phase, epoch, loss, *found, seconds, speed, waited)

    if state is None:
        records = [measured(0, float("nan"), 0.0, 0)]
        best, epoch, losses, before = model.get_weights(), 1, [], 0.0
        _log(rank, say, records[-1], plan, kept=False)
    else:
        records, best, epoch = list(state.records), state.best, state.epoch
        losses, before = list(state.losses), state.seconds
        if rank.rank == 0:
            say(f"{plan.phase}: goes on from the checkpoint in epoch {epoch}, after step {len(losses)}")
    spoke = time.monotonic()
    while epoch <= plan.epochs and epoch - 1 - best_of(records).epoch < plan.patience:
        images = train_images(epoch)
        dealt = sharding.deal(images.groups, plan.batch_size, plan.seed + epoch)
        steps, done, own = len(dealt), len(losses), []
        started = time.monotonic() - before

        dealt_out = batches(images, dealt[done:], rank, plan.class_weights, shape, dtype)
        left = TimedIterator(prefetch(dealt_out, lambda batch: batch, 2))
        for step, batch in enumerate(left, start=done + 1):
            optimizer.learning_rate = plan.rate((epoch - 1) * steps + step - 1, steps)
            own.append(_step(gradients, apply, batch, plan.accumulate))
            if rank.rank == 0 and time.monotonic() - spoke > STEP_SECONDS:
                spoke = time.monotonic()
                say(f"{plan.phase} epoch {epoch}/{plan.epochs}: step {step}/{steps}")
            if checkpoint is not None and every and step % every == 0 and step < steps:
                losses, own = losses + _gathered(rank, plan, own, epoch, len(losses), steps), []
                if rank.rank == 0:
                    checkpoint(_state(plan, epoch, losses, time.monotonic() - started, records, whole, optimizer, best))
        losses += _gathered(rank, plan, own, epoch, len(losses), steps)
        seconds = time.monotonic() - started
        loss = float(np.average(losses, weights=(dealt != sharding.NONE).sum(axis=1)))
        records.append(measured(epoch, loss, seconds, len(images.labels), left.seconds))
        better = best_of(records) is records[-1]
        if better:
            best = model.get_weights()
        if time.monotonic() - spoke > EPOCH_SECONDS:
            spoke = time.monotonic()
            _log(rank, say, records[-1], plan, better)
        epoch, losses, before = epoch + 1, [], 0.0
        if checkpoint is not None and rank.rank == 0:
            checkpoint(_state(plan, epoch, losses, before, records, whole, optimizer, best))
    model.set_weights(best)
    return records


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """The epoch whose weights `train` keeps: the first with the highest validation AUROC."""
    return max(records, key=_value)


def as_dict(record: EpochRecord) -> dict[str, Any]:
    return asdict(record)


def _value(record: EpochRecord) -> float:
    # One class only in validation leaves AUROC undefined; the loss then decides.
    return -record.validation_loss if np.isnan(record.validation_auroc) else record.validation_auroc


def _compiled(model: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    """A batch's loss and gradients, their application, and the forward pass."""
    import keras
    import tensorflow as tf

    variables = model.trainable_variables
    column = tf.TensorSpec([None], tf.float32)
    signature = [tf.TensorSpec([None, *model.input.shape[1:]], input_dtype(model)), column, column, tf.TensorSpec([])]

    # No XLA: Horovod's operations have no kernels for it.
    @tf.function(input_signature=signature, jit_compile=False)
    def gradients(inputs: Any, labels: Any, weights: Any, width: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = keras.losses.binary_crossentropy(labels[:, None], model(inputs, training=True))
            loss = tf.reduce_sum(weights * losses) / width
        return loss, tape.gradient(loss, variables)

    @tf.function(jit_compile=False)
    def apply(found: Any) -> None:
        optimizer.apply(found, variables)

    return gradients, apply, predictor(model)


def _step(gradients: Any, apply: Any, batch: Batch, pieces: int) -> float:
    """One step of the optimizer over a rank's part of a batch; the part's mean loss."""
    width = len(batch[0])
    total, loss = None, 0.0
    for places in np.array_split(np.arange(width), min(pieces, width)):
        low, high = int(places[0]), int(places[-1]) + 1
        piece_loss, found = gradients(*(part[low:high] for part in batch), np.float32(width))
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        loss += float(piece_loss)
    apply(total)
    return loss


def _gathered(rank: Rank, plan: Plan, own: list[float], epoch: int, done: int, steps: int) -> list[float]:
    """The losses of the steps after `done` over all ranks, so that all ranks stop when one of them is no number."""
    found = rank.gather(np.asarray([own], np.float64)).mean(axis=0)
    if not np.isfinite(found).all():
        bad = int(np.argmax(~np.isfinite(found)))
        raise DataError(
            f"{plan.phase}: the loss is {found[bad]} in epoch {epoch}, step {done + bad + 1} of {steps}; lower the "
            f"learning rate of this phase (now {plan.learning_rate:g}); what was trained before stands"
        )
    return [float(loss) for loss in found]


def _noise(network: Any) -> list[Any]:
    """The states, int64 (2,), of the network's random generators."""
    return [layer.seed_generator.state for layer in network.layers if hasattr(layer, "seed_generator")]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _state(
    plan: Plan,
    epoch: int,
    losses: list[float],
    seconds: float,
    records: list[EpochRecord],
    network: Any,
    optimizer: Any,
    best: list[np.ndarray],
) -> State:
    variables, steps = ([variable.numpy() for variable in of.variables] for of in (network, optimizer))
    return State(plan.phase, epoch, tuple(losses), seconds, tuple(records), variables, steps, best)


def _log(rank: Rank, say: Callable[[str], None], record: EpochRecord, plan: Plan, kept: bool) -> None:
    if rank.rank != 0:
        return
    judged = f"validation loss {record.validation_loss:.4f}, AUROC {record.validation_auroc:.4f}"
    if record.epoch == 0:
        say(f"{record.phase}, before: {judged}")
        return
    say(
        f"{record.phase} epoch {record.epoch}/{plan.epochs}: loss {record.loss:.4f}, {judged}, "
        f"{record.images_per_second:.1f} images/s{', best so far' if kept else ''}"
    )
