"""Any number of ranks under DeepSpeed, with ZeRO 0 to 3 (Rajbhandari et al., 2020); the numbers of `local`.

DeepSpeed averages gradients over ranks where the loop wants their sum, and divides by the micro-batches where
the loop has divided by the global denominator already; both are undone here. Weights, gradients and the
optimizer's state are fp32, and bf16 is torch's autocast inside the forward pass, as in a single process.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llmctl.config.errors import UsageError
from llmctl.config.optimizers import SophiaConfig
from llmctl.config.sequence import uncut
from llmctl.config.train import TrainConfig
from llmctl.model.device import product_dtype
from llmctl.model.sequence import SharedRows
from llmctl.model.transformer import Transformer
from llmctl.train.disk import own_folder
from llmctl.train.float8 import use_float8
from llmctl.train.muon import Muon
from llmctl.train.optimizers import build_optimizer, described, set_rate
from llmctl.train.ranks import Ranks
from llmctl.train.recompute import recompute
from llmctl.train.scaling import unscale
from llmctl.train.shards import Layout, Piece
from llmctl.train.states import Trained, buffers_of
from llmctl.train.strategy import Call, T, gradient_in_turn, join

SHARED_MEMORY_OP = "deepspeed_shm_comm"


class Guest(nn.Module):
    """Lets a function of the model run inside DeepSpeed's forward, where sharded weights are gathered on use."""

    def __init__(self, model: Transformer, autocast: torch.dtype | None, device_type: str) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.device_type = device_type

    def forward(self, call: Call) -> Tensor:
        """`call(model)` under autocast."""
        with torch.autocast(self.device_type, dtype=self.autocast, enabled=self.autocast is not None):
            return call(self.model)


