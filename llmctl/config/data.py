"""Configuration of the document stages: collect, clean, dedup, and the lessons made from documentation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

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


class CleanConfig(Config):
    """How documents are normalised and which are dropped."""

    html: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="turn HTML to text: where the url, id or text says it is HTML, for every document, or never",
    )
    main_content: bool = Field(
        default=False, description="keep only the main content of HTML pages, without menus and footers"
    )
    repair_unicode: bool = Field(default=True, description="repair wrongly decoded text (mojibake) with ftfy")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="Gopher quality rules")
    repetition: RepetitionConfig = Field(default_factory=RepetitionConfig, description="Gopher repetition rules")
    keep_rejected: bool = Field(
        default=False, description="also write dropped documents, with reason and value, to rejected-*.parquet"
    )


class DedupConfig(Config):
    """Which documents count as the same."""

    exact: bool = Field(default=True, description="remove documents equal up to letter case and white space")
    near: bool = Field(
        default=True, description="remove near duplicates, found by MinHash and verified by exact Jaccard"
    )
    threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1.0,
        description="smallest Jaccard similarity of word n-gram sets that counts as duplicate",
    )
    permutations: int = Field(default=128, ge=16, le=1024, description="hash functions of a MinHash signature")
    ngram_words: int = Field(default=5, ge=1, le=100, description="words per shingle")
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="seed of the hash functions")


class ChatsConfig(Config):
    """How documentation becomes question-and-answer chats."""

    heldout_fraction: float = Field(
        default=0.05, ge=0, le=0.5, description="share of entries, by id, kept out of the chats"
    )
    seed: int = Field(default=1, ge=0, description="seed of the choice of phrasings")
    phrasings: int = Field(
        default=2, ge=1, le=6, description="differently worded questions per entry and kind of question"
    )
    reverse: bool = Field(default=True, description="also ask which function does what is described")
    max_answer_words: int = Field(
        default=60, ge=5, le=1000, description="longest answer, in words; whole sentences are kept"
    )
    limit: int | None = Field(default=None, ge=1, description="at most this many chats; all where left out")


class QuizConfig(Config):
    """How held-out documentation becomes multiple-choice questions."""

    heldout_fraction: float = Field(
        default=0.05, gt=0, le=1, description="share of entries, by id, asked about; the same as for chats and pack"
    )
    choices: int = Field(default=4, ge=2, le=10, description="summaries to choose from, one of them right")
    seed: int = Field(default=1, ge=0, description="seed of the wrong choices and of the position of the right one")
    per_document: int = Field(
        default=5, ge=1, description="at most this many questions on one document (a class and its methods)"
    )
    limit: int | None = Field(default=None, ge=1, description="at most this many questions; all where left out")
