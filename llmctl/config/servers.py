"""An OpenAI-compatible server in place of a checkpoint."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import Config, execution


class ServerConfig(Config):
    """An OpenAI-compatible server that answers in place of a checkpoint."""

    url: str = Field(default="", description="ask this server in place of REF: its address, up to /v1")
    name: str = Field(default="", description="which of the server's models; its first where left out")
    key_variable: str = Field(default="", description="environment variable that holds the server's key")
    timeout_s: float = execution(600.0, gt=0, le=86400, description="how long one request may take")