class DeepSpeed:
    """A `Strategy` over the ranks that a launcher started."""

    name = "deepspeed"

    def __init__(self, ranks: Ranks, device: torch.device, zero: int) -> None:
        self.rank = ranks.rank
        self.world_size = ranks.world_size
        self.zero = zero
        self.device = device
        self.scale = 1.0
        self._accept: Callable[[float], bool]
        self._verdict: bool | None = None
        self._norm: float | None = None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        join()

    def prepare(self, model: Transformer, config: TrainConfig, micro_batches: int) -> None:
        """Hand the model and a plain torch optimizer to DeepSpeed.

        Raises:
            UsageError: the optimizer works in a single process only, or ranks cannot share rows of this model.
        """
        if isinstance(config.optimizer, SophiaConfig):
            raise UsageError("sophia runs in a single process only", hint="start it without a launcher")
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)  # read when deepspeed is imported
        import deepspeed

        # Its own all-reduce through shared memory would be compiled with g++ for a minute; gloo is at hand.
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
        deepspeed.init_distributed(verbose=False)
        self.model = model.to(self.device).train()
        if config.sequence_parallel > 1:
            if reason := uncut(model.config, config.sequence_parallel):
                raise UsageError(reason, hint="sequence_parallel=1")
            self.model.sequence = SharedRows.join(config.sequence_parallel)
        told = use_float8(self.model, config.precision, self.device)
        recompute(self.model, config.recompute)
        folder = own_folder(config.offload_folder) if config.offload_folder else None
        autocast = product_dtype(config.precision)
        optimizer = build_optimizer(self.model, config.optimizer, autocast)
        self.groups = "; ".join(filter(None, (described(optimizer, config.optimizer), told)))
        self._put_behind_a_gate(optimizer)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=Guest(self.model, autocast, self.device.type),
            optimizer=optimizer,
            config=engine_config(config, self.world_size, self.zero, micro_batches, folder),
        )
        layout = self._layout()
        if isinstance(optimizer, Muon):
            optimizer.layout = layout
        self.trained = Trained(layout, optimizer, self.device, buffers_of(self.model))

    def _layout(self) -> Layout:
        """Where DeepSpeed has put the fp32 parameters that the optimizer updates."""
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.zero == 0:
            return Layout.whole(named, self.rank, self.world_size)
        piece = _piece_in_shard if self.zero == 3 else _piece_in_flat_group
        pieces = piece(self.engine.optimizer, named)
        fetch = self._fetched if self.zero == 3 else None
        return Layout(pieces, rank=self.rank, world_size=self.world_size, sharded=True, fetch=fetch)

    @contextlib.contextmanager
    def _fetched(self, held: Tensor) -> Iterator[None]:
        """While a shard and the optimizer's state of it are in memory, which otherwise may be on a disk."""
        groups = self.optimizer.fp32_partitioned_groups_flat
        number = next(at for at, shard in enumerate(groups) if shard is held)
        on_disk = self.optimizer._swappable_optimizer_subgroup(number)  # noqa: SLF001 (as DeepSpeed's own step does)
        if on_disk:
            self.optimizer._optimizer_states_and_gradient_swap_in(number)  # noqa: SLF001
        try:
            yield
        finally:
            if on_disk:
                self.optimizer._optimizer_states_and_gradient_swap_out(number)  # noqa: SLF001

    def described(self) -> str:
        """Of the groups as they were before sharding."""
        return self.groups

    def forward(self, call: Call) -> Tensor:
        """Run through the engine."""
        result: Tensor = self.engine(call)
        return result

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Scaled so that DeepSpeed's mean over ranks is a sum; its division by micro-batches is left out."""
        scale = self.scale if self.zero == 0 else 1.0  # above stage 0 DeepSpeed multiplies itself
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)  # it cannot count batches that grow
        self.engine.backward(loss * (self.world_size * scale), scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch

    def gradient(self, calls: Sequence[Call], targets: float, at: Callable[[str], None]) -> Tensor:
        """In turn."""
        return gradient_in_turn(self, calls, targets, at)

    def scale_loss(self, scale: float) -> None:
        """Above stage 0 DeepSpeed scales and unscales; at stage 0 this class does."""
        if self.zero and scale != self.scale:
            self.optimizer.override_loss_scale(scale)
        self.scale = scale

    def step(self, factor: float, accept: Callable[[float], bool]) -> float:
        """Let the engine clip and update; it has reduced the gradients in the last backward."""
        set_rate(self.optimizer, factor)
        self._accept, self._verdict, self._norm = accept, None, None
        if self.zero == 0:  # the engine clips but does not tell the norm
            if self.scale != 1.0:
                unscale(self.model.parameters(), self.scale)
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            self._norm = float(nn.utils.get_total_norm(gradients))
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self._norm is None else self._norm

    def _put_behind_a_gate(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer update only where the loop agrees to the gradient's norm.

        Above stage 0 the engine calls it for one group after another, having computed the norm over all of them.
        """
        update = optimizer.step

        def gated() -> None:
            if self._verdict is None:
                norm = self._norm if self._norm is not None else float(self.optimizer._global_grad_norm)  # noqa: SLF001
                self._verdict = math.isfinite(norm) and self._accept(norm)
            if self._verdict:
                update()

        optimizer.step = gated  # type: ignore[method-assign, assignment]

    def refresh(self) -> None:
        """Copy the fp32 weights of all shards to where the model looks for them, as the end of a step does."""
        if self.zero in (1, 2):
            self.optimizer.update_lp_params()
        elif self.zero == 3:
            self.optimizer._partition_all_parameters()  # noqa: SLF001 (as DeepSpeed's own step begins and ends)
            for number, held in enumerate(self.optimizer.fp32_partitioned_groups_flat):
                with self._fetched(held):
                    self.optimizer._reassign_or_swap_out_partitioned_parameters(number)  # noqa: SLF001
            self.optimizer._post_step(set())  # noqa: SLF001

    def sum(self, values: Sequence[float]) -> list[float]:
        """All-reduce in fp64."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """Pickled by one rank and read by the others, all of them ours."""
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, value)
        return found

    def weights(self) -> dict[str, Tensor] | None:
        """Gather parameter by parameter, so that rank 0 needs room for one copy in CPU memory."""
        import deepspeed

        gathered = {name: value.to("cpu", copy=True) for name, value in self.trained.buffers.items()}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:  # what is frozen is no part of the run's state
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero == 3):
                if self.rank == 0:
                    gathered[name] = parameter.detach().to("cpu", copy=True)
        return gathered if self.rank == 0 else None


def engine_config(
    config: TrainConfig, world_size: int, zero: int, micro_batches: int, folder: Path | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration for one run; pure. `folder` is this rank's own, for what lies on a disk.

    The batch sizes only have to be consistent with one another: the loop deals the rows.
    """
    sharding: dict[str, Any] = {"stage": zero, "contiguous_gradients": True, "overlap_comm": False}
    if folder is not None:
        # Weights that are sharded by ZeRO 3 and kept in memory are copied to what is on the disk, and back.
        sharding["offload_optimizer"] = {"device": "nvme", "nvme_path": str(folder)}
        sharding["offload_param"] = {"device": "cpu"}
    elif config.offload == "cpu":
        sharding["offload_optimizer"] = {"device": "cpu"}
        if zero == 3:
            sharding["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batches * world_size,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": sharding,
        "zero_force_ds_cpu_optimizer": False,  # its own needs a compiler; ours work wherever their tensors are
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _piece_in_flat_group(optimizer: Any, named: Mapping[str, nn.Parameter]) -> Iterator[Piece]:
    """Stages 1 and 2: a group's parameters lie end to end, and each rank holds an equal stretch of them."""
    held = {id(p): shard for group, shard in _flat_groups(optimizer) for p in group}
    for name, parameter in named.items():
        found: Any = getattr(parameter, "_hp_mapping")  # noqa: B009 (DeepSpeed's attribute, unknown to the type checker)
        at, start, length = 0, 0, 0
        if found is not None:
            at, start = found.hp_fragment_address.start, found.lp_fragment_address.start
            length = found.hp_fragment_address.numel
        yield Piece(name, parameter.shape, held[id(parameter)], at, start, length)


def _flat_groups(optimizer: Any) -> Iterator[tuple[list[nn.Parameter], Tensor]]:
    return zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)


def _piece_in_shard(optimizer: Any, named: Mapping[str, nn.Parameter]) -> Iterator[Piece]:
    """Stage 3: each parameter is cut into equal parts, one for each rank, the last of them padded."""
    for name, parameter in named.items():
        number, at, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        shape: torch.Size = getattr(parameter, "ds_shape")  # noqa: B009 (as above)
        start = min(length * distributed.get_rank(), shape.numel())
        held = optimizer.fp32_partitioned_groups_flat[number]
        yield Piece(name, shape, held, at, start, min(length, shape.numel() - start))
