"""Distillation on what the student itself says: the teacher is asked about the texts that the student will make.

(Agarwal et al. 2023, arXiv:2306.13649: generalised knowledge distillation.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmctl.config.distill import OnPolicyConfig
from llmctl.config.errors import UsageError
from llmctl.inference.request import Request
from llmctl.objectives.chats import Chat, PackedChats
from llmctl.objectives.distilled import Distillation
from llmctl.objectives.foreign import PLACES
from llmctl.objectives.sampling import continued, drawn
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.train.loader import Plan
from llmctl.train.local import Local
from llmctl.train.strategy import Strategy

WORDS = 2.0**64


class Alone:
    """Chats, each a row of its own; a `RowSource`, whose rows are the chats of a step.

    Args:
        chats: to learn from.
        seq_len: longest text.
        pad_id: what fills rows.
    """

    def __init__(self, chats: Sequence[Chat], seq_len: int, pad_id: int) -> None:
        self.chats, self.seq_len, self.pad_id = chats, seq_len, pad_id
        self.count = len(chats)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The chats at `indices`, packed in as few rows as they fit."""
        return self.answered(indices, {})

    def answered(self, numbers: NDArray[np.int64], said: Mapping[int, Chat]) -> Batch:
        """The same, with what was `said` in place of the chats there among them."""
        packed = self.packed(numbers, said)
        return packed.batch(np.arange(packed.count))

    def packed(self, numbers: NDArray[np.int64], said: Mapping[int, Chat]) -> PackedChats:
        """Those of `answered` in rows."""
        chats = [said.get(at) or self.chats[int(number)] for at, number in enumerate(numbers)]
        return PackedChats(chats, self.seq_len, self.pad_id)


@dataclass(frozen=True)
class OnPolicy(Distillation):
    """A `Distillation` whose answers are, by a share, the student's own.

    Attributes:
        rows: chats.
        stop_ids: that end an answer.
        latest: figures of the step that was taken last.
    """

    rows: Alone
    stop_ids: tuple[int, ...] = ()
    latest: dict[str, float] = field(default_factory=dict)

    def explore(self, plan: Plan, strategy: Strategy) -> Answering:
        """What makes the rows of each step.

        Raises:
            UsageError: a launcher started several ranks.
        """
        if not isinstance(strategy, Local):
            raise UsageError("on_policy trains in a single process", hint="start llmctl without a launcher")
        return Answering(self, plan, strategy)

    def figures(self) -> dict[str, float]:
        """Of what the student said in the last step."""
        return dict(self.latest)

    def settle(self) -> None:
        """Nothing is drawn ahead."""


class Answering:
    """Gives each step its chats, with answers of the student's own among them; a `Feed`.

    Which chats those are, and what is drawn, depends on seed, step and weights alone, so that a run that is resumed
    makes the same.
    """

    def __init__(self, objective: OnPolicy, plan: Plan, strategy: Local) -> None:
        assert objective.config.on_policy is not None, "that is why it is on policy"
        self._objective, self._plan, self._strategy = objective, plan, strategy
        self._config: OnPolicyConfig = objective.config.on_policy

    def take(self, step: int) -> list[Batch]:
        """The chats of `step`, packed anew."""
        source, plan, begun = self._objective.rows, self._plan, time.perf_counter()
        numbers = plan.rows(step, source)
        chats = [source.chats[int(number)] for number in numbers]
        words = drawn(plan.seed, step, np.arange(2 * len(chats)))
        own = np.flatnonzero(words[: len(chats)] < self._config.share * WORDS)
        said = self._answers([chats[at] for at in own], words[len(chats) :][own])
        tokens = sum(int(np.count_nonzero(chat.labels != IGNORE)) for chat in said)
        self._objective.latest.clear()
        self._objective.latest.update(
            on_policy=len(said) / len(chats), generated_tokens=tokens, generate_s=time.perf_counter() - begun
        )
        packed = source.answered(numbers, dict(zip(own.tolist(), said, strict=True)))
        if PLACES in packed.beside:
            self._objective.latest["compared"] = float((packed.beside[PLACES][packed.labels != IGNORE] >= 0).mean())
        size = plan.micro_rows
        return [packed.slice(slice(start, start + size)) for start in range(0, packed.rows, size)]

    def _answers(self, chats: Sequence[Chat], seeds: NDArray[np.uint64]) -> list[Chat]:
        """The same chats up to the assistant's last turn, and what the student says there."""
        if not chats:
            return []
        config, source = self._config, self._objective.rows
        prompts = [chat.ids[: last_turn(chat)] for chat in chats]
        requests = [
            Request(
                prompt.tolist(),
                max_tokens=min(config.max_new_tokens, source.seq_len - prompt.size),
                temperature=config.temperature,
                seed=int(seed),
                stop_ids=self._objective.stop_ids,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        said = continued(self._strategy.model, None, requests, config.running)
        answers = [one.token_ids for one in said]
        return [joined(*parts) for parts in zip(chats, prompts, answers, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between steps."""


def last_turn(chat: Chat) -> int:
    """Where the ids of the last turn begin that is learned: behind its prompt."""
    learned = np.flatnonzero(chat.labels != IGNORE)
    breaks = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[breaks[-1] + 1 if breaks.size else 0]) + 1


def joined(chat: Chat, prompt: NDArray[np.int64], answer: tuple[int, ...]) -> Chat:
    """A chat of that prompt and answer, of which the answer is learned."""
    ids = np.concatenate([prompt, np.array(answer, dtype=np.int64)])
    labels = np.full(ids.size, IGNORE, dtype=np.int64)
    labels[prompt.size - 1 : -1] = ids[prompt.size :]
    return Chat(chat.document, ids, labels)
