"""Configuration of the stage `clean`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmctl.config.clean_steps import (
    BoilerplateConfig,
    HarmfulWordsConfig,
    LanguageConfig,
    PerplexityConfig,
    PiiConfig,
    QualityModelConfig,
    SegmentConfig,
    UrlConfig,
)
from llmctl.config.engine import EngineConfig
from llmctl.config.rules import C4Config, CodeConfig, FineWebConfig, QualityConfig, RepetitionConfig


class CleanConfig(EngineConfig):
    """How documents are normalised and which are dropped."""

    html: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="turn HTML to text: where the url, id or text says it is HTML, for every document, or never",
    )
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        default="resiliparse",
        description="trafilatura: main content with more care, 12 times slower (pip install 'llmctl[trafilatura]')",
    )
    main_content: bool = Field(
        default=False, description="keep only the main content of HTML pages, without menus and footers"
    )
    repair_unicode: bool = Field(default=True, description="repair wrongly decoded text (mojibake) with ftfy")
    urls: UrlConfig = Field(default_factory=UrlConfig, description="URL and domain lists")
    boilerplate: BoilerplateConfig = Field(
        default_factory=BoilerplateConfig, description="removal of lines that recur in many documents of a site"
    )
    language: LanguageConfig = Field(default_factory=LanguageConfig, description="language identification")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="Gopher quality rules")
    repetition: RepetitionConfig = Field(default_factory=RepetitionConfig, description="Gopher repetition rules")
    c4: C4Config = Field(default_factory=C4Config, description="C4 rules, line by line")
    fineweb: FineWebConfig = Field(default_factory=FineWebConfig, description="FineWeb rules")
    code: CodeConfig = Field(default_factory=CodeConfig, description="rules for source code, as in The Stack")
    harmful: HarmfulWordsConfig = Field(default_factory=HarmfulWordsConfig, description="lists of harmful words")
    classifier: QualityModelConfig = Field(
        default_factory=QualityModelConfig, description="limits for the scores of a quality classifier"
    )
    perplexity: PerplexityConfig = Field(
        default_factory=PerplexityConfig, description="limits for the perplexity by an n-gram model"
    )
    pii: PiiConfig = Field(default_factory=PiiConfig, description="personal data and secrets")
    segment: SegmentConfig = Field(default_factory=SegmentConfig, description="cutting into sections or paragraphs")
    keep_rejected: bool = Field(
        default=False, description="also write dropped documents, with reason and value, to rejected-*.parquet"
    )
