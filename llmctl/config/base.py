"""The one base of every configuration model, and which of its fields decide the result."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

NOT_SEMANTIC = {"semantic": False}
INTEGER_LIMIT = 2**53  # RFC 8785, and with it the action key, takes integers below this only


class Config(BaseModel):
    """A frozen, closed model: unknown keys are errors, and defaults are validated too.

    Every field carries a description, which becomes its `--help` text. A field whose name ends in a unit
    is a quantity in that unit (`timeout_s`, `part_bytes`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _exact_in_json(cls, value: Any) -> Any:
        if isinstance(value, int) and not -INTEGER_LIMIT < value < INTEGER_LIMIT:
            raise ValueError("must lie between -2^53 and 2^53")
        return value

    def resolved(self) -> dict[str, Any]:
        """What follows from the fields alone and is worth seeing before a run (warm-up steps, micro-batches)."""
        return {}


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that changes how a stage runs, not what it computes (workers, devices), up to rounding.

    Such fields stay out of the action key, so changing them still hits the cache.
    """
    return Field(default, json_schema_extra=dict(NOT_SEMANTIC), **kwargs)


def is_semantic(field: FieldInfo) -> bool:
    """Whether a field's value is part of the action key."""
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("semantic") is False)


def semantic_values(config: BaseModel) -> dict[str, Any]:
    """The JSON form of `config` without its execution-only fields, nested models included."""
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if not is_semantic(field):
            continue
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            values[name] = semantic_values(value)
        elif isinstance(value, tuple) and value and all(isinstance(one, BaseModel) for one in value):
            values[name] = [semantic_values(one) for one in value]
        else:
            values[name] = config.model_dump(mode="json", include={name})[name]
    return values


def compiled(pattern: str) -> str:
    """`pattern`, once Python's re takes it.

    Raises:
        ValueError: it does not.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiled)]
"""Of Python's re, refused where it is none."""


def digest_of(path: str, known: str | None = None) -> str:
    """The SHA-256 of a file that a configuration names, so that an edited file is another run.

    Raises:
        ValueError: it cannot be read, or is not the one that is known.
    """
    try:
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if known not in (None, "", found):
        raise ValueError(f"{path} is not the file that it was: its SHA-256 differs")
    return found


def parted(value: Any) -> Any:
    """`en,de`, as a flag carries it, as a list; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def named(value: Any, default: str) -> Any:
    """A block that says which of several it is by `name`: given by that name alone, or without it for the default."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": default, **value} if isinstance(value, dict) else value
