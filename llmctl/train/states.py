"""All tensors of a run, by parameter and quantity: written in parts by any number of ranks, read by any other number.

A tensor is stored whole under `<quantity>/<parameter>`, whatever ZeRO stage the run had: `weight`, the optimizer's own
(`exp_avg`, `momentum`, …) and `average`. Rank r of n stores every n-th parameter, so that ranks share the writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from llmctl.config.errors import IntegrityError
from llmctl.train.shards import Layout, Piece

WEIGHT, AVERAGE, BUFFER = "weight", "average", "buffer"
PARTS = "part-*.safetensors"  # the star is the rank


def part_file(rank: int) -> str:
    """The name of a rank's part of a state."""
    return PARTS.replace("*", f"{rank:05d}")


class Trained:
    """What a run changes: weights, the optimizer's state, and a running average of the weights where one is kept.

    Args:
        layout: where the weights are that the optimizer updates.
        optimizer: whose state goes with them.
        device: whose random numbers go with them.
        buffers: of the model, by name: the same on every rank, changed in place.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.buffers = dict(buffers or {})
        self.layout = layout
        self.optimizer = optimizer
        self.device = device
        self._average: dict[int, Tensor] = {}  # by the identity of the tensor that it averages

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Move the average towards the present weights: average ← average + share (weights - average)."""
        for held in self.layout.fetched():
            if id(held) in self._average:
                self._average[id(held)].lerp_(held.detach(), share)
            else:
                self._average[id(held)] = held.detach().clone()

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Let the weights be their average, where there is one."""
        for held in self.layout.fetched():
            if id(held) in self._average:
                held.copy_(self._average[id(held)])

    @torch.no_grad()
    def snapshot(self) -> dict[str, Tensor]:
        """A copy of this rank's part in CPU memory; collective where the layout is sharded."""
        made: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            made["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        if self.layout.rank == 0:
            made |= {f"{BUFFER}/{name}": value.to("cpu", copy=True) for name, value in self.buffers.items()}
        owners = {name: number % self.layout.world_size for number, name in enumerate(self.layout.pieces)}
        for held in self.layout.fetched():
            for piece in self.layout.within(held):
                made |= self._of_piece(piece, owners[piece.name])
        return made

    def _of_piece(self, piece: Piece, owner: int) -> dict[str, Tensor]:
        """On rank `owner` everything of one parameter, whole; collective where the layout is sharded."""
        made = {}
        for quantity, values in self._quantities(piece.held).items():
            if values.shape == piece.held.shape:
                whole = self.layout.gather(piece, values, owner)
            else:  # one figure for the whole tensor, or one of a tensor that is not sharded
                whole = values if self.layout.rank == owner else None
            if whole is not None:
                made[f"{quantity}/{piece.name}"] = whole.detach().to("cpu", copy=True).contiguous()
        return made

    def _quantities(self, held: Tensor) -> dict[str, Tensor]:
        given: dict[str, Any] = self.optimizer.state.get(held, {})
        kept = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        average = {AVERAGE: self._average[id(held)]} if id(held) in self._average else {}
        return {WEIGHT: held, **kept, **average}

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        """Put everything back, bit for bit, each rank its own pieces.

        Raises:
            IntegrityError: a parameter is missing.
        """
        for held in self.layout.fetched():
            for piece in self.layout.within(held):
                self._restore_piece(piece, reader)
        for name, buffer in self.buffers.items():
            buffer.copy_(reader.tensor(BUFFER, name))
        reader.restore_random_numbers(self.layout.rank, self.device)

    def _restore_piece(self, piece: Piece, reader: Reader) -> None:
        for quantity in reader.quantities(piece.name):
            whole = reader.tensor(quantity, piece.name)
            elementwise = whole.shape == piece.shape
            target = self._target(piece.held, quantity, None if elementwise else whole)
            if elementwise:
                piece.of(target).copy_(piece.out_of(whole))

    def _target(self, held: Tensor, quantity: str, whole: Tensor | None) -> Tensor:
        """Where a quantity goes, made where it is new; `whole` is all of it where it has a shape of its own."""
        if quantity == WEIGHT:
            return held.detach()
        store: Any = self._average if quantity == AVERAGE else self.optimizer.state[held]
        key: Any = id(held) if quantity == AVERAGE else quantity
        if whole is not None:
            store[key] = whole.to(held.device)
        elif key not in store:
            store[key] = torch.zeros_like(held)
        target: Tensor = store[key]
        return target


class Reader:
    """The parts of one state, read tensor by tensor.

    Args:
        directory: that holds them.
        parts: how many ranks wrote it.

    Raises:
        IntegrityError: a part is missing.
    """

    def __init__(self, directory: Path, parts: int) -> None:
        from safetensors import safe_open

        self._files: list[Any] = []
        self._where: dict[str, Any] = {}
        self._quantities: dict[str, list[str]] = {}
        for rank in range(parts):
            path = directory / part_file(rank)
            if not path.is_file():
                raise IntegrityError(f"the training state {directory} lacks {path.name}", hint="--force starts anew")
            handle: Any = safe_open(path, "pt")
            self._files.append(handle.__enter__())
            for key in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                quantity, _, name = key.partition("/")
                self._where[key] = handle
                self._quantities.setdefault(name, []).append(quantity)

    def quantities(self, name: str) -> list[str]:
        """What is stored of a parameter; the weight must be.

        Raises:
            IntegrityError: it is not.
        """
        found = self._quantities.get(name, [])
        if WEIGHT not in found:
            raise IntegrityError(f"the training state lacks the parameter {name}", hint="--force starts anew")
        return found

    def tensor(self, quantity: str, name: str) -> Tensor:
        """One tensor, whole."""
        found: Tensor = self._where[f"{quantity}/{name}"].get_tensor(f"{quantity}/{name}")
        return found

    def restore_random_numbers(self, rank: int, device: torch.device) -> None:
        """Set the generators as they were on this rank, where it was there."""
        if rank >= len(self._files):
            return
        torch.set_rng_state(self._files[rank].get_tensor("rng/cpu"))
        if device.type == "cuda" and "rng/cuda" in self._files[rank].keys():  # noqa: SIM118
            torch.cuda.set_rng_state(self._files[rank].get_tensor("rng/cuda"), device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._files:
            handle.__exit__(kind, error, trace)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """What a model keeps that is no parameter, by name: the biases of experts, say."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if name not in parameters}


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
