"""Builds Typer commands from declarations, so that a field's description is its `--help` text everywhere."""

from __future__ import annotations

import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from llmctl.config.errors import ConfigError, LlmctlError, Problem, UsageError, together
from llmctl.pipeline.stage import Verb

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from llmctl.config.base import Config

DEFAULT_STORE = "artifacts"

StoreOption = Annotated[str, typer.Option("--store", envvar="LLMCTL_STORE", help="Directory of the artifacts.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable lines on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print only name@vN; no progress.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the artifact; by default made from the input's.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Run even where the cache has the answer.")]
PrintConfigOption = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")]


@dataclass(frozen=True)
class Given:
    """What the user gave to a command that is built from a `Verb`, as typed.

    Attributes:
        verb: the declaration.
        flags: configuration path to value, of the options used.
        words: the arguments: overrides, and an input reference, many of them, or the items of the verb's list.
        refs: role to reference, from options; to a list of NAME=REF where the role takes several so.
        options: the common options by parameter name.
    """

    verb: Verb
    flags: Mapping[str, Any]
    words: Sequence[str]
    refs: Mapping[str, str | list[str]]
    options: Mapping[str, Any]

    def resolve(self) -> tuple[Config, dict[str, str]]:
        """The validated configuration, and the references by role (`-` stands for the pipe).

        Raises:
            LlmctlError: with every fault of the configuration and of the name, and with those of the inputs that
                are named beside them. Faults of inputs alone are left to `resolve_inputs`.
        """
        from llmctl.pipeline.execute import input_faults
        from llmctl.store.layout import check_name
        from llmctl.store.store import Store

        refs = self.references()
        faults: list[LlmctlError] = []
        try:
            config = self.config()
        except ConfigError as error:
            faults.append(error)
        try:
            check_name(self.options.get("name") or "unnamed")
        except UsageError as error:
            faults.append(error)
        if faults:
            raise together([*faults, *input_faults(self.verb, refs, Store.expected(self.options["store"]))])
        return config, refs

    def references(self) -> dict[str, str]:
        """What was named as inputs, by role; the first word is the input of a verb that has one."""
        from llmctl.cli.words import named_inputs

        verb, words = self.verb, self._split()[1]
        refs = _references(self.refs)
        if self._names_many(words):
            return {**refs, **{f"{verb.many}.{name}": ref for name, ref in named_inputs(words)[0].items()}}
        return {**refs, **({"input": words[0]} if words and "input" in verb.inputs else {})}

    def config(self) -> Config:
        """The merged, validated configuration.

        Raises:
            ConfigError: with every fault.
        """
        from llmctl.cli.words import named_inputs
        from llmctl.config.load import build, environment_layer, merge, parse_overrides, set_path, user_layer

        verb = self.verb
        overrides, words = self._split()
        names_many = self._names_many(words)
        words = words[1:] if "input" in verb.inputs and not names_many else words
        layer: dict[str, Any] = {}
        for path, value in self.flags.items():
            set_path(layer, path, value)
        problems: list[Problem] = []
        if names_many:
            if shares := named_inputs(words)[1]:
                set_path(layer, verb.inputs[verb.many].share, shares)
        elif words and verb.words:
            set_path(layer, verb.words, words)
        elif words:
            problems.append(Problem(words[0], "is one argument too many", "an override is written key=value"))
        try:
            strong = merge(layer, parse_overrides(overrides))
            config = build(verb.config_model(), [user_layer(verb.command), environment_layer(verb.command), strong])
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from None
        if problems:
            raise ConfigError(problems)
        return config

    def _names_many(self, words: Sequence[str]) -> bool:
        """Whether the words are the many inputs of the verb; one without a value is the `input` where it has that."""
        single = len(words) < 2 and "input" in self.verb.inputs and all("=" not in word for word in words)
        return bool(self.verb.many) and not single

    def _split(self) -> tuple[list[str], list[str]]:
        """(overrides, other words) in the order typed."""
        from llmctl.cli.words import sort_words

        return sort_words(self.verb, self.words)


def build_command(verb: Verb, common: Mapping[str, Any], body: Callable[[Given], None]) -> Callable[..., None]:
    """A callback for Typer that hands what was typed to `body`.

    Args:
        verb: the declaration.
        common: annotated options beside those of the declaration, by parameter name, with their defaults.
        body: called with what the user gave.
    """
    model = verb.config_model()
    flags = {_parameter_name(option): (option, path) for option, path in verb.flags.items()}
    roles = {
        f"role_{role}": role
        for role, wanted in verb.inputs.items()
        if role != "input" and (wanted.option or not wanted.many)
    }

    def callback(**values: Any) -> None:
        refs = {roles[name]: values[name] for name in roles if values[name]}
        flag_values = {path: values[name] for name, (_, path) in flags.items() if values[name] is not None}
        body(Given(verb, flag_values, values["words"] or (), refs, {name: values[name] for name in common}))

    parameters = [_words_parameter(verb)]
    parameters += [_flag_parameter(name, option, path, model) for name, (option, path) in flags.items()]
    parameters += [_role_parameter(name, role, verb) for name, role in roles.items()]
    parameters += [_parameter(name, annotation, default) for name, (annotation, default) in common.items()]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    callback.__doc__ = help_text(verb)
    return callback


