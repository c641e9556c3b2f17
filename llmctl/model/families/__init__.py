"""The layouts of checkpoints that are read and written, one file for each kin, and the registry of them all."""

from __future__ import annotations

from typing import Final

from llmctl.config.model import ModelConfig
from llmctl.model.families.deepseek_v3 import DEEPSEEK_V3
from llmctl.model.families.family import Family, canonical
from llmctl.model.families.gpt2 import GPT2
from llmctl.model.families.llama import LLAMA
from llmctl.model.families.mistral import MISTRAL
from llmctl.model.families.mixtures import MIXTRAL, QWEN3_MOE
from llmctl.model.families.own import OWN
from llmctl.model.families.qwen import QWEN2, QWEN3

__all__ = ["FAMILIES", "OWN", "Family", "family_for"]

FAMILIES: Final = {
    family.architecture: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, MIXTRAL, QWEN3_MOE, DEEPSEEK_V3, OWN)
}
"""By the architecture's name. Earlier ones come first where several express a shape; our own expresses all."""


def family_for(config: ModelConfig, preferred: Family | None = None) -> tuple[Family, ModelConfig]:
    """The first family that expresses a shape, and the shape in the form in which it does.

    Args:
        config: the shape.
        preferred: asked before all others.
    """
    plain = canonical(config)
    for family in (*((preferred,) if preferred else ()), *FAMILIES.values()):
        if family is not OWN and family.expresses(plain):
            return family, plain
    return OWN, config
