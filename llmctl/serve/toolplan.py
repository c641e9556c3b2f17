"""What a chat's `tools` and `tool_choice` ask of the engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llmctl.config.errors import InputError
from llmctl.inference.request import Constraint
from llmctl.serve.errors import bad_request
from llmctl.serve.generation import Service
from llmctl.serve.requests import ChatRequest
from llmctl.serve.toolforms import tool_form
from llmctl.serve.toolmodels import Tool, ToolChoice
from llmctl.tokens.tools import Convention, convention_of


@dataclass(frozen=True)
class ToolPlan:
    """How an answer may call.

    Attributes:
        tools: what the model is told of.
        convention: how it writes a call.
        form: what the answer must look like; None where the tools leave that open.
        spelled_ids: special tokens that mark calls, and so must be seen in the text.
    """

    tools: tuple[Tool, ...]
    convention: Convention
    form: Constraint | None
    spelled_ids: tuple[int, ...]

    @property
    def names(self) -> Collection[str]:
        """What may be called."""
        return {tool.function.name for tool in self.tools}


def plan_tools(service: Service, body: ChatRequest) -> ToolPlan | None:
    """The plan of a chat's tools; None where nothing may be called.

    Raises:
        ApiError: 400 where the fields contradict each other, or no way to write calls is known of the model.
    """
    choice = body.tool_choice or ToolChoice("auto")
    tools = tuple(body.tools or ())
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools: two functions have the same name", "tools", "invalid_value")
    if choice.mode == "required" and not tools:
        raise bad_request("tool_choice: there are no tools to call", "tool_choice", "invalid_value")
    strange = set(choice.names or ()) - set(names)
    if strange:
        raise bad_request(f"tool_choice: there is no tool {min(strange)[:80]!r}", "tool_choice", "invalid_value")
    if choice.mode == "none" or not tools:
        return None
    if body.structured_outputs is not None:
        raise bad_request("structured_outputs and tools exclude each other", "structured_outputs", "invalid_value")
    tokenizer = service.engine.tokenizer
    try:
        convention = convention_of(tokenizer.chat_template, service.config.tool_format)
    except InputError as error:
        raise bad_request(f"tools: {error.one_line}", "tools", "invalid_value") from None
    answer = None if body.response_format is None else body.response_format.schema_of_answer
    if answer is not None and choice.mode == "auto" and not convention.begin:
        fault = "this model's calls look like an answer in JSON; set tool_choice, or leave response_format out"
        raise bad_request(f"response_format: {fault}", "response_format", "invalid_value")
    form = tool_form(
        tokenizer,
        convention,
        tools if choice.names is None else [tool for tool in tools if tool.function.name in choice.names],
        choice,
        parallel=body.parallel_tool_calls is not False,
        answer=answer,
    )
    marks = (tokenizer.special.get(mark) for mark in (convention.begin, convention.end))
    return ToolPlan(tools, convention, form, tuple(mark for mark in marks if mark is not None))
