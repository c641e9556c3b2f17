"""Configuration of the stage `collect`."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import Config, execution


class CollectConfig(Config):
    """What to read into documents."""

    sources: tuple[str, ...] = execution(
        (),
        description="files, folders, glob patterns, or python-docs; filled from the command's arguments, "
        "identified by content",
    )
    limit: int | None = Field(default=None, ge=1, description="stop after this many documents; all where left out")
    license: str = Field(
        default="", max_length=200, description="SPDX identifier for documents that name no licence of their own"
    )
    max_document_bytes: int = Field(
        default=16 << 20,
        ge=1,
        le=1 << 30,
        description="longer documents (UTF-8 bytes, decompressed) are dropped and counted",
    )
