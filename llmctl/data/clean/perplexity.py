"""How surprising a text is to an n-gram model (KenLM): low for boilerplate, high for noise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.config.clean_steps import PerplexityConfig
from llmctl.config.errors import InputError
from llmctl.data.clean.kernel import Measure

WORD = re.compile(r"\w+|[^\w\s]")
MOST_LOG10 = 15.0


def sentences(text: str, *, lowercase: bool) -> Iterator[list[str]]:
    """The words and punctuation marks of every line that has any, as a model is trained on them and asked for them."""
    for line in (text.lower() if lowercase else text).split("\n"):
        if words := WORD.findall(line):
            yield words


class Perplexity(Measure):
    """The column `perplexity`: 10^(-sum of log10 p / tokens), a line as a sentence, its end as a token.

    That is the measure of CCNet (Wenzek et al. 2020, section 3.4) over words and punctuation marks. Texts and the
    model's training text must be split alike: `sentences`.
    """

    column = "perplexity"

    def __init__(self, path: Path, config: PerplexityConfig) -> None:
        self.path = path
        self.config = config

    @cached_property
    def model(self) -> Any:
        """The model, loaded when the first batch comes.

        Raises:
            InputError: kenlm is not installed, or the file is no model.
        """
        try:
            import kenlm
        except ImportError:
            raise InputError("the input kenlm needs the package kenlm", hint="pip install 'llmctl[kenlm]'") from None
        try:
            return kenlm.Model(str(self.path))
        except OSError as error:
            reason = str(error).splitlines()[0]
            hint = "give a model that KenLM's lmplz or build_binary wrote"
            raise InputError(f"{self.path}: {reason}", hint=hint) from None

    def values(self, batch: pa.RecordBatch) -> list[float | None]:
        """Every document's perplexity; None for a text without a word."""
        return [self.measure(text) for text in batch.column("text").to_pylist()]

    def measure(self, text: str) -> float | None:
        """The perplexity of one text."""
        score, tokens = 0.0, 0
        for words in sentences(text, lowercase=self.config.lowercase):
            score += self.model.score(" ".join(words))
            tokens += len(words) + 1
        return float(10.0 ** min(MOST_LOG10, -score / tokens)) if tokens else None

    def judge(self, value: float) -> str | None:
        """`low_perplexity` or `high_perplexity`."""
        least, most = self.config.min_perplexity, self.config.max_perplexity
        if least is not None and value < least:
            return "low_perplexity"
        return "high_perplexity" if most is not None and value > most else None
