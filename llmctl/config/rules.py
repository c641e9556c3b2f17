"""Configuration of the rules that drop documents in `clean`. null switches a rule off."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from llmctl.config.base import Config


class QualityConfig(Config):
    """Gopher quality rules (Rae et al. 2021, section A.1.1). null switches a rule off.

    Words are split as spaCy splits English: punctuation is a word of its own, `don't` is two. A word of nothing
    but punctuation does not count towards `min_words`, `max_words` and the mean length.
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
    min_top_ngram_count: int = Field(
        default=1,
        ge=1,
        description="fewest occurrences of a most frequent n-gram; 2 spares short texts in which nothing repeats",
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


class C4Config(Config):
    """C4 rules (Raffel et al. 2020, section 2.2, with the lengths and phrases of its published code).

    They drop lines and rewrite the text to those that are left; some drop the document. null or false
    switches a rule off.
    """

    enabled: bool = Field(default=False, description="apply these rules at all")
    terminal_punctuation: bool = Field(
        default=True, description="drop lines that end in none of . ? ! \" ' or in ... (FineWeb kept them: false)"
    )
    max_word_length: int | None = Field(default=1000, ge=1, description="longest word of a line, in characters")
    min_line_words: int | None = Field(default=3, ge=0, description="fewest words of a line")
    remove_citations: bool = Field(default=True, description="remove [1], [edit] and [citation needed]")
    drop_javascript_lines: bool = Field(default=True, description="drop lines that mention javascript")
    drop_policy_lines: bool = Field(default=True, description="drop lines on terms of use, privacy and cookies")
    drop_lorem_ipsum: bool = Field(default=True, description="drop documents that hold lorem ipsum")
    drop_curly_brackets: bool = Field(default=True, description="drop documents that hold {")
    min_sentences: int | None = Field(default=5, ge=0, description="fewest sentences in the lines that are left")


class FineWebConfig(Config):
    """FineWeb rules (Penedo et al. 2024, section 3.6). null switches a rule off."""

    enabled: bool = Field(default=False, description="apply these rules at all")
    min_punctuated_lines: float | None = Field(
        default=0.12, ge=0, le=1, description="smallest share of lines that end like a sentence, in any script"
    )
    max_short_lines: float | None = Field(
        default=0.67, ge=0, le=1, description="largest share of lines of at most short_line_characters"
    )
    short_line_characters: int = Field(default=30, ge=0, description="longest line that counts as short")
    max_duplicate_line_characters: float | None = Field(
        default=0.01, ge=0, le=1, description="share of characters in lines seen before"
    )
    max_newlines_per_word: float | None = Field(default=0.3, ge=0, description="most line ends per word")


LANGUAGES = (
    "ada assembly awk c clojure cmake coffeescript cpp csharp css cuda d dart dockerfile elixir elm emacs-lisp erlang "
    "fortran fsharp go groovy haskell java javascript julia kotlin lisp lua make matlab nim objective-c ocaml pascal "
    "perl php powershell prolog protobuf python r ruby rust scala scheme shell solidity sql swift tcl typescript vb "
    "verilog vhdl zig"
)


class CodeConfig(Config):
    """Rules for source code. null switches a rule off.

    Line lengths and the alphanumeric share are those of The Stack (Kocetkov et al. 2022) and its forerunners
    (Chen et al. 2021); letters, encoded data, line count and markers those of The Stack v2 (Lozhkov et al. 2024).
    """

    enabled: bool = Field(default=False, description="judge source code by these rules, not by those for prose")
    languages: tuple[str, ...] = Field(
        default=tuple(LANGUAGES.split()), description="values of a document's lang that are source code"
    )
    max_lines: int | None = Field(default=100_000, ge=1, description="most lines")
    max_mean_line_length: float | None = Field(default=100, gt=0, description="longest mean line, in characters")
    max_line_length: int | None = Field(default=1000, ge=1, description="longest line, in characters")
    min_alphanumeric: float | None = Field(
        default=0.25, ge=0, le=1, description="smallest share of letters and digits in the characters"
    )
    min_alphabetic: float | None = Field(
        default=0.25, ge=0, le=1, description="smallest share of letters in the characters"
    )
    generated_marker_lines: int | None = Field(
        default=5, ge=1, description="lines at the start in which `auto-generated` and the like drop the document"
    )
    max_encoded_run: int | None = Field(
        default=1024, ge=1, description="longest run of base64, hexadecimal bytes or \\u escapes, in characters"
    )
    max_encoded: float | None = Field(default=0.5, ge=0, le=1, description="largest share of characters in such runs")
