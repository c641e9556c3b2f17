"""What the loop needs of the way in which a step is computed: alone, or by several ranks under DeepSpeed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed

from llmctl.config.devices import cores
from llmctl.config.train import TrainConfig
from llmctl.model.transformer import Transformer
from llmctl.train.ranks import meeting_point
from llmctl.train.states import Trained

Call = Callable[[Transformer], Tensor]
T = TypeVar("T")

KEPT_BYTES = 2_000_000_000  # free memory that is not given back to the system; an int in the C interface

PATIENCE = timedelta(days=1)  # how long ranks wait for rank 0 to have its input; a dead peer is noticed at once


class Strategy(Protocol):
    """One way to compute steps. All methods are collective: every rank calls them in the same order.

    Attributes:
        name: `local` or `deepspeed`.
        rank: of this process, 0 leads.
        world_size: number of ranks.
        zero: ZeRO stage, 0 where nothing is sharded.
        device: where the model computes.
        trained: the tensors that steps change, from `prepare` on.
        model: that computes, from `prepare` on.
    """

    name: str
    rank: int
    world_size: int
    zero: int
    device: torch.device
    trained: Trained
    model: Transformer

    def prepare(self, model: Transformer, config: TrainConfig, micro_batches: int) -> None:
        """Take over `model`, which must hold the same weights on every rank."""
        ...

    def forward(self, call: Call) -> Tensor:
        """`call(model)` under the run's precision, with sharded weights at hand."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`; over ranks and micro-batches, of which this may be the last, they are summed."""
        ...

    def gradient(self, calls: Sequence[Call], targets: float, at: Callable[[str], None]) -> Tensor:
        """Add up the gradient of the step's loss over this rank's micro-batches.

        Args:
            calls: the loss of each micro-batch, a sum over its targets.
            targets: of all ranks, by which the sum is divided.
            at: told what is being done, for the watchdog.

        Returns:
            The sum of the losses, an fp64 scalar without gradient.
        """
        ...

    def scale_loss(self, scale: float) -> None:
        """Multiply losses by `scale` from now on, and gradients by its inverse before they are clipped."""
        ...

    def step(self, factor: float, accept: Callable[[float], bool]) -> float:
        """Clip the global gradient, update at `factor` times the peak rates, clear it; its 2-norm before clipping.

        Nothing is updated where `accept`, given the norm, says no, or where the norm is not finite.
        """
        ...

    def refresh(self) -> None:
        """Let the model compute with the weights that were put into `trained`."""
        ...

    def described(self) -> str:
        """One line that says which parameters the optimizer treats how."""
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in fp64."""
        ...

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in their order, on each of them."""
        ...

    def weights(self) -> dict[str, Tensor] | None:
        """The full fp32 weights by name, on the CPU of rank 0; None on the other ranks."""
        ...


def gradient_in_turn(strategy: Strategy, calls: Sequence[Call], targets: float, at: Callable[[str], None]) -> Tensor:
    """`Strategy.gradient`, one micro-batch after the other."""
    total = torch.zeros((), dtype=torch.float64, device=strategy.device)
    for number, call in enumerate(calls, start=1):
        at("a forward pass")
        loss = strategy.forward(call)
        total += loss.detach()
        at("a backward pass")
        strategy.backward(loss / targets, last=number == len(calls))
    return total


def set_threads(threads: int, ranks_here: int) -> None:
    """Use `threads` CPU threads, or this machine's cores divided by the ranks on it where 0."""
    torch.set_num_threads(threads or max(1, cores() // ranks_here))


def keep_freed_memory() -> None:
    """Let the C library keep what it frees: each step frees and wants the same large buffers again.

    By default glibc maps every large buffer anew and unmaps it when freed, so each step pays for the page faults:
    a quarter of the time of a small model on a virtual machine (docs/benchmarks.md). Elsewhere than glibc this
    does nothing. The values are those of <malloc.h>.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, KEPT_BYTES)
        mallopt(top_pad, 64 << 20)


@contextlib.contextmanager
def garbage_of_now_on() -> Iterator[None]:
    """Search for garbage only among what is made inside.

    Modules and the model stay, and would be looked at again and again for the objects that each step makes.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def precision_warning(precision: str, device: torch.device) -> str | None:
    """What to say where this device computes in the chosen precision far more slowly than in the other.

    A CPU without bf16 instructions falls back to a loop that was 60 times slower than fp32 (EPYC, AVX2).
    """
    if precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001 (torch has no public name for it)
        return "this CPU has no bf16 instructions, so bf16 falls back to a slow emulation: precision=fp32 is faster"
    if precision == "fp16" and device.type == "cpu":
        return "CPUs compute in fp16 far more slowly than in fp32: precision=fp16 is for GPUs without bf16"
    if precision == "fp32" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU computes many times faster in bf16: consider precision=bf16"
    return None


def join() -> None:
    """Join the process group of a launcher's ranks, once: gloo for tensors on the CPU, NCCL for those on GPUs."""
    if not distributed.is_initialized():
        os.environ.update(meeting_point(os.environ))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
