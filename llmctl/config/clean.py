"""Configuration of the stage `clean`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmctl.config.base import Config
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


class QualityConfig(Config):
    """Gopher quality rules (Rae et al. 2021, section A.1.1). null switches a rule off.

    Words are what white space separates, as in the paper; a word without a letter or digit does not count
    towards `min_words`, `max_words` and the mean length.
    """

    enabled: bool = Field(default=True, description="apply these rules at all")
    min_words: int | None = Field(default=50, ge=0, description="fewest words")
    max_words: int | None = Field(default=100_000, ge=1, description="most words")
    min_mean_word_length: float | None = Field(default=3.0, ge=0, description="shortest mean word, in characters")
    max_mean_word_length: float | None = Field(default=10.0, gt=0, description="longest mean word, in characters")
    max_hash_ratio: float | None = Field(default=0.1, ge=0, description="most # signs per word")
    max_ellipsis_ratio: float | None = Field(default=0.1, ge=0, description="most ellipses (... or …) per word")
    max_bullet_lines: float | None = Field(
        default=0.9, ge=0, le=1, description="largest share of lines that start with • or -"
    )
    max_ellipsis_lines: float | None = Field(
        default=0.3, ge=0, le=1, description="largest share of lines that end in an ellipsis"
    )
    min_alphabetic_words: float | None = Field(
        default=0.8, ge=0, le=1, description="smallest share of words with a letter"
    )
    min_stop_words: int | None = Field(
        default=2, ge=0, le=8, description="fewest distinct words of: the be to of and that have with"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(
                f"min_words {self.min_words} is above max_words {self.max_words}; no document would be kept"
            )
        shortest, longest = self.min_mean_word_length, self.max_mean_word_length
        if shortest is not None and longest is not None and shortest > longest:
            raise ValueError(f"min_mean_word_length {shortest} is above max_mean_word_length {longest}")
        return self


class RepetitionConfig(Config):
    """Gopher repetition rules (Rae et al. 2021, table A1): largest shares allowed. null switches a rule off."""

    enabled: bool = Field(default=True, description="apply these rules at all")
    max_duplicate_paragraphs: float | None = Field(
        default=0.30, ge=0, le=1, description="share of paragraphs seen before"
    )
    max_duplicate_paragraph_characters: float | None = Field(
        default=0.20, ge=0, le=1, description="share of characters in paragraphs seen before"
    )
    max_duplicate_lines: float | None = Field(default=0.30, ge=0, le=1, description="share of lines seen before")
    max_duplicate_line_characters: float | None = Field(
        default=0.20, ge=0, le=1, description="share of characters in lines seen before"
    )
    max_top_ngram_characters: dict[int, float] | None = Field(
        default={2: 0.20, 3: 0.18, 4: 0.16},
        description="by n: share of characters in the most frequent n-gram of words",
    )
    max_duplicate_ngram_characters: dict[int, float] | None = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="by n: share of characters in n-grams of words seen before",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for table in (self.max_top_ngram_characters, self.max_duplicate_ngram_characters):
            for n, share in (table or {}).items():
                if not (1 <= n <= 100 and 0 <= share <= 1):
                    raise ValueError(f"{n}: {share} is no n-gram length from 1 to 100 with a share from 0 to 1")
        return self


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
