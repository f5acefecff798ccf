"""The rooms of docs/architecture.md: who may import whom, read from the sources."""

import ast
import subprocess
import sys
from functools import cache

import pytest
from conftest import REPO

ROOT = REPO / "melanoma_spark"
PACKAGE = {path.stem: path for path in sorted(ROOT.rglob("*.py")) if path.stem != "__init__"}
PACKAGE = {name: path for name, path in PACKAGE.items() if path.parent.name != "containers"}
PACKAGE["containers"] = next(ROOT.rglob("containers/__init__.py")).parent  # as one module
DOTTED = {".".join(path.relative_to(REPO).with_suffix("").parts): name for name, path in PACKAGE.items()}
JOBS = {path.stem: path for path in sorted((REPO / "jobs").glob("*.py")) if path.stem != "__init__"}

# The rooms. A new module belongs into one of them, and into docs/architecture.md.
CORE = {
    *(
        "errors",
        "clock",
        "loading",
        "settings",
        "damage",
        "dicom",
        "decoding",
        "layouts",
        "groups",
        "splits",
        "sharding",
        "lineage",
    ),
    *("containers", "diagnoses", "background", "tables", "binary", "bootstrap", "figures", "synthetic"),
    *("operating_points", "augmentation", "trials", "calibration", "subgroups", "shortcuts", "gate", "quality"),
    *("training_reference", "statistics", "logs", "checks", "retention"),
}
TENSORFLOW = {"backbones", "network", "loop", "head", "gradcam", "engines", "ncnn"}
# Every other module, and the outside system it is there for: what it may import when it is itself imported.
SYSTEMS = {
    "schemas": {"petastorm", "pyspark"},
    "session": {"pyspark", "py4j"},
    "archive": {"pyspark"},
    "records": {"pyspark"},
    "selection": {"pyspark"},
    "summary": {"pyspark"},
    "inference": {"pyspark"},
    "store": set(),
    "reading": set(),
    "executors": set(),
    "lease": {"psutil"},
    "horovod": {"cloudpickle"},
    "tracking": set(),  # MLflow takes seconds to import, so it is imported where it is used
    "pyfunc": {"mlflow"},
    "bundle": set(),
    "pages": {"jinja2"},
    "report": {"matplotlib"},
    "datacard": set(),  # its pages come from pages, its contact sheet from Pillow
    "files": {"fsspec"},
    "hdfs": {"hdfs_native"},  # file systems of fsspec, which files names to it
    "s3": {"botocore", "s3fs"},
    "weights": set(),
    "alias_history": set(),
    "worklist_page": set(),
    "ledger": {"pyspark"},
    "batches": set(),
    "landing": {"pyspark"},
}
# ... and what it may import inside its functions besides.
LATER = {
    "engines": {"onnx", "onnxruntime", "tf2onnx"},
    "ncnn": {"ncnn"},
    "training_reference": {"sklearn"},  # at registration
    "dicom": {"pydicom"},  # of the core, which else has no systems: half a second that only hospital exports pay
    "store": {"petastorm", "pyarrow", "pyspark"},
    "reading": {"petastorm", "pyarrow"},
    "executors": {"psutil", "py4j", "pyspark"},
    "horovod": {"horovod", "keras", "tensorflow"},
    "tracking": {"mlflow"},
    "pyfunc": {"tensorflow"},
    "weights": {"h5py", "keras"},
}
# Beneath the edges: each of them may import these.
CONTRACT = {"schemas"}
BENEATH = {"files", "pages", "session"}
# Edges that import another edge or a network, each with its reason.
EXCEPTIONS = {
    ("inference", "engines"): "the same, without TensorFlow",
    ("inference", "network"): "loads on the executor, inside a function, what the job named by its spec",
    ("bundle", "network"): "what is registered is a network, and what its answers mean",
    ("pyfunc", "network"): "the model that MLflow serves is the network",
    ("pyfunc", "bundle"): "the same, without MLflow, which workers of score do not import",
    ("weights", "backbones"): "what a backbone's file is called, and its id, stand with the backbone",
    ("reading", "store"): "what one writes through Petastorm the other reads, with the same warnings",
    ("landing", "archive"): "what lands is what a listing walks over",
    ("ledger", "batches"): "which batches there are is told without Spark, too",
    ("tracking", "bundle"): "what is kept with a version is a bundle, whose files stand with it",
    ("tracking", "pyfunc"): "registering logs the served model, inside a function",
}
PLAIN = set(sys.stdlib_module_names) | {"numpy"}
OF_CORE = PLAIN | {"PIL", "simplejpeg", "yaml", "pydantic", "scipy"}
OF_EDGES = OF_CORE | {"pandas"}
# What one module of the core needs besides; not all of it, because the registered model comes without this.
BESIDES = {"augmentation": {"cv2"}, "shortcuts": {"cv2", "sklearn"}}
# Jobs that make nothing which another one reads.
BESIDE_THE_LINE = {"search", "external", "worklist", "drift", "status", "follow", "doctor", "prune"}
HEAVY = {"tensorflow", "keras", "horovod"}


@cache
def imports(path):
    """(name, whether when the module is imported) of all imports: `a.b` for `import a.b`, `a.b` for `from a import b`.

    Under `if TYPE_CHECKING` nothing is imported.
    """
    found = []

    def walk(node, top):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found.extend((f"{node.module}.{alias.name}", top) for alias in node.names)
        inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, inner)

    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        walk(ast.parse(file.read_text()), True)
    return found


