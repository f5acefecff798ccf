"""Melanoma classification on Spark: from an archive of dermoscopy images to scores."""

from melanoma_spark import compatibility

__version__ = "0.2.0"
# Files that belong to the package: they travel to executors, and into every registered model.
SUFFIXES = (".py", ".html", ".csv", ".md")

compatibility.install()