def _references(given: Mapping[str, str | list[str]]) -> dict[str, str]:
    """References by role; of a role that is given as NAME=REF any number of times, by `role.name`."""
    refs: dict[str, str] = {}
    problems: list[Problem] = []
    for role, value in given.items():
        if isinstance(value, str):
            refs[role] = value
            continue
        for one in value:
            name, is_named, ref = one.partition("=")
            if not (is_named and name and ref):
                problems.append(Problem(f"--{role} {one}", "names no input", f"write --{role} NAME=REF"))
            elif f"{role}.{name}" in refs:
                problems.append(Problem(f"--{role} {one}", f"{name} is given twice", "leave one out"))
            refs[f"{role}.{name}"] = ref
    if problems:
        raise ConfigError(problems)
    return refs


def help_text(verb: Verb) -> str:
    """Examples first, then what the command does."""
    examples = "\n".join(f"  {line}" for line in verb.examples)
    return f"{verb.summary}\n\n\b\nExamples:\n{examples}" if examples else verb.summary


def piped_stdin() -> IO[bytes] | None:
    """Stdin where something is piped or redirected into it; None for a terminal or /dev/null."""
    import stat

    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode):
        return sys.stdin.buffer
    return None


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _words_parameter(verb: Verb) -> inspect.Parameter:
    names, about = ["KEY=VALUE"], ["a.b=value sets any field."]
    if verb.words:
        names.insert(0, verb.words.upper())
        about.insert(0, verb.words)
    if verb.many:
        names.insert(0, "REF=VALUE" if verb.inputs[verb.many].share else "REF")
        about.insert(0, verb.inputs[verb.many].help)
    if "input" in verb.inputs:
        names.insert(0, "REF")
        about.insert(0, f"{verb.inputs['input'].help}, or - for the pipe")
    text = "; ".join(about)
    argument = typer.Argument(metavar="|".join(names), help=f"{text[:1].upper()}{text[1:]}", show_default=False)
    return _parameter("words", Annotated[list[str] | None, argument], None)


def _role_parameter(name: str, role: str, verb: Verb) -> inspect.Parameter:
    wanted = verb.inputs[role]
    about, metavar = wanted.help, "NAME=REF" if wanted.option else "REF"
    option = typer.Option(f"--{role}", metavar=metavar, help=f"{about[:1].upper()}{about[1:]}.", show_default=False)
    if wanted.option:
        return _parameter(name, Annotated[list[str] | None, option], None)
    return _parameter(name, Annotated[str | None, option], None)


def _flag_parameter(name: str, option: str, path: str, model: type[Config]) -> inspect.Parameter:
    alternatives = _fields(model, path)
    field = alternatives[0]
    kind = field.annotation
    if kind is bool:
        declaration = typer.Option(
            f"{option}/--no-{option[2:]}", help=field.description, show_default=str(field.default)
        )
        return _parameter(name, Annotated[bool | None, declaration], None)
    default = _default(model, path, field)
    shown = "" if field.is_required() or default is None or default == () else f"  [default: {default}]"
    kinds = [one.annotation for one in alternatives]
    declaration = typer.Option(option, metavar=_metavar(kinds), help=f"{field.description}{shown}", show_default=False)
    return _parameter(name, Annotated[str | None, declaration], None)


def _parameter_name(option: str) -> str:
    return "flag_" + option.removeprefix("--").replace("-", "_")


def _fields(model: type[Any], path: str) -> list[FieldInfo]:
    """The field that a dotted path leads to, through nested models; of a union of them, one for each that has it."""
    name, _, rest = path.partition(".")
    field: FieldInfo = model.model_fields[name]
    if not rest:
        return [field]
    head = rest.partition(".")[0]
    members = [one for one in _members(field.annotation) if head in getattr(one, "model_fields", {})]
    if not members:
        raise UsageError(f"{path} is no field of {model.__name__}")
    return [found for member in members for found in _fields(member, rest)]


def _default(model: type[Config], path: str, field: FieldInfo) -> Any:
    """What holds where nothing is said: the stage's own, or else that of the field which the path leads to."""
    name, *rest = path.split(".")
    value = model.model_fields[name].get_default(call_default_factory=True)
    for part in rest:
        value = getattr(value, part, None)
    return field.get_default(call_default_factory=True) if value is None else value


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a (possibly annotated) union; the annotation itself otherwise."""
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(annotation) for member in _members(part))
    return (annotation,)


def _metavar(kinds: Sequence[Any]) -> str:
    """`INTEGER`, `NUMBER`, `a|b` or `TEXT` for a field's types."""
    members = [member for kind in kinds for member in _members(kind)]
    choices = [choice for one in members if typing.get_origin(one) is typing.Literal for choice in typing.get_args(one)]
    if choices:
        return "|".join(str(choice) for choice in dict.fromkeys(choices))
    if int in members:
        return "INTEGER"
    return "NUMBER" if float in members else "TEXT"
