"""Adapters as files, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors` with PEFT's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llmctl.config.errors import InputError, IntegrityError
from llmctl.config.model import ModelConfig
from llmctl.model.families import family_for
from llmctl.model.families.links import our_shapes
from llmctl.model.lora import Factors
from llmctl.pipeline.job import Product
from llmctl.store.files import publish_bytes

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
SCHEMA: Final = "llmctl.adapter/1"
PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
REFUSED: Final = {  # what an adapter of PEFT may hold and merging here would leave out
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "alora_invocation_tokens": None,
    "lora_bias": False,
    "target_parameters": None,
}


def write(directory: Path, factors: Mapping[str, Factors], config: ModelConfig, vocab_size: int, base: str) -> None:
    """Write adapters, which all have one rank and scale.

    Args:
        directory: where to.
        factors: by module of our model.
        config: of the model.
        vocab_size: of the model.
        base: what names the base model, for readers.

    Raises:
        InputError: the layout of the model's family has no such matrix by itself.
    """
    names = _their_names(config, vocab_size)
    tensors: dict[str, Tensor] = {}
    for ours, one in factors.items():
        theirs = PREFIX + _known(names, ours)
        tensors |= {theirs + A: one.a.contiguous(), theirs + B: one.b.contiguous()}
        if one.magnitude is not None:
            tensors[theirs + MAGNITUDE] = one.magnitude
    first = next(iter(factors.values()))
    rank = first.a.shape[0]
    described = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({_known(names, ours).rpartition(".")[2] for ours in factors}),
        "task_type": "CAUSAL_LM",
        "use_dora": first.magnitude is not None,
        "use_rslora": False,
    }
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    publish_bytes(directory / CONFIG_FILE, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    publish_bytes(directory / WEIGHTS_FILE, save(dict(sorted(tensors.items())), {"format": "pt"}))


def read_description(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`, refused where it holds what is not read here.

    Raises:
        InputError: it is missing or broken, no LoRA, or has parts that are not merged here.
    """
    path = directory / CONFIG_FILE
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="give a folder that PEFT or llmctl wrote") from None
    if not isinstance(described, dict) or described.get("peft_type") != "LORA":
        raise InputError(f"{path} describes no LoRA adapter", hint="other kinds of adapters are not read")
    for key, wanted in REFUSED.items():
        if described.get(key, wanted) not in (wanted, None, False):
            raise InputError(f"{path}: {key} is {described[key]!r}", hint="only the two matrices of LoRA are read")
    return described


def imported(source: Path, out: Path) -> Product:
    """Keep an adapter that others wrote as it is; whether it fits a model shows when it is merged.

    Raises:
        InputError: it is none, or of a kind that is not read.
        IntegrityError: its weights are damaged.
    """
    described = read_description(source)
    tensors = _tensors(source / WEIGHTS_FILE)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        publish_bytes(out / name, (source / name).read_bytes())
    facts = {"rank": described.get("r"), "parameters": sum(tensor.numel() for tensor in tensors.values())}
    return Product(SCHEMA, semantic=facts)


def read(directory: Path, config: ModelConfig, vocab_size: int) -> dict[str, Factors]:
    """Adapters by module of our model.

    Raises:
        InputError: it is none, or of another model.
        IntegrityError: a tensor is missing, or its shape does not fit.
    """
    described = read_description(directory)
    tensors = _tensors(directory / WEIGHTS_FILE)
    ours_of = {theirs: ours for ours, theirs in _their_names(config, vocab_size).items()}
    shapes = our_shapes(config, vocab_size)
    found = {}
    for name in sorted(tensors):
        if not name.endswith(A):
            continue
        theirs = name.removesuffix(A)
        ours = ours_of.get(theirs.removeprefix(PREFIX))
        if ours is None:
            raise InputError(
                f"{directory}: the base model has no matrix {theirs.removeprefix(PREFIX)}",
                hint="merge the adapter into the checkpoint that it was trained on",
            )
        if theirs + B not in tensors:
            raise IntegrityError(f"{directory / WEIGHTS_FILE} lacks {theirs + B}", hint="copy it again")
        a, b = tensors.pop(name), tensors.pop(theirs + B)
        weight = shapes[f"{ours}.weight"]
        if (b.shape[0], a.shape[1], b.shape[1]) != (weight[0], weight[1], a.shape[0]):
            raise IntegrityError(
                f"{directory}: {theirs} has factors {tuple(b.shape)} and {tuple(a.shape)} for a matrix {tuple(weight)}",
                hint="merge the adapter into the checkpoint that it was trained on",
            )
        magnitude = tensors.pop(theirs + MAGNITUDE, None)
        found[ours] = Factors(a, b, _scale(described, theirs, a.shape[0]), magnitude)
    if tensors or not found:
        what = f"holds {next(iter(tensors))}, which is not read here" if tensors else "holds no adapter"
        raise InputError(f"{directory / WEIGHTS_FILE} {what}", hint="only the two matrices of LoRA are read")
    return found


def _scale(described: Mapping[str, Any], theirs: str, rank: int) -> float:
    """Alpha / r or alpha / sqrt(r), with the alpha that a pattern may give a module (PEFT, tuners/lora/config.py)."""
    alpha = float(described["lora_alpha"])
    for pattern, value in (described.get("alpha_pattern") or {}).items():
        if theirs.endswith(f".{pattern}") or theirs.removeprefix(PREFIX) == pattern:
            alpha = float(value)
    return float(alpha / (rank**0.5 if described.get("use_rslora") else rank))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", hint="copy it again") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(f"{path}: {name} holds NaN or infinity", hint="the adapter is of no use")
    return tensors


def _their_names(config: ModelConfig, vocab_size: int) -> dict[str, str]:
    """Our modules and theirs, of the matrices that both keep as they are."""
    family, plain = family_for(config)
    links = family.links(plain, our_shapes(plain, vocab_size))
    return {
        link.ours[0].removesuffix(".weight"): link.theirs[0].removesuffix(".weight")
        for link in links
        if link.is_plain and link.ours[0].endswith(".weight")
    }


def _known(names: Mapping[str, str], ours: str) -> str:
    if ours not in names:
        raise InputError(
            f"the layout of this model's family keeps {ours} in another form, which PEFT's files cannot express",
            hint="leave it out of lora.targets",
        )
    return names[ours]
