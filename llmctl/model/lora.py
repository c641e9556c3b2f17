"""Low-rank adapters on the matrices of a model: put on, trained, taken off, merged in.

The formulas are those of the papers that `llmctl.config.lora` names; where PEFT differs from a paper, its form is
taken, so that adapters go both ways: the norm of DoRA's direction is a constant in the gradient (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.config.errors import UsageError
from llmctl.config.lora import LINEAR, LoraConfig
from llmctl.model.nf4 import Nf4Linear

LINEAR_LAYERS = (nn.Linear, Nf4Linear)


@dataclass(frozen=True)
class Factors:
    """The adapter of one matrix W [O,I].

    Attributes:
        a: [R,I].
        b: [O,R].
        scale: what B A is multiplied by.
        magnitude: [O], the lengths of the rows of what DoRA makes; None without it.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def merged(self, weight: Tensor) -> Tensor:
        """W + s B A, or m times that over the lengths of its rows; fp32 sums, in the dtype of W."""
        summed = weight.float() + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is not None:
            summed = summed * (self.magnitude.float() / summed.norm(dim=1))[:, None]
        return summed.to(weight.dtype)


class LoraLinear(nn.Module):
    """A linear layer with its weights frozen, in 4 bits or as they were, and an adapter beside it.

    Args:
        base: the layer.
        config: of the adapter.
    """

    def __init__(self, base: nn.Linear | Nf4Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.scale = config.scale
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_zeros(config.rank, base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(base.out_features, config.rank))
        self.magnitude = nn.Parameter(weight.norm(dim=1)) if config.dora else None
        self.lora_B.rate_factor = config.b_lr_ratio  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[…,I] to […,O]."""
        base = self.base
        made = base.product(x) if isinstance(base, Nf4Linear) else functional.linear(x, base.weight)
        made = made + self.scale * functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        if self.magnitude is not None:
            with torch.no_grad():
                norm = (base.weight + self.scale * (self.lora_B @ self.lora_A)).norm(dim=1)
            made = made * (self.magnitude / norm)
        return made if base.bias is None else made + base.bias

    @torch.no_grad()
    def init_zero(self, generator: torch.Generator) -> None:
        """A uniform within 1 / sqrt(I), as nn.Linear draws it and PEFT too; B zero."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        self.lora_A.copy_(torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def init_pissa(self) -> None:
        """A and B from the largest singular values; what remains of W is frozen in its place."""
        u, s, vh = torch.linalg.svd(self.base.weight.float(), full_matrices=False)
        rank = self.lora_A.shape[0]
        root = (s[:rank] / self.scale).sqrt()
        self.lora_A.copy_(root[:, None] * vh[:rank])
        self.lora_B.copy_(u[:, :rank] * root)
        self.base.weight.sub_(self.scale * (self.lora_B @ self.lora_A))


def attach(model: nn.Module, config: LoraConfig, seed: int) -> dict[str, Factors]:
    """Freeze the model and put adapters on the matrices that the configuration names.

    Returns:
        By the name of its module, what each adapter is at the start.

    Raises:
        UsageError: a target names no matrix, or the rank exceeds one.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    places = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LINEAR_LAYERS) and name.rpartition(".")[2] in config.targets
    ]
    unused = [target for target in config.targets if not any(name.rpartition(".")[2] == target for name in places)]
    if not places or (unused and config.targets != LINEAR):
        known = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, LINEAR_LAYERS)}
        )
        raise UsageError(
            f"lora.targets: no matrix is called {(unused or [''])[0]!r}", hint=f"known: {', '.join(known)}"
        )
    generator = torch.Generator().manual_seed(seed)
    for name in places:
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(model.get_submodule(name), config)  # type: ignore[arg-type]
        if config.rank > min(layer.base.weight.shape):
            raise UsageError(
                f"lora.rank ({config.rank}) exceeds a side of {name}, {tuple(layer.base.weight.shape)}",
                hint=f"give at most {min(layer.base.weight.shape)}",
            )
        if config.init == "pissa":
            layer.init_pissa()
        else:
            layer.init_zero(generator)
        setattr(model.get_submodule(parent), last, layer)
    return factors_of(model)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every layer with an adapter, by its name in the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def factors_of(model: nn.Module, trained: Mapping[str, Tensor] | None = None) -> dict[str, Factors]:
    """A copy of each adapter: as it is in the model, or in the weights that training gave."""
    found = {}
    for name, layer in adapted(model):
        own = {key: value for key, value in layer.named_parameters(recurse=False)}  # noqa: C416 (typed as a mapping)
        given = {key: value if trained is None else trained[f"{name}.{key}"] for key, value in own.items()}
        copied = {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in given.items()}
        found[name] = Factors(copied["lora_A"], copied["lora_B"], layer.scale, copied.get("magnitude"))
    return found


def difference(after: Mapping[str, Factors], before: Mapping[str, Factors]) -> dict[str, Factors]:
    """Adapters of twice the rank that add s (B A - B0 A0): what PiSSA learned, on the W that it began with."""
    return {
        name: Factors(torch.cat((one.a, before[name].a)), torch.cat((one.b, -before[name].b), dim=1), one.scale)
        for name, one in after.items()
    }
