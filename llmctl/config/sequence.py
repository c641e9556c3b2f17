"""Which models can be trained with each row cut into parts, one for each rank of a group."""

from __future__ import annotations

from llmctl.config.model import ModelConfig


def uncut(model: ModelConfig, parts: int) -> str | None:
    """Why rows of this model cannot be cut into `parts`; None where they can."""
    for name, heads in (("heads", model.heads), ("kv_heads", model.kv_heads)):
        if heads % parts:
            return f"sequence_parallel={parts} deals the heads to ranks, and {heads} {name} are no multiple of {parts}"
    if model.mtp is not None:
        return "sequence_parallel cuts rows between a token and the ones that multi-token prediction looks at"
    if model.experts is not None:
        return "sequence_parallel is for models without experts, whose balance is that of whole rows"
    return None
