"""README and docs/ against the code: their commands, settings, make targets and files are valid."""

import re
import shlex
import subprocess

import pytest
import yaml
from conftest import REPO, command

from melanoma_spark import config, errors
from melanoma_spark.runner.cli import invoke

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/**/*.md"))]
TEXTS = {str(path.relative_to(REPO)): path.read_text() for path in PAGES if path.parent.name != "api"}
COMMAND = "melanoma-spark"
FOLDERS = r"\.ci|\.github|benchmarks|conf|docs|examples|jobs|melanoma_spark|tests"


def result(pattern: str, texts: dict[str, str]) -> list[tuple[str, str]]:
    """Each text that the first group of a pattern matches, with the page of its first place."""
    places = {match[1]: page for page, text in texts.items() for match in re.finditer(pattern, text, re.M | re.S)}
    return sorted((page, text) for text, page in places.items())


def job_words(command: str) -> list[str]:
    """The job and its words of a command line, as melanoma-spark gives them to the job: without Spark's options."""
    settings, words, rest = [], [], iter(shlex.split(command.replace("\\\n", " "), comments=True))
    for word in rest:
        if word == "--conf" and (value := next(rest)).endswith(".yaml"):
            settings = ["--conf", str(REPO / value)] if (REPO / value).exists() else []  # else it is the reader's own
        elif word.startswith("--") and word not in ("--conf", "--check", "--help", "--follow"):
            next(rest)
        elif word not in ("--conf", "..."):
            words.append(word)
    return [words[0], *settings, *words[1:]]


COMMANDS = result(rf"{re.escape(COMMAND)} ((?:[a-z_]+)(?: (?:\\\n|'[^'\n]*'|[^`'\n|])*)?)", TEXTS)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_that_start_a_job_have_valid_words(page, line):
    name, *words = job_words(line)
    if name != "package":
        done = invoke(command(name), [*words, "--check"])
        assert done.exit_status == 0 or "no archive named" in done.summary, done.log  # a part of a command


@pytest.mark.parametrize(("page", "block"), result(r"^```yaml\n(.*?)^```", TEXTS))
def test_blocks_of_yaml_are_settings(page, block):
    assert config.parse(yaml.safe_load(block))


DIFFS = [diff for _, diff in result(r"^```diff\n(.*?)^```", TEXTS)]


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: re.findall(r"\+\+\+ b/(.*)", diff)[0])
def test_diffs_apply_to_the_code_and_change_two_files_at_most(diff):
    done = subprocess.run(["git", "apply", "--check", "-"], input=diff, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert diff.count("\n+++ ") <= 2


def test_make_targets_files_and_functions_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (REPO / "Makefile").read_text(), re.MULTILINE))
    named = result(r"(?:`|^|&& |GPU=1 )make ([a-z-]+)(?=[`\s])", TEXTS)
    assert {"install", "demo", "docs"} <= {target for _, target in named} <= targets
    named = result(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w)", TEXTS)
    assert len(named) > 50
    assert [(page, name) for page, name in named if not list(REPO.glob(name))] == []

    code = {path.stem: path.read_text() for path in REPO.glob("melanoma_spark/**/*.py")}
    fields = {*(key.partition(".")[0] for key in config.valid_keys()), "counts", "tables"}  # of settings and batch.json
    names = [name.split(".") for _, name in result(r"`([a-z_]+\.[a-z_]+)(?:`|\()", TEXTS)]
    named = [(module, name) for module, name in names if module in code.keys() - fields and name not in ("py", "npz")]
    assert len(named) > 8
    assert [(module, name) for module, name in named if not re.search(rf"\b{name}\b", code[module])] == []


def test_pre_commit_runs_the_checks_of_make_lint():
    lint = (REPO / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert re.findall(r"&& (\.venv/bin/.*)", lint) == [hook["entry"] for hook in hooks]


def test_messages_of_the_page_of_exit_statuses_are_in_the_code():
    code = "".join(path.read_text() for path in [*REPO.glob("melanoma_spark/**/*.py"), REPO / "conf/find-java.sh"])
    table = TEXTS["docs/exit-statuses.md"].partition("| the line says |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    parts = [part.strip() for cell in cells for text in re.findall("`(.+?)`", cell) for part in text.split("...")]
    assert len(parts) > 8
    assert [part for part in parts if part not in code and not re.search(errors.FULL, part)] == []
