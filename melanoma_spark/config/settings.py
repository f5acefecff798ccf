"""The settings of all jobs: typed, frozen, each with its default and its description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from melanoma_spark.config.data import Augment, Ingest, Privacy
from melanoma_spark.config.evaluation import Evaluate, Register
from melanoma_spark.config.fields import Amount, Count, Days, Section
from melanoma_spark.config.scoring import Score
from melanoma_spark.config.training import Backbone, Featurize, Finetune, Head, Search


class Log(Section):
    """The form of log lines."""

    format: Literal["text", "json"] = Field(
        default="text", description="json: each line is a JSON object, docs/operations.md"
    )


class Prune(Section):
    """Which files of a warehouse are removed, and when, see `operations.retention`. Without `apply` they are listed.

    Those who are responsible for pictures of patients decide how long to keep them, so that has no default.
    """

    apply: bool = Field(default=False, description="remove files; false only lists them")
    unfinished_days: Days = Field(
        default=30, description="days since the last change until what a killed job left is removed"
    )
    worklists_days: Days | None = Field(
        default=None, description="days to keep pictures of a worklist; page, CSV and scores stay; null: forever"
    )
    external_days: Days | None = Field(
        default=180, description="days since the last evaluation of an external set; its reports stay; null: forever"
    )


class Mlflow(Section):
    """Where runs and models are tracked."""

    tracking_uri: str | None = Field(default=None, description="server; default: an SQLite file in the warehouse")
    experiment: str = Field(default="melanoma", description="name of the experiment of the runs")
    system_metrics: bool = Field(default=True, description="log processor, memory and network of the driver's machine")


class Settings(Section):
    """All settings of a job."""

    archive: str | None = Field(default=None, description="URL or path of the archive: a folder, a zip or a tar")
    layout: str | None = Field(default=None, description="of the archive, where it is not recognized automatically")
    target: Literal["melanoma", "malignant"] = Field(default="malignant", description="what label 1 means")
    split: Literal["hash", "from_layout", "test"] = Field(
        default="hash",
        description="by hash of the group; as the archive ships it; or all images are test images",
    )
    warehouse: str = Field(default="warehouse", description="URL or path for all results")
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(
        default=224, description="side in pixels of the stored square"
    )
    seed: int = Field(default=0, description="of splits, augmentation, resamples, and the folds and trials of a search")
    training_seed: int = Field(
        default=0, description="of a head's initial weights, of dropout and of the order of images"
    )
    ranks: Count = Field(default=2, description="Horovod ranks in fine-tuning; each takes one Spark slot")
    wait: Amount = Field(
        default=0, description="seconds to wait for another job of the same kind on the warehouse before ending with 5"
    )
    backbone: Backbone = Backbone()
    privacy: Privacy = Privacy()
    ingest: Ingest = Ingest()
    augment: Augment = Augment()
    featurize: Featurize = Featurize()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(default=Register(), alias="register")
    score: Score = Score()
    search: Search = Search()
    prune: Prune = Prune()
    mlflow: Mlflow = Mlflow()
    log: Log = Log()

    @model_validator(mode="after")
    def _views_differ(self) -> Settings:
        if self.featurize.views > 1 and not self.augment.enabled:
            raise ValueError(
                f"featurize.views={self.featurize.views} would store the same features again and again, because "
                "augment.enabled is false; set augment.enabled=true, or featurize.views=1"
            )
        return self
