"""Where a model runs, and in which number format."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
"""`auto` takes an accelerator where there is one."""

Precision = Literal["fp32", "bf16"]
