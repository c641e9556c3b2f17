"""Where a data stage runs: worker processes of this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Literal

from llmctl.config.base import Config, execution

EngineName = Literal["native", "ray"]


class EngineConfig(Config):
    """What every stage that works part by part has in common. None of it decides the result."""

    engine: EngineName = execution(
        "native",
        description="native: worker processes of this machine; ray: a Ray cluster that sees the store's directory "
        "(pip install 'llmctl[ray]')",
    )
    ray_address: str = execution(
        "", description="address of the Ray cluster, such as auto or 10.0.0.1:6379; empty starts Ray on this machine"
    )
    workers: int = execution(0, ge=0, le=4096, description="processes that work on parts; 0: one for each core")
