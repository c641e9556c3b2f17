"""What a machine can do and what a run uses of it: peak of matrix products, memory, utilisation."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass

import torch

from llmctl.config.errors import UsageError

SIDES = (512, 1024, 2048, 4096, 8192)  # of the square matrices that the peak is measured with
LONG_S = 0.01  # a product that takes longer is large enough
REPEATS = 8
ENOUGH_S = 0.1  # for one size
VENDOR_BF16 = {  # dense peak without sparsity, FLOP/s, from NVIDIA's data sheets; the name is a part of the device's
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165.2e12,
}


@dataclass(frozen=True)
class Peak:
    """What one rank could compute at most.

    Attributes:
        flops: operations in a second.
        told: where the figure comes from.
    """

    flops: float
    told: str


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best of a few products of square matrices, in this process with its threads; about 0.1 s."""
    side, best = SIDES[0], math.inf
    for side in SIDES:
        best = _seconds_of_product(side, device, dtype)
        if best > LONG_S:
            break
    name = str(dtype).removeprefix("torch.")
    return Peak(2 * side**3 / best, f"a product of {side} x {side} matrices in {name} on one rank")


def _seconds_of_product(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.ones(side, side, dtype=dtype, device=device)
    best, first = math.inf, time.perf_counter()
    for number in range(REPEATS + 1):  # the first one warms up
        if number > 1 and time.perf_counter() - first > ENOUGH_S:
            break
        begun = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best


def vendor_peak(device: torch.device) -> Peak:
    """The vendor's figure for bf16.

    Raises:
        UsageError: the device is not in the table.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    for part, flops in VENDOR_BF16.items():
        if part in name:
            return Peak(flops, f"the vendor's dense bf16 figure for {name}")
    known = ", ".join(VENDOR_BF16)
    raise UsageError(f"no vendor's peak is known for {name}", hint=f"peak=measured; known: {known}")


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
