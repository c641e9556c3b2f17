"""Writes safetensors one tensor at a time, in shards of bounded size; equal tensors give equal bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.model.formats.safetensors_header import METADATA
from llmctl.model.formats.safetensors_reader import INDEX_FILE, WEIGHTS_FILE
from llmctl.store.files import publish, publish_bytes

SHARD_BYTES = 5_000_000_000
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Planned:
    """A tensor that is still to be made."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_folder(
    directory: Path,
    planned: Mapping[str, Planned],
    make: Callable[[str], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `model.safetensors`, or shards and their index where it would be larger than `shard_bytes`.

    Args:
        directory: where to.
        planned: every tensor by name.
        make: gives the tensor of a name; asked once for each, in the order of `planned`, and not kept.
        shard_bytes: most bytes of one file, unless one tensor alone has more.
        wrote: told the bytes written so far.
    """
    groups = _groups(planned, shard_bytes)
    total, done = sum(tensor.bytes for tensor in planned.values()), 0

    def counted(count: int) -> None:
        nonlocal done
        done += count
        wrote(done)

    if len(groups) == 1:
        _write_file(directory / WEIGHTS_FILE, planned, groups[0], make, counted)
        return
    place_of = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        _write_file(directory / file, planned, names, make, counted)
        place_of.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place_of.items()))}
    publish_bytes(directory / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())


def _groups(planned: Mapping[str, Planned], shard_bytes: int) -> list[list[str]]:
    """Names in order, cut where a shard is full."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, tensor in planned.items():
        if groups[-1] and held + tensor.bytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += tensor.bytes
    return groups


def _write_file(
    path: Path,
    planned: Mapping[str, Planned],
    names: Sequence[str],
    make: Callable[[str], Tensor],
    wrote: Callable[[int], None],
) -> None:
    """One file, atomically and durably."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    # Wide types first, as the format wants each tensor aligned to its items; the order of `planned` else.
    ordered = sorted(names, key=lambda name: -planned[name].dtype.itemsize)
    at = 0
    for name in ordered:
        plan = planned[name]
        offsets = [at, at + plan.bytes]
        header[name] = {"dtype": NAMES[plan.dtype], "shape": list(plan.shape), "data_offsets": offsets}
        at += plan.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with publish(path) as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            tensor = make(name).detach().to(device="cpu", dtype=planned[name].dtype).contiguous()
            if tuple(tensor.shape) != planned[name].shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, planned were {list(planned[name].shape)}")
            items = tensor.reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(items), BLOCK_BYTES):
                handle.write(items[start : start + BLOCK_BYTES])
                wrote(min(BLOCK_BYTES, len(items) - start))
    os.chmod(path, 0o644)  # noqa: PTH101 (beside os.replace)
