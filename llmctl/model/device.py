"""Where a model runs on this machine, and in which format its products are computed."""

from __future__ import annotations

from typing import Final

import torch

from llmctl.config.errors import UsageError

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The formats of numbers by the names that options give them."""


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        UsageError: cuda was asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds none", hint="set device=auto or device=cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def product_dtype(precision: str) -> torch.dtype | None:
    """The dtype of matrix products under a training precision, None for that of the weights.

    In fp8 it is that of the products which are not in 8 bits, and of what goes into and comes out of the others.
    """
    return None if precision == "fp32" else DTYPES.get(precision, torch.bfloat16)
