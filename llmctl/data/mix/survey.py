"""The first passes of `mix`: what every document is and how large, and which ones are near held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from llmctl.config.mix import MixConfig, Unit
from llmctl.data.mix.near import HeldoutIndex, shingle_sets
from llmctl.data.parts import Report
from llmctl.data.split import HASH_RANGE, identity, is_heldout, split_mark
from llmctl.data.tables import Part, read_part
from llmctl.store.files import publish

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""Texts to their numbers of tokens; pickles."""

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COLUMNS = ("identity", "name", "mark", "bytes", "tokens")
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
        identity: uint64, the hash of the id without its mark; it says what is held out.
        name: uint64, the hash of the whole id.
        mark: int64, the number in the mark (`llmctl.data.split.split_mark`).
        bytes, tokens: int64, sizes.
    """

    identity: npt.NDArray[np.uint64]
    name: npt.NDArray[np.uint64]
    mark: Ints
    bytes: Ints
    tokens: Ints

    @classmethod
    def read(cls, directory: Path) -> Survey:
        """What `survey_part` left in its directory."""
        with np.load(directory / SURVEY_FILE) as arrays:
            return cls(*(arrays[name] for name in COLUMNS))

    @classmethod
    def joined(cls, surveys: Sequence[Survey]) -> Survey:
        """Several parts as one."""
        if not surveys:
            return cls.of([], [], [])
        return cls(*(np.concatenate([getattr(survey, name) for survey in surveys]) for name in COLUMNS))

    @classmethod
    def of(cls, ids: Sequence[str], sizes: Sequence[int], tokens: Sequence[int]) -> Survey:
        """The survey of documents with these ids, bytes and tokens."""
        return cls(
            np.array([identity(name) for name in ids], dtype=np.uint64),
            np.array([xxhash.xxh64_intdigest(name.encode()) for name in ids], dtype=np.uint64),
            np.array([split_mark(name)[1] for name in ids], dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.array(tokens, dtype=np.int64),
        )

    def sizes(self, unit: Unit) -> Ints:
        """Size of each document."""
        if unit == "documents":
            return np.ones(len(self.bytes), dtype=np.int64)
        return self.bytes if unit == "bytes" else self.tokens

    def heldout(self, fraction: float) -> Mask:
        """Which documents the house rule holds out."""
        return self.identity / float(HASH_RANGE) < fraction


def survey_part(task: SurveyTask, directory: Path) -> Report:
    """Measure every document of a part; keep the shingle sets of those that are held out."""
    config = task.config
    surveys: list[Survey] = []
    sets: list[npt.NDArray[np.uint64]] = []
    for batch in read_part(task.part, ["id", "text"]):
        texts = batch.column("text").to_pylist()
        sizes = [len(text.encode()) for text in texts]
        estimated = [max(1, round(size / config.bytes_per_token)) for size in sizes]
        tokens = estimated if task.count_tokens is None else task.count_tokens(texts)
        survey = Survey.of(batch.column("id").to_pylist(), sizes, tokens)
        surveys.append(survey)
        held = survey.heldout(config.heldout_fraction).tolist()
        sets += shingle_sets([text for text, out in zip(texts, held, strict=True) if out], config.ngram_words)
    survey = Survey.joined(surveys)
    with publish(directory / SURVEY_FILE) as handle:
        np.savez(
            handle,
            **{name: getattr(survey, name) for name in COLUMNS},
            shingles=np.concatenate([np.empty(0, np.uint64), *sets]),
            lengths=np.array([len(one) for one in sets], dtype=np.int64),
        )
    return Report(figures={"documents": len(survey.identity)})


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
    index = HeldoutIndex(task.index, config.near_threshold)
    near: list[bool] = []
    for batch in read_part(task.part, ["id", "text"]):
        sets = shingle_sets(batch.column("text").to_pylist(), config.ngram_words)
        for document, shingles in zip(batch.column("id").to_pylist(), sets, strict=True):
            near.append(not is_heldout(document, config.heldout_fraction) and index.has_near(shingles))
    with publish(directory / NEAR_FILE) as handle:
        np.save(handle, np.array(near, dtype=np.bool_))
    return Report(figures={"documents": len(near), "near": sum(near)})