def outside(path, only_top=False):
    """The packages of others that a module imports."""
    names = {name.partition(".")[0] for name, top in imports(path) if top or not only_top}
    return names - {"melanoma_spark", "jobs"}


def own(path, package="melanoma_spark"):
    """The modules of a package of ours that a module imports, wherever it does."""
    names = {name for name, _ in imports(path) if name.split(".")[0] == package}
    if package == "jobs":
        return {name.split(".")[1] for name in names if "." in name}
    found = {DOTTED[name] for name in names if name in DOTTED}
    return found | {DOTTED[above] for name in names if (above := name.rpartition(".")[0]) in DOTTED}


def every(*modules):
    return pytest.mark.parametrize("name", sorted(*modules))


def test_imports_are_found_wherever_they_hide(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import a.b as c\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import never\n"
        "try:\n    import tried\nexcept ImportError:\n    from d import e, f\n"
        "class Thing:\n    import of_class\n    def method(self):\n        import later\n"
        "def function():\n    class Inner:\n        from g.h import i\n"
    )
    assert imports(source) == [
        ("a.b", True),
        ("typing.TYPE_CHECKING", True),
        ("tried", True),
        ("d.e", True),
        ("d.f", True),
        ("of_class", True),
        ("later", False),
        ("g.h.i", False),
    ]


def test_every_module_stands_in_exactly_one_room():
    rooms = [*CORE, *TENSORFLOW, *SYSTEMS]
    assert sorted(rooms) == sorted(PACKAGE), "put a new module into a room here and in docs/architecture.md"


def test_architecture_document_names_every_module():
    words = set((REPO / "docs" / "architecture.md").read_text().replace("`", " ").split())
    assert set(PACKAGE) <= words


@every(CORE)
def test_core_imports_only_the_core_and_what_reads_numbers_images_and_settings(name):
    assert outside(PACKAGE[name], only_top=True) <= OF_CORE | BESIDES.get(name, set())
    assert outside(PACKAGE[name]) <= OF_CORE | BESIDES.get(name, set()) | LATER.get(name, set())
    assert own(PACKAGE[name]) <= CORE


def test_the_registered_model_reaches_nothing_that_its_requirements_lack():
    """It comes with all sources of the package, but not with all packages: those of `serving.requirements`."""
    reached, todo = set(), {"pyfunc"}
    while todo:
        reached |= todo
        todo = set().union(*(own(PACKAGE[name]) for name in todo)) - reached
    assert {"network", "decoding"} <= reached
    assert not reached & BESIDES.keys()


@every(TENSORFLOW)
def test_networks_import_the_core_each_other_and_keras_inside_functions(name):
    assert outside(PACKAGE[name], only_top=True) <= OF_CORE
    assert outside(PACKAGE[name]) <= OF_CORE | {"keras", "tensorflow"} | LATER.get(name, set())
    assert own(PACKAGE[name]) <= CORE | TENSORFLOW


@every(SYSTEMS)
def test_edge_imports_its_own_outside_system_and_no_other(name):
    assert outside(PACKAGE[name], only_top=True) <= OF_EDGES | SYSTEMS[name]
    assert outside(PACKAGE[name]) <= OF_EDGES | SYSTEMS[name] | LATER.get(name, set())


@every(SYSTEMS)
def test_edges_import_core_and_contract_and_never_each_other(name):
    beyond = own(PACKAGE[name]) - CORE - CONTRACT - BENEATH - {name}
    assert beyond == {other for edge, other in EXCEPTIONS if edge == name}, "or it stands in EXCEPTIONS for nothing"


@every(CONTRACT | BENEATH)
def test_what_lies_beneath_the_edges_imports_the_core_alone(name):
    assert own(PACKAGE[name]) <= CORE


@every(PACKAGE)
def test_no_module_of_the_package_imports_a_job(name):
    assert own(PACKAGE[name], "jobs") == set()
    assert "jobs" not in {found for found, _ in imports(PACKAGE[name])}


@pytest.mark.parametrize(
    "path", [*PACKAGE.values(), *JOBS.values()], ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_tensorflow_keras_and_horovod_are_imported_inside_functions_only(path):
    assert not outside(path, only_top=True) & HEAVY


def test_core_and_networks_drag_in_no_outside_system():
    modules = ", ".join(sorted(dotted for dotted, name in DOTTED.items() if name in CORE | TENSORFLOW))
    code = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    told = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert "melanoma_spark" in told.split()
    assert not set(told.split()) & (
        HEAVY | {"pyspark", "py4j", "petastorm", "mlflow", "pandas", "fsspec", "h5py", "pydicom"}
    )


@every(JOBS)
def test_only_the_pipeline_imports_other_stages(name):
    others = own(JOBS[name], "jobs")
    if name == "pipeline":
        assert others == set(JOBS) - BESIDE_THE_LINE - {"pipeline", "judging"}
    elif name == "job":
        assert others == set()
    elif name == "external":
        assert others == {"ingest", "judging", "job"}
    else:
        parts = {
            "evaluate": {"external"},
            "register": {"drift"},
            "score": {"worklist", "drift", "status", "follow"},
        }
        assert others <= {"job", "judging"} | parts.get(name, set())
