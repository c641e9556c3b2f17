"""Plain torch in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llmctl.config.train import TrainConfig
from llmctl.model.device import choose_device, product_dtype
from llmctl.model.differentiated import differentiate
from llmctl.model.transformer import Transformer
from llmctl.train.elementwise import Sophia
from llmctl.train.float8 import use_float8
from llmctl.train.lanes import Lanes, lanes_of
from llmctl.train.optimizers import build_optimizer, described, set_rate
from llmctl.train.ranks import environment
from llmctl.train.recompute import recompute
from llmctl.train.scaling import unscale
from llmctl.train.shards import Layout
from llmctl.train.states import Trained, buffers_of
from llmctl.train.strategy import Call, Strategy, T, gradient_in_turn, keep_freed_memory, set_threads


class Local:
    """A `Strategy` of one rank, with its state in safetensors."""

    name = "local"
    rank = 0
    world_size = 1
    zero = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.scale = 1.0
        self.lanes: Lanes | None = None

    def prepare(self, model: Transformer, config: TrainConfig, micro_batches: int) -> None:
        """Move the model to the device and make its optimizer."""
        self.model = model.to(self.device).train()
        told = use_float8(self.model, config.precision, self.device)
        differentiate(self.model)
        recompute(self.model, config.recompute)
        if config.compile:
            self.model.compile(dynamic=False)
        # A tied one is named once, and what is frozen is no part of the run's state.
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.autocast = product_dtype(config.precision)
        self.optimizer = build_optimizer(model, config.optimizer, self.autocast)
        self.groups = "; ".join(filter(None, (described(self.optimizer, config.optimizer), told)))
        self.trained = Trained(Layout.whole(self.parameters), self.optimizer, self.device, buffers_of(model))
        self.clip_norm = config.clip_norm
        count = lanes_of(config, self.model, self.device, micro_batches)
        self.lanes = Lanes(count, list(self.parameters.values())) if count > 1 else None

    def forward(self, call: Call) -> Tensor:
        """Run under autocast where the precision says so."""
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return call(self.model)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate into `.grad`."""
        del last
        (loss if self.scale == 1.0 else loss * self.scale).backward()  # type: ignore[no-untyped-call]

    def gradient(self, calls: Sequence[Call], targets: float, at: Callable[[str], None]) -> Tensor:
        """In turn, or side by side where there are lanes."""
        if self.lanes is None:
            return gradient_in_turn(self, calls, targets, at)
        at("the passes of all micro-batches")
        return self.lanes.gradient([partial(self.forward, call) for call in calls], self.scale / targets)

    def scale_loss(self, scale: float) -> None:
        """Remember it."""
        self.scale = scale

    def described(self) -> str:
        """Of the groups as they were built."""
        at_a_time = "" if self.lanes is None else f"; {self.lanes.count} micro-batches at a time"
        return self.groups + at_a_time

    def step(self, factor: float, accept: Callable[[float], bool]) -> float:
        """Unscale, clip, update, clear."""
        if self.scale != 1.0:
            unscale(self.parameters.values(), self.scale)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm))
        if math.isfinite(norm) and accept(norm):
            set_rate(self.optimizer, factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def refresh(self) -> None:
        """Nothing to do: the optimizer updates the very parameters that the model computes with."""

    def estimate(self, targets: float) -> None:
        """Take the gradient of sampled targets as Sophia's estimate of the curvature, and clear it."""
        assert isinstance(self.optimizer, Sophia), "no other optimizer asks for it"
        self.optimizer.estimate(targets)
        self.optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return [float(value) for value in values]

    def gather(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def weights(self) -> dict[str, Tensor]:
        """A copy on the CPU."""
        given = {**self.parameters, **self.trained.buffers}
        return {name: value.detach().to("cpu", copy=True) for name, value in given.items()}


def choose_strategy(config: TrainConfig) -> Strategy:
    """Plain torch, or DeepSpeed where the configuration or a launcher's environment asks for ranks."""
    ranks = environment()
    set_threads(config.threads, ranks.local_size)
    keep_freed_memory()
    device = choose_device(config.device, ranks.local_rank)
    if not config.uses_deepspeed and ranks.world_size == 1:
        return Local(device)
    from llmctl.train.deepspeed import DeepSpeed

    return DeepSpeed(ranks, device, config.zero)
