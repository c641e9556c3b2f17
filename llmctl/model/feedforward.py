"""The feed-forward layer, with a gate or without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.model import native


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer, arXiv:2109.08668)."""
    return functional.relu(x).square()


ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu2": relu2,
}
"""What bends the inner layer; of swiglu and geglu, what bends its gate."""


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202), or down(act(up(x))) where there is no gate.

    Args:
        config: of the model.
        width: inner width, where it is not the configuration's.
    """

    def __init__(self, config: ModelConfig, width: int | None = None) -> None:
        super().__init__()
        D, F, bias = config.width, width or config.ffn_width, config.feed_forward.bias
        self.activation = ACTIVATIONS[config.feed_forward.activation]
        self.gate_proj = nn.Linear(D, F, bias=bias) if config.feed_forward.gated else None
        self.up_proj = nn.Linear(D, F, bias=bias)
        self.down_proj = nn.Linear(F, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] to [B,T,D]."""
        if self.gate_proj is None:
            inner = self.activation(self.up_proj(x))
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
            silu = self.activation is functional.silu
            inner = native.gated(gate, up) if silu and native.serves(gate, up) else self.activation(gate) * up
        mixed: Tensor = self.down_proj(inner)
        return mixed
