"""The packages of a wheel; pyproject.toml has all else, uv.lock the exact versions with their hashes."""

from setuptools import find_packages, setup

setup(
    # A wheel has jobs/ and conf/ inside the package: a top-level package `jobs` could collide with another.
    packages=[*find_packages(include=["melanoma_spark*"]), "melanoma_spark.jobs", "melanoma_spark.conf"],
    package_dir={"melanoma_spark.jobs": "jobs", "melanoma_spark.conf": "conf"},
)
