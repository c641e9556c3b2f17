"""The process that holds the program: it answers calls with data, and knows nothing of what is expected.

It receives the program and, one after another, the arguments of the calls that the tests make. No test, no expected
value and no other secret is ever in its memory. All it can do for a verdict is to answer well.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from types import ModuleType
from typing import Any

from llmctl.evals.sandbox.inside import job, trouble, wire

_METHOD = object()  # stands for a callable attribute, which is called by its name
_ITERATED = (Iterator, KeysView, ValuesView, ItemsView, deque)


class Program:
    """A loaded program, and the objects of it that the tests hold by number.

    Attributes:
        failed: what is told instead of an answer where it could not be loaded.
    """

    def __init__(self, source: str) -> None:
        module = ModuleType("solution")
        sys.modules["solution"] = module
        self.names = module.__dict__
        self._held: list[Any] = []
        self.failed: dict[str, Any] | None = None
        try:
            exec(compile(source, trouble.PROGRAM, "exec", dont_inherit=True), self.names)  # noqa: S102
        except BaseException as error:  # noqa: BLE001 (SystemExit is how a program fails, too)
            self.failed = trouble.describe(error, trouble.PROGRAM).as_json()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one request gives: a value, or an error."""
        if self.failed:
            return {"error": self.failed}
        try:
            return {"value": wire.encode(self._do(request), self._hold)}
        except BaseException as error:  # noqa: BLE001
            return {"error": trouble.describe(error, trouble.PROGRAM).as_json()}

    def _do(self, request: dict[str, Any]) -> Any:
        args = [wire.decode(said, self._found) for said in request.get("args", [])]
        kwargs = {name: wire.decode(said, self._found) for name, said in request.get("kwargs", {}).items()}
        return _OPERATIONS[request["do"]](self._found(*request["on"]), *args, **kwargs)

    def _hold(self, value: Any) -> dict[str, Any]:
        """Keep an object that is no data, and name it by number."""
        if value is _METHOD:
            return {"method": 0}
        iterated = isinstance(value, _ITERATED)
        self._held.append(iter(value) if iterated else value)
        return {"iterator" if iterated else "object": len(self._held) - 1}

    def _found(self, tag: str, held: Any) -> Any:
        """The object of this program that a mark means."""
        if tag == "name":
            if held not in self.names:
                raise NameError(f"name {held!r} is not defined")
            return self.names[held]
        if tag == "builtin":
            return getattr(builtins, held)
        return self._held[held]


def _attribute(target: Any, name: str) -> Any:
    value = getattr(target, name)
    return _METHOD if callable(value) else value


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, /, *args, **kwargs: target(*args, **kwargs),
    "method": lambda target, name, /, *args, **kwargs: getattr(target, name)(*args, **kwargs),
    "get": _attribute,
    "set": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "len": len,
    "bool": bool,
    "iter": iter,
    "next": next,
}


def run(message: dict[str, Any]) -> int:
    """Load the program and answer calls until the checker has had enough."""
    os.close(job.CHANNEL)
    program = Program(message["program"])
    while True:
        try:
            request = wire.read_frame(job.LINK)
        except EOFError:
            return 0
        try:
            wire.write_frame(job.LINK, program.answer(request))
        except wire.NotDataError as error:
            wire.write_frame(job.LINK, {"error": trouble.describe(error, trouble.PROGRAM).as_json()})
