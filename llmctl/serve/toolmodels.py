"""Bodies of the OpenAI API about functions that the model may call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from llmctl.serve.fields import Body, Text

MOST_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    """A function as the client describes it."""

    name: Name = Field(description="what the model calls it by")
    description: Text | None = Field(None, description="told to the model")
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of an object; none where left out")
    strict: bool | None = Field(None, description="calls that the model chooses to make keep to the schema too")

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type", "object") != "object":
            raise ValueError('must be the schema of an object, with "type": "object"')
        return value


class Tool(Body):
    """OpenAI's `tools[]`; functions are the only kind."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = self.function
        told = {"name": function.name, "description": function.description, "parameters": self.arguments}
        return {"type": "function", "function": {key: value for key, value in told.items() if value is not None}}

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        given = self.function.parameters
        return {"type": "object", **({"properties": {}, "additionalProperties": False} if given is None else given)}


class CalledFunction(Body):
    """A call of an earlier turn."""

    name: Name
    arguments: Text = Field(description="JSON")
    parsed_arguments: Any = Field(None, description="ignored: what OpenAI's client made of the arguments")


class ToolCall(Body):
    """`messages[].tool_calls[]`: a call that the assistant made."""

    id: Text
    type: Literal["function"]
    function: CalledFunction
    index: Any = Field(None, description="ignored: left by clients that put a stream together")

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates take it: arguments as an object, where they are one."""
        arguments: Any = self.function.arguments
        try:
            read = json.loads(arguments)
        except ValueError:
            read = None
        arguments = read if isinstance(read, dict) else arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True)
class ToolChoice:
    """What `tool_choice` says.

    Attributes:
        mode: whether the model may call (`auto`), must (`required`), or must not (`none`).
        names: the only functions that it may call; None for all.
        one: whether it is to be exactly one call.
    """

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    one: bool = False


def _choice(value: Any) -> Any:
    """Any of the forms of `tool_choice`."""
    match value:
        case None | ToolChoice():
            return value
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("required", (name,), one=True)
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]}}:
            return ToolChoice(mode, tuple(map(_allowed_name, tools)))
    raise ValueError(
        'must be "none", "auto", "required", {"type": "function", "function": {"name": …}} or allowed_tools'
    )


def _allowed_name(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise ValueError('each of the allowed tools must be {"type": "function", "function": {"name": …}}')


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS)]
Choice = Annotated[
    ToolChoice, BeforeValidator(_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any])
]
