"""A checkpoint as a Hugging Face directory in the Llama layout, which transformers and vLLM open as it is."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmctl.config.errors import InputError, IntegrityError
from llmctl.model.llama_json import generation_json, read_json, refuse_beyond, to_json
from llmctl.model.transformer import Transformer
from llmctl.store.files import explained, publish_bytes, sync_directory
from llmctl.tokens.tokenizer import TOKENIZER_FILES, Tokenizer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD = "lm_head.weight"
COPY_AGAIN = "copy or make the checkpoint again"


def save(model: Transformer, directory: Path, tokenizer_directory: Path | None) -> None:
    """Write a checkpoint; equal weights give equal bytes.

    Args:
        model: its parameters are saved in the dtype that they have.
        directory: made if it is not there; each file appears whole or not at all.
        tokenizer_directory: whose tokenizer files are copied. With None the ids of BOS and EOS are Llama's, 1 and 2.

    Raises:
        UsageError: the layout cannot express the model's shape; nothing is written.
    """
    refuse_beyond(model.config)
    bos, eos, pad, stops = 1, 2, None, [2]
    if tokenizer_directory is not None:
        tokenizer = Tokenizer.open(tokenizer_directory)
        bos, eos, pad, stops = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, list(tokenizer.stop_ids)
        for name in TOKENIZER_FILES:
            source = tokenizer_directory / name
            if source.is_file():
                publish_bytes(directory / name, source.read_bytes())
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    _publish_json(directory / CONFIG_FILE, to_json(config, model.vocab_size, model.dtype, (bos, eos, pad)))
    _publish_json(directory / GENERATION_FILE, generation_json(bos, stops, pad, config.context))
    tensors = {_stored_name(name): value.detach().contiguous() for name, value in model.state_dict().items()}
    _publish_tensors(directory / WEIGHTS_FILE, tensors)


def load(directory: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Transformer:
    """Open a checkpoint. The weights are mapped from the file, not read, where dtype and device allow.

    No code from the directory runs: the configuration is data, and safetensors holds nothing but numbers.

    Args:
        directory: holds config.json and model.safetensors.
        dtype: what to convert the weights to; None keeps the file's.
        device: where to put them.

    Raises:
        InputError: a file is missing, or it describes a model that is not ours.
        IntegrityError: the weights are damaged or do not fit the configuration; the tensor is named.
    """
    config, vocab_size = read_json(directory / CONFIG_FILE)
    with torch.device("meta"):  # shapes only, no memory
        model = Transformer(config, vocab_size)
    path = directory / WEIGHTS_FILE
    with explained(str(path)), open(path, "rb"):
        pass  # says plainly what safetensors says obscurely
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as stored:
            names = _checked_names(path, set(stored.keys()), model)
            for name, expected in names.items():
                tensors[name] = _checked(
                    path, _stored_name(name), stored.get_tensor(_stored_name(name)), expected.shape
                )
            if model.lm_head is None and HEAD in stored.keys():  # noqa: SIM118 (not a dict)
                _check_tied(path, stored.get_tensor(HEAD), tensors["embed_tokens.weight"])
    except SafetensorError as error:
        raise IntegrityError(f"{path} is not an intact safetensors file: {error}", hint=COPY_AGAIN) from None
    target = dtype or tensors["embed_tokens.weight"].dtype
    moved = {name: tensor.to(device=device, dtype=target) for name, tensor in tensors.items()}
    model.load_state_dict(moved, assign=True)
    return model


def _stored_name(name: str) -> str:
    """What the layout calls our parameter."""
    return name if name == HEAD else f"model.{name}"


def _checked_names(path: Path, stored: set[str], model: Transformer) -> dict[str, Tensor]:
    """Our parameters by name, after checking that the file has all of them and nothing else."""
    wanted = model.state_dict()
    missing = sorted({_stored_name(name) for name in wanted} - stored)
    if missing:
        raise IntegrityError(f"{path} lacks the tensor {missing[0]}{_and_more(missing)}", hint=COPY_AGAIN)
    known = {_stored_name(name) for name in wanted} | {HEAD}
    # Early Llama checkpoints carry the rotary frequencies, which follow from the configuration.
    extra = sorted(name for name in stored - known if not name.endswith("rotary_emb.inv_freq"))
    if extra:
        raise IntegrityError(
            f"{path} holds the tensor {extra[0]}{_and_more(extra)}, which {CONFIG_FILE} has no place for",
            hint="the two files are not of one checkpoint",
        )
    return wanted


def _and_more(names: list[str]) -> str:
    """How many others share a fault."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _checked(path: Path, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor`, if it has the right shape, a floating dtype and only finite numbers."""
    if tensor.shape != shape:
        raise IntegrityError(
            f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG_FILE} makes it {list(shape)}",
            hint="the two files are not of one checkpoint",
        )
    if tensor.dtype not in DTYPES:
        raise IntegrityError(f"{path}: {name} is {tensor.dtype}, not a weight's float type", hint=COPY_AGAIN)
    lowest, highest = (bound.item() for bound in tensor.aminmax())  # NaN passes through both
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise IntegrityError(
            f"{path}: {name} holds NaN or infinity", hint="the training run diverged, or " + COPY_AGAIN
        )
    return tensor


def _check_tied(path: Path, head: Tensor, embedding: Tensor) -> None:
    """A tied model may carry its output matrix too, if it is the embedding."""
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise IntegrityError(
            f"{path}: {HEAD} differs from the embedding, but {CONFIG_FILE} ties them",
            hint="set tie_word_embeddings to false",
        )


def _publish_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as transformers does: sorted, two spaces."""
    publish_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _publish_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write weights atomically and durably. `save_file` replaces the file it writes, so `publish` cannot hold it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, {"format": "pt"})
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 (beside os.fsync and os.replace)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except SafetensorError as error:
        raise InputError(f"cannot write {path}: {error}", hint="check the disk's free space and permissions") from None
    finally:
        temporary.unlink(missing_ok=True)
