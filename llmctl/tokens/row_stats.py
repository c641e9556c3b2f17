"""What packed rows are like: how full, how cut, of which sources, and in which shares training takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.stats.values import Values
from llmctl.store.artifact import Artifact
from llmctl.tokens.mixture import PARTS
from llmctl.tokens.rows import SPLITS, Rows

SHOWN_ROWS = 40  # of a picture


def measure_rows(artifact: Artifact) -> dict[str, Any]:
    """Everything that `llmctl stats ROWS` shows, as plain values.

    Raises:
        InputError: the artifact holds no rows.
        IntegrityError: its files do not fit together.
    """
    opened = {split: Rows.open(artifact, split) for split in SPLITS}
    semantic = artifact.manifest.semantic
    return {
        "ref": artifact.ref,
        "seq_len": semantic["seq_len"],
        "bytes": artifact.bytes,
        "splits": {split: _split_figures(rows) for split, rows in opened.items() if rows.count},
        "sources": _source_figures(opened["train"], semantic.get("sources", [])),
        "fim_documents": semantic["fim"]["documents"] if "fim" in semantic else 0,
        "first_rows": first_rows(opened["train"]).tolist(),
    }


def first_rows(rows: Rows) -> NDArray[np.int32]:
    """Which piece each place of the first rows that training sees belongs to, -1 on padding; [rows, seq_len]."""
    count = min(SHOWN_ROWS, rows.count)
    return rows.batch(rows.rows_of_step(0, 0, count)).documents if count else np.empty((0, rows.seq_len), np.int32)


def _split_figures(rows: Rows) -> dict[str, Any]:
    length = rows.slices[:, 2].astype(np.int64)
    document = rows.slices[:, 0]
    pieces = np.bincount(document)
    used = np.add.reduceat(length, rows.first[:-1])
    tokens = int(length.sum())
    return {
        "rows": rows.count,
        "tokens": tokens,
        "padding": 1 - tokens / (rows.count * rows.seq_len),
        "full_rows": int(np.count_nonzero(used == rows.seq_len)),
        "documents": int(np.count_nonzero(pieces)),
        "documents_cut": int(np.count_nonzero(pieces > 1)),
        "document_tokens": _spread(np.bincount(document, weights=length).astype(np.int64)[pieces > 0]),
        "piece_tokens": _spread(length),
        "pieces_per_row": _spread(np.diff(rows.first)),
        "context": float((length.astype(np.float64) ** 2).sum() / tokens) / 2,
    }


def _spread(values: NDArray[np.int64]) -> dict[str, Any]:
    found = Values(values)
    return {**found.summary(), "histogram": found.histogram()}


def _source_figures(rows: Rows, names: list[str]) -> list[dict[str, Any]]:
    """Of each source its training rows and tokens, its shares of the tokens by stage, and how soon it repeats."""
    mixture = rows.mixture
    if mixture is None:
        return []
    of_slice = np.repeat(mixture.source_of(np.arange(rows.count)), np.diff(rows.first))
    tokens = np.bincount(of_slice, weights=rows.slices[:, 2], minlength=len(names))
    mean = tokens / np.maximum(1, mixture.counts)  # tokens of a row
    shares = [np.array(stage.shares) / PARTS * mean for stage in mixture.stages]
    spans = [
        None if stage.rows is None else int(stage.rows * part.sum())
        for stage, part in zip(mixture.stages, shares, strict=True)
    ]
    return [
        {
            "source": name,
            "rows": mixture.counts[number],
            "tokens": int(tokens[number]),
            "stages": [
                {"tokens": span, "share": float(part[number] / part.sum())}
                for span, part in zip(spans, shares, strict=True)
            ],
            "passes": mixture.passes(rows.count)[number],
        }
        for number, name in enumerate(names)
    ]
