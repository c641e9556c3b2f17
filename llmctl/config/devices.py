"""Where a model runs, and in which number format; and how many cores there are."""

from __future__ import annotations

import os
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
"""`auto` takes an accelerator where there is one."""

Precision = Literal["fp32", "bf16"]
TrainPrecision = Literal["fp32", "bf16", "fp16", "fp8", "fp8-rowwise"]

AttentionBackend = Literal["auto", "sdpa", "native", "flex", "flash"]
"""Through which kernel packed rows attend."""

Weights = Literal["plain", "int8", "int4"]
"""How a model that only answers keeps its weights: in its precision, or rounded to 8 or 4 bits as it is opened."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
