"""Makes pages from the code at build time: settings, command line, decisions and API.

Directives such as `settings` insert Markdown into the page that names them. Pages of the API are files below docs/api,
which git ignores.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, cast

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

if TYPE_CHECKING:
    from melanoma_spark.runner.cli import Command

REPO = Path(__file__).parents[2]
NO_BREAK = "\N{NON-BREAKING HYPHEN}"
DECISION = re.compile(r"# (?P<title>.+)\n\nDecision (?P<number>\d+), (?P<date>[\d-]+)\. Status: (?P<status>.+)\.\n")


# A part of the JSON schema that pydantic makes of the settings.
Schema = TypedDict(
    "Schema",
    {
        "$defs": "dict[str, Schema]",
        "$ref": str,
        "anyOf": "list[Schema]",
        "default": object,
        "description": str,
        "enum": list[str],
        "exclusiveMaximum": float,
        "exclusiveMinimum": float,
        "items": "Schema",
        "maximum": float,
        "minimum": float,
        "properties": "dict[str, Schema]",
        "type": str,
    },
    total=False,
)


def cell(text: str) -> str:
    """Return text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def settings_tables() -> str:
    """Return a table for each section of the settings: default, valid values and description of each key."""
    from melanoma_spark.config import Settings

    schema = cast(Schema, Settings.model_json_schema(by_alias=True))
    general: dict[str, Schema] = {}
    sections: list[tuple[str, Schema]] = [("", {**schema, "properties": general})]
    pending = [("", schema)]
    while pending:
        prefix, section = pending.pop(0)
        inner = []
        for name, field in section["properties"].items():
            reference = field.get("$ref") or (field.get("items") or {}).get("$ref")
            if not reference:
                if not prefix:
                    general[name] = field
                continue
            if "items" in field:  # a list of sections
                (general if not prefix else section["properties"])[name] = {**field, "items": {"type": "phase"}}
            title = f"{prefix}{name}" + ("[]" if "items" in field else "")
            inner.append((title, schema["$defs"][reference.rpartition("/")[2]]))
        sections += inner
        pending += [(f"{title}.", section) for title, section in inner]
    return "\n\n".join(section_table(title, section) for title, section in sorted(sections, key=lambda one: one[0]))


