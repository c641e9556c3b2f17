"""Configuration of `import` and `export`: models and tokenizers of others, both ways."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmctl.config.base import Config, execution
from llmctl.config.tokens import ImportTokenizerConfig

WeightType = Literal["keep", "fp32", "bf16", "fp16"]


class ImportConfig(Config):
    """What to read into a checkpoint, or into a tokenizer."""

    sources: tuple[str, ...] = execution(
        (),
        max_length=1,
        description="a model's folder, hf://owner/name[@revision], a .gguf file, or a tokenizer's file or folder; "
        "identified by content",
    )
    dtype: WeightType = Field(
        default="keep",
        description="what weights are rounded to; keep rounds nothing, and gives quantized ones as fp32",
    )
    license: str = Field(default="", max_length=200, description="SPDX identifier, where the model does not say it")
    shard_bytes: int = Field(default=5_000_000_000, ge=1 << 16, le=1 << 50, description="most bytes of one file")
    tokenizer: ImportTokenizerConfig = Field(
        default=ImportTokenizerConfig(), description="what a tokenizer's file does not say"
    )
    allow_private: bool = execution(
        False, description="fetch from addresses of this machine and its private networks too"
    )
    max_download_bytes: int = execution(
        1 << 40, ge=1, le=1 << 50, description="a larger file behind a URL is refused, not cut"
    )
    timeout_s: float = execution(
        86400.0, gt=0, le=31 * 86400.0, description="how long one download may take, its retries included"
    )


class ExportConfig(Config):
    """What a checkpoint is written as."""

    to: tuple[str, ...] = Field(
        default=(), max_length=1, description="where to: a new folder, or a file for gguf; filled from the arguments"
    )
    format: Literal["auto", "hf", "gguf"] = Field(
        default="auto", description="Hugging Face folder or llama.cpp's file; auto: gguf where the name ends in .gguf"
    )
    dtype: Literal["keep", "fp32", "bf16", "fp16", "q8_0"] = Field(
        default="keep",
        description="what weights are rounded to; keep rounds nothing; q8_0 is for gguf alone; vectors of a gguf stay "
        "fp32",
    )
    shard_bytes: int = Field(default=5_000_000_000, ge=1 << 16, le=1 << 50, description="most bytes of one file of hf")
