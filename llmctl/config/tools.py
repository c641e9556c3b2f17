"""Configuration of tools: what a policy may call while it answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from llmctl.config.base import Config, parted
from llmctl.config.serve import ToolFormat

ToolName = Literal["calculator", "python"]


class ToolsConfig(Config):
    """Tools that a policy may call; it is told of them, and what they give is read and never learned."""

    names: Annotated[tuple[ToolName, ...], BeforeValidator(parted)] = Field(
        default=(), description="what may be called: calculator, python (programs in the sandbox); none where empty"
    )
    calls: int = Field(default=4, ge=1, le=1000, description="calls in one answer; one that would make more is cut")
    output_chars: int = Field(
        default=1000, ge=16, le=2**20, description="characters of an output; longer ones lose their middle"
    )
    timeout_s: float = Field(default=3.0, gt=0, le=600, description="seconds that a program may run")
    format: ToolFormat = Field(
        default="auto", description="how calls are written; auto: as the chat template shows, as Hermes does without"
    )
