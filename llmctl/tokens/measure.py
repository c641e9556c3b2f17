"""How well a tokenizer suits a text: what `llmctl stats TOKENIZER --on REF` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmctl.config.devices import cores
from llmctl.config.errors import InputError
from llmctl.data.tables import read_batches
from llmctl.pipeline.job import Progress
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.tokenizer import Tokenizer

GROUPS = {"languages": "language", "sources": "source"}


@dataclass
class Counts:
    """Sums over the documents of one language or source. A word is what stands between spaces."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, size: int, words: int, tokens: int, unknown: int) -> None:
        """Count one document."""
        self.documents += 1
        self.bytes += size
        self.words += words
        self.tokens += tokens
        self.unknown += unknown

    def figures(self) -> dict[str, Any]:
        """The sums, and what follows from them; None where there is nothing to divide by."""
        return {
            **vars(self),
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "tokens_per_word": _ratio(self.tokens, self.words),
            "unknown_rate": _ratio(self.unknown, self.tokens),
        }


class Measured:
    """What was counted so far: in all, by language and by source, and how often each id was used."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.all = Counts()
        self.groups: dict[str, dict[str, Counts]] = {name: {} for name in GROUPS}
        self.used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._tokenizer = tokenizer

    def add(self, batch: pa.RecordBatch, threads: int) -> None:
        """Encode and count a batch of documents."""
        texts = batch.column("text").to_pylist()
        there = set(batch.schema.names)
        nothing = [""] * batch.num_rows
        columns = {name: batch.column(key).to_pylist() if key in there else nothing for name, key in GROUPS.items()}
        for row, ids in enumerate(self._tokenizer.encode_batch(texts, threads=threads)):
            size, words = len(texts[row].encode()), len(texts[row].split())
            figures = (size, words, ids.size, self._unknown(ids))
            self.all.add(*figures)
            for name, values in columns.items():
                self.groups[name].setdefault(values[row] or "", Counts()).add(*figures)
            self.used += np.bincount(ids, minlength=self.used.size)

    def _unknown(self, ids: NDArray[np.int32]) -> int:
        unk = self._tokenizer.unk_id
        return 0 if unk is None else int(np.count_nonzero(ids == unk))


def measure(artifact: Artifact, documents: Input, top: int, progress: Progress) -> dict[str, Any]:
    """Figures of a tokenizer on `documents`, as JSON values.

    Args:
        artifact: the tokenizer.
        documents: an artifact or a file; streamed.
        top: how many languages and sources are listed, those with the most documents first.
        progress: told of every batch.

    Raises:
        InputError: there is no document.
    """
    tokenizer = Tokenizer.open(artifact.data)
    found = Measured(tokenizer)
    for batch in read_batches(documents):
        found.add(batch, cores())
        progress.update(found.all.documents, None, "documents", tokens=found.all.tokens)
    if not found.all.documents:
        raise InputError(f"{documents.ref} holds no documents", hint="check what was collected or kept")
    ordinary = tokenizer.byte_lengths > 0
    used = int(np.count_nonzero(found.used[ordinary]))
    return {
        "ref": artifact.ref,
        "digest": artifact.digest,
        "kind": artifact.kind,
        "on": documents.ref,
        "vocab_size": tokenizer.vocab_size,
        "changes": list(tokenizer.changes),
        **found.all.figures(),
        "vocabulary_used": used,
        "vocabulary_use": _ratio(used, int(np.count_nonzero(ordinary))),
        "byte_rate": _ratio(_spelled(found.used, tokenizer.piece_bytes), found.all.tokens),
        **{name: _listed(groups, top) for name, groups in found.groups.items()},
    }


def _spelled(used: NDArray[np.int64], piece_bytes: Callable[[int], bytes]) -> int:
    """How many tokens are bytes of a character that was not taken whole."""
    return sum(int(used[index]) for index in np.flatnonzero(used) if _is_part(piece_bytes(int(index))))


def _is_part(piece: bytes) -> bool:
    return len(piece) == 1 and piece[0] >= 0x80


def _listed(groups: dict[str, Counts], top: int) -> dict[str, Any]:
    ordered = sorted(groups.items(), key=lambda item: (-item[1].documents, item[0]))
    return {
        "different": len(ordered),
        "top": [{"value": value, **counts.figures()} for value, counts in ordered[:top]],
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
