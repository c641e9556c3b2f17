"""The program of the child process of `Guarded`: one JSON line for the task, then one for each answer.

It needs the standard library alone, so that it starts at once. What the user's code prints goes to stderr.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[dict[str, Any]], Any]


def main() -> None:
    """Answer until stdin ends; what user's code reads and prints is something else."""
    into, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        task = json.loads(into.readline())
        judge = made(task)
        said: dict[str, Any] = {}
    except BaseException as error:  # noqa: BLE001 (a user's file may raise anything)
        said = {"error": told(error)}
    print(json.dumps(said), file=out, flush=True)
    if said:
        return
    for line in into:
        signal.setitimer(signal.ITIMER_REAL, task["give_up_s"])  # whoever asked would have ended this: it is gone
        try:
            said = {"value": judge(json.loads(line))}
        except BaseException as error:  # noqa: BLE001 (see above)
            said = {"error": told(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), file=out, flush=True)


def made(task: dict[str, Any]) -> Judge:
    """What judges one answer."""
    if task["do"] == "regex":
        pattern = re.compile(task["pattern"])
        find = pattern.fullmatch if task["whole"] else pattern.search
        return lambda asked: float(find(asked["completion"]) is not None)
    if task["do"] == "math":
        return mathematics()
    if task["do"] == "read":
        return score_in(re.compile(task["pattern"]))
    if task["do"] == "gym":
        return gymnastics(task["tag"])
    function = function_of(Path(task["path"]), task["name"], task["sha256"])
    return lambda asked: float(
        function(asked["completion"], asked["answer"], prompt=asked["prompt"], **asked["fields"])
    )


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

    def judge(asked: dict[str, Any]) -> float:
        if asked["answer"] is None:
            raise ValueError("the prompt's row has no answer")
        # This process is ended from outside where it hangs, so the package's own alarms are off.
        right = parse(asked["answer"], parsing_timeout=None)
        if not right:
            raise ValueError(f"the wanted answer is no mathematics: {asked['answer']!r}")
        return float(verify(right, parse(asked["completion"], parsing_timeout=None), timeout_seconds=None))

    return judge


def score_in(pattern: re.Pattern[str]) -> Judge:
    """The number that the pattern's first group holds where it is found last."""

    def judge(asked: dict[str, Any]) -> float:
        found = list(pattern.finditer(asked["completion"]))
        if not found:
            raise ValueError(f"no score in {asked['completion'][-80:]!r}")
        return float(found[-1][1])

    return judge


def gymnastics(tag: str) -> Judge:
    """What reasoning-gym gives for an answer; or, where one is asked for a list, the prompts of a task."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    @functools.lru_cache(maxsize=64)
    def made_by(written: str) -> Any:
        of = json.loads(written)
        if of["task"] not in DATASETS:
            near = difflib.get_close_matches(of["task"], DATASETS, n=3) or sorted(DATASETS)
            raise ValueError(f"there is no such task; there are {', '.join(near)}")
        return reasoning_gym.create_dataset(of["task"], size=of["size"], seed=of["seed"], **of["options"])

    def judge(asked: dict[str, Any]) -> Any:
        if "list" in asked:
            return [[one["question"], one["answer"]] for one in made_by(json.dumps(asked["list"]))]
        of = dict(asked["fields"].get("gym") or {})
        if not of:
            raise ValueError("the prompt's row has no 'gym'")
        index, said = of.pop("index"), asked["completion"]
        if tag:
            said = said.rpartition(f"</{tag}>")[0].rpartition(f"<{tag}>")[2].strip()
        dataset = made_by(json.dumps(of))
        return float(dataset.score_answer(said, dataset[index]))

    return judge


def told(error: BaseException) -> str:
    """In one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
