"""The process that holds the tests: it runs them against stand-ins for the program and says how they ended.

The program is elsewhere. What it prints, how it ends, what it overrides or replaces has no effect here.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from typing import Any

from llmctl.evals.sandbox.inside import job, remote, trouble, wire


def run(message: dict[str, Any]) -> int:
    """Run the tests and send the result to the host."""
    link = remote.Link()
    try:
        result = judged(message, link)
    except Exception as error:  # noqa: BLE001 (a test that tore the interpreter's own modules)
        result = failed(error)
    wire.write_frame(job.CHANNEL, result)
    return 0


def judged(message: dict[str, Any], link: remote.Link) -> dict[str, Any]:
    """The result of the tests: `kind` is passed, failed, lost (the solver ended) or missing (with a `reason`)."""
    names: dict[str, Any] = {"__name__": "tests"}
    what = "the set-up of the tests does not run"
    try:
        exec(compile(message["setup"], trouble.SETUP, "exec", dont_inherit=True), names)  # noqa: S102
        what = "the tests do not parse"
        tree = ast.parse(message["tests"], trouble.TESTS)
    except BaseException as error:  # noqa: BLE001
        return missing(f"{what}: {type(error).__name__}: {error}")
    reason = bind(tree, names, message, link)
    return missing(reason) if reason else _ran(tree, names, link)


def _ran(tree: ast.Module, names: dict[str, Any], link: remote.Link) -> dict[str, Any]:
    try:
        exec(compile(tree, trouble.TESTS, "exec", dont_inherit=True), names)  # noqa: S102
    except (remote.SolverGoneError, remote.NotSendableError):
        pass
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and not hasattr(error, "program_error"):
            return missing(f"the tests need what is not here: {error}")
        if not link.gone and link.unsendable is None:
            return failed(error)
    if link.unsendable is not None or not link.calls:
        return missing(link.unsendable or "the tests never call the program")
    return {"kind": "lost" if link.gone else "passed"}


def missing(reason: str) -> dict[str, Any]:
    """No verdict, by no fault of the program."""
    return {"kind": "missing", "reason": reason}


def failed(error: BaseException) -> dict[str, Any]:
    """The verdict on an exception: the program's own where it raised it, else the tests'."""
    told = getattr(error, "program_error", None)
    where, what = ("program", told) if told else ("tests", trouble.describe(error, trouble.TESTS))
    # Field by field: what comes from the program must not decide what kind of verdict this is.
    return {"kind": "failed", "where": where, "type": what.type, "message": what.message, "line": what.line}


def bind(tree: ast.Module, names: dict[str, Any], message: dict[str, Any], link: remote.Link) -> str | None:
    """Put stand-ins for the program's functions and classes into `names`; give the reason where that is not clear.

    A name that the tests use and nobody defines could be the program's, but so could a comparison that the program
    would then carry out itself. Hence a single such name is taken for the program's, of several the caller must say
    which they are. Names of the standard library's modules are imported here, never taken from the program.
    """
    calls, classes = message["calls"], message["classes"]
    unknown = free_names(tree) - names.keys() - set(calls or ()) - set(classes)
    for name in sorted(unknown & sys.stdlib_module_names):
        names[name] = importlib.import_module(name)
    unknown -= sys.stdlib_module_names
    if calls is None and not classes and len(unknown) == 1:
        calls, unknown = list(unknown), set()
    if unknown:
        return f"the tests use {', '.join(sorted(unknown))}: the names that are the program's must be said"
    names.update({name: remote.Function(link, name) for name in calls or ()})
    names.update({name: remote.Function(link, name, remote.Instance) for name in classes})
    return None


def free_names(tree: ast.Module) -> set[str]:
    """Names that the code reads and neither binds anywhere nor finds among the built-in ones."""
    used: set[str] = set()
    bound: set[str] = set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.partition(".")[0])
    return used - bound
