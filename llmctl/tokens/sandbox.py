"""Chat templates, run as what they are: programs from strangers.

They see only what is passed to them (Jinja's immutable sandbox), and what they can spend is bounded: steps of
loops and macros, characters written, and the sizes of what arithmetic makes. All bounds are counts, so that the
same template and messages always end in the same way. Nothing here tells the time: a prompt follows from its
messages alone, so templates that ask for today's date (`strftime_now`) take the branch for where there is none.
"""

from __future__ import annotations

import contextvars
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000  # turns of loops and calls in one rendering
MAX_CHARS = 16_000_000  # in one string, and written by one rendering
MAX_NUMBER = 1_000_000  # that a call, a repetition or a product may be given
# Filters that can make a long text of a short one by a width or a form, and which no chat template needs.
LEFT_OUT = ("batch", "center", "filesizeformat", "format", "indent", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
CHANCE = ("random", "lipsum")  # no prompt follows from chance
LONG_WIDTH = re.compile(r"\d{4}")

_steps: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("steps", default=None)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds, and with the settings of transformers where no others are given."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, extensions: tuple[type[Extension], ...] = (), **settings: Any) -> None:
        settings = {"trim_blocks": True, "lstrip_blocks": True, **settings}
        super().__init__(extensions=[*extensions, "jinja2.ext.loopcontrols"], **settings)
        self.globals["raise_exception"] = _raise_exception
        self.filters = {name: used for name, used in self.filters.items() if name not in (*LEFT_OUT, *CHANCE)}
        self.globals.pop("lipsum")
        self.filters |= {"tojson": _tojson, "counted": _counted, "sized": _sized}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's own tree with every loop counted, and the size of what is assigned or joined checked."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "counted")
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_filtered(node, "sized") for node in joined.nodes]
        for assigned in tree.find_all(nodes.Assign):
            assigned.node = _filtered(assigned.node, "sized")
        return tree

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, counted, if neither its arguments nor its result are huge."""
        _step()
        if any(isinstance(value, int) and abs(value) > MAX_NUMBER for value in (*args, *kwargs.values())):
            raise SecurityError(f"a call with a number beyond {MAX_NUMBER:,}")
        return _sized(super().call(context, called, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, unless its form has a huge width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and LONG_WIDTH.search(str(value.__self__)):
            raise SecurityError("a form with a width of four digits")
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left + right` and so on, if what it makes has a sane size."""
        if operator == "%" and isinstance(left, str) and LONG_WIDTH.search(left):
            raise SecurityError("a form with a width of four digits")
        if operator == "**" and any(abs(value) > 1024 for value in (left, right) if isinstance(value, int)):
            raise SecurityError("a power of a number beyond 1,024")
        if operator == "*":
            sizes = [abs(value) if isinstance(value, int) else len(value) for value in (left, right) if _counts(value)]
            if any(size > MAX_NUMBER for size in sizes) or math.prod(sizes) > MAX_CHARS:
                raise SecurityError(f"a repetition or a product beyond {MAX_CHARS:,}")
        return _sized(super().call_binop(context, operator, left, right))


@functools.lru_cache(maxsize=16)
def compiled(source: str, extensions: tuple[type[Extension], ...]) -> jinja2.Template:
    """The template of `source`.

    Raises:
        jinja2.TemplateError: a fault of syntax.
    """
    return Sandbox(extensions).from_string(source)


def rendered(template: jinja2.Template, **values: Any) -> str:
    """What the template makes of `values`.

    Raises:
        jinja2.TemplateError: it fails, it refuses the messages, or it exceeds a bound.
    """
    token = _steps.set([0])
    try:
        pieces: list[str] = []
        written = 0
        for piece in template.generate(**values):
            written += len(piece)
            if written > MAX_CHARS:
                raise SecurityError(f"more than {MAX_CHARS:,} characters written")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _steps.reset(token)


def _step() -> None:
    count = _steps.get()
    if count is None:  # while Jinja folds constants
        return
    count[0] += 1
    if count[0] > MAX_STEPS:
        raise SecurityError(f"more than {MAX_STEPS:,} steps")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counts(value: Any) -> bool:
    return isinstance(value, int | str | list | tuple)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _sized(value: Any) -> Any:
    """`value`, unless it is a huge text or list."""
    if isinstance(value, str | list | tuple) and len(value) > MAX_CHARS:
        raise SecurityError(f"a text or list of more than {MAX_CHARS:,} items")
    return value


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON as transformers writes it: nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 16))


def _raise_exception(message: str) -> None:
    """What templates call to refuse messages."""
    raise jinja2.TemplateError(message)
