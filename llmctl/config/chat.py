"""How a checkpoint is asked in the terminal."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import Config
from llmctl.config.devices import Device, Precision, Weights


class ChatConfig(Config):
    """`llmctl chat`. Each question starts a new conversation; without any they come from the terminal, as one."""

    questions: tuple[str, ...] = Field((), description="what to ask; read from the terminal where left out")
    temperature: float = Field(0.0, ge=0, le=10, description="0 always takes the likeliest token")
    max_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    device: Device = Field("auto", description="where the model runs; auto takes an accelerator where there is one")
    precision: Precision = Field("fp32", description="number format of the weights and the KV cache")
    weights: Weights = Field("plain", description="int8, int4: round the weights as they are opened")
