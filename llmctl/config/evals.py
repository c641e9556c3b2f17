"""What `eval` measures and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmctl.config.base import INTEGER_LIMIT, Config, execution
from llmctl.config.devices import Device, Precision, Weights

RESULTS_FILE = "results.json"
"""Where an `eval` artifact keeps its figures, with what decided them."""


class EvalConfig(Config):
    """`llmctl eval`: held-out loss, and multiple choice by log-likelihood where questions are given."""

    limit: int | None = Field(
        None, ge=1, description="score only the first N questions; the held-out rows are always all scored"
    )
    chat: bool | Literal["auto"] = Field(
        "auto",
        description="ask the questions through the chat template; auto: where the checkpoint was trained on chats",
    )
    delimiter: str = Field(
        " ",
        max_length=16,
        description="text between a prompt and a choice without the chat template, unless white space is there already",
    )
    baseline: bool = Field(
        False, description="measure an untrained model of the same shape as well, as the floor of every figure"
    )
    seed: int = Field(0, ge=0, lt=INTEGER_LIMIT, description="seed of the untrained model's weights")
    precision: Precision = Field("fp32", description="number format of weights and activations")
    weights: Weights = Field(
        "plain", description="int8, int4: round the weights, and measure beside it what that loses"
    )
    batch_tokens: int = execution(
        8192, ge=1, le=1 << 24, description="tokens of one forward pass; a memory bound, padding included"
    )
    device: Device = execution("auto", description="where the model runs; auto takes an accelerator where there is one")
