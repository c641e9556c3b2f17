"""Ranks that share rows: the models and ways of cutting that `test_sequence` tries; also an entry of ranks."""

import json

import numpy as np
from splits import LAYOUTS, Laid, take_a_step
from synthetic_run import VOCAB, WIDE

from llmctl.pipeline.job import Product
from llmctl.train.heldout import HeldOutRows

GROUPED = {**WIDE, "heads": 4, "kv_heads": 2}
SLOPED = {**WIDE, "heads": 4, "kv_heads": 4, "positions": "alibi", "attention": {"sinks": True, "window": 9}}
LATENT = {
    **WIDE,
    "heads": 4,
    "kv_heads": 4,
    "latent": {"kv_rank": 16, "rope_width": 8, "value_width": 24},
}
CUTS = {  # name: layout, model, and how four ranks share its rows
    "pairs": ("tight rows", GROUPED, {"sequence_parallel": 2, "zero": 3}),
    "all four": ("all in one row", SLOPED, {"sequence_parallel": 4, "zero": 0, "recompute": "full"}),
    "of their own keys": ("one document a row", LATENT, {"sequence_parallel": 2, "zero": 2}),
}


def held():
    """Rows to measure on, every second id standing for a byte; they are shared too."""
    return HeldOutRows(Laid(LAYOUTS["wide rows and blank ones"]), np.arange(VOCAB, dtype=np.int32) % 2)


def train_cut(job):
    """The entry of every rank: all the ways, one after another, in directories of their own."""
    for name, (layout, model, fields) in CUTS.items():
        measured = held() if name == "pairs" else None
        fitted = take_a_step(
            job.out / name, LAYOUTS[layout], measured, model=model, nproc=4, micro_batch_rows=1, **fields
        )
        if fitted.weights is not None:
            (job.out / name / "totals.json").write_text(json.dumps(fitted.totals))
    return Product("llmctl.checkpoint/1")
