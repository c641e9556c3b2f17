"""Noise on the embeddings of chats that are learned from (NEFTune: Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from llmctl.objectives.chats import PackedChats
from llmctl.tokens.batch import NOISE, Batch


class NoisyChats:
    """`PackedChats` with noise of a step beside each batch; a `RowSource` that is `Noisy`.

    The noise of a token is uniform within alpha / sqrt(L D), L the tokens of its own chat and D the model's width: of
    the chat and not of the row, so that it does not depend on packing or padding. It is a function of the seed, the
    step, the chat and the place in it alone (Philox, Salmon et al. 2011), so that neither resuming nor another number
    of ranks or micro-batches changes it.

    Args:
        chats: the rows.
        alpha: of the paper.
        width: D.
    """

    def __init__(self, chats: PackedChats, alpha: float, width: int) -> None:
        self._chats, self._alpha, self._width = chats, alpha, width
        self.count = chats.count

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows as they are."""
        return self._chats.batch(indices)

    def batch_of_step(self, seed: int, step: int, indices: NDArray[np.int64]) -> Batch:
        """The rows, and beside them noise [B, T, D]."""
        batch = self._chats.batch(indices)
        noise = np.zeros((*batch.tokens.shape, self._width), dtype=np.float32)
        for row, index in enumerate(indices):
            at = 0
            for which in self._chats.chats_of(int(index)):
                length = self._chats.chats[which].ids.size
                noise[row, at : at + length] = self._of_chat(seed, step, which, length)
                at += length
        return dataclasses.replace(batch, beside={**batch.beside, NOISE: noise})

    def _of_chat(self, seed: int, step: int, which: int, length: int) -> NDArray[np.float32]:
        """[length, D]."""
        philox = np.random.Philox(key=[seed, step], counter=[0, 0, 0, which])
        drawn = np.random.Generator(philox).random((length, self._width), dtype=np.float32)
        return np.float32(self._alpha / np.sqrt(length * self._width)) * (2 * drawn - 1)
