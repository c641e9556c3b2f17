"""From flags, environment, recipe and user file to one validated configuration.

Precedence, strongest first: flag or override, environment, recipe, user file, default (design §5).
Every layer is a plain nested dict; `build` merges them and reports all faults at once.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llmctl.config.base import Config
from llmctl.config.errors import ConfigError, InputError, Problem

C = TypeVar("C", bound=Config)
Layer = dict[str, Any]

OVERRIDE = re.compile(r"^([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)=(.*)$", re.DOTALL)
USER_FILE = Path("~/.config/llmctl/config.yaml")


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML 1.2 (`3e-4` is a number, duplicate keys are errors); plain Python values come back."""
    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        raise ConfigError([Problem(where, " ".join(str(error).split()), "check the YAML syntax")]) from None


def read_yaml(path: Path) -> Any:
    """Parse a YAML file; a missing or unreadable one is an `InputError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="check the path and its permissions") from None
    return parse_yaml(text, str(path))


def set_path(layer: Layer, path: str, value: Any) -> None:
    """Set `a.b.c` in nested dicts, creating levels; a scalar in the way becomes `{"name": scalar}`."""
    *parents, last = path.split(".")
    for key in parents:
        child = layer.get(key)
        if not isinstance(child, dict):
            child = {} if child is None else {"name": child}
            layer[key] = child
        layer = child
    layer[last] = value


def parse_overrides(words: Iterable[str]) -> Layer:
    """`["optimizer.lr=3e-4", "steps=10"]` to a layer; values are read as YAML."""
    layer: Layer = {}
    problems: list[Problem] = []
    for word in words:
        match = OVERRIDE.match(word)
        if match is None:
            problems.append(Problem(word, "is not an override", "write key=value or a.b=value"))
            continue
        path, text = match.groups()
        try:
            set_path(layer, path, parse_yaml(text, path) if text else "")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return layer


def environment_layer(command: str, environ: Mapping[str, str] | None = None) -> Layer:
    """`LLMCTL_PRETRAIN__OPTIMIZER__LR=1e-3` sets `optimizer.lr` of `llmctl pretrain`."""
    prefix = f"LLMCTL_{command.upper().replace('-', '_')}__"
    layer: Layer = {}
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(prefix):
            set_path(layer, name[len(prefix) :].lower().replace("__", "."), parse_yaml(text, name))
    return layer


def user_layer(command: str, path: Path | None = None) -> Layer:
    """The section of `command` in the user's own file, or nothing where there is no such file."""
    path = USER_FILE.expanduser() if path is None else path
    if not path.is_file():
        return {}
    content = read_yaml(path) or {}
    section = content.get(command, {}) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ConfigError([Problem(f"{path}: {command}", "must be a mapping of fields", "write field: value lines")])
    return section


def merge(weak: Layer, strong: Layer) -> Layer:
    """Overlay `strong` on `weak`. A block whose `name` changes is replaced whole (discriminated unions).

    A weaker block without a name is of its default kind and takes the name that the stronger one gives.
    """
    merged = dict(weak)
    for key, value in strong.items():
        old, new = merged.get(key), value
        if isinstance(old, dict) or isinstance(new, dict):  # a scalar for a block is its name
            old, new = _as_block(old), _as_block(new)
        if isinstance(old, dict) and isinstance(new, dict) and _same_kind(old, new):
            merged[key] = merge(old, new)
        else:
            merged[key] = new
    return merged


def _as_block(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _same_kind(old: Layer, new: Layer) -> bool:
    return "name" not in old or "name" not in new or bool(old["name"] == new["name"])


def build(model: type[C], layers: Iterable[Layer], where: str = "") -> C:
    """Merge `layers`, weakest first, and validate; every fault is in one `ConfigError`."""
    merged: Layer = {}
    for layer in layers:
        merged = merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError([_problem(model, fault, where) for fault in error.errors()]) from None


def _problem(model: type[BaseModel], fault: Any, where: str) -> Problem:
    """Turn one pydantic fault into ours, with a did-you-mean for unknown keys."""
    location = [str(part) for part in fault["loc"]]
    path = ".".join(location) or "configuration"
    if fault["type"] == "extra_forbidden":
        names = _field_names(model, location[:-1])
        close = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
        return Problem(where + path, "unknown key", hint)
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    return Problem(where + path, message + shown)


def _field_names(model: type[BaseModel], parents: list[str]) -> list[str]:
    """Field names of the (possibly nested) model that `parents` leads to; of one of several, its tag comes next."""
    keys = iter(parents)
    for key in keys:
        field = model.model_fields.get(key)
        annotation = field.annotation if field else None
        blocks = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(blocks) == 1:  # a block that may be left out
            annotation = blocks[0]
        elif field is not None and isinstance(field.discriminator, str):
            tag, name = next(keys, ""), field.discriminator
            annotation = next((kind for kind in blocks if kind.model_fields[name].default == tag), None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
