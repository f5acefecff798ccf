"""Training of a network, or of the part behind a cut, on any number of ranks.

The ranks are handed in; so are the batches. Every rank takes the same number of steps and ends with the same weights.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from melanoma_spark import metrics
from melanoma_spark.errors import DataError
from melanoma_spark.sharding import Shard

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs (b, ...), labels (b,) float32, weights (b,) float32
Rows = Iterable[tuple[np.ndarray, int]]  # one image's input and label
EpochRows = Callable[[int], Rows]


class Rank(Protocol):
    """What training code sees of the other ranks."""

    rank: int
    size: int

    def optimizer(self, learning_rate: float) -> Any:
        """An Adam whose gradients are averaged over the ranks before they are applied."""

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


# A head's epoch takes a fraction of a second, a network's may take an hour: a line at least this often, and at most.
STEP_SECONDS, EPOCH_SECONDS = 10.0, 2.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a phase trains. `class_weights` are the factors of label 0 and label 1."""

    phase: str
    learning_rate: float
    epochs: int
    patience: int
    class_weights: tuple[float, float]
    seed: int


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


def batches(rows: Rows, shard: Shard, class_weights: tuple[float, float], size: int) -> Iterator[Batch]:
    """Exactly `shard.steps` batches of `shard.batch_size`; what pads the last ones has weight zero.

    Weights are scaled so that the average over the `size` ranks of each batch's mean loss is the mean over the real
    images of that step on all ranks, however unevenly they fall.
    """
    source = iter(rows)
    filler: np.ndarray | None = None
    for step in range(shard.steps):
        inputs, labels = [], []
        for _ in range(shard.batch_size):
            row = next(source, None)
            if row is None:
                break
            inputs.append(row[0])
            labels.append(row[1])
        if inputs:
            filler = np.zeros_like(inputs[0])
        assert filler is not None, "a shard holds at least one row"
        real, missing = len(inputs), shard.batch_size - len(inputs)
        y = np.asarray(labels + [0] * missing, dtype=np.float32)
        scale = shard.batch_size * size / shard.valid(step)
        w = np.where(y > 0.5, class_weights[1], class_weights[0]).astype(np.float32) * np.float32(scale)
        w[real:] = 0
        yield np.stack(inputs + [filler] * missing), y, w


def shuffled(rows: Rows, seed: int, buffer_rows: int) -> Iterator[tuple[np.ndarray, int]]:
    """The same rows in another order: each is drawn at random from a buffer of `buffer_rows`."""
    draw = np.random.default_rng(seed)
    buffer: list[tuple[np.ndarray, int]] = []
    for row in rows:
        if len(buffer) < buffer_rows:
            buffer.append(row)
            continue
        place = int(draw.integers(buffer_rows))
        yield buffer[place]
        buffer[place] = row
    draw.shuffle(buffer)  # type: ignore[arg-type]
    yield from buffer


