"""Declarations of commands: light enough that `--help` and a cache hit import none of their code."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pydantic takes longer to import than `llmctl --help` may
    from llmctl.config.base import Config


@dataclass(frozen=True)
class Role:
    """One input of a command.

    Attributes:
        kinds: artifact kinds that fit.
        help: one line for `--help`.
        required: whether the command cannot start without it.
        files: whether a plain file may stand in for an artifact.
        many: whether it takes any number of inputs, each under a name of its own: `sources.web`, `sources.books`.
        share: configuration path of a mapping by name that the command line's `REF=VALUE` fills, where `many`.
        option: `many`, but each is given as `--role NAME=REF`, so that the arguments stay free for others.
        instead: configuration path that stands in for the input where it is set.
    """

    kinds: tuple[str, ...]
    help: str
    required: bool = True
    files: bool = False
    many: bool = False
    share: str = ""
    option: bool = False
    instead: str = ""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A command with a configuration and inputs.

    Attributes:
        command: what the user types.
        summary: one line for `--help`.
        config: `module:Class` of its configuration model.
        inputs: by role; the role `input` comes from the pipe or the first argument. At most one role takes
            many inputs; the command's arguments are its references. Where there are both, they exclude each other:
            a single reference without a value is the input.
        flags: option name to configuration path, for the fields used most.
        words: configuration path of a list that takes the arguments after the input; empty where there are none.
        examples: command lines for `--help`, first things first.
    """

    command: str
    summary: str
    config: str
    inputs: Mapping[str, Role] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    words: str = ""
    examples: tuple[str, ...] = ()

    @property
    def many(self) -> str:
        """The role that takes any number of inputs as arguments; empty where there is none."""
        return next((role for role, wanted in self.inputs.items() if wanted.many and not wanted.option), "")

    def role(self, key: str) -> Role | None:
        """The role that an input is of: `tokenizer`, or `sources.web` where `sources` takes many."""
        head, _, name = key.partition(".")
        wanted = self.inputs.get(head)
        return wanted if wanted is not None and wanted.many == bool(name) else None

    def key(self, name: str) -> str:
        """What an input that a recipe calls `name` is filed under: a name that is no role is one of many."""
        return f"{self.many}.{name}" if self.many and self.role(name) is None else name

    def lacks(self, role: str, keys: Iterable[str], config: Config | None = None) -> bool:
        """Whether `role` must be filled and no input among `keys` does; many inputs stand in for the one.

        So may a field of the configuration, where that is known.
        """
        if config is not None and self.inputs[role].instead:
            value: Any = config
            for part in self.inputs[role].instead.split("."):
                value = getattr(value, part)
            if value:
                return False
        heads = {key.partition(".")[0] for key in keys}
        return self.inputs[role].required and not heads & {role, self.many if role == "input" else role}

    def config_model(self) -> type[Config]:
        """Import the configuration model."""
        from llmctl.config.base import Config

        model = load(self.config)
        if not (isinstance(model, type) and issubclass(model, Config)):
            raise TypeError(f"{self.config} is not a Config")
        return model


@dataclass(frozen=True, kw_only=True)
class Stage(Verb):
    """A command that makes an artifact. Its `command` is also the last part of the default name (`web.clean`).

    Attributes:
        run: `module:function`, called as `run(job) -> Product`.
        output: kind of the artifact that it makes.
        decides: `module:function` from the configuration to the kind, where it is not always `output`.
        op_version: bumped by hand when the same inputs would give other bytes; part of the action key.
        fetch: `module:function` from the configuration, a directory that outlives the run and a `Progress` to
            whatever `sources` and the body need of what lies elsewhere (`job.fetched`); called before them.
        sources: `module:function` from the configuration, and what `fetch` gave, to the default name and the
            `{role: digest}` of what it will read beside its inputs; no name where the inputs give it.
        derive: `module:function` from the inputs by role, a function that finds an artifact by digest, and the
            configuration, to further inputs by role that follow from them; part of the action key and of the manifest
            like those given.
        gate: `module:function` from the configuration and what was published, whether made now or before; it raises
            where a threshold that the user set is not met.
        nests: commands of stages that the body may run through `job.nested`; the op_version of each is part of the
            action key, unless an input of that role stands in for it.
        resumable: whether a killed run keeps its work directory for the next one with the same action key.
        then: the command that usually comes next.
    """

    run: str
    output: str
    op_version: int = 1
    decides: str | None = None
    fetch: str | None = None
    sources: str | None = None
    derive: str | None = None
    gate: str | None = None
    nests: tuple[str, ...] = ()
    resumable: bool = False
    then: str = ""

    def makes(self, config: Config) -> str:
        """Kind of the artifact that a run with this configuration makes."""
        return str(load(self.decides)(config)) if self.decides else self.output


def load(reference: str) -> Any:
    """Import `module:attribute`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
