"""Functions that a model may call: how it is told of them, and how it writes a call.

Templates that know the variable `tools` tell the model in its own way. For all others the functions go into the
system message, and calls and their results into the texts of the chat, as Hermes has it
(github.com/NousResearch/Hermes-Function-Calling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.serve import ToolFormat

Turn = Mapping[str, Any]

FALLBACK = """\
You may call functions. These there are, one a line, each with its parameters as a JSON Schema:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON between tags, once for each call:
<tool_call>
{{"name": "the name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>
What it returns is told to you between <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Convention:
    """How a model writes a call: `begin`, a JSON object with `name` and arguments, `end`.

    Attributes:
        begin: what stands in front of the object; empty where an answer that begins with an object is a call.
        end: what stands behind it.
        space: between these and the object, and between one call and the next.
        arguments: the object's key of the arguments; `parameters` and `arguments` are understood everywhere.
    """

    begin: str
    end: str
    space: str
    arguments: str


HERMES = Convention("<tool_call>", "</tool_call>", "\n", "arguments")
LLAMA3 = Convention("", "", "", "parameters")


def knows_tools(chat_template: str) -> bool:
    """Whether the template itself tells the model of its tools."""
    return re.search(r"\btools\b", chat_template) is not None


def convention_of(chat_template: str, told: ToolFormat = "auto") -> Convention:
    """How a model with this template writes a call.

    Raises:
        InputError: the template writes calls in a way that is not known.
    """
    if told == "hermes" or (told == "auto" and (HERMES.begin in chat_template or not knows_tools(chat_template))):
        return HERMES
    if told == "llama3" or re.search(r"""\{\\?["']name\\?["']:.{0,40}\\?["']parameters\\?["']:""", chat_template):
        return LLAMA3
    raise InputError(
        "the chat template writes function calls in a way that is not known",
        hint="serve with tool_format=hermes or tool_format=llama3, if the model understands one of them",
    )


def spelled_out(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The same chat for a template that knows nothing of tools: only roles and texts.

    Args:
        turns: of roles system, user, assistant (with `tool_calls` perhaps), and tool.
        tools: `{"type": "function", "function": {…}}` each; may be empty.
    """
    plain: list[dict[str, str]] = []
    for turn in turns:
        if turn["role"] == "tool":
            told = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if plain and plain[-1]["role"] == "tool":  # results of calls made at once are one turn
                plain[-1]["content"] += f"\n{told}"
            else:
                plain.append({"role": "tool", "content": told})
        else:
            parts = [turn["content"], *map(_call, turn.get("tool_calls", ()))]
            plain.append({"role": turn["role"], "content": "\n".join(part for part in parts if part)})
    if tools:
        listed = FALLBACK.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] += f"\n\n{listed}"
        else:
            plain.insert(0, {"role": "system", "content": listed})
    return [{**turn, "role": "user" if turn["role"] == "tool" else turn["role"]} for turn in plain]


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    said = json.dumps({"name": function["name"], HERMES.arguments: function["arguments"]}, ensure_ascii=False)
    return f"{HERMES.begin}{HERMES.space}{said}{HERMES.space}{HERMES.end}"
