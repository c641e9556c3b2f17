"""Configuration of the stage `collect`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from llmctl.config.base import execution, parted
from llmctl.config.engine import EngineConfig


class CollectConfig(EngineConfig):
    """What to read into documents."""

    sources: tuple[str, ...] = execution(
        (),
        description="files, folders, glob patterns, git repositories, https:// s3:// gs:// hf:// URLs, or python-docs; "
        "filled from the command's arguments, identified by content",
    )
    limit: int | None = Field(default=None, ge=1, description="stop after this many documents; all where left out")
    sample: float = Field(
        default=1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="keep this fraction of the documents, chosen by a hash of their id and the seed",
    )
    seed: int = Field(default=0, ge=0, lt=2**53, description="decides which documents a sample takes")
    license: str = Field(
        default="", max_length=200, description="SPDX identifier for documents that name no licence of their own"
    )
    license_allow: Annotated[tuple[str, ...], BeforeValidator(parted)] = Field(
        default=(),
        description="SPDX identifiers, separated by commas: documents under other licences, or none, are dropped",
    )
    encoding: Literal["utf-8", "detect"] = Field(
        default="utf-8",
        description="of text files: utf-8 refuses other bytes, detect guesses the encoding from them; pages of a "
        "crawl say theirs and are always decoded",
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
    max_archive_depth: int = Field(
        default=2, ge=1, le=8, description="archives within archives are read to this depth; 1 reads none of them"
    )
    max_ratio: int = Field(
        default=300,
        ge=10,
        le=1_000_000,
        description="what decompresses to more than this many times its size (and to over 4 MiB) is taken for a "
        "decompression bomb: it is dropped and counted",
    )
    wiki_namespaces: Annotated[tuple[int, ...], BeforeValidator(parted)] = Field(
        default=(0,), description="namespaces of MediaWiki dumps to read; 0 holds the articles"
    )
