"""Writes the documentation of this interpreter's standard library as JSON Lines to standard output.

Run as a script in a process of its own (`python -P -S -W ignore harvest.py`): importing every module of the
standard library has side effects, and what a module shows can depend on what was imported before. For the
same reason it imports nothing but the standard library. One line per record, sorted by name:
`{"name": "os.path.join", "text": "os.path.join(a, *p)\\n\\n…"}`; the last line is
`{"skipped": {"module": "reason", …}}`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

# Importing these opens a browser, prints, starts a GUI or runs tests; xx* are C examples.
NEVER_IMPORTED = {
    "antigravity",
    "this",
    "idlelib",
    "turtledemo",
    "test",
    "tests",
    "xxlimited",
    "xxlimited_35",
    "xxsubtype",
}
# Modules that exist to be imported under another name, which is the documented one.
DOCUMENTED_AS = {"posixpath": "os.path", "genericpath": "os.path", "posix": "os"}
LONGEST_DEFAULT = 80  # characters
ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


class Entry(NamedTuple):
    """A public class or function where it is documented."""

    name: str
    value: Any


def is_public(name: str) -> bool:
    """Whether a module or attribute name is meant for users."""
    return not name.startswith("_")


def import_all() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Import every public module of the standard library; (modules by name, reasons by name of the skipped)."""
    modules: dict[str, ModuleType] = {}
    skipped: dict[str, str] = {}
    waiting = sorted((n for n in sys.stdlib_module_names if is_public(n) or n == "__future__"), reverse=True)
    waiting.append("os.path")
    while waiting:
        name = waiting.pop()
        last = name.rpartition(".")[2]
        if last in NEVER_IMPORTED or last.startswith("test_") or last.endswith("_test"):
            skipped[name] = "never imported"
            continue
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
            skipped[name] = type(error).__name__
            continue
        if name in DOCUMENTED_AS:
            continue
        modules[name] = module
        for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if is_public(child.name):
                waiting.append(f"{name}.{child.name}")
    return modules, skipped


def own_doc(value: Any) -> str:
    """The docstring that `value` itself carries, dedented; an inherited one belongs to its owner."""
    if isinstance(value, type) and "__doc__" not in vars(value):
        return ""
    doc = getattr(value, "__doc__", None)
    return clean(inspect.cleandoc(doc)) if isinstance(doc, str) else ""


def clean(text: str) -> str:
    """Without memory addresses, which differ from process to process."""
    return ADDRESS.sub("", text).strip()


class Elided:
    """Stands for a default that is not shown."""

    def __repr__(self) -> str:
        return "..."


def is_plain(value: Any) -> bool:
    """Whether a default reads the same in every process on every machine: no paths, environments or objects."""
    if value is None or isinstance(value, bool | int | float | complex | bytes):
        return True
    if isinstance(value, str):
        return value == os.sep or not value.startswith(os.sep)
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(is_plain(part) for pair in value.items() for part in pair)
    return isinstance(value, type | Enum) or value is inspect.Parameter.empty


def signature(value: Any) -> str:
    """`(a, *p)`, or nothing where Python knows none. A default that is not plain or is long reads `...`."""
    try:
        known = inspect.signature(value)
        shown = [
            parameter
            if is_plain(parameter.default) and len(repr(parameter.default)) <= LONGEST_DEFAULT
            else parameter.replace(default=Elided())
            for parameter in known.parameters.values()
        ]
        return clean(str(known.replace(parameters=shown)))
    except (ValueError, TypeError, NameError, AttributeError):
        return ""


def is_documented(value: Any) -> bool:
    """A class, a function or method, or a wrapper around one (such as functools.lru_cache makes)."""
    return isinstance(value, type) or inspect.isroutine(value) or (callable(value) and hasattr(value, "__wrapped__"))


def public_names(module: ModuleType) -> list[str]:
    """`__all__` where there is one, otherwise what does not start with an underscore."""
    listed = getattr(module, "__all__", None)
    names = listed if isinstance(listed, list | tuple) else [n for n in vars(module) if is_public(n)]
    return sorted({n for n in names if isinstance(n, str)})


