"""Templates of task files: Jinja over the fields of an item, in the sandbox that chat templates run in."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import StrictUndefined, Undefined

from llmctl.config.errors import InputError
from llmctl.evals.math_answers import boxed
from llmctl.evals.wikitext import restored
from llmctl.tokens.sandbox import Sandbox, rendered

Doc = Mapping[str, Any]
EXPRESSION = re.compile(r"\s*\{\{((?:(?!\}\}|\{\{|\{%).)*)\}\}\s*", re.DOTALL)
FAULTS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _regex_replace(text: str, pattern: str, repl: str, count: int = 0) -> str:
    return re.sub(pattern, repl, text, count=count)


def _indices(values: Iterable[Any], wanted: Any) -> list[int]:
    """Places of `wanted` in a list: the right ones among labels of 0 and 1."""
    return [place for place, value in enumerate(values) if value == wanted]


@functools.cache
def _environment() -> Sandbox:
    """Jinja as the harness sets it: undefined names are errors, and new lines stay where they are written."""
    environment = Sandbox(trim_blocks=False, lstrip_blocks=False, keep_trailing_newline=True, undefined=StrictUndefined)
    environment.filters |= {"regex_replace": _regex_replace, "indices": _indices, "boxed": boxed, "wikitext": restored}
    return environment


@functools.lru_cache(maxsize=4096)
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.lru_cache(maxsize=4096)
def _expression(source: str) -> Callable[..., Any]:
    return _environment().compile_expression(source, undefined_to_none=False)


@dataclass(frozen=True)
class Field:
    """One template of a task file.

    Attributes:
        name: what the file calls it.
        source: what stands there.
        task: whose it is.
    """

    name: str
    source: str
    task: str

    def text(self, doc: Doc, where: str, **more: Any) -> str:
        """What it makes of an item.

        Raises:
            InputError: a field that it names is missing, or it fails otherwise.
        """
        if self.source in doc:
            value = doc[self.source]
            if not isinstance(value, str):
                raise self._fault(doc, where, f"the field {self.source!r} is no text")
            return value
        try:
            return rendered(_template(self.source), **doc, **more)
        except FAULTS as error:
            raise self._fault(doc, where, str(error)) from None

    def value(self, doc: Doc, where: str) -> Any:
        """`raw`, but a text of digits alone is a number, as it is to the harness."""
        value = self.raw(doc, where)
        return int(value) if isinstance(value, str) and value.isdigit() else value

    def raw(self, doc: Doc, where: str) -> Any:
        """The value of a field or of `{{ an expression }}`; a text for other templates. Errors are those of `text`."""
        if self.source in doc:
            return doc[self.source]
        match = EXPRESSION.fullmatch(self.source)
        try:
            if match is None:
                value: Any = rendered(_template(self.source), **doc)
            else:
                value = _expression(match[1].strip())(**doc)
                if isinstance(value, Undefined):
                    str(value)  # raises, and says which name it is
        except FAULTS as error:
            raise self._fault(doc, where, str(error)) from None
        return value

    def _fault(self, doc: Doc, where: str, what: str) -> InputError:
        fields = ", ".join(doc)
        return InputError(f"{where}: {self.name} of the task {self.task} fails: {what}", hint=f"the item has: {fields}")


def texts(value: Any) -> Sequence[str] | None:
    """`value` as a list of texts, None where it is none."""
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return list(value)
    return None
