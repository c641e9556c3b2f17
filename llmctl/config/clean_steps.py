"""Configuration of the steps of `clean` that are no published rule sets: one model a step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llmctl.config.base import Config, parted

PiiKind = Literal["key", "iban", "card", "ssn", "ip", "email", "phone"]
PII_KINDS: tuple[PiiKind, ...] = ("key", "iban", "card", "ssn", "ip", "email", "phone")
Code = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Codes = Annotated[tuple[Code, ...], BeforeValidator(parted)]
Kinds = Annotated[tuple[PiiKind, ...], BeforeValidator(parted)]


class UrlConfig(Config):
    """Documents dropped by their URL; the lists are the inputs `blocklist` and `allowlist`."""

    only_allowed: bool = Field(
        default=False, description="also drop every document whose URL the allow list does not name"
    )


class BoilerplateConfig(Config):
    """Lines that recur in many documents of one site are menus, notices, footers: they are removed."""

    enabled: bool = Field(default=False, description="remove lines that recur; reads the documents twice")
    by: Literal["host", "source"] = Field(
        default="host", description="what counts as one site: the URL's host (the source where there is no URL), or "
        "the source"
    )  # fmt: skip
    min_share: float = Field(
        default=0.3, gt=0, le=1, description="smallest share of a site's documents with the line for it to go"
    )
    min_documents: int = Field(default=5, ge=2, description="fewest documents of a site with the line for it to go")
    min_characters: int = Field(default=8, ge=1, description="shorter lines (} or return) always stay")


class LanguageConfig(Config):
    """Language identification by fastText's lid.176, which comes with the package."""

    identify: bool = Field(default=False, description="name the language in lang and lang_score, and drop nothing")
    keep: Codes = Field(
        default=(), description="ISO 639 codes to keep, such as en,de; others are dropped. Code files stay"
    )
    min_score: float = Field(default=0.65, ge=0, le=1, description="least certain language still kept")

    @property
    def enabled(self) -> bool:
        """Whether languages are looked at."""
        return self.identify or bool(self.keep)


class HarmfulWordsConfig(Config):
    """Limits for the words of the inputs `hardwords` and `softwords`."""

    max_hard: int = Field(default=0, ge=0, description="most occurrences of entries of the hard list")
    max_soft: int = Field(default=3, ge=0, description="most occurrences of entries of the soft list")


class QualityModelConfig(Config):
    """What the scores of the input `classifier` decide; without a limit they are only written as `quality`."""

    min_score: float | None = Field(default=None, ge=0, le=1, description="drop documents that score lower")
    keep_quantile: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="keep this share of the documents, those that score highest; reads them twice",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.min_score is not None and self.keep_quantile is not None:
            raise ValueError("min_score and keep_quantile are two ways to say what stays; give one")
        return self


class PerplexityConfig(Config):
    """What the perplexity by the input `kenlm` decides; without a limit it is only written as `perplexity`."""

    lowercase: bool = Field(
        default=True,
        description="lower-case the text, as the training text of a model file was; a model by `llmctl kenlm` knows it",
    )
    min_perplexity: float | None = Field(default=None, ge=1, description="drop documents below")
    max_perplexity: float | None = Field(default=None, ge=1, description="drop documents above")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least, most = self.min_perplexity, self.max_perplexity
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_perplexity {least} is above max_perplexity {most}; no document would be kept")
        return self


class PiiConfig(Config):
    """Personal data and secrets: e-mail, phone, IBAN, card, SSN, IP address, API keys and tokens."""

    action: Literal["keep", "redact", "tag", "drop"] = Field(
        default="keep",
        description="keep: do not look; redact: [EMAIL] in its place; tag: name kinds and counts in the column pii; "
        "drop: the whole document",
    )
    kinds: Kinds = Field(default=PII_KINDS, min_length=1, description="what to look for")
    public_ips_only: bool = Field(default=True, description="leave private, loopback and example addresses alone")


class SegmentConfig(Config):
    """Documents cut into smaller ones after all rules, with the ids `id#1`, `id#2`, …; and bounds on their length."""

    by: Literal["none", "section", "paragraph"] = Field(
        default="none",
        description="section: at Markdown and reST headings; paragraph: at blank lines outside fenced code",
    )
    min_characters: int = Field(default=0, ge=0, description="drop what is shorter in the end")
    max_characters: int | None = Field(default=None, ge=1, description="drop what is longer in the end")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_characters is not None and self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters {self.min_characters} is above max_characters {self.max_characters}; none is left"
            )
        return self
