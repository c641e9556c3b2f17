"""Whole steps of a model in one call of decode.c, for sequences that generate: one step, or several at once.

At the few milliseconds that a small model takes for a step, what Python does between its layers is a third of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from llmctl.inference import kernel
from llmctl.inference.cache import KVCache
from llmctl.inference.fused import FusedBlock, FusedNorm
from llmctl.inference.linears import PackedLinear
from llmctl.inference.request import TokenLogprob
from llmctl.inference.sampler import manner_of, needs_table
from llmctl.inference.sequence import SequenceState
from llmctl.model import native
from llmctl.model.positions import rotary_angles
from llmctl.model.transformer import Transformer

POSITIONS_AT_ONCE = 256
Said = tuple[list[int], list[TokenLogprob]]
"""Ids that were chosen, and their log-probabilities where they are asked for."""


_Decoding = native.structure(  # as in decode.c
    "_Decoding",
    "blocks embedding norm head cosines signed_sines tables lengths limits ends ends_from manners "
    "numbers tokens logprobs counts scratch",
    "sequences layers vocab steps table_width parts",
    "eps scale",
    "next failed",
)


class Decoder:
    """Steps of sequences of which the cache holds all but the last token.

    Args:
        model: one that `fits`.
        cache: of the model.

    Attributes:
        weights: how many numbers each token is multiplied with.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache  # their memory is read
        config, data = model.config, cache.data
        self.weights = sum(weight.numel() for weight in model.buffers())
        layers = [model.layers[index] for index in range(config.layers)]
        self._blocks = (kernel.Block * len(layers))(
            *(layer.call_on(data[index]) for index, layer in enumerate(layers) if isinstance(layer, FusedBlock))
        )
        assert isinstance(model.norm, FusedNorm), "see `fits`"
        assert isinstance(model.lm_head, PackedLinear), "see `fits`"
        call = self._call = _Decoding(ctypes.addressof(self._blocks), model.embed_tokens.weight.data_ptr())
        call.norm, call.eps = model.norm.weight.data_ptr(), model.norm.eps
        call.head, call.layers, call.vocab = model.lm_head.packed.data_ptr(), len(layers), model.vocab_size
        call.scale = config.scale.embedding
        self._angles = (torch.empty(0), torch.empty(0))
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def fits(model: Transformer, cache: KVCache) -> bool:
        """Whether the kernel runs all of a model, and reads its cache."""
        config = model.config
        return (
            all(isinstance(model.layers[index], FusedBlock) for index in range(config.layers))
            and isinstance(model.norm, FusedNorm)
            and isinstance(model.lm_head, PackedLinear)
            and config.positions == "rope"
            and config.scale.logits == 1.0
            and config.scale.logit_softcap is None
            and cache.serves_rows
            and cache.data.dtype == model.dtype
        )

    @staticmethod
    def takes(sequence: SequenceState) -> bool:
        """Whether the kernel chooses as the sequence's request says, at its next token and at all behind it."""
        request = sequence.request
        return (
            not request.bends
            and not request.logprobs
            and not needs_table(request)
            and sequence.matcher is None
            and sequence.generated >= request.min_tokens
        )

    def run(self, sequences: Sequence[SequenceState], counts: Sequence[int]) -> list[Said]:
        """Choose at most so many tokens of each; an id that ends an answer is its last.

        Args:
            sequences: that `takes` takes, with blocks for what is run.
            counts: one at least.

        Raises:
            FloatingPointError: logits are not finite.
        """
        B, steps, call = len(sequences), max(counts), self._call
        blocks = max(len(sequence.blocks) for sequence in sequences)
        tables = np.array(
            [[*sequence.blocks, *([0] * (blocks - len(sequence.blocks)))] for sequence in sequences], dtype=np.int32
        )
        lengths = np.array([len(sequence.tokens) for sequence in sequences])
        limits = np.array(counts)
        ends = np.array([token for sequence in sequences for token in sequence.stop_ids], dtype=np.int64)
        ends_from = np.array([0, *accumulate(len(sequence.stop_ids) for sequence in sequences)])
        manners = np.array([manner_of(sequence.request, 0.0) for sequence in sequences], dtype=np.float64)
        numbers = np.array([sequence.numbers_of(steps) for sequence in sequences])
        tokens = np.empty((B, 1 + steps), dtype=np.int64)
        tokens[:, 0] = [sequence.tokens[-1] for sequence in sequences]
        logprobs, made = np.empty((B, steps), dtype=np.float32), np.empty(B, dtype=np.int64)
        call.tables, call.lengths, call.limits = tables.ctypes.data, lengths.ctypes.data, limits.ctypes.data
        call.ends, call.ends_from = ends.ctypes.data, ends_from.ctypes.data
        call.manners, call.numbers = manners.ctypes.data, numbers.ctypes.data
        call.tokens, call.logprobs, call.counts = tokens.ctypes.data, logprobs.ctypes.data, made.ctypes.data
        call.sequences, call.steps, call.table_width = B, steps, blocks
        self._know_positions(int(lengths.max()) + steps)
        self._run()
        said = zip(sequences, made.tolist(), tokens[:, 1:].tolist(), logprobs.tolist(), strict=True)
        return [_said(sequence, ids[:count], told[:count]) for sequence, count, ids, told in said]

    def _run(self) -> None:
        call, threads = self._call, torch.get_num_threads()
        library = kernel.library()
        library.decode_scratch.restype = ctypes.c_int64
        needed = library.decode_scratch(ctypes.byref(call), threads)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        call.scratch = self._scratch.data_ptr()
        if not library.decode(ctypes.byref(call), native.parallel(), threads):
            raise FloatingPointError(kernel.NOT_FINITE)

    def _know_positions(self, count: int) -> None:
        """Have angles of so many positions."""
        if len(self._angles[0]) >= count:
            return
        config = self._model.config
        wanted = torch.arange(-(-count // POSITIONS_AT_ONCE) * POSITIONS_AT_ONCE)
        angles = rotary_angles(wanted[None], config.rotary_width, config.rope_base, config.rope_scaling)
        cos, sin = self._angles = (angles[0].flatten(0, 2), angles[1].flatten(0, 2))
        self._call.cosines, self._call.signed_sines = cos.data_ptr(), sin.data_ptr()


def _said(sequence: SequenceState, ids: list[int], logprobs: list[float]) -> Said:
    if sequence.request.logprobs is None:
        return ids, []
    return ids, [TokenLogprob(token, logprob) for token, logprob in zip(ids, logprobs, strict=True)]
