"""The arguments of a command, sorted: overrides of its configuration, and the inputs that they name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmctl.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from llmctl.pipeline.stage import Verb

CLOSE = 0.85  # of a field's name: a slip of the finger, not another artifact
# NAME:REF=VALUE; the name and the value may be left out. A digest (`web@sha256:…`) has its colon after an @.
NAMED = re.compile(r"^(?:([a-z][a-z0-9_]*):)?([^=]+)(?:=(.*))?$", re.DOTALL)


def sort_words(verb: Verb, words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(overrides, everything else), each in order.

    An override is `a.b=value`. Where a command's inputs may carry a value too (`web.dedup=0.7`), it is one
    only if its first part is a field of the configuration.

    Raises:
        ConfigError: such a word names neither, but nearly a field.
    """
    from llmctl.config.load import OVERRIDE

    shares = verb.many and verb.inputs[verb.many].share
    fields = verb.config_model().model_fields
    overrides: list[str] = []
    others: list[str] = []
    for word in words:
        match = OVERRIDE.match(word)
        is_override = match is not None and (not shares or match[1].partition(".")[0] in fields)
        if match is not None and not is_override:
            for field in difflib.get_close_matches(match[1], fields, n=1, cutoff=CLOSE):
                raise ConfigError([Problem(match[1], "unknown key", f"did you mean {field}? (or name:{word})")])
        (overrides if is_override else others).append(word)
    return overrides, others


def named_inputs(words: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`["web.dedup=0.7", "b:books@v3=0.3"]` to ({name: reference}, {name: value}), both by name.

    An input that is given no name has that of its artifact: the reference without its version.

    Raises:
        ConfigError: a word is no reference, or two inputs have one name.
    """
    refs: dict[str, str] = {}
    shares: dict[str, str] = {}
    problems: list[Problem] = []
    for word in words:
        match = NAMED.match(word)
        if match is None:
            problems.append(Problem(word, "is not an input", "write REF, REF=VALUE or NAME:REF=VALUE"))
            continue
        given, ref, value = match.groups()
        name = given or ref.rstrip("/").rpartition("/")[2].partition("@")[0]
        if name in refs:
            problems.append(Problem(word, f"another input is called {name}", "name it: NAME:REF=VALUE"))
        refs[name] = ref
        if value is not None:
            shares[name] = value
    if problems:
        raise ConfigError(problems)
    return refs, shares
