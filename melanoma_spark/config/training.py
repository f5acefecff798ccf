"""Settings of models and their training: backbone, features, head, fine-tuning and search."""

from typing import Annotated, Literal, Self

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
    setting,
)


class Backbone(Section):
    """The convolutional base."""

    name: str = setting("vgg16", "vgg16, resnet50, inception_v3, xception, or one that an installed package adds")
    weights: str = setting("imagenet", "imagenet, random, or the path or URL of a Keras HDF5 file with the weights")
    allow_random: bool = setting(False, "allow random weights; for the demo and the tests only")

    @model_validator(mode="after")
    def _random_is_for_the_demo(self) -> Self:
        if self.weights == "random" and not self.allow_random:
            raise ValueError(
                "random weights make useless features; set backbone.weights=imagenet, or the path of a weights file"
            )
        return self


class Featurize(Section):
    """How the backbone's features are computed and stored."""

    dtype: Literal["float16", "float32"] = setting("float16", "of the stored features")
    precision: Precision = setting("float32", PRECISION)
    engine: Engine = setting("auto", ENGINE)
    batch_size: Count = setting(16, "images that the network computes at once")
    views: Count = setting(1, "stored versions of each train image: the image as it is, and views - 1 augmented ones")


class Head(Section):
    """Global average pooling -> dense -> dropout -> sigmoid, on the bottleneck features."""

    hidden: Count = setting(256, "units of the dense layer")
    dropout: BelowOne = setting(0.5, "share of the units that are dropped in training")
    learning_rate: Rate = setting(1e-3, "of the optimizer Adam")
    epochs: Count = setting(60, "passes over the train images, at most")
    patience: Count = setting(10, "epochs without a better validation AUROC before training stops")
    batch_size: Count = setting(32, "images of a training step")
    views: Count | None = setting(None, "stored views of each train image that training uses in turn; default: all")


class Phase(Section):
    """One phase of fine-tuning: layers behind `cut` are trained, layers before it are frozen.

    Frozen layers are not computed again: a phase with a `cut` reads the features of that cut, others read pixels.
    """

    name: str = Field(description="of the phase, in logs, MLflow and the report")
    cut: str | None = setting(None, "a layer of the backbone, or `last_block`")
    learning_rate: Rate = setting(1e-5, "of the optimizer, after the warm-up")
    epochs: Count = setting(5, "passes over the train images, at most")
    patience: Count = setting(2, "epochs without a better validation AUROC before the phase stops")
    warmup_epochs: Amount = setting(0, "epochs in which the rate rises linearly to its value")


class Finetune(Section):
    """Training of the backbone's last layers, or of all, over Horovod ranks."""

    batch_size: Count = setting(16, "images of a training step, over all ranks together")
    phases: tuple[Phase, ...] = setting(
        (Phase(name="last_block", cut="last_block"), Phase(name="all", learning_rate=1e-6, epochs=2)),
        "in order; each has name, cut, learning_rate, epochs, patience and warmup_epochs",
    )
    rates_for_batch: Count | None = setting(
        None,
        "the batch size that the learning rates are for: with k times as many images a step they are multiplied by k",
    )
    precision: Precision = setting("float32", PRECISION)
    accumulate: Count = setting(1, "pieces in which a rank computes its part of a step; more take less memory")
    float16_gradients: bool = setting(False, "send gradients as float16, half as many bytes")
    read_ahead_mb: Count = setting(64, "MiB that a rank reads before it needs them")
    checkpoint_steps: Count = setting(50, "steps between checkpoints; each epoch has at least one checkpoint")
    retries: Whole = setting(2, "restarts from the last checkpoint after a rank was lost")
    start_timeout: Count = setting(180, "seconds within which all ranks must start")

    @model_validator(mode="after")
    def _phases_have_names_of_their_own(self) -> Self:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"finetune.phases needs at least one phase, each with a name of its own; found {names}")
        return self


class Search(Section):
    """Cross-validation of several heads. Lists hold the values to try; the settings in force are always tried too."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = setting((64, 256, 1024), "head.hidden to try")
    dropout: Annotated[tuple[BelowOne, ...], Field(min_length=1)] = setting((0.2, 0.5, 0.7), "head.dropout to try")
    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)] = setting(
        (3e-4, 1e-3, 3e-3), "head.learning_rate to try"
    )
    views: Annotated[tuple[Count, ...], Field(min_length=1)] = setting(
        (1,), "head.views to try; at most as many as are stored"
    )
    tta: Annotated[tuple[Symmetries, ...], Field(min_length=1)] = setting(
        (1,), "evaluate.tta to try; 8 takes seven more passes of the backbone over each image"
    )
    trials: Count = setting(
        8, "heads to try, drawn at random where the lists allow more; 1 cross-validates the head in force alone"
    )
    folds: Annotated[int, Field(ge=2)] = setting(
        5, "of the groups of train and validation images; each is held out once"
    )
    grouped: bool = setting(
        True, "false: folds by image, ignoring patients, lesions and twins, to see by how much that flatters a head"
    )
    seeds: Count = setting(3, "fits of each head on each fold, with training_seed, +1, +2, ...")
