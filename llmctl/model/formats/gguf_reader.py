"""The weights of a GGUF file, mapped from it and dequantised one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from llmctl.config.errors import InputError
from llmctl.model.formats.gguf_header import Header, Placed, read_header

PLAIN: Final = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
}
SPLIT_KEY = "split.count"


@dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Attributes:
        path: the file.
        header: what stands before the weights.
    """

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header.

        Raises:
            InputError: the file is missing, no GGUF, one part of several, or holds what is not read here.
            IntegrityError: it is damaged; the field or tensor is named.
        """
        header = read_header(path)
        parts = header.metadata.get(SPLIT_KEY, 1)
        if parts not in (0, 1):
            raise InputError(
                f"{path} is one of {parts} parts ({SPLIT_KEY})", hint="join them with llama-gguf-split --merge"
            )
        return cls(path, header)

    @property
    def stored(self) -> Mapping[str, Placed]:
        """Every tensor by name."""
        return self.header.tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """By key."""
        return self.header.metadata

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, for messages."""
        del name
        return self.path

    def dtype(self, name: str) -> torch.dtype:
        """What `tensor` gives."""
        held = self.stored[name].encoding.name
        return PLAIN[held][1] if held in PLAIN else torch.float32

    def tensor(self, name: str) -> Tensor:
        """One tensor: F32, F16 and BF16 as they are, mapped; what is quantised as float32."""
        placed = self.stored[name]
        held = placed.encoding.name
        if held in PLAIN:
            kind, dtype = PLAIN[held]
            mapped = np.memmap(self.path, kind, mode="c", offset=placed.start, shape=placed.shape)
            return torch.from_numpy(mapped).view(dtype)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        rows = (*placed.shape[:-1], placed.shape[-1] // placed.encoding.items * placed.encoding.bytes)
        blocks = np.memmap(self.path, np.uint8, mode="r", offset=placed.start, shape=rows)
        return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[held]))
