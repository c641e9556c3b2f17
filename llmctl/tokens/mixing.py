"""`mix` with a tokenizer: documents are weighed by the tokens that they will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmctl.config.mix import MixConfig
from llmctl.data import mix
from llmctl.pipeline.job import Job, Product
from llmctl.tokens.tokenizer import Tokenizer

FRAME = 2  # <s> and </s>, which `tokenize` puts around every document


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of documents as `tokenize` writes them. It pickles: a worker opens the tokenizer once."""

    directory: Path

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the two around it included."""
        return [ids.size + FRAME for ids in _opened(self.directory).encode_batch(texts)]


@cache
def _opened(directory: Path) -> Tokenizer:
    return Tokenizer.open(directory)


def run(job: Job[MixConfig]) -> Product:
    """The stage `mix`; with the input `tokenizer` its tokens are counted, else estimated."""
    counter = TokenCounter(job.artifact("tokenizer").data) if "tokenizer" in job.inputs else None
    return mix.run(job, counter)
