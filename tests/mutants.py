"""Mutants of the modules in which a wrong line is worst: how many of them cheap tests kill. `make mutants` runs it.

The sample is fixed: of each module every k-th mutant, in the order in which mutmut numbers them. mutmut leaves
functions with a decorator as they are. A mutant that no test reaches counts as survived.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
WORK = REPO / "build/mutants"
EVERY = {
    "dataset.splits": 1,
    "dataset.groups": 1,
    "training.sharding": 2,
    "metrics.arrays": 12,
    "metrics.binary": 12,
    "metrics.counts": 12,
    "models.operating_points": 3,
    "scoring.ledger": 24,
    "storage.lease": 2,
    "registry.gate": 3,
}
TESTS = ("splits", "groups", "twins", "sharding", "metrics", "bootstrap", "operating_points", "ledger", "lease", "gate")


def path_of(module: str) -> str:
    return f"melanoma_spark/{module.replace('.', '/')}.py"


def copy_tree() -> None:
    """The files of the repository, without what git ignores, and mutmut's settings."""
    shutil.rmtree(WORK, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPO / name).exists():
            (WORK / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, WORK / name, follow_symlinks=False)
    tests = [str(path.relative_to(WORK)) for path in (WORK / "tests").rglob("test_*.py") if path.stem[5:] in TESTS]
    settings = {
        "source_paths": ["melanoma_spark"],
        "only_mutate": [path_of(module) for module in EVERY],
        "also_copy": sorted(path.name for path in WORK.iterdir() if path.name != "melanoma_spark"),
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": sorted(tests),
        "process_isolation": "forkserver",  # a worker that had a JVM before it was forked would share it
        "timeout_constant": 5.0,  # seconds; the start of a JVM is not among what mutmut measures
        "use_git_change_detection": False,
    }
    with (WORK / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n")
        for key, value in settings.items():
            file.write(f"{key} = {json.dumps(value)}\n")
    assert tomllib.loads((WORK / "pyproject.toml").read_text())["tool"]["mutmut"] == settings


def sample() -> dict[str, list[str]]:
    """Module -> names of the mutants of the sample."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    chosen = {}
    for module, step in EVERY.items():
        path = path_of(module)
        names = mutate_file_contents(path, Path(path).read_text(), None, None).mutant_names
        chosen[module] = [f"melanoma_spark.{module}.{name}" for name in list(names)[::step]]
    return chosen


def outcomes(module: str) -> dict[str, str]:
    """Name of a mutant -> its status by mutmut."""
    from mutmut.stats import status_by_exit_code

    codes = json.loads(Path(f"mutants/{path_of(module)}.meta").read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def main() -> None:
    copy_tree()
    os.chdir(WORK)
    chosen = sample()
    names = [name for of_module in chosen.values() for name in of_module]
    print(f"{len(names)} mutants", flush=True)
    mutmut = Path(sys.executable).parent / "mutmut"
    subprocess.run([mutmut, "run", "--max-children", str(os.cpu_count()), *names], check=True)
    rows, survived = [], []
    for module, of_module in chosen.items():
        result = outcomes(module)
        killed = [name for name in of_module if result[name] in ("killed", "timeout")]
        survived += [f"{name}: {result[name]}" for name in of_module if name not in killed]
        rows.append((module, len(of_module), len(killed)))
    rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2))))
    print("\n".join(["", *survived, "", f"show one: cd {WORK} && {mutmut} show NAME", ""]))
    print(f"{'module':20} {'mutants':>8} {'killed':>8} {'survived':>8} {'share':>8}")
    for module, count, killed in rows:
        print(f"{module:20} {count:8} {killed:8} {count - killed:8} {killed / count:8.1%}")


if __name__ == "__main__":
    main()
