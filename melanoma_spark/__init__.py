"""Melanoma classification on Spark: from an archive of dermoscopy images to scores."""

from melanoma_spark import compatibility

__version__ = "0.1.0"

compatibility.install()
