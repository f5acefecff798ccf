"""Settings of models and their training: backbone, features, head, fine-tuning and search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from melanoma_spark.config.fields import (
    ENGINE,
    PRECISION,
    Amount,
    BelowOne,
    Count,
    Engine,
    Precision,
    Rate,
    Section,
    Symmetries,
    Whole,
)


class Backbone(Section):
    """The convolutional base."""

    name: str = Field(
        default="vgg16", description="vgg16, resnet50, inception_v3, xception, or one that an installed package adds"
    )
    weights: str = Field(
        default="imagenet", description="imagenet, random, or the path or URL of a Keras HDF5 file with the weights"
    )
    allow_random: bool = Field(default=False, description="allow random weights; for the demo and the tests only")

    @model_validator(mode="after")
    def _random_is_for_the_demo(self) -> Backbone:
        if self.weights == "random" and not self.allow_random:
            raise ValueError("random weights make useless features; use imagenet or the path of a weights file")
        return self


class Featurize(Section):
    """How the backbone's features are computed and stored."""

    dtype: Literal["float16", "float32"] = Field(default="float16", description="of the stored features")
    precision: Precision = Field(default="float32", description=PRECISION)
    engine: Engine = Field(default="auto", description=ENGINE)
    batch_size: Count = Field(default=16, description="images that the network computes at once")
    views: Count = Field(
        default=1, description="stored versions of each train image: the image as it is, and views - 1 augmented ones"
    )


class Head(Section):
    """Global average pooling -> dense -> dropout -> sigmoid, on the bottleneck features."""

    hidden: Count = Field(default=256, description="units of the dense layer")
    dropout: BelowOne = Field(default=0.5, description="share of the units that are dropped in training")
    learning_rate: Rate = Field(default=1e-3, description="of the optimizer Adam")
    epochs: Count = Field(default=60, description="passes over the train images, at most")
    patience: Count = Field(default=10, description="epochs without a better validation AUROC before training stops")
    batch_size: Count = Field(default=32, description="images of a training step")
    views: Count | None = Field(
        default=None, description="stored views of each train image that training uses in turn; default: all"
    )


class Phase(Section):
    """One phase of fine-tuning: layers behind `cut` are trained, layers before it are frozen.

    Frozen layers are not computed again: a phase with a `cut` reads the features of that cut, others read pixels.
    """

    name: str = Field(description="of the phase, in logs, MLflow and the report")
    cut: str | None = Field(default=None, description="a layer of the backbone, or `last_block`")
    learning_rate: Rate = Field(default=1e-5, description="of the optimizer, after the warm-up")
    epochs: Count = Field(default=5, description="passes over the train images, at most")
    patience: Count = Field(default=2, description="epochs without a better validation AUROC before the phase stops")
    warmup_epochs: Amount = Field(default=0, description="epochs in which the rate rises linearly to its value")


class Finetune(Section):
    """Training of the backbone's last layers, or of all, over Horovod ranks."""

    batch_size: Count = Field(default=16, description="images of a training step, over all ranks together")
    phases: tuple[Phase, ...] = Field(
        default=(Phase(name="last_block", cut="last_block"), Phase(name="all", learning_rate=1e-6, epochs=2)),
        description="in order; each has name, cut, learning_rate, epochs, patience and warmup_epochs",
    )
    rates_for_batch: Count | None = Field(
        default=None,
        description="the batch size that the learning rates are for: with k times as many images a step they are "
        "multiplied by k",
    )
    precision: Precision = Field(default="float32", description=PRECISION)
    accumulate: Count = Field(
        default=1, description="pieces in which a rank computes its part of a step; more take less memory"
    )
    float16_gradients: bool = Field(default=False, description="send gradients as float16, half as many bytes")
    read_ahead_mb: Count = Field(default=64, description="MiB that a rank reads before it needs them")
    checkpoint_steps: Count = Field(
        default=50, description="steps between checkpoints; each epoch has at least one checkpoint"
    )
    retries: Whole = Field(default=2, description="restarts from the last checkpoint after a rank was lost")
    start_timeout: Count = Field(default=180, description="seconds within which all ranks must start")

    @model_validator(mode="after")
    def _phases_have_names_of_their_own(self) -> Finetune:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"finetune.phases needs at least one phase, each with a name of its own; found {names}")
        return self


class Search(Section):
    """Cross-validation of several heads. Lists hold the values to try; the settings in force are always tried too."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(64, 256, 1024), description="head.hidden to try"
    )
    dropout: Annotated[tuple[BelowOne, ...], Field(min_length=1)] = Field(
        default=(0.2, 0.5, 0.7), description="head.dropout to try"
    )
    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)] = Field(
        default=(3e-4, 1e-3, 3e-3), description="head.learning_rate to try"
    )
    views: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(1,), description="head.views to try; at most as many as are stored"
    )
    tta: Annotated[tuple[Symmetries, ...], Field(min_length=1)] = Field(
        default=(1,), description="evaluate.tta to try; 8 takes seven more passes of the backbone over each image"
    )
    trials: Annotated[int, Field(ge=2)] = Field(
        default=8, description="heads to try, drawn at random where the lists allow more"
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        default=5, description="of the groups of train and validation images; each is held out once"
    )
    seeds: Count = Field(default=3, description="fits of each head on each fold, with training_seed, +1, +2, ...")
