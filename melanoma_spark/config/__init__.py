"""Settings: what they are, and how they are read."""

from melanoma_spark.config.data import NAME_KEY, Augment, Ingest, Labels
from melanoma_spark.config.evaluation import CalibrationMethod, Evaluate, Gate, Register
from melanoma_spark.config.fields import Symmetries
from melanoma_spark.config.loading import (
    flatten,
    load,
    log_format,
    notable_settings,
    parse,
    public_settings,
    valid_keys,
)
from melanoma_spark.config.scoring import Drift, DriftMeasure, Quality
from melanoma_spark.config.settings import Mlflow, Prune, Settings
from melanoma_spark.config.training import Backbone, Featurize, Finetune, Head, Phase, Search

# fmt: off
__all__ = [
    "NAME_KEY", "Augment", "Backbone", "CalibrationMethod", "Drift", "DriftMeasure", "Evaluate", "Featurize",
    "Finetune", "Gate", "Head", "Ingest", "Labels", "Mlflow", "Phase", "Prune", "Quality", "Register", "Search",
    "Settings", "Symmetries", "flatten", "load", "log_format", "notable_settings", "parse", "public_settings",
    "valid_keys",
]
# fmt: on
