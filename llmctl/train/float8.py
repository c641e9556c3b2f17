"""Products of linear layers in 8-bit floats (Micikevicius et al. 2022, arXiv:2209.05433), through torchao.

Weights, gradients and the optimizer's state stay fp32, and everything but those products is as in bf16. Inputs, weights
and gradients are scaled anew in each product by their largest magnitude, of a whole tensor or of a row.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import nn

from llmctl.config.errors import UsageError

RECIPES = {"fp8": "tensorwise", "fp8-rowwise": "rowwise"}
NEEDS = {"fp8": (8, 9), "fp8-rowwise": (9, 0)}  # compute capability that the products of each recipe want
MULTIPLE = 16  # of both sides of a matrix, for the GPU's 8-bit products
LEFT_OUT = ("lm_head", "router")  # where a rounding error picks another token, or another expert


def hindrance(precision: str, device: torch.device) -> str | None:
    """Why 8-bit products cannot be had on `device`; None where they can."""
    if importlib.util.find_spec("torchao") is None:
        return "it needs the package torchao, which is not installed"
    wanted = NEEDS[precision]
    if device.type != "cuda":
        return "it needs a GPU with 8-bit products (Hopper or later), and this is a CPU"
    found = torch.cuda.get_device_capability(device)
    if found < wanted:
        name, has, needed = torch.cuda.get_device_name(device), *(".".join(map(str, v)) for v in (found, wanted))
        return f"it needs a GPU of compute capability {needed} or later (Hopper), and {name} has {has}"
    return None


def require_float8(precision: str, device: torch.device) -> None:
    """Refuse what cannot run here, before any work.

    Raises:
        UsageError: no GPU with 8-bit products, or no torchao.
    """
    if reason := hindrance(precision, device):
        raise UsageError(
            f"precision={precision}: {reason}", hint="pip install 'llmctl[fp8]' on such a machine, or precision=bf16"
        )


def takes_float8(layer: nn.Module, name: str) -> bool:
    """Whether a module is a linear layer whose product may be in 8 bits."""
    if not isinstance(layer, nn.Linear) or name.rpartition(".")[2] in LEFT_OUT:
        return False
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def use_float8(model: nn.Module, precision: str, device: torch.device) -> str:
    """Let the linear layers of `model` multiply in 8 bits, in place; its parameters stay what they are.

    On a CPU the rounding is that of 8 bits and the products are not, which shows what a run would learn.

    Returns:
        What was done, for people; empty where `precision` asks for nothing.

    Raises:
        UsageError: no layer has a shape that allows it.
    """
    if precision not in RECIPES:
        return ""
    found = [name for name, layer in model.named_modules() if takes_float8(layer, name)]
    if not found:
        raise UsageError(
            f"precision={precision}: no linear layer has both sides a multiple of {MULTIPLE}",
            hint="precision=bf16, or a wider model",
        )
    # torchao's own kernels, each built for one release of torch, are for other things, and loading them may fail aloud.
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    package: Any = importlib.import_module("torchao.float8")
    recipe = package.Float8LinearConfig.from_recipe_name(RECIPES[precision])
    # Products sum over the tokens of a micro-batch too, of which there may be any number.
    settings = dataclasses.replace(recipe, emulate=device.type == "cpu", pad_inner_dim=True)
    package.convert_to_float8_training(model, config=settings, module_filter_fn=takes_float8)
    return f"products of {len(found)} linear layers in 8-bit floats, scaled {RECIPES[precision]}"