def home(module_name: str, name: str, value: Any, modules: dict[str, ModuleType]) -> str:
    """The module that documents `value`, which `module_name` shows as `name`.

    The module that defines it, or, where that is private (`_heapq`), the one that shows it. A package that
    lists it in `__all__` comes before its submodule: `asyncio.run`, not `asyncio.runners.run`.
    """
    defined = getattr(value, "__module__", None) or module_name
    defined = DOCUMENTED_AS.get(defined, defined)
    if defined not in modules or getattr(modules[defined], name, None) is not value:
        return module_name
    parts = defined.split(".")
    for depth in range(1, len(parts)):
        package = modules.get(".".join(parts[:depth]))
        if package and name in getattr(package, "__all__", ()) and getattr(package, name, None) is value:
            return ".".join(parts[:depth])
    return defined


def entries(modules: dict[str, ModuleType]) -> list[Entry]:
    """Every documented class and function once, sorted by name."""
    candidates: list[tuple[bool, int, str, Any]] = []
    for module_name, module in modules.items():
        for name in public_names(module):
            value = getattr(module, name, None)
            if is_documented(value) and home(module_name, name, value, modules) == module_name:
                full = name if module_name == "builtins" else f"{module_name}.{name}"
                renamed = getattr(value, "__name__", name) != name
                candidates.append((renamed, full.count("."), full, value))
    # Its own name before an alias, a short path before a long one, then the alphabet.
    candidates.sort(key=lambda c: c[:3])
    found: dict[int, Entry] = {}
    for _, _, full, value in candidates:
        found.setdefault(id(value), Entry(full, value))
    return sorted(found.values(), key=lambda e: e.name)


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines, sorted by name; of aliases only one."""
    found = [(name, getattr(value, "__func__", value)) for name, value in vars(owner).items() if is_public(name)]
    found.sort(key=lambda pair: (getattr(pair[1], "__name__", pair[0]) != pair[0], pair[0]))
    once = {id(value): (name, value) for name, value in reversed(found)}
    yield from sorted(once.values(), key=lambda pair: pair[0])


def class_text(entry: Entry) -> str:
    """The class's docstring, then a section for each documented method; nothing where nothing is documented."""
    sections = []
    title = entry.name.rpartition(".")[2]
    for name, value in methods(entry.value):
        doc = own_doc(value) if inspect.isroutine(value) or isinstance(value, property) else ""
        if doc:
            arguments = "" if isinstance(value, property) else signature(value)
            sections.append(f"{title}.{name}{arguments}\n\n{doc}")
    doc = own_doc(entry.value)
    if not doc and not sections:
        return ""
    return "\n\n".join(part for part in (f"class {entry.name}{signature(entry.value)}", doc, *sections) if part)


def records() -> Iterator[dict[str, Any]]:
    """All records sorted by name, then the modules that were skipped."""
    modules, skipped = import_all()
    texts: dict[str, str] = {}
    for name, module in modules.items():
        if doc := own_doc(module):
            texts[name] = f"module {name}\n\n{doc}"
    for entry in entries(modules):
        if isinstance(entry.value, type):
            text = class_text(entry)
        else:
            doc = own_doc(entry.value)
            text = f"{entry.name}{signature(entry.value)}\n\n{doc}" if doc else ""
        if text:
            # Where a package shows a function under the name of its own submodule, the submodule's record stays.
            texts.setdefault(entry.name, text)
    topics = importlib.import_module("pydoc_data.topics").topics
    texts |= {f"topic/{name}": clean(text) for name, text in topics.items()}
    for name, text in sorted(texts.items()):
        yield {"name": name, "text": text}
    yield {"skipped": dict(sorted(skipped.items()))}


def main() -> None:
    """Write the records to the real standard output; whatever modules print meanwhile goes nowhere."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace") as out:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            with contextlib.redirect_stdout(nowhere):
                lines = [json.dumps(record, ensure_ascii=False) for record in records()]
        out.write("\n".join(lines) + "\n")
        out.flush()
    os._exit(0)  # exit handlers of modules that were only imported for their documentation are not wanted


if __name__ == "__main__":
    main()
