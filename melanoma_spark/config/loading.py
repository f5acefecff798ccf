"""Reads settings from YAML and `key=value` words. The error of an unknown or ill-typed key names the valid ones."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from melanoma_spark.config.settings import Settings
from melanoma_spark.config.training import Phase
from melanoma_spark.errors import ConfigError


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Settings:
    """Read settings from a YAML file, or the defaults, and `a.b=value` words, which take precedence.

    Raises `ConfigError` naming the file or the key, what was found there and what is valid.
    """
    return parse(_values(path, overrides))


def _values(path: str | Path | None, overrides: Iterable[str]) -> dict[str, Any]:
    values = {} if path is None else _read_yaml(Path(path))
    for word in overrides:
        _set(values, *_split(word))
    return values


def log_format(path: str | Path | None, overrides: Iterable[str] = ()) -> str:
    """Read log.format alone, so that the line that reports another wrong setting has that form, too."""
    try:
        values = _values(path, overrides)
    except ConfigError:
        values = _values(None, [word for word in overrides if word.startswith("log.format=")])
    section = values.get("log")
    return "json" if isinstance(section, dict) and section.get("format") == "json" else "text"


def parse(values: Mapping[str, Any]) -> Settings:
    """Validate settings of nested mappings. Raises as `load`."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def flatten(settings: BaseModel, prefix: str = "") -> dict[str, str]:
    """Return `{"head.hidden": "256", ...}`: one level, as text, for logs and MLflow parameters."""
    flat: dict[str, str] = {}
    for name, field in type(settings).model_fields.items():
        key, value = prefix + (field.alias or name), getattr(settings, name)
        if isinstance(value, BaseModel):
            flat |= flatten(value, key + ".")
        elif isinstance(value, tuple) and value and isinstance(value[0], Phase):
            for phase in value:
                flat |= flatten(phase, f"{key}.{phase.name}.")
        else:
            flat[key] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return flat


# Runs do not show where images lie, and a server's address may hold a password.
PRIVATE = ("archive", "warehouse", "mlflow.tracking_uri")
# Keys and sections that make one model different from another.
MODEL_KEYS = frozenset(
    ("target", "split", "image_size", "seed", "training_seed", "ranks", "backbone", "featurize", "head", "finetune")
)


def public_settings(settings: Settings) -> dict[str, str]:
    """Return `flatten` without private settings, for reports and runs."""
    return {key: value for key, value in flatten(settings).items() if key not in PRIVATE}


def notable_settings(settings: Settings) -> dict[str, str]:
    """Return the public settings by which people compare runs: those of models, and those that are no default."""
    usual = flatten(Settings())
    return {
        key: value
        for key, value in public_settings(settings).items()
        if key.partition(".")[0] in MODEL_KEYS or usual.get(key) != value
    }


def valid_keys(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """Return every dotted key with its default and description, for `--help`."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= valid_keys(field.annotation, key + ".")
        else:
            default = field.default
            if isinstance(default, tuple):
                default = ", ".join(v.name if isinstance(v, Phase) else str(v) for v in default)
            keys[key] = f"[{default}]" + (f" {field.description}" if field.description else "")
    return keys


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror}; see conf/*.yaml for examples") from None
    except UnicodeDecodeError:
        raise ConfigError(f"settings file {path} is not UTF-8 text; see conf/*.yaml for examples") from None
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"settings file {path} is not YAML{where}: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"settings file {path}: found a {type(values).__name__}, expected keys and values")
    return values


def _split(word: str) -> tuple[list[str], Any]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is not of the form key=value, for example image_size=224")
    try:
        value = yaml.safe_load(text) if " #" not in text else text  # a path may hold what starts a comment
    except (yaml.YAMLError, ValueError):
        value = text
    return key.split("."), value


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for step in path[:-1]:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(path)}: {step} holds the value {inner!r} and has no keys below it")
        values = inner
    values[path[-1]] = value


def _explain(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        valid = sorted(_siblings(error["loc"][:-1]))
        name = str(error["loc"][-1])
        near = difflib.get_close_matches(name, valid, n=1)
        near = near or [key for key in valid_keys() if key.endswith(f".{name}")][:1]  # its section is missing
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown setting {where!r}: {hint}valid here: {', '.join(valid)}"
    problem = error["msg"].removeprefix("Value error, ")
    return f"setting {where}: {problem}; found {error.get('input')!r}" if where else problem  # else between sections


def _siblings(path: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for step in path:
        if isinstance(step, int):
            model = Phase  # the only list of sections there is
            continue
        field = next(f for n, f in model.model_fields.items() if step in (n, f.alias))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]
