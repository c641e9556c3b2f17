"""Weights by our names, wherever they lie: in a model, in safetensors, in a GGUF. Read one at a time, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmctl.config.errors import InputError, IntegrityError
from llmctl.model.families.links import Link, Shapes, Stored, their_shapes

COPY_AGAIN = "copy or make the checkpoint again"
PREFIXES = ("model.", "transformer.")


class Source(Protocol):
    """Tensors by their names, from a folder or a file."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor by name."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype | None:
        """What `tensor` gives; None where that is no float type."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one."""
        ...


class Weights(Protocol):
    """All parameters of a model, one at a time."""

    @property
    def shapes(self) -> Shapes:
        """Of every parameter by name."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """What `tensor` gives."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One parameter."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """The weights of a model that is there."""

    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> Shapes:
        """Of every parameter by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Of one parameter."""
        return self.tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        """One parameter."""
        return self.tensors[name]


@dataclass
class StoredWeights:
    """The weights of a checkpoint in another layout, under our names.

    Attributes:
        source: where they lie.
        shapes: of ours.
        links: from theirs to ours, by our name.
    """

    source: Source
    shapes: Shapes
    links: Mapping[str, Link]
    _last: tuple[Link, Mapping[str, Tensor]] | None = field(default=None, init=False)

    @classmethod
    def open(
        cls, source: Source, links: Sequence[Link], shapes: Shapes, idle: re.Pattern[str], told_by: str
    ) -> StoredWeights:
        """Check that the source holds exactly what the model needs; no weight is read.

        Args:
            source: where the weights lie.
            links: one for each of our parameters.
            shapes: of ours.
            idle: tensors that may be there and are not needed.
            told_by: the name of what tells the shape of the model, for messages.

        Raises:
            IntegrityError: a tensor is missing, superfluous or of another shape or type; it is named.
            InputError: the weights are quantized in a way that is not read here.
        """
        if not any(name.startswith(PREFIXES) for name in source.stored):  # a checkpoint of the bare decoder
            links = [_bare(link) for link in links]
        expected = their_shapes(links, shapes)
        _check_names(source, set(expected), idle, told_by)
        for name, shape in expected.items():
            _check_kind(source, name, tuple(shape), told_by)
        return cls(source, shapes, {name: link for link in links for name in link.ours})

    def dtype(self, name: str) -> torch.dtype:
        """What `tensor` gives."""
        dtypes = {self.source.dtype(theirs) for theirs in self.links[name].theirs}
        known = [dtype for dtype in dtypes if dtype is not None]
        return max(known, key=lambda dtype: (dtype.itemsize, str(dtype)))

    def tensor(self, name: str) -> Tensor:
        """One parameter. Those that lie in one tensor are best asked for one after the other.

        Raises:
            IntegrityError: it holds NaN or infinity, or the file changed since it was opened.
        """
        link = self.links[name]
        if self._last is None or self._last[0] is not link:
            self._last = None  # let go of the one before first
            read = link.read([self._finite(theirs) for theirs in link.theirs])
            self._last = link, dict(zip(link.ours, read, strict=True))
        return self._last[1][name]

    def _finite(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        if not math.isfinite(tensor.sum(dtype=torch.float32).item()):  # which large ones overflow, so look again
            lowest, highest = (bound.item() for bound in tensor.aminmax())  # NaN passes through both
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise IntegrityError(
                    f"{self.source.file_of(name)}: {name} holds NaN or infinity",
                    hint="the training run diverged, or " + COPY_AGAIN,
                )
        return tensor


class Maker:
    """Makes tensors of another layout from ours; what one link gives is kept until another is asked for."""

    def __init__(self, weights: Weights, links: Sequence[Link]) -> None:
        self.weights = weights
        self.links = {theirs: link for link in links for theirs in link.theirs}
        self._last: tuple[Link, dict[str, Tensor]] | None = None

    def __call__(self, name: str) -> Tensor:
        """The tensor of their name."""
        link = self.links[name]
        if self._last is None or self._last[0] is not link:
            self._last = None  # let go of the one before first
            made = link.write([self.weights.tensor(ours).detach() for ours in link.ours])
            self._last = link, dict(zip(link.theirs, made, strict=True))
        return self._last[1][name]


def _bare(link: Link) -> Link:
    """The same link to tensors without the prefix of the decoder."""
    theirs = tuple(name.partition(".")[2] if name.startswith(PREFIXES) else name for name in link.theirs)
    return Link(link.ours, theirs, link.read, link.write)


def _check_names(source: Source, expected: set[str], idle: re.Pattern[str], told_by: str) -> None:
    missing = sorted(expected - source.stored.keys())
    if missing:
        first = next(iter(source.stored), None)
        where = source.file_of(first).parent if first else told_by
        raise IntegrityError(
            f"{where} lacks the tensor {missing[0]}{_and_more(missing)}, which {told_by} needs", hint=COPY_AGAIN
        )
    extra = sorted(name for name in source.stored.keys() - expected if not idle.fullmatch(name))
    if extra:
        raise IntegrityError(
            f"{source.file_of(extra[0])} holds the tensor {extra[0]}{_and_more(extra)}, "
            f"which {told_by} has no place for",
            hint="the two are not of one checkpoint",
        )


def _and_more(names: list[str]) -> str:
    """How many others share a fault."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _check_kind(source: Source, name: str, shape: tuple[int, ...], told_by: str) -> None:
    stored = source.stored[name]
    if tuple(stored.shape) != shape:
        raise IntegrityError(
            f"{source.file_of(name)}: {name} has shape {list(stored.shape)}, but {told_by} makes it {list(shape)}",
            hint="the two are not of one checkpoint",
        )
    if source.dtype(name) is None:
        raise InputError(
            f"{source.file_of(name)}: {name} is of a type that is no weight's: not F32, BF16 or F16",
            hint="quantized weights are read from GGUF alone: get the version of the model in BF16",
        )


def common_dtype(weights: Weights) -> torch.dtype:
    """What most numbers are kept in."""
    numbers: dict[torch.dtype, int] = {}
    for name, shape in weights.shapes.items():
        dtype = weights.dtype(name)
        numbers[dtype] = numbers.get(dtype, 0) + shape.numel()
    return max(numbers, key=lambda dtype: (numbers[dtype], str(dtype)))
