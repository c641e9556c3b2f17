"""What the tests hold in place of the program's functions and classes: every use is a question to the solver.

A function's answer is data, so it is the checker's Python that compares it. An operation of an *answer* must never be
carried out by the program: it would see the expected value as the operand and could say what pleases. Hence an answer
that is no data is an error, except for an iterator, of which only the next item can be asked. Instances of classes
that the caller names may be held; their methods can be called, because they are what is tested, but a method's answer
is data again, and a part of an instance can be read and set but not called. Two such instances are never equal.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmctl.evals.sandbox.inside import job, trouble, wire

Mark = tuple[str, Any]
_METHOD = object()  # stands for a callable attribute


class SolverGoneError(BaseException):
    """The solver ended before it answered. Not an Exception, so that tests do not catch it by accident."""


class NotSendableError(BaseException):
    """The tests pass something that cannot be sent; no fault of the program."""


class ProgramError(Exception):
    """An exception of a type that the program defines."""


class Link:
    """The connection to the solver.

    Attributes:
        calls: how many questions were asked.
        gone: whether the solver ended before it answered; tests that swallow every exception do not hide it.
        unsendable: why a question could not be asked, or None.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.gone = False
        self.unsendable: str | None = None

    def ask(
        self,
        do: str,
        on: Mark,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        held: type[Part] | None = None,
    ) -> Any:
        """Put one question and give its answer.

        Args:
            do: what is wanted, an operation of solver.py.
            on: of which object.
            args: values to send along.
            kwargs: those by name.
            held: what an object that is no data becomes; None refuses it.

        Raises:
            SolverGoneError: no answer will come.
            NotSendableError: an argument is not to be sent.
            Exception: what the program raised, in its own type where that is a built-in one.
        """
        self.calls += 1
        request = {
            "do": do,
            "on": on,
            "args": [self._encode(value) for value in args],
            "kwargs": {name: self._encode(value) for name, value in (kwargs or {}).items()},
        }
        try:
            wire.write_frame(job.LINK, request)
            answer = wire.read_frame(job.LINK)
        except (EOFError, OSError) as error:
            self.gone = True
            raise SolverGoneError from error
        if not isinstance(answer, dict):
            raise wire.NotDataError("a malformed answer")
        if "error" in answer:
            raise _raised(trouble.told(answer["error"]))
        value = answer.get("value")
        if do == "get" and value == {"method": 0}:
            return _METHOD
        return wire.decode(value, lambda tag, number: self._received(tag, number, held))

    def _encode(self, value: Any) -> Any:
        return wire.encode(value, self._mark)

    def _mark(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Function | Part | RemoteIterator):
            tag, held = value._mark  # noqa: SLF001 (the attribute of an object whose attributes are the program's)
            return {tag: held}
        name = str(getattr(value, "__name__", ""))
        if getattr(builtins, name, None) is value:  # int, len: the program has the same
            return {"builtin": name}
        self.unsendable = f"the tests pass a {type(value).__name__}, which is no plain data"
        raise NotSendableError(self.unsendable)

    def _received(self, tag: str, number: int, held: type[Part] | None) -> Any:
        if tag == "iterator":
            return RemoteIterator(self, ("iterator", number))
        if tag == "object" and held is not None:
            return held(self, ("object", number))
        raise wire.NotDataError("the program answers with an object, not with plain data")


def _raised(told: trouble.Trouble) -> Exception:
    """The exception that the program raised; `program_error` on it is what was told."""
    kind = getattr(builtins, told.type, None)
    error: Exception = ProgramError(f"{told.type}: {told.message}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and its like want more than a message
            error = kind(told.message)
    error.program_error = told  # type: ignore[attr-defined]
    return error


class Function:
    """A function of the program, or a class, whose instances are then `held`."""

    def __init__(self, link: Link, name: str, held: type[Part] | None = None) -> None:
        self._link, self._mark, self._held, self.__name__ = link, ("name", name), held, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the program answers to a call."""
        return self._link.ask("call", self._mark, *args, kwargs=kwargs, held=self._held)


class Part:
    """An object of the program that the tests reached: attributes and items can be read and set, no more."""

    def __init__(self, link: Link, mark: Mark) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_mark", mark)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's protocols are not the program's to answer
            raise AttributeError(name)
        value = self._link.ask("get", self._mark, name, held=Part)
        return self._method(name) if value is _METHOD else value

    def _method(self, name: str) -> Callable[..., Any]:
        raise wire.NotDataError(f"{name} is a method of an object that the program answered with")

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self._mark, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("getitem", self._mark, key, held=Part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("setitem", self._mark, key, value)

    def __len__(self) -> int:
        return int(self._link.ask("len", self._mark))

    def __bool__(self) -> bool:
        return bool(self._link.ask("bool", self._mark))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.ask("iter", self._mark))


class Instance(Part):
    """An instance that the tests made by calling a class of the program: its methods can be called as well."""

    def _method(self, name: str) -> Callable[..., Any]:
        link, mark = self._link, self._mark

        def method(*args: Any, **kwargs: Any) -> Any:
            return link.ask("method", mark, name, *args, kwargs=kwargs)

        return method


class RemoteIterator:
    """An iterator of the program, asked for one item at a time."""

    def __init__(self, link: Link, mark: Mark) -> None:
        self._link, self._mark = link, mark

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return self._link.ask("next", self._mark)
