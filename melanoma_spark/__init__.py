"""Melanoma classification on Spark: from an archive of dermoscopy images to scores."""

__version__ = "0.1.0"
