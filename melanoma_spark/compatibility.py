"""Old names of modules, up to version 0.1, for one release: models registered then import these.

MLflow loads a registered model with the code that was packed with it. In a process that has imported this package, that
code gets the modules of this package, by their old names.
"""

import importlib
import sys
import warnings
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "melanoma_spark"
MOVED = {
    "backbones": "models.backbones",
    "bundle": "models.bundle",
    "calibration": "models.calibration",
    "files": "storage.files",
    "network": "models.network",
    "operating_points": "models.operating_points",
    "reference": "models.training_reference",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of `MOVED` under their old names."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that moved; None for any other."""
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Give a module the attributes of the one that replaces it, with a warning."""
        new = f"{PACKAGE}.{MOVED[module.__name__.rpartition('.')[2]]}"
        warnings.warn(f"{module.__name__} has moved to {new}", DeprecationWarning, stacklevel=2)
        module.__getattr__ = partial(getattr, importlib.import_module(new))  # type: ignore[method-assign]


def install() -> None:
    """Make imports of old names work in this process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