def train(
    rank: Rank,
    model: Any,
    plan: Plan,
    train_shard: Shard,
    train_rows: EpochRows,
    validation_shard: Shard,
    validation_rows: EpochRows,
    say: Callable[[str], None] = print,
) -> list[EpochRecord]:
    """Train `model` in place and leave it with the weights of its best epoch by validation AUROC.

    The start counts as epoch 0, so training never ends with less than it began with. `train_rows(epoch)` and
    `validation_rows(epoch)` give this rank's rows. Returns the log, the same on every rank. Raises `DataError` when the
    loss is no number any more.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(plan.seed + rank.rank)
    rank.broadcast(model.variables)
    model.compile(
        optimizer=rank.optimizer(plan.learning_rate),
        loss=keras.losses.BinaryCrossentropy(),
        jit_compile=False,  # Horovod's operations have no XLA kernels
    )
    model.optimizer.build(model.trainable_variables)
    signature = (
        tf.TensorSpec([train_shard.batch_size, *model.input.shape[1:]], model.input.dtype),
        tf.TensorSpec([train_shard.batch_size], tf.float32),
        tf.TensorSpec([train_shard.batch_size], tf.float32),
    )

    def stream(epoch: int) -> Any:
        def source() -> Iterator[Batch]:
            rows = shuffled(train_rows(epoch), plan.seed + 1000 * epoch + rank.rank, 16 * train_shard.batch_size)
            yield from batches(rows, train_shard, plan.class_weights, rank.size)

        return tf.data.Dataset.from_generator(source, output_signature=signature).prefetch(2)

    images = sum(train_shard.sizes)
    records = [_measure(rank, model, plan, 0, float("nan"), validation_shard, validation_rows, 0.0, images)]
    best, best_weights = records[0], model.get_weights()
    _log(rank, say, records[-1], plan, kept=False)
    spoke = time.monotonic()
    for epoch in range(1, plan.epochs + 1):
        started = time.monotonic()
        losses = []
        for step, (inputs, labels, weights) in enumerate(stream(epoch), start=1):
            model.reset_metrics()  # else Keras may return the mean since the last reset
            losses.append(float(model.train_on_batch(inputs, labels, sample_weight=weights)))
            if rank.rank == 0 and time.monotonic() - spoke > STEP_SECONDS:
                spoke = time.monotonic()
                say(f"  {plan.phase} epoch {epoch}/{plan.epochs}: step {step}/{train_shard.steps}")
        seconds = time.monotonic() - started
        by_step = rank.gather(np.asarray([losses], np.float64)).mean(axis=0)
        if not np.isfinite(by_step).all():  # of all ranks, so that all of them stop
            step = int(np.argmax(~np.isfinite(by_step))) + 1
            raise DataError(
                f"{plan.phase}: the loss is {by_step[step - 1]} in epoch {epoch}, step {step} of {train_shard.steps}; "
                f"lower the learning rate of this phase (now {plan.learning_rate:g}); what was trained before stands"
            )
        loss = float(np.average(by_step, weights=[train_shard.valid(step) for step in range(train_shard.steps)]))
        records.append(_measure(rank, model, plan, epoch, loss, validation_shard, validation_rows, seconds, images))
        better = _value(records[-1]) > _value(best)
        if better:
            best, best_weights = records[-1], model.get_weights()
        if time.monotonic() - spoke > EPOCH_SECONDS:
            spoke = time.monotonic()
            _log(rank, say, records[-1], plan, better)
        if epoch - best.epoch >= plan.patience:
            break
    model.set_weights(best_weights)
    return records


def best_of(records: list[EpochRecord]) -> EpochRecord:
    """The epoch whose weights `train` keeps: the first with the highest validation AUROC."""
    return max(records, key=_value)


def as_dict(record: EpochRecord) -> dict[str, Any]:
    return asdict(record)


def _value(record: EpochRecord) -> float:
    # One class only in validation leaves AUROC undefined; the loss then decides.
    return -record.validation_loss if np.isnan(record.validation_auroc) else record.validation_auroc


def _measure(
    rank: Rank,
    model: Any,
    plan: Plan,
    epoch: int,
    loss: float,
    shard: Shard,
    rows: EpochRows,
    seconds: float,
    images: int,
) -> EpochRecord:
    """Validation over all ranks: predictions are gathered, never averages of metrics."""
    probabilities, labels = [], []
    for inputs, y, w in batches(rows(epoch), shard, (1.0, 1.0), rank.size):
        real = w > 0
        probabilities.append(np.asarray(model.predict_on_batch(inputs)).reshape(-1)[real])
        labels.append(y[real])
    p = rank.gather(np.concatenate(probabilities).astype(np.float64)).clip(0, 1)
    y = rank.gather(np.concatenate(labels)).astype(int)
    return EpochRecord(
        phase=plan.phase,
        epoch=epoch,
        loss=loss,
        validation_loss=metrics.log_loss(y, p),
        validation_auroc=metrics.auroc(y, p),
        seconds=seconds,
        images_per_second=images / seconds if seconds else 0.0,
    )


def _log(rank: Rank, say: Callable[[str], None], record: EpochRecord, plan: Plan, kept: bool) -> None:
    if rank.rank != 0:
        return
    judged = f"validation loss {record.validation_loss:.4f}, AUROC {record.validation_auroc:.4f}"
    if record.epoch == 0:
        say(f"  {record.phase}, before: {judged}")
        return
    say(
        f"  {record.phase} epoch {record.epoch}/{plan.epochs}: loss {record.loss:.4f}, {judged}, "
        f"{record.images_per_second:.1f} images/s{', best so far' if kept else ''}"
    )
