"""What modules import when they are imported. Which package may import which: pyproject.toml, `tool.importlinter`."""

import subprocess
import sys

import pytest
from conftest import REPO

FILES = [path for top in ("melanoma_spark", "jobs") for path in sorted((REPO / top).rglob("*.py"))]
ALL = [".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
HEAVY = {"tensorflow", "keras", "horovod"}  # seconds: imported in the functions that need them
OF_JOBS = {"pyspark", "py4j", "petastorm", "mlflow", "fsspec"}
PURE = [name for name in ALL if name.split(".")[1:2] in (["images"], ["metrics"], ["config"])]


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [
        (ALL, HEAVY),
        (PURE, HEAVY | OF_JOBS | {"pandas", "h5py", "pydicom"}),
        # a server of the registered model has all sources, and `pyfunc.requirements` alone
        (["melanoma_spark.models.pyfunc"], (HEAVY | OF_JOBS | {"cv2", "sklearn"}) - {"mlflow", "fsspec"}),
    ],
    ids=["all", "pure", "served"],
)
def test_modules_can_be_imported_without(names, unwanted):
    code = f"import sys; sys.modules.update(dict.fromkeys({unwanted!r})); import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