def section_table(title: str, section: Schema) -> str:
    """Return a section of the settings as a heading, its description and a table."""
    lines = [f"## `{title}`" if title else "## General", ""]
    if title and section.get("description"):
        lines += [as_markdown(section["description"]), ""]
    rows = []
    for name, field in section["properties"].items():
        if "$ref" not in field:
            values, description = cell(values_text(field)), cell(field.get("description", ""))
            key = f"{title}.{name}" if title else name
            rows.append(f"| `{key}` | {default_text(field)} | {values} | {description} |")
    named = ["```{rst-class} settings", "```", ""]  # for site.css
    head = [*named, "| setting | default | values | description |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *head, *rows] if rows else lines)


def default_text(field: Schema) -> str:
    """Return the default of a key as Markdown."""
    default = field.get("default")
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return ", ".join(f"`{one['name']}`" for one in default)
    if "default" not in field:
        return "required"
    if isinstance(default, list | dict):
        return f"`{default}`" if default else "none"
    return "none" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def values_text(field: Schema) -> str:
    """Return the valid values of a key in words."""
    if "anyOf" in field:
        return " or ".join(values_text(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "")
    names = {"string": "text", "integer": "whole number", "boolean": "`true`, `false`", "object": "keys and values"}
    if kind == "array":
        return f"list: {values_text(field.get('items', {}))}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = " and ".join(f"{words} {field[key]}" for key, words in limits.items() if key in field)
    return f"{names.get(kind, kind)}, {bounds}".removesuffix(", ")


def as_markdown(docstring: str) -> str:
    """Return a docstring as text of a page, without its line breaks, which are for terminals."""
    return " ".join(docstring.split()).replace("<", "&lt;")


def job_commands() -> dict[str, Command]:
    """Return the commands of the modules below jobs/, by the words that start them."""
    import jobs

    names = [module.name for module in pkgutil.iter_modules(jobs.__path__)]
    modules = {name: importlib.import_module(f"jobs.{name}") for name in names}
    commands = {name: module.COMMAND for name, module in modules.items() if hasattr(module, "COMMAND")}
    return {name if name == each.name else f"{each.name} {name}": each for name, each in sorted(commands.items())}


def command_texts() -> str:
    """Return the usage of the command, and the --help text of each job without the settings, which have a page."""
    from melanoma_spark.runner.cli import invoke

    usage = subprocess.run([REPO / "spark-submit.sh", "--help"], capture_output=True, text=True, check=True).stdout
    parts = [f"## All jobs\n\n```text\n{usage.rstrip()}\n```"]  # text before the first heading would be lost
    os.environ["COLUMNS"] = "100"
    for title, command in sorted(job_commands().items()):
        text = invoke(command, ["--help"]).log.partition("settings [default]:")[0].rstrip()
        parts.append(f"## {title}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def decisions_table() -> str:
    """Return a table of number, title, date and status of each decision, from the first lines of its page."""
    rows = []
    for path in sorted((REPO / "docs/decisions").glob("*.md")):
        if path.name != "index.md":
            head = DECISION.match(path.read_text())
            if not head:
                raise ValueError(f"{path}: expected a title, then 'Decision N, YYYY-MM-DD. Status: ...'")
            rows.append(
                (
                    int(head["number"]),
                    f"[{head['title']}]({path.name})",
                    head["date"].replace("-", NO_BREAK),
                    head["status"],
                )
            )
    lines = [f"| {number} | {title} | {date} | {status} |" for number, title, date, status in sorted(rows)]
    return "\n".join(["| number | decision | date | status |", "| --- | --- | --- | --- |", *lines])


def reasons_table() -> str:
    """Return a table of the reasons why a file is not used, with explanations."""
    from melanoma_spark.images.reasons import REASONS

    rows = [f"| `{code}` | {cell(text)} |" for code, text in REASONS.items()]
    return "\n".join(["| reason | meaning |", "| --- | --- |", *rows])


def columns_table() -> str:
    """The columns of `scores/` with their meaning."""
    from melanoma_spark.scoring.columns import COLUMNS

    rows = [f"| `{column.name}` | {cell(column.meaning)} |" for column in COLUMNS]
    return "\n".join(["| column | meaning |", "| --- | --- |", *rows])


def layouts_table() -> str:
    """Return a table of the layouts of archives and how each is detected."""
    from melanoma_spark.archives.layouts import LAYOUTS

    rows = [f"| `{name}` | {cell(layout.needs)} |" for name, layout in LAYOUTS.items()]
    return "\n".join(["| layout | detected by |", "| --- | --- |", *rows])


def exit_statuses_table() -> str:
    """The exit statuses of jobs, with what to do at each."""
    from melanoma_spark.errors import ExitStatus

    rows = [f"| {status:d} | {cell(status.meaning)} | {cell(status.action)} |" for status in ExitStatus]
    return "\n".join(["| status | meaning | what to do |", "| --- | --- | --- |", *rows])


class Generated(SphinxDirective):
    """Inserts the Markdown that `make` returns."""

    make: ClassVar[Callable[[], str]]

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(type(self).make(), allow_section_headings=True)


def write_api_pages(app: Sphinx) -> None:
    """Write a page below docs/api for each public module, and an index. Removes pages of modules that are gone."""
    folder = Path(app.srcdir) / "api"
    pages, rows = {}, []
    for path in sorted((REPO / "melanoma_spark").rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        if any(part.startswith("_") for part in name.split(".")) or not summary:
            continue
        pages[f"{name}.md"] = (
            f"# `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n```\n"
        )
        rows.append(f"| [`{name}`]({name}.md) | {cell(summary)} |")
    pages["index.md"] = (
        "# API\n\nThe modules of `melanoma_spark`, from their docstrings. Jobs and settings are the stable interface; "
        "modules may change between releases.\n\n| module | what it does |\n| --- | --- |\n"
        + "\n".join(rows)
        + "\n\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
    )
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def escape_docstring(lines: list[str]) -> None:
    """Turn a docstring, which is Markdown with `code`, into reStructuredText in place."""
    pieces = re.split(r"(`+[^`]*`+)", "\n".join(lines))
    text = "".join(
        f"\\ ``{piece.strip('`')}``\\ " if piece.startswith("`") else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", piece)
        for piece in pieces
    )
    lines[:] = re.sub(r"(?<!\w)\\ (?=``)|(?<=``)\\ (?!\w)", "", text).split("\n")  # needed only beside a letter


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives and the pages of the API."""
    # autodoc changes the annotations of pydantic's BaseModel; afterwards models with extra fields cannot be defined.
    job_commands()
    for name, make in {
        "settings": settings_tables,
        "commands": command_texts,
        "decisions": decisions_table,
        "reasons": reasons_table,
        "columns": columns_table,
        "layouts": layouts_table,
        "exit-statuses": exit_statuses_table,
    }.items():
        app.add_directive(name, type(name, (Generated,), {"make": staticmethod(make)}))
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-process-docstring", lambda *event: escape_docstring(event[-1]))
    return {"parallel_read_safe": True}
