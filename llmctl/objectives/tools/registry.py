"""Which tools there are, what a model is told of them, and how calls are run: whatever they do, they give a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from llmctl.config.tools import ToolName, ToolsConfig
from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits, Output
from llmctl.evals.sandbox.verify import refuse_where_impossible
from llmctl.objectives.tools.calculator import calculate

TOLD: Final[dict[ToolName, tuple[str, str, str]]] = {
    "calculator": (
        "Works out an arithmetic expression: numbers, + - * / // % **, parentheses, abs, min, max, round, sqrt.",
        "expression",
        "such as (3 + 4) * 2",
    ),
    "python": (
        "Runs a Python program with the standard library and gives what it prints. Nothing is kept between calls.",
        "code",
        "the program; it must print what is to be seen",
    ),
}
"""What a tool does, its one parameter, which is a text, and what that is."""
CUT = " … ({} characters left out) … "


@dataclass(frozen=True)
class Told:
    """What a call gave.

    Attributes:
        text: for the model; of a call that failed, why.
        failed: whether it did.
    """

    text: str
    failed: bool = False


class Tools:
    """Runs calls. Close it to end the sandbox; the next use starts anew.

    Args:
        config: which tools, and their bounds.

    Raises:
        InputError: this system cannot hold the programs of a model, and why.
    """

    def __init__(self, config: ToolsConfig) -> None:
        self._config = config
        self.names = config.names
        self._box = Sandbox(Limits(timeout_s=config.timeout_s))
        if "python" in self.names:
            refuse_where_impossible(self._box, "leave out the tool python")

    @property
    def for_template(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [_described(name) for name in self.names]

    def run(self, calls: Sequence[tuple[str, str]]) -> list[Told]:
        """What each gives: its name and its arguments are as the model wrote them."""
        with ThreadPoolExecutor(self._box.workers) as threads:
            return list(threads.map(self._one, calls))

    def close(self) -> None:
        """End what still runs."""
        self._box.close()

    def _one(self, call: tuple[str, str]) -> Told:
        name, arguments = call
        try:
            told = self._given(name, arguments)
        except ValueError as error:
            told = Told(f"Error: {error}", failed=True)
        return Told(self._shortened(told.text), told.failed)

    def _given(self, name: str, arguments: str) -> Told:
        """What the tool says.

        Raises:
            ValueError: the call is none that there is.
        """
        known = next((one for one in self.names if one == name), None)
        if known is None:
            raise ValueError(f"there is no function {name[:40]!r}, only {', '.join(self.names)}")
        given = _argument(arguments, TOLD[known][1])
        return Told(calculate(given)) if known == "calculator" else _printed(self._box.run(given), self._config)

    def _shortened(self, text: str) -> str:
        """Without half pairs of surrogates, which no text can be encoded with, and not too long."""
        whole = text.encode(errors="replace").decode()
        most = self._config.output_chars
        if len(whole) <= most:
            return whole
        return whole[: most // 2] + CUT.format(len(whole) - most) + whole[len(whole) - (most - most // 2) :]


def _described(name: ToolName) -> dict[str, Any]:
    does, parameter, what = TOLD[name]
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string", "description": what}},
        "required": [parameter],
    }
    return {"type": "function", "function": {"name": name, "description": does, "parameters": schema}}


def _argument(arguments: str, parameter: str) -> str:
    """The one text that a tool takes.

    Raises:
        ValueError: that is not what it was given.
    """
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        raise ValueError("the arguments are no JSON") from None
    if not isinstance(given, dict) or set(given) != {parameter} or not isinstance(given[parameter], str):
        raise ValueError(f'the arguments must be {{"{parameter}": a text}}')
    return str(given[parameter])


def _printed(output: Output, config: ToolsConfig) -> Told:
    """What a program wrote, and what ended it where it did not end by itself."""
    written = "\n".join(part for part in (output.stdout.strip("\n"), output.stderr.strip("\n")) if part)
    ended = {
        "timed out": f"Error: it took more than {config.timeout_s:g} s",
        "memory": "Error: it took too much memory",
        "output": "Error: it wrote too much",
        "missing": f"Error: {output.reason}",
    }.get(output.kind, "")
    text = "\n".join(part for part in (written, ended) if part)
    return Told(text or "(nothing was printed)", failed=output.exit_code != 0)
