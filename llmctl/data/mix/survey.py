"""The first passes of `mix`: what every document is and how large, and which ones are near held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmctl.config.mix import MixConfig
from llmctl.data.mix.near import HeldoutIndex, Shingles
from llmctl.data.parts import Report
from llmctl.data.split import HASH_RANGE, identity
from llmctl.data.tables import Part, read_part
from llmctl.store.files import publish

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""Texts to their numbers of tokens; pickles."""

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SURVEY_FILE = "survey.npz"
NEAR_FILE = "near.npy"


@dataclass(frozen=True)
class SurveyTask:
    """One part of a source.

    Attributes:
        part: where its documents are.
        config: how tokens are estimated and what is held out.
        count_tokens: how they are counted instead, where there is a tokenizer.
    """

    part: Part
    config: MixConfig
    count_tokens: TokenCounter | None


@dataclass(frozen=True)
class Survey:
    """The documents of a source or a part, in reading order, without their texts.

    Attributes:
        identity: uint64, the hash of the id; it says which documents are one, and which are held out.
        bytes, tokens: int64, sizes.
    """

    identity: npt.NDArray[np.uint64]
    bytes: Ints
    tokens: Ints

    @classmethod
    def read(cls, directory: Path) -> Survey:
        """What `survey_part` left in its directory."""
        with np.load(directory / SURVEY_FILE) as arrays:
            return cls(arrays["identity"], arrays["bytes"], arrays["tokens"])

    @classmethod
    def joined(cls, surveys: Sequence[Survey]) -> Survey:
        """Several parts as one."""
        return cls(
            np.concatenate([np.empty(0, np.uint64), *(survey.identity for survey in surveys)]),
            np.concatenate([np.empty(0, np.int64), *(survey.bytes for survey in surveys)]),
            np.concatenate([np.empty(0, np.int64), *(survey.tokens for survey in surveys)]),
        )

    def heldout(self, fraction: float) -> Mask:
        """Which documents the house rule holds out."""
        return self.identity / float(HASH_RANGE) < fraction


def survey_part(task: SurveyTask, directory: Path) -> Report:
    """Measure every document of a part; keep the shingle sets of those that are held out."""
    config = task.config
    identities: list[int] = []
    sizes: list[int] = []
    tokens: list[int] = []
    sets: list[npt.NDArray[np.uint64]] = []
    shingles = Shingles(config.ngram_words)
    for batch in read_part(task.part, ["id", "text"]):
        texts = batch.column("text").to_pylist()
        these = [identity(document) for document in batch.column("id").to_pylist()]
        long = [len(text.encode()) for text in texts]
        estimated = [max(1, round(size / config.bytes_per_token)) for size in long]
        identities += these
        sizes += long
        tokens += estimated if task.count_tokens is None else task.count_tokens(texts)
        held = np.array(these, dtype=np.uint64) / float(HASH_RANGE) < config.heldout_fraction
        sets += [shingles(text) for text, out in zip(texts, held, strict=True) if out]
    with publish(directory / SURVEY_FILE) as handle:
        np.savez(
            handle,
            identity=np.array(identities, dtype=np.uint64),
            bytes=np.array(sizes, dtype=np.int64),
            tokens=np.array(tokens, dtype=np.int64),
            shingles=np.concatenate([np.empty(0, np.uint64), *sets]),
            lengths=np.array([len(one) for one in sets], dtype=np.int64),
        )
    return Report(figures={"documents": len(sizes), "bytes": sum(sizes)})


def heldout_sets(directory: Path) -> list[npt.NDArray[np.uint64]]:
    """The shingle sets of a part's held-out documents, as `survey_part` left them."""
    with np.load(directory / SURVEY_FILE) as arrays:
        ends = np.cumsum(arrays["lengths"])
        return np.split(arrays["shingles"], ends)[:-1]


@dataclass(frozen=True)
class NearTask:
    """One part of a source, to be compared with all held-out documents."""

    part: Part
    config: MixConfig
    index: Path


def near_part(task: NearTask, directory: Path) -> Report:
    """Mark the training documents of a part that are near a held-out one."""
    config = task.config
    index, shingles = HeldoutIndex(task.index, config.near_threshold), Shingles(config.ngram_words)
    near: list[bool] = []
    for batch in read_part(task.part, ["id", "text"]):
        ids = np.array([identity(document) for document in batch.column("id").to_pylist()], dtype=np.uint64)
        held = (ids / float(HASH_RANGE) < config.heldout_fraction).tolist()
        texts = batch.column("text").to_pylist()
        near += [not out and index.has_near(shingles(text)) for text, out in zip(texts, held, strict=True)]
    with publish(directory / NEAR_FILE) as handle:
        np.save(handle, np.array(near, dtype=np.bool_))
    return Report(figures={"documents": len(near), "near": sum(near)})
