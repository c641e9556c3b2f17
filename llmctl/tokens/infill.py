"""Fill-in-the-middle: documents rearranged so that a model learns to write what stands between two texts.

A document is cut at two random places and becomes `<pre> prefix <suf> suffix <mid> middle` (PSM), or, with the suffix
first, `<pre> <suf> suffix <mid> prefix middle` (SPM); `<s>` and `</s>` stay at its ends (Bavarian et al., "Efficient
Training of Language Models to Fill in the Middle", 2022). Cuts fall between tokens. A document longer than a row is
rearranged in parts of a row each, so that no part misses what it is asked for. What happens to a document depends on
its id and the seed alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import ConfigError, Problem
from llmctl.config.tokens import FimConfig
from llmctl.tokens.corpus import Corpus
from llmctl.tokens.fit import Ints
from llmctl.tokens.order import GOLDEN, U64, mix64
from llmctl.tokens.rows import ranges
from llmctl.tokens.tokenizer import Tokenizer

MARKS = 3  # tokens that a rearranged part has more
CHUNK_TOKENS = 1 << 22
NAMES = (  # prefix, suffix, middle, in published tokenizers
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
)
CHOSEN, ORDER, ONE_CUT, OTHER_CUT = range(4)  # what is drawn


def mark_ids(config: FimConfig, tokenizer: Tokenizer | None, vocab_size: int) -> tuple[int, int, int]:
    """The ids of the three marks: those given, or those that the tokenizer has by a known name.

    Raises:
        ConfigError: there are none, or they are no three ids of the vocabulary.
    """
    if config.ids is not None:
        if len(set(config.ids)) < MARKS or not all(0 <= index < vocab_size for index in config.ids):
            hint = f"give three different ids below {vocab_size}"
            raise ConfigError([Problem("fim.ids", "are no three ids of the vocabulary", hint)])
        return config.ids
    known = tokenizer.special if tokenizer is not None else {}
    for prefix, suffix, middle in NAMES:
        if prefix in known and suffix in known and middle in known:
            return known[prefix], known[suffix], known[middle]
    hint = "take a tokenizer with <|fim_prefix|>, <|fim_suffix|>, <|fim_middle|>, or set fim.ids=[prefix,suffix,middle]"
    raise ConfigError([Problem("fim.rate", "the tokenizer has no tokens that mark what is to be filled in", hint)])


@dataclass(frozen=True)
class Infill:
    """How documents are rearranged.

    Attributes:
        config: rate, share of SPM, seed.
        marks: ids of prefix, suffix and middle.
        seq_len: tokens of a row.
    """

    config: FimConfig
    marks: tuple[int, int, int]
    seq_len: int

    def chosen(self, corpus: Corpus) -> Ints:
        """Indices of the documents to rearrange: a share of those that are trained on."""
        draw = self._uniform(corpus.identity, np.zeros(corpus.tokens.size, dtype=np.int64), CHOSEN)
        return np.flatnonzero((draw < self.config.rate) & ~corpus.heldout)

    def applied(self, corpus: Corpus, path: Path) -> Corpus:
        """The corpus with the chosen documents rearranged; their tokens are written to `path`."""
        documents = self.chosen(corpus)
        if not documents.size:
            return corpus
        body = self.seq_len - MARKS
        lengths = corpus.tokens[documents]
        parts = -(-lengths // body)
        grown = lengths + MARKS * parts
        ends = np.cumsum(lengths)
        dtype = corpus.shards[0].dtype
        with open(path, "wb") as handle:
            start = 0
            while start < documents.size:
                before = int(ends[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
                handle.write(self._rearranged(corpus, documents[start:stop]).astype(dtype).tobytes())
                start = stop
        shard, offset, tokens = corpus.shard.copy(), corpus.offset.copy(), corpus.tokens.copy()
        shard[documents] = len(corpus.shards)
        offset[documents] = np.cumsum(grown) - grown
        tokens[documents] = grown
        shards = [*corpus.shards, np.asarray(np.memmap(path, dtype=dtype, mode="r"))]
        return dataclasses.replace(corpus, shards=shards, shard=shard, offset=offset, tokens=tokens)

    def _rearranged(self, corpus: Corpus, documents: Ints) -> NDArray[Any]:
        """All tokens of some documents, rearranged, back to back."""
        whole = corpus.tokens[documents]
        source = np.empty(int(whole.sum()), dtype=corpus.shards[0].dtype)
        corpus.gather(documents, np.zeros_like(whole), whole, source, np.cumsum(whole) - whole)
        body = self.seq_len - MARKS
        parts = -(-whole // body)
        owner = np.repeat(np.arange(documents.size), parts)
        number = ranges(np.zeros_like(parts), parts)
        length = np.minimum(body, whole[owner] - number * body)
        begin = np.cumsum(length) - length
        low = begin + (number == 0)  # behind <s>
        high = np.maximum(low, begin + length - (number == parts[owner] - 1))  # before </s>
        identity = corpus.identity[documents[owner]]
        draws = [self._uniform(identity, number, what) for what in (ONE_CUT, OTHER_CUT)]
        cuts = np.sort([low + (draw * (high - low + 1)).astype(np.int64) for draw in draws], axis=0)
        suffix_first = self._uniform(identity, number, ORDER) < self.config.spm_rate
        return self._joined(source, begin, low, cuts, high, begin + length, suffix_first)

    def _joined(
        self,
        source: NDArray[Any],
        begin: Ints,
        low: Ints,
        cuts: NDArray[np.int64],
        high: Ints,
        end: Ints,
        suffix_first: NDArray[np.bool_],
    ) -> NDArray[Any]:
        """Each part as: what is before the text, PRE, first piece, SUF, second, MID, third, what is after it."""
        one, two = cuts
        first_end = np.where(suffix_first, low, one)
        third_start = np.where(suffix_first, low, one)
        starts = np.stack((begin, low, two, third_start, high), axis=1)
        stops = np.stack((low, first_end, high, two, end), axis=1)
        lengths = stops - starts
        marks_before = np.array([0, 1, 1, 1, 0])
        places = np.cumsum((lengths + marks_before).reshape(-1)) - lengths.reshape(-1)
        out = np.empty(source.size + MARKS * begin.size, dtype=source.dtype)
        out[ranges(places, lengths.reshape(-1))] = source[ranges(starts.reshape(-1), lengths.reshape(-1))]
        for column, mark in enumerate(self.marks, start=1):
            out[places.reshape(-1, 5)[:, column] - 1] = mark
        return out

    def _uniform(self, identity: NDArray[np.uint64], part: Ints, what: int) -> NDArray[np.float64]:
        """A number in [0, 1) for each part of a document and each thing that is drawn."""
        seed = mix64(np.array([(self.config.seed + GOLDEN) % 2**64], dtype=np.uint64))
        state = mix64(identity ^ seed) + U64(GOLDEN) * (part.astype(np.uint64) * U64(4) + U64(what + 1))
        drawn: NDArray[np.float64] = (mix64(state) >> U64(11)).astype(np.float64) / 2**53
        return drawn
