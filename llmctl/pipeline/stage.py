"""The declaration of a stage: light enough that `--help` and a cache hit import none of its code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmctl.config.base import Config


@dataclass(frozen=True)
class Role:
    """One input of a stage.

    Attributes:
        kinds: artifact kinds that fit.
        help: one line for `--help`.
        required: whether the stage cannot start without it.
        files: whether a plain file may stand in for an artifact.
    """

    kinds: tuple[str, ...]
    help: str
    required: bool = True
    files: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage: what it is called, what it takes, what it makes, and where its code lies.

    Attributes:
        command: the verb, and the last part of the default artifact name (`web.clean`).
        summary: one line for `--help`.
        config: `module:Class` of its configuration model.
        run: `module:function`, called as `run(job) -> Product`.
        output: kind of the artifact that it makes.
        op_version: bumped by hand when the same inputs would give other bytes; part of the action key.
        inputs: by role; the role `input` comes from the pipe or the first argument.
        flags: option name to configuration path, for the fields used most.
        examples: command lines for `--help`, first things first.
        sources: `module:function` that names and fingerprints what a stage without `input` reads.
    """

    command: str
    summary: str
    config: str
    run: str
    output: str
    op_version: int = 1
    inputs: Mapping[str, Role] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    sources: str | None = None

    def config_model(self) -> type[Config]:
        """Import the configuration model."""
        model = load(self.config)
        if not (isinstance(model, type) and issubclass(model, Config)):
            raise TypeError(f"{self.config} is not a Config")
        return model


def load(reference: str) -> Any:
    """Import `module:attribute`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
