"""Any number of ranks under DeepSpeed, with ZeRO 0 to 3 (Rajbhandari et al., 2020); the numbers of `local`.

DeepSpeed averages gradients over ranks where the loop wants their sum, and divides by the micro-batches where
the loop has divided by the global denominator already; both are undone here. Weights, gradients and the
optimizer's state are fp32, and bf16 is torch's autocast inside the forward pass, as in a single process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llmctl.config.train import TrainConfig
from llmctl.model.transformer import Transformer
from llmctl.train.launch import Ranks
from llmctl.train.optimizers import build_optimizer
from llmctl.train.strategy import Call, autocast_dtype, join

TAG = "state"
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
        if device.type == "cuda":
            torch.cuda.set_device(device)
        join()

    def prepare(self, model: Transformer, config: TrainConfig, micro_batches: int) -> None:
        """Hand the model and a plain torch optimizer to DeepSpeed."""
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)  # read when deepspeed is imported
        import deepspeed

        # Its own all-reduce through shared memory would be compiled with g++ for a minute; gloo is at hand.
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
        deepspeed.init_distributed(verbose=False)
        self.model = model.to(self.device).train()
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=Guest(self.model, autocast_dtype(config.precision), self.device.type),
            optimizer=build_optimizer(self.model, config.optimizer),
            config=engine_config(config, self.world_size, self.zero, micro_batches),
        )

    def forward(self, call: Call) -> Tensor:
        """Run through the engine."""
        result: Tensor = self.engine(call)
        return result

    def backward(self, loss: Tensor) -> None:
        """Scaled so that DeepSpeed's mean over ranks is a sum; its division by micro-batches is left out."""
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-batch

    def step(self, lr: float) -> float:
        """Let the engine clip and update; it has reduced the gradients in the last backward."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self.zero == 0:  # the engine clips but does not tell the norm
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def sum(self, values: Sequence[float]) -> list[float]:
        """All-reduce in fp64."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def save(self, directory: Path) -> None:
        """DeepSpeed's own files, each rank its shard, with the generators' states."""
        client: dict[str, Any] = {"rng_cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            client["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        self.engine.save_checkpoint(str(directory), tag=TAG, client_state=client, save_latest=False)

    def load(self, directory: Path) -> None:
        """Restore them. They are pickles, read because this run wrote them into its own work directory."""
        _, client = self.engine.load_checkpoint(str(directory), tag=TAG)
        torch.set_rng_state(client["rng_cpu"].cpu())
        if "rng_cuda" in client:
            torch.cuda.set_rng_state(client["rng_cuda"].cpu(), self.device)

    def weights(self) -> dict[str, Tensor] | None:
        """Gather parameter by parameter, so that rank 0 needs room for one copy in CPU memory."""
        import deepspeed

        gathered = {}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero == 3):
                if self.rank == 0:
                    gathered[name] = parameter.detach().to("cpu", copy=True)
        return gathered if self.rank == 0 else None


def engine_config(config: TrainConfig, world_size: int, zero: int, micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's configuration for one run; pure.

    The batch sizes only have to be consistent with one another: the loop deals the rows.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batches * world_size,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": zero, "contiguous_gradients": True, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
