"""The settings of all jobs: typed, frozen, each with its default and its description."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from melanoma_spark.config.data import Augment, Ingest, Privacy
from melanoma_spark.config.evaluation import Evaluate, Register
from melanoma_spark.config.fields import Amount, Count, Days, Section, setting
from melanoma_spark.config.scoring import Score
from melanoma_spark.config.training import Backbone, Featurize, Finetune, Head, Search


class Log(Section):
    """The form of log lines."""

    format: Literal["text", "json"] = setting("text", "json: each line is a JSON object, docs/operations.md")


class Prune(Section):
    """Which files of a warehouse are removed, and when, see `operations.retention`. Without `apply` they are listed.

    Those who are responsible for pictures of patients decide how long to keep them, so that has no default.
    """

    apply: bool = setting(False, "remove files; false only lists them")
    unfinished_days: Days = setting(30, "days since the last change until what a killed job left is removed")
    worklists_days: Days | None = setting(
        None, "days to keep pictures of a worklist; page, CSV and scores stay; null: forever"
    )
    external_days: Days | None = setting(
        180, "days since the last evaluation of an external set; its reports stay; null: forever"
    )


class Mlflow(Section):
    """Where runs and models are tracked."""

    tracking_uri: str | None = setting(None, "server; default: an SQLite file in the warehouse")
    experiment: str = setting("melanoma", "name of the experiment of the runs")
    system_metrics: bool = setting(True, "log processor, memory and network of the driver's machine")


class Settings(Section):
    """All settings of a job."""

    archive: str | None = setting(None, "URL or path of the archive: a folder, a zip or a tar")
    layout: str | None = setting(None, "of the archive, where it is not recognized automatically")
    target: Literal["melanoma", "malignant"] = setting("malignant", "what label 1 means")
    split: Literal["hash", "from_layout", "test"] = setting(
        "hash", "by hash of the group; as the archive ships it; or all images are test images"
    )
    warehouse: str = setting("warehouse", "URL or path for all results")
    image_size: Annotated[int, Field(ge=32, le=1024)] = setting(224, "side in pixels of the stored square")
    seed: int = setting(0, "of splits, augmentation, resamples, and the folds and trials of a search")
    training_seed: int = setting(0, "of a head's initial weights, of dropout and of the order of images")
    ranks: Count = setting(2, "Horovod ranks in fine-tuning; each takes one Spark slot")
    wait: Amount = setting(0, "seconds to wait for another job of the same kind on the warehouse before ending with 5")
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
    def _views_differ(self) -> Self:
        if self.featurize.views > 1 and not self.augment.enabled:
            raise ValueError(
                f"featurize.views={self.featurize.views} would store the same features again and again, because "
                "augment.enabled is false; set augment.enabled=true, or featurize.views=1"
            )
        return self
