"""Activation checkpointing: a block's activations are made again in the backward pass in place of being kept.

The numbers are the same bit for bit, as the same operations run twice.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmctl.model.transformer import Transformer

KEPT = {  # what is dear to compute: products, torch's attention; all else is made again
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_mm.default,  # noqa: SLF001 (of 8-bit floats; operators have no other name)
    torch.ops.aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
}


def recompute(model: Transformer, how: str) -> None:
    """Let every block of `model` recompute its activations: `full` all of them, `selective` all but products'."""
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if how == "selective":
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in model.layers:
        block.forward = _while_training(block.forward, settings)


def _while_training(forward: Any, settings: dict[str, Any]) -> Any:
    @functools.wraps(forward)
    def run(*given: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *given, **settings)
        return forward(*given)

    return run


def _policy(context: Any, operator: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    del context, given, named
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
