"""A folder of safetensors, in one file or in shards with an index, read tensor by tensor from the mapped files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmctl.config.errors import InputError, IntegrityError
from llmctl.model.formats.pickles import refuse_pickles_among
from llmctl.model.formats.safetensors_header import COPY_AGAIN, Stored, read_header
from llmctl.store.files import explained

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LARGEST_INDEX_BYTES = 64 << 20
MAPPED_BYTES = 32 << 20  # that are read through a mapping before it is made anew


@dataclass(frozen=True)
class SafetensorsFolder:
    """The weights of a Hugging Face directory.

    Attributes:
        directory: where they lie.
        stored: every tensor by name.
        shards: the file that holds each.
    """

    directory: Path
    stored: Mapping[str, Stored]
    shards: Mapping[str, Path]
    _mapped: dict[Path, tuple[Any, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, directory: Path) -> SafetensorsFolder:
        """Read and check the headers of all shards; no weight is read.

        Raises:
            InputError: there are no weights, a shard is missing, or the weights are pickles.
            IntegrityError: a header or the index is damaged; file and tensor are named.
        """
        single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
        if single.is_file():
            stored = read_header(single)
            return cls(directory, stored, dict.fromkeys(stored, single))
        if index.is_file():
            return cls._sharded(directory, index)
        with explained(str(directory)):
            refuse_pickles_among(directory, [path.name for path in directory.iterdir()])
        raise InputError(
            f"{single} does not exist, nor does {INDEX_FILE}", hint="copy or download the whole checkpoint again"
        )

    @classmethod
    def _sharded(cls, directory: Path, index: Path) -> SafetensorsFolder:
        place_of = _weight_map(index)
        headers: dict[str, dict[str, Stored]] = {}
        for name, shard in place_of.items():
            if shard not in headers:
                if not (directory / shard).is_file():
                    raise InputError(
                        f"{directory / shard} does not exist, but {INDEX_FILE} has {name!r} in it",
                        hint="copy or download the missing shard",
                    )
                headers[shard] = read_header(directory / shard)
            if name not in headers[shard]:
                raise IntegrityError(
                    f"{directory / shard} lacks {name!r}, which {INDEX_FILE} has in it", hint=COPY_AGAIN
                )
        for shard, header in headers.items():
            stray = sorted(name for name in header if place_of.get(name) != shard)
            if stray:
                raise IntegrityError(
                    f"{directory / shard} holds {stray[0]!r}, which {INDEX_FILE} does not have in it", hint=COPY_AGAIN
                )
        stored = {name: headers[shard][name] for name, shard in place_of.items()}
        return cls(directory, stored, {name: directory / shard for name, shard in place_of.items()})

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, for messages."""
        return self.shards[name]

    def dtype(self, name: str) -> torch.dtype | None:
        """What `tensor` gives; None where that is no float type of weights."""
        return FLOATS.get(self.stored[name].dtype)

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored, mapped from its file: its pages are read when they are used.

        Raises:
            IntegrityError: the file changed since it was opened.
        """
        shard = self.shards[name]
        try:
            handle, left = self._mapped.get(shard, (None, 0))
            if left <= 0:  # not for each tensor: a header takes as long to read as its weights
                self._mapped.clear()  # what was read leaves memory
                handle, left = safe_open(shard, framework="pt"), MAPPED_BYTES
            tensor: Tensor = handle.get_tensor(name)
            self._mapped[shard] = handle, left - tensor.nbytes
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{self.shards[name]}: {name!r} cannot be read: {error}", hint=COPY_AGAIN) from None
        return tensor


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to the name of its shard."""

    def broken(what: str) -> IntegrityError:
        return IntegrityError(f"{index} {what}", hint=COPY_AGAIN)

    with explained(str(index)):
        size = index.stat().st_size
        content = index.read_bytes() if size <= LARGEST_INDEX_BYTES else None
    if content is None:
        raise broken(f"has {size} bytes, too many for an index")
    try:
        parsed: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise broken(f"is not JSON: {error}") from None
    place_of = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not (isinstance(place_of, dict) and place_of):
        raise broken("has no weight_map")
    for name, shard in place_of.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise broken(f"puts {name!r} into {shard!r}, which is no safetensors file beside it")
    return place_of
