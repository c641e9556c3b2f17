"""Configuration of the stage `collect`."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import Config, execution


class CollectConfig(Config):
    """What to read into documents."""

    sources: tuple[str, ...] = execution(
        (),
        description="files, folders, glob patterns, https:// s3:// gs:// hf:// URLs, or python-docs; filled from "
        "the command's arguments, identified by content",
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
    allow_private: bool = execution(
        False, description="fetch from addresses of this machine and its private networks too"
    )
    max_download_bytes: int = execution(
        16 << 30, ge=1, le=1 << 50, description="a larger file behind a URL is refused, not cut"
    )
    timeout_s: float = execution(
        14400.0, gt=0, le=31 * 86400.0, description="how long one download may take, its retries included"
    )
