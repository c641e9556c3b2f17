"""The program of the child process of `Guarded`: one JSON line for the task, then one for each answer.

It needs the standard library alone, so that it starts at once. What the user's code prints goes to stderr.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[dict[str, Any]], Any]


def main() -> None:
    """Answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        judge = made(json.loads(sys.stdin.readline()))
        said: dict[str, Any] = {}
    except BaseException as error:  # noqa: BLE001 (a user's file may raise anything)
        said = {"error": told(error)}
    print(json.dumps(said), file=out, flush=True)
    if said:
        return
    for line in sys.stdin:
        try:
            said = {"value": float(judge(json.loads(line)))}
        except BaseException as error:  # noqa: BLE001 (see above)
            said = {"error": told(error)}
        print(json.dumps(said), file=out, flush=True)


def made(task: dict[str, Any]) -> Judge:
    """What judges one answer."""
    if task["do"] == "regex":
        pattern = re.compile(task["pattern"])
        find = pattern.fullmatch if task["whole"] else pattern.search
        return lambda asked: find(asked["completion"]) is not None
    if task["do"] == "math":
        return mathematics()
    function = function_of(Path(task["path"]), task["name"], task["sha256"])
    return lambda asked: function(asked["completion"], asked["answer"], prompt=asked["prompt"], **asked["fields"])


def function_of(path: Path, name: str, sha256: str) -> Callable[..., Any]:
    """The function of a file, whose bytes must be those that the run was configured with."""
    code = path.read_bytes()
    if hashlib.sha256(code).hexdigest() != sha256:
        raise ValueError(f"{path} was changed since the run began")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    exec(compile(code, str(path), "exec"), module.__dict__)  # noqa: S102 (the user's own file, checked by its digest)
    function = getattr(module, name, None)
    if not callable(function):
        raise TypeError(f"{path} has no function {name}")
    return function  # type: ignore[no-any-return]


def mathematics() -> Judge:
    """Equality by math-verify."""
    from math_verify import parse, verify

    def judge(asked: dict[str, Any]) -> bool:
        if asked["answer"] is None:
            raise ValueError("the prompt's row has no answer")
        # This process is ended from outside where it hangs, so the package's own alarms are off.
        right = parse(asked["answer"], parsing_timeout=None)
        if not right:
            raise ValueError(f"the wanted answer is no mathematics: {asked['answer']!r}")
        return bool(verify(right, parse(asked["completion"], parsing_timeout=None), timeout_seconds=None))

    return judge


def told(error: BaseException) -> str:
    """In one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
